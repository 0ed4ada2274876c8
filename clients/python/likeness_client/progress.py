"""Shows on stderr how far an ingest is: a bar on a terminal, now and then a line elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from likeness_client.render import err

LINE_EVERY_S = 5.0


class IngestProgress:
    """Progress over a known number of files; a context manager."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._bytes = 0
        self._began = self._last_line = time.monotonic()
        self._console = err()
        self._bar = Progress(
            TextColumn("Indexing"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
            TextColumn("{task.fields[pace]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, pace="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, size: int) -> None:
        """One more file is answered, of so many bytes."""
        self._done += 1
        self._bytes += size
        now = time.monotonic()
        pace = f"{self._done / max(now - self._began, 1e-9):,.1f}/s, {readable_bytes(self._bytes)}"
        self._bar.update(self._task, advance=1, pace=pace)
        if not self._console.is_terminal and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self._console.print(f"{self._done:,} of {self._total:,} pictures, {pace}")

    def say(self, message: str) -> None:
        """A line beside the bar."""
        self._console.print(message)


class WorkProgress:
    """A bar on stderr for work of one or more stages, on a terminal only; a context manager."""

    def __init__(self, stage: str) -> None:
        self._console = err()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(stage.capitalize(), total=None, count="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        """So many items of a stage are done, of so many (0: unknown)."""
        count = f"{done:,} of {total:,}" if total else f"{done:,}"
        self._bar.update(self._task, description=stage.capitalize(), completed=done, total=total or None, count=count)

    def say(self, message: str) -> None:
        """A line beside the bar."""
        self._console.print(message)


def readable_bytes(count: float) -> str:
    """Such as ``12.3 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
