"""Fakes of the servers that the gateway talks to."""
