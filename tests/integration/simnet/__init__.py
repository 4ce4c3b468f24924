"""The simulated network over real sockets and processes, and the test support that stands on it."""
