"""What holds for every test."""

from hypothesis import settings

# No time limit on an example: a busy machine is no fault of the code. Everything else as it is, on CI as there.
settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")
