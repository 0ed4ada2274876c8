"""Calls a running embedder and measures: ``python -m benchmarks.embedder.served FIRST``.

A process of its own, as clients are. It shares the server's cores, so it is kept cheap: requests are bytes put together
from prepared pieces, and channels neither retry nor serialize. FIRST: the number of its first input.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
from likeness.common.v1 import types_pb2
from likeness.embedder.v1 import embedder_pb2
from PIL import Image

from benchmarks.desk import Answer, Desk, Request
from benchmarks.embedder.figures import percentiles
from benchmarks.embedder.inputs import RGB, TEXTS, is_text, kinds, pictures, pixels, text, with_comment
from benchmarks.embedder.loops import RefusedError, Reply, Seen, closed, end, end_running, poisson

_EMBED = "/likeness.embedder.v1.EmbedderService/Embed"
_STREAM = "/likeness.embedder.v1.EmbedderService/EmbedStream"
_OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
PUSHBACK = "grpc-retry-pushback-ms"
_DEADLINE_S = 120.0
# Field 11 of EmbedRequest and of EmbedStreamRequest.
PRIORITY = {"interactive": b"\x58\x01", "bulk": b"\x58\x02"}
# Stands in a prepared request where the number goes that makes each one different.
_PLACE = b"\xa5number\x5a"


class Requests:
    """Requests as bytes: field 10 of EmbedRequest, which is field 10 of EmbedStreamRequest too."""

    def __init__(self, first: int) -> None:
        self._numbers = itertools.count(first)
        self._pieces: dict[str, list[tuple[bytes, bytes]]] = {}

    def of(self, kind: str) -> Iterator[bytes]:
        """An endless row of one kind, or of the mixture; no two alike."""
        for each in kinds(kind):
            number = next(self._numbers)
            if is_text(each):
                yield _field(embedder_pb2.EmbedInput(text=text(TEXTS[each], number)))
                continue
            if each not in self._pieces:
                self._pieces[each] = list(_pieces(each))
            head, tail = self._pieces[each][number % len(self._pieces[each])]
            yield head + number.to_bytes(8, "big") + tail


def _pieces(kind: str) -> Iterator[tuple[bytes, bytes]]:
    place = int.from_bytes(_PLACE, "big")
    images: Iterator[types_pb2.Image]
    if kind == RGB:
        images = (types_pb2.Image(rgb=_rgb(picture)) for picture in pixels((224, 224)))
    else:
        images = (types_pb2.Image(encoded=with_comment(jpeg, place)) for jpeg in pictures(kind))
    for image in images:
        head, tail = _field(embedder_pb2.EmbedInput(image=image)).split(_PLACE, 1)
        yield head, tail


def _rgb(picture: Image.Image) -> types_pb2.RgbImage:
    raw = picture.tobytes()
    return types_pb2.RgbImage(width=picture.width, height=picture.height, pixels=_PLACE + raw[len(_PLACE) :])


def _field(wanted: embedder_pb2.EmbedInput) -> bytes:
    return embedder_pb2.EmbedRequest(inputs=[wanted]).SerializeToString()


def correlated(number: int, request: bytes) -> bytes:
    """The same request as one of a stream."""
    return b"\x08" + _varint(number) + request


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


class Server:
    """An embedder at an address, over one connection or several."""

    def __init__(self, address: str, connections: int) -> None:
        self._channels = [grpc.aio.insecure_channel(address, options=_OPTIONS) for _ in range(connections)]
        self._embed: Iterator[Any] = itertools.cycle([channel.unary_unary(_EMBED) for channel in self._channels])
        self._stream: Any = self._channels[0].stream_stream(_STREAM)

    async def ready(self) -> None:
        """Waits for the connections."""
        async with asyncio.timeout(_DEADLINE_S):
            await asyncio.gather(*(channel.channel_ready() for channel in self._channels))

    async def close(self) -> None:
        """Closes the connections."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def embed(self, request: bytes) -> Reply:
        """One call.

        Raises:
            RefusedError: RESOURCE_EXHAUSTED.
            grpc.RpcError, RuntimeError: anything else that is no vector.
        """
        try:
            raw = await next(self._embed)(request, timeout=_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                trailers = dict(error.trailing_metadata() or ())
                raise RefusedError(float(trailers.get(PUSHBACK, 1000)) / 1000) from None
            raise RuntimeError(f"{error.code().name}: {error.details()}") from None
        answer = embedder_pb2.EmbedResponse.FromString(raw)
        for result in answer.results:
            _check(result)
        return Reply(answer.timings.inference.ToTimedelta().total_seconds(), answer.timings.batch_size)

    async def stream(self, requests: Iterator[bytes], seen: Seen, counts_from: float) -> None:
        """Keeps as many inputs unanswered as the server's window is, over EmbedStream, until cancelled.

        Raises:
            RuntimeError: an input failed, or the stream; returns only where the server ended it.
        """
        call = self._stream()
        room = asyncio.Semaphore(0)

        async def send() -> None:
            for number in itertools.count(1):
                await room.acquire()
                await call.write(correlated(number, next(requests)))

        sender = asyncio.create_task(send())
        try:
            async for raw in call:
                answer = embedder_pb2.EmbedStreamResponse.FromString(raw)
                if answer.HasField("opened"):
                    for _ in range(answer.opened.window):
                        room.release()
                if not answer.HasField("result"):
                    continue
                room.release()
                _check(answer.result.result)
                if (now := time.perf_counter()) >= counts_from:
                    seen.done.append(now - counts_from)
        except grpc.aio.AioRpcError as error:
            raise RuntimeError(f"{error.code().name}: {error.details()}") from None
        finally:
            await end([sender])
            call.cancel()


def _check(result: embedder_pb2.EmbedResult) -> None:
    if not result.HasField("vector"):
        raise RuntimeError(f"an input failed: {result.error}")


@asynccontextmanager
async def _server(request: Request) -> AsyncIterator[Server]:
    server = Server(request["address"], request.get("connections", 1))
    try:
        await server.ready()
        yield server
    finally:
        await server.close()


class Client:
    """Measures what it is asked for."""

    def __init__(self, first: int) -> None:
        self._requests = Requests(first)

    def measure(self, request: Request) -> Answer:
        """``how``: closed, stream, open or beside_bulk."""
        how: Any = getattr(self, f"_{request['how']}")
        answer: Answer = asyncio.run(how(request))
        return answer

    async def _closed(self, request: Request) -> Answer:
        priority = PRIORITY[request.get("priority", "interactive")]
        requests = self._requests.of(request["kind"])
        async with _server(request) as server:
            return await closed(
                lambda: server.embed(next(requests) + priority),
                request["concurrency"],
                request["ramp_s"],
                request["seconds"],
            )

    async def _stream(self, request: Request) -> Answer:
        seen = Seen()
        async with _server(request) as server:
            counts_from = time.perf_counter() + request["ramp_s"]
            stream = asyncio.create_task(server.stream(self._requests.of(request["kind"]), seen, counts_from))
            await asyncio.sleep(request["ramp_s"] + request["seconds"])
            summary = seen.summary(request["seconds"])
            await end_running([stream])
        return summary

    async def _open(self, request: Request) -> Answer:
        requests = self._requests.of(request["kind"])
        async with _server(request) as server:
            return await poisson(
                lambda: server.embed(next(requests) + PRIORITY["interactive"]),
                request["per_s"],
                request["ramp_s"],
                request["seconds"],
                request["seed"],
            )

    async def _beside_bulk(self, request: Request) -> Answer:
        """Single interactive inputs while bulk takes all that the server has."""
        requests = self._requests.of(request["kind"])
        bulk = Seen()
        rng = np.random.default_rng(request["seed"])
        took: list[float] = []
        async with _server(request) as server:
            begun = time.perf_counter()
            counts_from = begun + request["ramp_s"]
            tasks = [asyncio.create_task(sends) for sends in self._bulk(server, request, bulk, counts_from)]
            await asyncio.sleep(request["ramp_s"])
            while time.perf_counter() < counts_from + request["seconds"]:
                await asyncio.sleep(float(rng.exponential(request["pause_s"])))
                sent = time.perf_counter()
                await server.embed(next(requests) + PRIORITY["interactive"])
                took.append(time.perf_counter() - sent)
            seconds = time.perf_counter() - counts_from
            summary = bulk.summary(seconds)
            await end_running(tasks)  # beside bulk that is over, interactive calls meet an idle server
        return {**summary, **percentiles(took), "interactive_items": len(took)}

    def _bulk(
        self, server: Server, request: Request, seen: Seen, counts_from: float
    ) -> list[Coroutine[Any, Any, None]]:
        requests = self._requests.of(request["kind"])
        if request["bulk"] == "stream":
            return [server.stream(requests, seen, counts_from)]
        return [self._bulk_caller(server, requests, seen, counts_from) for _ in range(request["concurrency"])]

    async def _bulk_caller(self, server: Server, requests: Iterator[bytes], seen: Seen, counts_from: float) -> None:
        while True:
            try:
                reply = await server.embed(next(requests) + PRIORITY["bulk"])
            except RefusedError as refusal:
                seen.refused.append(0.0)
                await asyncio.sleep(refusal.after_s)
                continue
            if (now := time.perf_counter()) >= counts_from:
                seen.done.append(now - counts_from)
                seen.replies.append(reply)


def main() -> None:
    """Answers requests."""
    desk = Desk()
    desk.serve({"grpcio": grpc.__version__}, Client(int(sys.argv[1])).measure)


if __name__ == "__main__":
    main()
