"""Anthropic's family: messages.

Translated here from the model server's native API, never passed to its own `/v1/messages`, which
guesses the prompt's tokens from its letters and drops unknown blocks in silence.
"""
