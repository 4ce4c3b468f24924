"""Fixtures of the whole suite: small plugins of `tests/support`."""

from hypothesis import HealthCheck, settings

pytest_plugins = [
    "tests.support.postgres",
    "tests.support.processes",
    "tests.support.leaks",  # imports processes: a plugin that is imported before pytest loads it is a warning
    "tests.support.proxy",
    "tests.support.simnet",
]

# A property holds or does not; how long it took says only how busy the machine was.
settings.register_profile("relay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("relay")
