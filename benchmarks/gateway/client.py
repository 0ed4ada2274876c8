"""Calls a running gateway, or the services behind it, and measures: ``python -m benchmarks.gateway.client``.

A process of its own, as clients are. It shares the servers' cores, so it is kept cheap: channels neither retry nor
serialize more than they must.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from likeness.common.v1 import types_pb2
from likeness.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from likeness.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from benchmarks.desk import Answer, Desk, Request
from benchmarks.embedder.figures import percentiles, rate
from benchmarks.embedder.inputs import pictures, text, with_comment
from benchmarks.embedder.loops import RefusedError, Reply, closed, end, poisson
from benchmarks.gateway.scope import COLLECTION, TOP_K

PICTURE, WORDS = "500x334", 10
TEXT, TEXT_AGAIN, IMAGE, IMAGE_AGAIN, ID = "text", "text again", "picture", "picture again", "stored id"
_OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
_PUSHBACK = "grpc-retry-pushback-ms"
_REFUSED_STREAM = "RST_STREAM with error code 7"
_DEADLINE_S = 120.0
# So many are asked for again and again where what is remembered is measured.
_FEW = 16
STAGES = ("embed_queue", "embed_decode", "embed_inference", "embed", "query", "total")


class Client:
    """Measures what it is asked for; no two of its texts and pictures are the same, unless that is asked for."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._jpegs = pictures(PICTURE)

    def measure(self, request: Request) -> Answer:
        """``how``: search, arrive, direct, ingest or take_in."""
        how: Any = getattr(self, f"_{request.pop('how')}")
        answer: Answer = asyncio.run(how(**request))
        return answer

    async def _search(self, address: str, kind: str, concurrency: int, ramp_s: float, seconds: float) -> Answer:
        """Callers of the gateway that each wait for their answer."""
        requests = self._requests(kind)
        began = time.perf_counter()
        seen: list[tuple[float, gateway_pb2.SearchTimings]] = []
        async with _channel(address) as channel:
            stub = gateway_pb2_grpc.SearchServiceStub(channel)

            async def send() -> Reply:
                sent = time.perf_counter()
                answer = await _answer(stub, next(requests))
                if sent - began >= ramp_s:
                    seen.append((time.perf_counter() - sent, answer.timings))
                return Reply()

            found = await closed(send, concurrency, ramp_s, seconds)
        return {**found, **_stages(seen)}

    async def _arrive(
        self, address: str, kind: str, *, per_s: float, ramp_s: float, seconds: float, seed: int
    ) -> Answer:
        """Searches that arrive at random, whatever becomes of those before.

        ``dropped``: streams that HTTP/2 refused for the server, which gRPC tells as UNAVAILABLE; those before the
        window are among them.
        """
        requests = self._requests(kind)
        dropped = 0
        async with _channel(address) as channel:
            stub = gateway_pb2_grpc.SearchServiceStub(channel)

            async def send() -> Reply:
                nonlocal dropped
                try:
                    await _answer(stub, next(requests))
                except grpc.aio.AioRpcError as error:
                    if _REFUSED_STREAM not in (error.details() or ""):
                        raise
                    dropped += 1
                    raise RefusedError(1.0) from None
                return Reply()

            found = await poisson(send, per_s, ramp_s, seconds, seed)
        return {**found, "dropped": dropped}

    async def _direct(self, embedder: str, indexer: str, ramp_s: float, seconds: float) -> Answer:
        """A caller that does without the gateway: embeds a text at the embedder, and queries the indexer."""
        async with _channel(embedder) as to_embedder, _channel(indexer) as to_indexer:
            embed = embedder_pb2_grpc.EmbedderServiceStub(to_embedder).Embed
            query = indexer_pb2_grpc.IndexerServiceStub(to_indexer).Query

            async def send() -> Reply:
                wanted = embedder_pb2.EmbedInput(text=self._text())
                embedded = await embed(embedder_pb2.EmbedRequest(inputs=[wanted]), timeout=_DEADLINE_S)
                example = indexer_pb2.Example(vector=embedded.results[0].vector)
                asked = indexer_pb2.QueryRequest(
                    collection=COLLECTION,
                    expected_fingerprint=embedded.fingerprint,
                    queries=[indexer_pb2.Query(examples=[example], top_k=TOP_K)],
                    fields=types_pb2.ItemFields(metadata=True),
                )
                await query(asked, timeout=_DEADLINE_S)
                return Reply()

            return await closed(send, 1, ramp_s, seconds)

    async def _ingest(self, address: str, collection: str, thumbnails: bool, ramp_s: float, seconds: float) -> Answer:
        """One stream of pictures, for so long; the rate at which they are stored; the rest is cancelled."""
        done: list[float] = []
        failed = 0
        counts_from = time.perf_counter() + ramp_s
        async with _channel(address) as channel:

            async def watch() -> None:
                nonlocal failed
                async with aclosing(_results(channel, collection, self._items(), thumbnails=thumbnails)) as results:
                    async for result in results:
                        failed += not result.HasField("stored")
                        if (moment := time.perf_counter() - counts_from) >= 0:
                            done.append(moment)

            watching = asyncio.create_task(watch())
            if (await asyncio.wait({watching}, timeout=ramp_s + seconds))[0]:
                watching.result()  # raises what ended it
            await end([watching])
        error = {"error": f"{failed} pictures were refused"} if failed else {"error": None}
        return {"per_s": rate(done, seconds), "items": len(done), "failed": failed, **error}

    async def _take_in(self, address: str, collection: str, number: int) -> Answer:
        """So many pictures; how long they took, and when which one was stored, for whoever watches the memory."""
        began = time.time()
        moments: list[float] = []
        failed = 0
        async with _channel(address) as channel:
            items = itertools.islice(self._items(), number)
            async for result in _results(channel, collection, items, thumbnails=True):
                failed += not result.HasField("stored")
                moments.append(time.time())
        error = {"error": f"{failed} pictures were refused"} if failed else {"error": None}
        return {"began": began, "moments": moments[::50], "failed": failed, **error}

    def _requests(self, kind: str) -> Iterator[gateway_pb2.SearchRequest]:
        few = [self._term(kind) for _ in range(_FEW)]
        for term in (
            itertools.cycle(few) if kind in (TEXT_AGAIN, IMAGE_AGAIN, ID) else iter(lambda: self._term(kind), 0)
        ):
            yield gateway_pb2.SearchRequest(collection=COLLECTION, terms=[term], top_k=TOP_K)

    def _term(self, kind: str) -> gateway_pb2.Term:
        if kind == ID:
            return gateway_pb2.Term(id=f"{next(self._numbers) % 1_000:08d}")
        if kind in (TEXT, TEXT_AGAIN):
            return gateway_pb2.Term(text=self._text())
        return gateway_pb2.Term(image=types_pb2.Image(encoded=self._picture()))

    def _text(self) -> str:
        return text(WORDS, next(self._numbers))

    def _picture(self) -> bytes:
        number = next(self._numbers)
        return with_comment(self._jpegs[number % len(self._jpegs)], number)

    def _items(self) -> Iterator[gateway_pb2.IndexItem]:
        for number in itertools.count():
            item = gateway_pb2.IndexItem(sequence=number, labels=["a", "b"])
            item.image.encoded = self._picture()
            yield item


