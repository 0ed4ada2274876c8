"""How requests arrive: so many callers that each wait for their answer, or a crowd that waits for nobody."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.embedder.figures import percentiles, rate


class RefusedError(Exception):
    """The server has too much to do; try again after so many seconds."""

    def __init__(self, after_s: float) -> None:
        super().__init__(f"refused, try again after {after_s:g} s")
        self.after_s = after_s


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        inference_s: the forward passes that held one of its inputs.
        batch: inputs in the largest of them.
    """

    inference_s: float = 0.0
    batch: int = 0


Send = Callable[[], Awaitable[Reply]]


@dataclass
class Seen:
    """What was seen after the ramp.

    Attributes:
        done: when inputs were answered, in seconds after the begin.
        took: how long each took, from the first try, in seconds.
        refused: how long each refusal took, in seconds.
        failed: errors that were no refusals, by their text.
        replies: the answers.
    """

    done: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    replies: list[Reply] = field(default_factory=list)

    def summary(self, seconds: float) -> dict[str, Any]:
        """The figures of a window of so many seconds."""
        return {
            "per_s": rate(self.done, seconds),
            "items": len(self.done),
            **percentiles(self.took),
            "refused": len(self.refused),
            "failed": sum(self.failed.values()),
            "error": next(iter(self.failed), None),
            "batch": float(np.mean([r.batch for r in self.replies])) if self.replies else None,
            "batch_s": float(np.median([r.inference_s for r in self.replies])) if self.replies else None,
        }


async def closed(send: Send, concurrency: int, ramp_s: float, seconds: float) -> dict[str, Any]:
    """Callers that each wait for an answer before they send the next; one that is refused waits as it is told.

    What is under way at the end is cancelled.
    """
    seen = Seen()
    begun = time.perf_counter()
    cpu = time.process_time()
    callers = [asyncio.create_task(_caller(send, seen, begun + ramp_s)) for _ in range(concurrency)]
    await asyncio.sleep(ramp_s + seconds)
    cpu = time.process_time() - cpu
    # What is done now and noticed only later is not the window's.
    summary = seen.summary(seconds)
    await end(callers)
    return {**summary, "client_cores": round(cpu / (ramp_s + seconds), 3)}


async def _caller(send: Send, seen: Seen, counts_from: float) -> None:
    while True:
        begun = time.perf_counter()
        while True:
            tried = time.perf_counter()
            try:
                reply = await send()
                break
            except RefusedError as refusal:
                if tried >= counts_from:
                    seen.refused.append(time.perf_counter() - tried)
                await asyncio.sleep(refusal.after_s)
            except Exception as error:  # counted: the table shows it
                seen.failed[f"{type(error).__name__}: {error}"] += 1
                await asyncio.sleep(0.2)
        now = time.perf_counter()
        if now >= counts_from:
            seen.done.append(now - counts_from)
            seen.took.append(now - begun)
            seen.replies.append(reply)


async def poisson(send: Send, per_s: float, ramp_s: float, seconds: float, seed: int) -> dict[str, Any]:
    """Arrivals at random, so many a second on average, whatever becomes of those before.

    Returns:
        ``closed``'s figures of the arrivals after the ramp, and of their refusals. Latencies are those of accepted
        ones and count from when they were due. ``per_s`` is a plain count by the window: arrivals that wait for nobody
        would hide an outage from a slope. ``lag_p99_ms``: by how much the sender itself was late.
    """
    rng = np.random.default_rng(seed)
    moments = np.cumsum(rng.exponential(1 / per_s, int(per_s * (ramp_s + seconds) * 1.5) + 50))
    seen, lags = Seen(), []
    calls: set[asyncio.Task[None]] = set()
    begun = time.perf_counter()
    arrivals = 0
    for moment in moments[moments < ramp_s + seconds]:
        if (wait := begun + moment - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        lags.append(time.perf_counter() - begun - moment)
        counts = bool(moment >= ramp_s)
        arrivals += counts
        call = asyncio.create_task(_one(send, seen, begun + moment, begun + ramp_s, counts=counts))
        calls.add(call)
        call.add_done_callback(calls.discard)
    if (wait := begun + ramp_s + seconds - time.perf_counter()) > 0:
        await asyncio.sleep(wait)
    in_window = sum(moment < seconds for moment in seen.done) / seconds
    while calls:
        await asyncio.wait(calls)
    summary = seen.summary(seconds) | {"per_s": in_window, "offered_per_s": arrivals / seconds, "arrivals": arrivals}
    refusals = {f"refused_{name}": value for name, value in percentiles(seen.refused).items()}
    return {**summary, **refusals, "lag_p99_ms": percentiles(lags)["p99_ms"]}


async def _one(send: Send, seen: Seen, due: float, counts_from: float, *, counts: bool) -> None:
    try:
        reply = await send()
    except RefusedError:
        if counts:
            seen.refused.append(time.perf_counter() - due)
    except Exception as error:  # counted: the table shows it
        seen.failed[f"{type(error).__name__}: {error}"] += 1
    else:
        now = time.perf_counter()
        if now >= counts_from:  # the window's throughput, whenever they arrived
            seen.done.append(now - counts_from)
        if counts:
            seen.took.append(now - due)
            seen.replies.append(reply)


async def end(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancels tasks and waits until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def end_running(tasks: list[asyncio.Task[Any]]) -> None:
    """Ends tasks that run until they are cancelled.

    Raises:
        Exception: what ended one of them before; RuntimeError where nothing did.
    """
    over = [task for task in tasks if task.done()]
    await end(tasks)
    for task in over:
        task.result()
        raise RuntimeError("it ended before it was told to")
