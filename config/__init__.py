"""Settings and server of the gateway. Its version is here; everything else reads it."""

__version__ = "0.1.0"
