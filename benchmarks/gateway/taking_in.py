"""Sections "ingest" and "memory": pictures a second beside the embedder's own rate, and what a long stream holds."""

import bisect
import itertools
import threading
import time
from functools import partial
from typing import Any

from benchmarks.embedder.turns import Measure, in_turn
from benchmarks.gateway.client import PICTURE
from benchmarks.gateway.stack import Stack

EMBEDDER, PLAIN, THUMBNAILS = "embedder stream", "ingest, no thumbnails", "ingest, thumbnails"
_COLLECTIONS = itertools.count(1)
_SAMPLE_S = 0.25
_EVERY = 50


def ingest(stack: Stack, *, clip: bool = False) -> dict[str, Any]:
    """The embedder's EmbedStream, and the gateway's IndexImages with and without thumbnails, in turn.

    CLIP: whether the model is as slow as that.
    """
    scope = stack.scope
    window = {"ramp_s": scope.ingest_ramp_s, "seconds": scope.clip_ingest_s if clip else scope.ingest_s}
    stream = {"how": "stream", "kind": PICTURE, "address": stack.addresses["embedder"], **window}
    measures: dict[str, Measure] = {EMBEDDER: partial(stack.embedder_client.ask, **stream)}
    for name, thumbnails in ((PLAIN, False), (THUMBNAILS, True)):
        measures[name] = partial(_ingest, stack, thumbnails=thumbnails, **window)
    return {"picture": PICTURE, "rows": in_turn(measures, stack.scope.rounds, "ingest")}


def memory(stack: Stack) -> dict[str, Any]:
    """The gateway's resident memory while it takes in thousands of pictures, against that after the first 500."""
    samples: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_SAMPLE_S):
            samples.append((time.time(), stack.gateway.rss_mib()))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        told = {"address": stack.addresses["gateway"], "collection": "memory", "number": stack.scope.pictures}
        answer = stack.client.ask(how="take_in", **told)
    finally:
        over.set()
        watching.join()
    moments = answer.pop("moments")
    by_pictures = [
        (bisect.bisect(moments, moment) * _EVERY, mib) for moment, mib in samples if moment > answer["began"]
    ]
    settled = [mib for pictures, mib in by_pictures if pictures <= stack.scope.settled]
    after = [mib for pictures, mib in by_pictures if pictures > stack.scope.settled]
    growth = (max(after) - settled[-1]) * 2**20 / 1e6
    print(
        f"  memory: {settled[-1]:.0f} MiB at {stack.scope.settled} pictures, then {max(after):.0f} at most", flush=True
    )
    return {
        "pictures": stack.scope.pictures,
        "settled_mib": settled[-1],
        "highest_mib": max(after),
        "last_mib": after[-1],
        "growth_mb": growth,
        "per_s": stack.scope.pictures / (samples[-1][0] - answer["began"]),
        "samples": [[pictures, round(mib, 1)] for pictures, mib in by_pictures[:: max(1, len(by_pictures) // 50)]],
        "error": answer["error"],
    }


def _ingest(stack: Stack, *, thumbnails: bool, **window: float) -> dict[str, Any]:
    collection = f"ingest-{next(_COLLECTIONS)}"
    address = stack.addresses["gateway"]
    return stack.client.ask(how="ingest", address=address, collection=collection, thumbnails=thumbnails, **window)
