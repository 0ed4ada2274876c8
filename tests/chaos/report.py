"""What is shown while it runs, and the table of rounds and scenarios."""

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from tests.chaos.checker import Kind, Recall, Violation
from tests.chaos.rounds import Outcome

_SHOWN = 5
_CONSOLE = Console(width=160, highlight=False)


def say(text: str) -> None:
    """Shows a line at once."""
    _CONSOLE.print(text, markup=False, soft_wrap=True)


def line(outcome: Outcome) -> str:
    """A round in one line, while it runs."""
    times = f"ready {_seconds(outcome.ready_s)}, writes {_seconds(outcome.writes_s)}"
    counts = f"{outcome.written} written, {outcome.queries} queries, {outcome.doubtful} in doubt, {outcome.items} items"
    text = f"{outcome.name:<28} {times}; {counts}; recall {outcome.recall.share:.4f}; {outcome.note or 'no errors'}"
    if outcome.skipped:
        text = f"{outcome.name:<28} SKIPPED: {outcome.skipped}"
    wrong = [f"    {v.kind.value.upper()}: {v.what}" for v in outcome.violations[:_SHOWN]]
    if len(outcome.violations) > _SHOWN:
        wrong.append(f"    … and {len(outcome.violations) - _SHOWN} more")
    return "\n".join([text, *wrong])


def show(outcomes: Sequence[Outcome], rest: str) -> None:
    """Prints the table and the totals."""
    table = Table(title="Chaos")
    for header in (
        "round",
        "ready s",
        "writes s",
        "written",
        "queries",
        "in doubt",
        "items",
        "recall",
        "wrong",
        "note",
    ):
        table.add_column(header, justify="left" if header in ("round", "note") else "right")
    for outcome in outcomes:
        if outcome.skipped:
            table.add_row(outcome.name, *["–"] * 8, f"SKIPPED: {outcome.skipped}")
            continue
        times = (_seconds(outcome.ready_s), _seconds(outcome.writes_s))
        counts = map(str, (outcome.written, outcome.queries, outcome.doubtful, outcome.items))
        recall = f"{outcome.recall.share:.4f}"
        table.add_row(outcome.name, *times, *counts, recall, str(len(outcome.violations)), outcome.note)
    _CONSOLE.print(table)
    kinds = Counter(violation.kind for outcome in outcomes for violation in outcome.violations)
    whole = Recall()
    for outcome in outcomes:
        whole.add(outcome.recall)
    waits = [outcome.ready_s for outcome in outcomes if outcome.ready_s is not None]
    _CONSOLE.print(
        f"{sum(not o.skipped for o in outcomes)} rounds and scenarios, "
        f"{sum(o.written for o in outcomes)} items written and acknowledged, "
        f"{sum(o.queries for o in outcomes)} queries under load, recall {whole.share:.4f}; ready again after "
        f"{_seconds(max(waits, default=None))} s at most; {rest}"
    )
    _CONSOLE.print("; ".join(f"{kind.value}: {kinds[kind]}" for kind in Kind))
    if aimed := [f"{aim} {sum(hits)} of {len(hits)}" for aim, hits in _aims(outcomes).items()]:
        _CONSOLE.print(f"kills that came in time: {'; '.join(aimed)}")
    for outcome in outcomes:
        if outcome.skipped:
            _CONSOLE.print(f"SKIPPED, so not seen here: {outcome.name}: {outcome.skipped}")


def never_hit(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """A failure for each aim that no kill has hit: what it was to show has not been seen."""
    return [
        Outcome(f"kills: {aim}", violations=[Violation(Kind.MISSED, f"{aim}: none of {len(hits)} kills came in time")])
        for aim, hits in _aims(outcomes).items()
        if not any(hits)
    ]


def _aims(outcomes: Iterable[Outcome]) -> dict[str, list[bool]]:
    """Of the kills that were aimed at something, by what that was: whether each hit it."""
    found: dict[str, list[bool]] = {}
    for outcome in outcomes:
        if outcome.aim:
            found.setdefault(outcome.aim, []).append(outcome.hit)
    return found


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
