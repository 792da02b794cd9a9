"""Tests under injected faults. They take minutes, so only `make test-faults` runs them."""
