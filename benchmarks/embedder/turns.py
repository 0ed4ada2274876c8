"""Contenders measured in turn, and what came out of the rounds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.desk import Answer
from benchmarks.embedder.figures import median
from benchmarks.embedder.processes import FailedError

Measure = Callable[[], Answer]
Row = dict[str, Any]


def in_turn(measures: Mapping[str, Measure], rounds: int, what: str) -> list[Row]:
    """Measures each contender once a round, every second round in reverse, and takes medians.

    A contender that fails is left out from then on; its row says why.

    Args:
        measures: by contender.
        rounds: how often.
        what: is shown while it runs.

    Returns:
        A row for each contender: its figures' medians, ``rounds`` (items a second, one each), ``error`` if it failed.
    """
    answers: dict[str, list[Answer]] = {name: [] for name in measures}
    errors: dict[str, str] = {}
    for number in range(rounds):
        names = list(measures) if number % 2 == 0 else list(measures)[::-1]
        shown = []
        for name in names:
            if name in errors:
                continue
            try:
                answers[name].append(measures[name]())
            except FailedError as error:
                errors[name] = str(error)
                shown.append(f"{name} FAILED: {error}")
            else:
                shown.append(f"{name} {answers[name][-1]['per_s']:.1f}")
        print(f"  {what}, round {number + 1} of {rounds}: {', '.join(shown)}", flush=True)
    return [row(name, answers[name], errors.get(name)) for name in measures]


def row(name: str, answers: Sequence[Answer], error: str | None = None) -> Row:
    """One contender's figures over its rounds: the median of each number that all have."""
    figures: Row = {"name": name}
    for key in answers[0] if answers else ():
        values = [answer.get(key) for answer in answers]
        if all(isinstance(value, int | float) for value in values):
            figures[key] = median(values)
    said = next((answer["error"] for answer in answers if answer.get("error")), None)
    return {**figures, "rounds": [answer["per_s"] for answer in answers], "error": error or said}


def by_name(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Items a second of each round, by contender."""
    return {one["name"]: one["rounds"] for one in rows}
