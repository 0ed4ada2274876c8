"""Callers that block, each in a thread: for libraries, and for clients that know no event loop."""

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.desk import Answer, Request
from benchmarks.embedder.loops import Seen
from benchmarks.indexer import data

Send = Callable[[], object]


def closed(send: Send, concurrency: int, ramp_s: float, seconds: float) -> dict[str, Any]:
    """Callers that each wait for an answer before they send the next; calls under way at the end do not count."""
    seen, over = Seen(), threading.Event()
    begun = time.perf_counter()

    def call() -> None:
        while not over.is_set():
            sent = time.perf_counter()
            try:
                send()
            except Exception as error:  # counted: the table shows it
                seen.failed[f"{type(error).__name__}: {error}"] += 1
                over.wait(0.2)
                continue
            now = time.perf_counter()
            if now >= begun + ramp_s and not over.is_set():
                seen.done.append(now - begun - ramp_s)
                seen.took.append(now - sent)

    cpu = time.process_time()
    callers = [threading.Thread(target=call) for _ in range(concurrency)]
    for caller in callers:
        caller.start()
    time.sleep(ramp_s + seconds)
    cpu = time.process_time() - cpu
    over.set()
    summary = seen.summary(seconds)
    for caller in callers:
        caller.join()
    return {**summary, "client_cores": round(cpu / (ramp_s + seconds), 3)}


def measured(search: Callable[[data.Array, data.Where | None], object], pool: data.Array, request: Request) -> Answer:
    """Any blocking search's figures; each call takes other vectors, and another limit if there is a filter."""
    batch, where = request["batch"], request.get("where")
    numbers = itertools.count()

    def send() -> None:
        number = next(numbers)
        begin = number * batch % (len(pool) - batch + 1)
        limited = (where[0], where[1] * (1 + 1e-9 * number)) if where else None
        search(pool[begin : begin + batch], limited)

    answer = closed(send, request["concurrency"], request["ramp_s"], request["seconds"])
    return {**answer, "per_s": answer["per_s"] * batch}
