"""Building graphs anew: one at a time, in threads that step back for everybody else."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from chassis.vectors import Array
from indexer.serving.graph import Graph

Result = TypeVar("Result")


class Builder:
    """Rebuilds, one at a time. Graphs are built in a thread that gets the CPU when nobody else wants it.

    Only that: a thread of low priority that held a lock, or Python's, would make all others wait for its turn.
    """

    def __init__(self) -> None:
        self._rebuilds = ThreadPoolExecutor(1, "rebuild")
        self._graphs = ThreadPoolExecutor(1, "build", initializer=_step_back)

    async def run(self, work: Callable[[], Result]) -> Result:
        """Does something that takes minutes."""
        return await asyncio.get_running_loop().run_in_executor(self._rebuilds, work)

    def build(self, graph: Graph, vectors: Array) -> None:
        """Adds rows to a graph that nobody reads yet."""
        self._graphs.submit(graph.build, vectors).result()

    def close(self) -> None:
        """Ends the threads, once what they are at is done."""
        self._rebuilds.shutdown()
        self._graphs.shutdown()


def _step_back() -> None:
    # On Linux priorities are of threads, and those that OpenMP starts from here inherit it.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
