"""Section 6: what memory is allocated and copied for a picture, in the served embedder and in the bare forward pass.

Counted by a library that is preloaded into the processes (``copies.c``, compiled here): calls of malloc and memcpy, and
their kin, from 16 KiB on. What libraries copy in loops of their own, and the kernel between sockets and processes, is
not among it.
"""

import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.embedder.contenders import Field
from benchmarks.embedder.methods import PICTURE
from benchmarks.embedder.models import local
from benchmarks.embedder.processes import Contender, FailedError, Service
from benchmarks.embedder.scope import WORK, Scope
from benchmarks.embedder.turns import Row

_SOURCE = Path(__file__).with_suffix(".c")
_CONCURRENCY, _BATCH = 32, 16
_SECONDS = 15.0
_NUMBERS = ("allocations", "allocated_kb", "copies", "copied_kb")


def run(scope: Scope) -> dict[str, Any]:
    """A row for each of both; without a C compiler none, and why."""
    compiler = shutil.which("cc")
    if compiler is None:
        return {"rows": [], "missing": "there is no C compiler (cc) to make the library that counts"}
    library = WORK / "copies.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-fno-builtin", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return {"rows": [_served(scope, library), _forward(scope, library)], "missing": None}


def _served(scope: Scope, library: Path) -> Row:
    counter = Counter("served")
    with Field(scope) as field, ExitStack() as opened:
        settings = scope.target.environment(local(scope.target.model)) | counter.settings(library)
        service = opened.enter_context(Service("embedder with counters", settings))
        service.ready()
        clients = field.clients()
        clients.closed(service, PICTURE, _CONCURRENCY, scope, _SECONDS / 3)()  # until all buffers are there
        begun = counter.read()
        answer = clients.closed(service, PICTURE, _CONCURRENCY, scope, _SECONDS)()
        if answer["failed"] or not answer["items"]:
            raise FailedError(f"{service.name}: {answer['error'] or 'nothing was answered'}")
        # The ramp's pictures are in the counts too, and so is what was under way at the end.
        items = answer["items"] * (_SECONDS + scope.ramp_s) / _SECONDS + _CONCURRENCY
        return {"name": f"served, {_CONCURRENCY} at a time", **counter.each(begun, items)}


def _forward(scope: Scope, library: Path) -> Row:
    counter = Counter("forward")
    settings = scope.target.environment(local(scope.target.model)) | counter.settings(library)
    with Contender("forward with counters", "benchmarks.embedder.forward", settings) as forward:
        forward.ready()
        forward.ask(kind=PICTURE, batch=_BATCH, seconds=_SECONDS / 3)
        begun = counter.read()
        answer = forward.ask(kind=PICTURE, batch=_BATCH, seconds=_SECONDS)
        items = answer["items"] + 2 * _BATCH  # two batches before the time counts
        return {"name": f"forward, batches of {_BATCH}", **counter.each(begun, items)}


class Counter:
    """What the processes that were started with its settings have counted."""

    def __init__(self, name: str) -> None:
        """Nothing is counted yet."""
        self._path = WORK / f"copies-{name}.bin"
        self._path.write_bytes(bytes(8 * len(_NUMBERS)))

    def settings(self, library: Path) -> dict[str, str]:
        """The environment of what is counted."""
        others = [value for value in [os.environ.get("LD_PRELOAD")] if value]
        return {"LD_PRELOAD": os.pathsep.join([str(library), *others]), "LIKENESS_COPIES": str(self._path)}

    def read(self) -> npt.NDArray[np.uint64]:
        """The four numbers so far."""
        return np.fromfile(self._path, np.uint64)

    def each(self, begun: npt.NDArray[np.uint64], items: float) -> Row:
        """The four numbers since then, by item; bytes as kB."""
        since = (self.read() - begun).astype(float) / items / np.array([1, 1000, 1, 1000])
        return {"items": round(items), **dict(zip(_NUMBERS, since.round(1).tolist(), strict=True))}