async def _answer(
    stub: "gateway_pb2_grpc.SearchServiceAsyncStub", request: gateway_pb2.SearchRequest
) -> gateway_pb2.SearchResponse:
    """One search.

    Raises:
        RefusedError: RESOURCE_EXHAUSTED.
        grpc.RpcError: anything else.
    """
    try:
        return await stub.Search(request, timeout=_DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        trailers = dict(error.trailing_metadata() or ())
        raise RefusedError(float(trailers.get(_PUSHBACK, 1000)) / 1000) from None


async def _results(
    channel: grpc.aio.Channel, collection: str, items: Iterator[gateway_pb2.IndexItem], *, thumbnails: bool
) -> AsyncGenerator[gateway_pb2.IndexResult, None]:
    """What became of each item, from one stream, into which they are written as it takes them."""
    options = gateway_pb2.IngestOptions(no_thumbnails=not thumbnails)
    start = gateway_pb2.IndexStart(collection=collection, create_collection=True, options=options)
    call = gateway_pb2_grpc.SearchServiceStub(channel).IndexImages()

    async def send() -> None:
        await call.write(gateway_pb2.IndexImagesRequest(start=start))
        for item in items:
            await call.write(gateway_pb2.IndexImagesRequest(item=item))
        await call.done_writing()

    sending = asyncio.create_task(send())
    try:
        async for answer in call:
            if answer.HasField("result"):
                yield answer.result
        await sending
    finally:
        call.cancel()
        await end([sending])


@asynccontextmanager
async def _channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        async with asyncio.timeout(_DEADLINE_S):
            await channel.channel_ready()
        yield channel


def _stages(seen: list[tuple[float, gateway_pb2.SearchTimings]]) -> dict[str, float | None]:
    """The median of each stage, in milliseconds.

    ``own``: all that is neither embedding nor querying, which the gateway waits for: its own work, and the way from the
    client and back. ``gateway``: of that, what it sees itself.
    """
    each: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "gateway", "own")}
    for took, timings in seen:
        told = {stage: getattr(timings, stage).ToNanoseconds() / 1e9 for stage in STAGES}
        for stage in STAGES:
            each[stage].append(told[stage])
        each["gateway"].append(told["total"] - told["embed"] - told["query"])
        each["own"].append(took - told["embed"] - told["query"])
    return {f"{stage}_ms": percentiles(values)["p50_ms"] for stage, values in each.items()}


def main() -> None:
    """Answers requests."""
    Desk().serve({"grpcio": grpc.__version__}, Client().measure)


if __name__ == "__main__":
    main()
