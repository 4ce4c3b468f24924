"""Fixtures of the whole suite: small plugins of `tests/support`."""

pytest_plugins = [
    "tests.support.postgres",
    "tests.support.processes",
    "tests.support.leaks",  # imports processes: a plugin that is imported before pytest loads it is a warning
    "tests.support.proxy",
    "tests.support.simnet",
]
