"""Section 4: throughput against batch size, concurrency and processes; memory against time."""

import threading
import time
from typing import Any

from benchmarks.embedder.contenders import Clients, Field
from benchmarks.embedder.figures import block_means, line
from benchmarks.embedder.inputs import MIXED
from benchmarks.embedder.methods import PICTURE, SHORT_TEXT, by_batch
from benchmarks.embedder.processes import Service
from benchmarks.embedder.scope import Scope
from benchmarks.embedder.turns import in_turn
from embedder.settings import EmbedderSettings

_SAMPLE_S = 0.5
_BLOCKS = 12
_CONCURRENCY = 32
# Of callers that fill the cache of texts, which takes a slow machine longer than the warm-up otherwise.
_FILLING, _FILL_S = 64, 10.0
_TEXTS: int = EmbedderSettings.model_fields["text_cache"].default


def run(scope: Scope) -> dict[str, Any]:
    """Measures all four; in the cut, memory alone: the methods' section has some of the rest."""
    found: dict[str, Any] = {"by_batch": {}, "by_concurrency": [], "by_processes": []}
    rounds = 3
    with Field(scope) as field:
        if scope.quick:
            found["memory"] = memory(field.service(), field.clients(), scope)
            return found
        forward = field.forward()
        found["by_batch"] = {kind: by_batch(scope, forward, kind) for kind in (PICTURE, SHORT_TEXT)}
        for kind, sizes in found["by_batch"].items():
            shown = ", ".join(f"{size}: {per_s:.1f}" for size, per_s in sizes.items())
            print(f"  forward by batch, {kind}: {shown}", flush=True)
        forward.close()
        service, clients = field.service(), field.clients()
        measures = {str(n): clients.closed(service, PICTURE, n, scope) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)}
        found["by_concurrency"] = in_turn(measures, rounds, "growth, by concurrency")
        # One at a time: on few cores, idle processes with a model each would still share memory and caches.
        for number in (2, 4):
            more = field.service(number)
            measures = {
                "1": clients.closed(service, PICTURE, _CONCURRENCY, scope),
                str(number): clients.closed(more, PICTURE, _CONCURRENCY, scope),
            }
            found["by_processes"] += in_turn(measures, rounds, "growth, by processes")
            more.close()
        found["memory"] = memory(service, clients, scope)
    return found


def memory(service: Service, clients: Clients, scope: Scope) -> dict[str, Any]:
    """The slope of the resident memory under a mixture of all inputs, after a warm-up that fills the cache of texts."""
    samples: list[tuple[float, float]] = []
    ended = threading.Event()
    # In 8-bit integers the model process grew for the last time after 470 s.
    warm_up_s = scope.memory_s / (6 if scope.quick else 2)
    if not scope.quick:
        fill, free = clients.closed(service, SHORT_TEXT, _FILLING, scope, _FILL_S), _TEXTS
        while free > 0 and (answered := fill()["items"]):  # without answers, the measurement says why
            free -= answered
    begun = time.monotonic()

    def watch() -> None:
        while not ended.wait(_SAMPLE_S):
            samples.append((time.monotonic() - begun - warm_up_s, service.rss_mib()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        answer = clients.closed(service, MIXED, _CONCURRENCY, scope, warm_up_s + scope.memory_s)()
    finally:
        ended.set()
        watcher.join()
    during = [(seconds, mib) for seconds, mib in samples if 0 <= seconds <= scope.memory_s]
    block_s = scope.memory_s / _BLOCKS
    moments, means = block_means([seconds for seconds, _ in during], [mib for _, mib in during], block_s)
    fitted = line([seconds / 3600 for seconds in moments], [mib * 2**20 / 1e6 for mib in means])
    print(
        f"  memory over {scope.memory_s:.0f} s: {fitted.slope:.1f} ± {fitted.standard_error:.1f} MB an hour, "
        f"{during[-1][1]:.0f} MiB at the end",
        flush=True,
    )
    return {
        "seconds": scope.memory_s,
        "warm_up_s": warm_up_s,
        "block_s": block_s,
        "slope_mb_per_hour": fitted.slope,
        "standard_error_mb_per_hour": fitted.standard_error,
        "first_mib": during[0][1],
        "last_mib": during[-1][1],
        "highest_mib": max(mib for _, mib in during),
        # Every tenth, so that the JSON stays readable.
        "samples": [[round(seconds, 1), round(mib, 1)] for seconds, mib in during[::10]],
        "per_s": answer["per_s"],
        "failed": answer["failed"],
        "error": answer["error"],
    }
