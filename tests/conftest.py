"""What holds for every test."""

import signal

from hypothesis import HealthCheck, settings

# Nothing is timed: a busy machine is no fault of the code. Everything else as it is, on CI as there.
settings.register_profile("untimed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# What a shell starts with "&" ignores interrupts, and with it what tests start in order to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
