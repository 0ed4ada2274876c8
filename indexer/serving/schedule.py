"""When maintenance does what."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from indexer.serving.graph import GraphSettings


@dataclass(frozen=True)
class MaintenanceSettings:
    """When what is done.

    Attributes:
        dead_share: of dead rows beyond which the table is built anew.
        least_dead: and at least so many.
        tail_rows: of the tail that are left there as long as more is written: scoring them one by one costs a search
            half a millisecond, and adding them to the graph costs the writer's Chroma a core.
        rest_s: seconds without a write after which any tail is absorbed.
        slice_rows: most rows absorbed at once.
        long_tail: rows of the tail beyond which, if they are also more than half of all, a new table is built: a graph
            that nobody reads is built faster.
        free_bytes: that have to stay free on the disk beside a snapshot.
        snapshot_share: of the rows that must have changed since the last snapshot before there is another.
        snapshot_rows: and at least so many.
        snapshot_every_s: shortest time from one snapshot to the next.
        snapshot_pause: the same, as a multiple of what the last one took.
        probe_s: time from one probe to the next; 0: there are none.
        retry_s: wait after the first failure; doubled by each that follows.
        longest_retry_s: longest wait.
    """

    dead_share: float = 0.2
    least_dead: int = 1000
    tail_rows: int = 2048
    rest_s: float = 1.0
    slice_rows: int = 1024
    long_tail: int = 20_000
    free_bytes: int = 0
    snapshot_share: float = 0.05
    snapshot_rows: int = 2000
    snapshot_every_s: float = 30.0
    snapshot_pause: float = 10.0
    probe_s: float = 60.0
    retry_s: float = 1.0
    longest_retry_s: float = 300.0


@dataclass(eq=False)
class Job:
    """One thing to do, when it is due, and how it has been failing."""

    name: str
    due: Callable[[], bool]
    work: Callable[[], Awaitable[None]]
    failures: int = 0
    not_before: float = 0.0


@dataclass(eq=False)
class Renewal:
    """A table built anew that somebody waits for.

    Attributes:
        graph: how its graph is made.
        done: what they wait for.
    """

    graph: GraphSettings
    done: asyncio.Future[None]

    def succeed(self) -> None:
        """It is what reads see now."""
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """It could not be built, or is not wanted any more."""
        if not self.done.done():
            self.done.set_exception(error)
