"""What holds for every test."""

from hypothesis import HealthCheck, settings

# Nothing is timed: a busy machine is no fault of the code. Everything else as it is, on CI as there.
settings.register_profile("untimed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
