"""Section 2: every kind of input, on the model in question and on the starter, by every backend and precision here."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.embedder.contenders import Field
from benchmarks.embedder.inputs import KINDS, is_text
from benchmarks.embedder.methods import FORWARD, PICTURE, SHORT_TEXT, by_batch, served
from benchmarks.embedder.models import STARTER
from benchmarks.embedder.processes import FailedError
from benchmarks.embedder.scope import Scope, Target
from benchmarks.embedder.turns import Measure, Row, in_turn
from embedder.backends.openvino_clip import openvino_is_installed
from embedder.backends.openvino_formats import native_precisions

_CONCURRENCY = 32


def run(scope: Scope) -> dict[str, Any]:
    """Measures the served embedder and the bare forward pass; in the cut, the served one of the model in question."""
    found: dict[str, Any] = {"by_model": {}, "by_backend": {}}
    if scope.quick:
        scope = replace(scope, rounds=1, text_rounds=1, window_s=3.0)
        found["by_model"][scope.target.model] = measured(scope, scope.target, KINDS)
        return found
    for model in dict.fromkeys((scope.target.model, STARTER)):
        found["by_model"][model] = measured(scope, replace(scope.target, model=model), KINDS)
    for target in others(scope.target):
        found["by_backend"][f"{target.backend} {target.precision}"] = measured(scope, target, (PICTURE, SHORT_TEXT))
    return found


def measured(scope: Scope, target: Target, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Rows by kind of input, and what the model process said of itself."""
    rows: dict[str, Any] = {}
    try:
        with Field(scope, target) as field:
            forward = None if scope.quick else field.forward()
            service, clients = field.service(), field.clients()
            best: dict[bool, int] = {}
            about = {"server_rss_mib": round(service.rss_mib()), "spec": forward.about if forward else None}
            for kind in kinds:
                measures: dict[str, Measure] = {
                    served(_CONCURRENCY): clients.closed(service, kind, _CONCURRENCY, scope)
                }
                if forward is not None:
                    if is_text(kind) not in best:  # decoded, all pictures are alike to the model; texts nearly so
                        sizes = by_batch(scope, forward, kind)
                        best[is_text(kind)] = max(sizes, key=lambda n: sizes[n])
                    batch, seconds = best[is_text(kind)], scope.seconds(kind)
                    measures[FORWARD] = partial(forward.ask, kind=kind, batch=batch, seconds=seconds)
                rows[kind] = in_turn(measures, scope.rounds_of(kind), f"inputs, {target}, {kind}")
    except FailedError as error:
        print(f"  {target}: {error}", flush=True)
        return {"kinds": rows, "error": str(error)}
    return {"kinds": rows, "about": about, "error": None}


def others(target: Target) -> list[Target]:
    """The target with each backend and precision that this machine can run at speed, other than the target's own."""
    cuda = target.device.startswith("cuda") or (target.device == "auto" and Path("/dev/nvidia0").exists())
    native = native_precisions() if openvino_is_installed() else set()
    pairs = [("torch", "fp32")]
    if cuda or "bf16" in native:
        pairs.append(("torch", "bf16"))
    if cuda:
        pairs.append(("torch", "fp16"))
    else:
        pairs += [("openvino", precision) for precision in ("fp32", "bf16", "int8") if precision in native]
    found = [replace(target, backend=backend, precision=precision) for backend, precision in pairs]
    return [one for one in found if one != target]


def rows_of(found: dict[str, Any]) -> list[tuple[str, str, Row]]:
    """(model or backend, kind, row) of a result, for the table."""
    return [
        (name, kind, row)
        for part in ("by_model", "by_backend")
        for name, result in found[part].items()
        for kind, rows in result["kinds"].items()
        for row in rows
    ]
