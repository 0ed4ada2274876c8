"""From what was observed to the figures that are shown. No processes, no clocks."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Line:
    """A straight line through observations, by least squares.

    Attributes:
        slope: y per x.
        standard_error: the slope's.
    """

    slope: float
    standard_error: float


def line(x: Sequence[float], y: Sequence[float]) -> Line:
    """The line through points; raises ValueError for fewer than three or for points above one another."""
    if len(x) < 3:
        raise ValueError(f"{len(x)} points, at least 3 are needed")
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    spread = float(np.square(xs - xs.mean()).sum())
    if spread == 0:
        raise ValueError("all points have the same x")
    slope = float(((xs - xs.mean()) * (ys - ys.mean())).sum()) / spread
    rest = ys - ys.mean() - slope * (xs - xs.mean())
    return Line(slope, math.sqrt(float(np.square(rest).sum()) / (len(x) - 2) / spread))


def rate(times: Sequence[float], seconds: float) -> float:
    """Items a second from the moments at which they were done.

    Answers come a batch at a time. A count in a window is then off by up to a batch, several per cent on a small
    machine; the slope of the running count over time is not. Below three moments the count has to do. For callers that
    wait for their answers: the slope passes over an outage at the window's end, which their own silence shows.

    Args:
        times: when each item was done, in seconds, any order.
        seconds: the length of the window that they were seen in.
    """
    moments = sorted(times)
    if len(moments) < 3 or moments[0] == moments[-1]:
        return len(moments) / seconds
    counts = np.arange(len(moments), dtype=np.float64)
    centred = np.asarray(moments) - np.mean(moments)
    # Least squares of the count on the time. A long silence at either end would be invisible to it, so the count
    # of the window bounds it: no more than one and a half times that.
    slope = float((centred * (counts - counts.mean())).sum() / np.square(centred).sum())
    return min(slope, 1.5 * len(moments) / seconds)


def block_means(x: Sequence[float], y: Sequence[float], length: float) -> tuple[list[float], list[float]]:
    """The means of x and of y in each stretch of x of that length, without the stretches that are empty.

    Samples taken shortly after one another repeat each other: a line through them all would seem far surer than it is.
    """
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    numbers = np.floor(xs / length)
    blocks = np.unique(numbers)
    return ([float(xs[numbers == n].mean()) for n in blocks], [float(ys[numbers == n].mean()) for n in blocks])


def percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99 in milliseconds; None where nothing was observed."""
    if not seconds:
        return {"p50_ms": None, "p95_ms": None, "p99_ms": None}
    values: npt.NDArray[np.float64] = np.percentile(np.asarray(seconds), [50, 95, 99]) * 1000
    return dict(zip(("p50_ms", "p95_ms", "p99_ms"), (round(float(v), 2) for v in values), strict=True))


def median(values: Sequence[float | None]) -> float | None:
    """The median of the rounds that gave a figure; None if none did."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def ratio(rounds: Mapping[str, Sequence[float | None]], above: str, below: str) -> float | None:
    """The median over the rounds of one contender's figure divided by another's of the same round.

    Within a round the two were measured shortly after one another, so what slows the machine slows both.
    """
    pairs = zip(rounds.get(above, ()), rounds.get(below, ()), strict=False)
    return median([a / b if a is not None and b else None for a, b in pairs])
