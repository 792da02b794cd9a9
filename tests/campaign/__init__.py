"""Proof by destruction: slow, violent tests that run by `make campaign`, not with every change."""
