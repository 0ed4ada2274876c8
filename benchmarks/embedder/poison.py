"""Section 5: hostile files, over and over; afterwards the server has the memory and the readiness that it had."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.rpc import code_pb2
from likeness.common.v1 import types_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc

from benchmarks.embedder.contenders import Field
from benchmarks.embedder.inputs import SHARED, pictures, with_comment
from benchmarks.embedder.methods import PICTURE
from benchmarks.embedder.processes import Service
from benchmarks.embedder.scope import Scope
from benchmarks.embedder.served import PUSHBACK
from chassis.health import wait_until_serving

ROUNDS, WARM_UP = 200, 20
# Of the memory after the warm-up: its pages come and go with what the allocator keeps.
MOST_GROWTH = 1.05
_POISON = SHARED.parent / "poison"
_ABOUT = (".tsv", ".txt")  # what is said of the files
_CALLERS = 8
_DEADLINE_S = 120.0


def run(scope: Scope) -> dict[str, Any]:
    """Sends every file of the corpus 200 times; each time a good picture is beside one that has to be refused.

    Ten minutes with starter on two cores that others used too: more than half of the files go through the model.
    """
    files = {path.name: path.read_bytes() for path in sorted(_POISON.glob("*")) if path.suffix not in _ABOUT}
    if not files:
        return {"missing": f"{_POISON} is not there"}
    with Field(scope) as field:
        service = field.service()
        found = _send(service, files)
        why = wait_until_serving(service.address, 5.0)
    print(f"  {found}; afterwards {why or 'SERVING'}", flush=True)
    return {"missing": None, "files": len(files), **found, "ready": why is None, "error": found["error"] or why}


def _send(service: Service, files: dict[str, bytes]) -> dict[str, Any]:
    goods = _different(PICTURE)
    codes: Counter[str] = Counter()
    memory: list[float] = []
    begun = time.monotonic()
    with grpc.insecure_channel(service.address) as channel, ThreadPoolExecutor(_CALLERS) as callers:
        embed = embedder_pb2_grpc.EmbedderServiceStub(channel).Embed

        def one(file: bytes, good: bytes | None) -> list[str]:
            encoded = [file] if good is None else [file, good]
            inputs = [embedder_pb2.EmbedInput(image=types_pb2.Image(encoded=each)) for each in encoded]
            answer = patient(lambda: embed(embedder_pb2.EmbedRequest(inputs=inputs), timeout=_DEADLINE_S))
            said = [_code(result) for result in answer.results]
            if good is not None and said[1] != "OK":
                raise AssertionError(f"a good picture beside a bad one: {answer.results[1]}")
            return said[:1]

        for _ in range(ROUNDS):
            # One good picture more a round, beside the first file; the corpus has dozens.
            beside = [next(goods), *[None] * (len(files) - 1)]
            for said in callers.map(one, files.values(), beside):
                codes.update(said)
            memory.append(service.rss_mib())
    wrong = sorted(codes.keys() & {"INTERNAL", "UNKNOWN", "UNAVAILABLE"})
    grown = memory[-1] > MOST_GROWTH * memory[WARM_UP - 1]
    return {
        "rounds": ROUNDS,
        "seconds": round(time.monotonic() - begun, 1),
        "codes": dict(codes),
        "warm_mib": round(memory[WARM_UP - 1], 1),
        "last_mib": round(memory[-1], 1),
        "highest_mib": round(max(memory), 1),
        "error": f"answered with {wrong}" if wrong else "the memory has grown" if grown else None,
    }


def patient(call: Callable[[], embedder_pb2.EmbedResponse]) -> embedder_pb2.EmbedResponse:
    """Calls again, after as long as it is told to wait, while it is told that there is too much to do."""
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            told = (float(trailer.value) for trailer in error.trailing_metadata() if trailer.key == PUSHBACK)
            time.sleep(next(told, 1000.0) / 1000)


def _different(kind: str) -> Iterator[bytes]:
    """Good pictures without end, no two alike."""
    every = list(pictures(kind))
    return (with_comment(jpeg, number) for number, jpeg in enumerate(itertools.cycle(every)))


def _code(result: embedder_pb2.EmbedResult) -> str:
    return "OK" if result.HasField("vector") else code_pb2.Code.Name(result.error.status.code)
