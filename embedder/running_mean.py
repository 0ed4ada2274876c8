"""What work costs at present, when a machine that stalls now and then is what measures it."""

_WEIGHT = 0.2  # of the latest value
_MOST = 10  # times the mean: what of a value counts


class RunningMean:
    """The mean of late durations, in seconds, of which no single one can make it large.

    A call is refused by what the inputs before it would take: one decode or forward pass that the machine held up must
    not refuse the next caller. So of the first two durations the shorter one counts, and of a later one at most ten
    times the mean; work that has become slow is known as such after a few.

    Attributes:
        value: the mean; 0 before the second duration.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self._first: float | None = None

    def add(self, latest: float) -> None:
        """Takes the latest duration."""
        if self._first is None:
            self._first = latest
        elif not self.value:
            self.value = min(self._first, latest)
        else:
            self.value += _WEIGHT * (min(latest, _MOST * self.value) - self.value)
