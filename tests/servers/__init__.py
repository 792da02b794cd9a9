"""Real servers and a raw client for tests that need sockets and processes."""
