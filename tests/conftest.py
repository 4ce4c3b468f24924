"""Fixtures of the whole suite: small plugins of `tests/support`."""

pytest_plugins = ["tests.support.postgres"]
