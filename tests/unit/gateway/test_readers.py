"""With LIKENESS_INDEXER_READ_ADDRESS: who is asked what, and what happens while one of the two is away."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from likeness.common.v1 import error_pb2, types_pb2
from likeness.common.v1.metadata_pb2 import OPERATOR_EXISTS, Comparison, Filter, Metadata, Value
from likeness.gateway.v1 import gateway_pb2 as pb
from likeness.indexer.v1 import indexer_pb2, indexer_pb2_grpc

from chassis.errors import LikenessError, from_rpc_error
from gateway import backend
from gateway.backends import Readers
from gateway.indexer_reads import INDEXER
from gateway.picture_facts import content_hash
from gateway.settings import GatewaySettings
from tests.pictures import noise
from tests.processes import free_port
from tests.unit.gateway.behind import vector
from tests.unit.gateway.http.serving import Gateway, serving
from tests.unit.gateway.shelves import Shelves

CATS = pb.Labelling(labels=["cat", "dog"])
IMAGE = types_pb2.Image(encoded=noise(1))
NEW = pb.IngestOptions(existing=pb.EXISTING_POLICY_SKIP, skip_near_duplicates=0.99, no_thumbnails=True)
SAME = pb.IngestOptions(skip_exact_duplicates=True)
KEPT = pb.IngestOptions(no_thumbnails=True)
FACETS = [pb.FacetRequest(key="labels")]
SEARCH = pb.SearchRequest(terms=[pb.Term(id="a"), pb.Term(text="cat")], explain=True, facets=FACETS)
ITEM = pb.IndexItem(id="new", image=IMAGE)
SET = pb.MetadataUpdate(id="a", set=Metadata(fields={"n": Value(int_value=1)}))

# Calls in this order: the rpc, its request, and what readers and the writer are asked for it.
CALLS: list[tuple[str, Any, str, str]] = [
    ("Search", SEARCH, "Query GetItems GetFacets", ""),
    ("BatchSearch", pb.BatchSearchRequest(searches=[SEARCH]), "Query GetItems GetFacets", ""),
    ("GetItems", pb.GetItemsRequest(ids=["a"]), "GetItems", ""),
    ("ListItems", pb.ListItemsRequest(), "ListItems", ""),
    ("CountItems", pb.CountItemsRequest(), "CountItems", ""),
    ("GetFacets", pb.GetFacetsRequest(facets=FACETS), "GetFacets", ""),
    ("Classify", pb.ClassifyRequest(inputs=[pb.ClassifyInput(id="a")], labelling=CATS), "GetCollection GetItems", ""),
    ("SuggestLabels", pb.SuggestLabelsRequest(labelling=CATS), "GetCollection CountItems ListItems", ""),
    (
        "FindDuplicates",
        pb.FindDuplicatesRequest(min_score=0.5),
        "GetCollection CountItems ListItems Query GetItems",
        "",
    ),
    ("FindDuplicates", pb.FindDuplicatesRequest(), "GetCollection GetFacets ListItems GetItems", ""),
    ("UpdateLabels", pb.UpdateLabelsRequest(ids=["a"], add=["x"]), "", "GetCollection GetItems UpdateMetadata"),
    ("UpdateLabels", pb.UpdateLabelsRequest(all_items=True, add=["y"]), "", "GetCollection ListItems UpdateMetadata"),
    ("UpdateMetadata", pb.UpdateMetadataRequest(updates=[SET]), "", "UpdateMetadata"),
    ("IndexBatch", pb.IndexBatchRequest(items=[ITEM], options=SAME), "", "GetCollection ListItems"),
    ("IndexBatch", pb.IndexBatchRequest(items=[ITEM], options=NEW), "", "GetCollection GetItems Query UpsertItems"),
    (
        "IndexImages",
        [
            pb.IndexImagesRequest(start=pb.IndexStart(collection="made", create_collection=True, options=KEPT)),
            pb.IndexImagesRequest(item=ITEM),
        ],
        "",
        "GetCollection CreateCollection UpsertItems",
    ),
    (
        "ReembedCollection",
        pb.ReembedCollectionRequest(target="again", alias="now", switch_despite_failures=True),
        "",
        "GetCollection CreateCollection ListAliases CountItems ListItems GetItems SetAlias",
    ),
    ("DeleteItems", pb.DeleteItemsRequest(ids=["a"]), "", "GetCollection DeleteItems"),
    (
        "DeleteItems",
        pb.DeleteItemsRequest(filter=Filter(comparison=Comparison(key="sha256", op=OPERATOR_EXISTS))),
        "",
        "GetCollection ListItems DeleteItems",
    ),
    ("CreateCollection", pb.CreateCollectionRequest(name="other"), "", "CreateCollection"),
    ("GetCollection", pb.GetCollectionRequest(name="other"), "", "GetCollection"),
    ("ListCollections", pb.ListCollectionsRequest(), "", "ListCollections"),
    ("UpdateCollection", pb.UpdateCollectionRequest(name="other", description="d"), "", "UpdateCollection"),
    ("SetAlias", pb.SetAliasRequest(alias="al", collection="other"), "", "SetAlias"),
    ("ListAliases", pb.ListAliasesRequest(), "", "ListAliases"),
    ("DeleteAlias", pb.DeleteAliasRequest(alias="al"), "", "DeleteAlias"),
    (
        "DeleteCollection",
        pb.DeleteCollectionRequest(name="other"),
        "",
        "GetCollection DeleteCollection ListCollections",
    ),
    ("GetStatus", pb.GetStatusRequest(), "GetStatus", "ListCollections"),
]


class Shelf(Shelves):
    """An indexer with one collection, "images"."""

    def __init__(self) -> None:
        super().__init__()
        self.max_encoded_bytes = self.max_pixels = 2**20
        self.make("images")
        for item_id, direction in (("a", vector(1)), ("b", vector(1, 0.1))):
            self.put(item_id, direction, sha256=content_hash(IMAGE))
            self.store("images", item_id, direction, sha256=content_hash(IMAGE))

    @property
    def asked_for(self) -> set[str]:
        """The methods called, but for the embedder's."""
        return {method for method, _ in self.calls if method != "Embed"}

    async def GetStatus(self, request: Any, context: Any) -> indexer_pb2.GetStatusResponse:  # noqa: N802
        await self._begin("GetStatus", request, context)
        return indexer_pb2.GetStatusResponse(role=indexer_pb2.ROLE_READER)


class Health(health_aio.HealthServicer):
    """What a reader says of itself, and how often somebody wanted to be told."""

    def __init__(self) -> None:
        super().__init__()
        self._watched, self._another = 0, asyncio.Event()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        self._watched += 1
        self._another.set()
        await super().Watch(request, context)

    async def until_watched(self, times: int) -> None:
        while self._watched < times:
            self._another.clear()
            await self._another.wait()


@dataclass
class Reader:
    """A reader on a port of its own.

    Attributes:
        shelf: what it holds, and was asked.
        health: what it says of itself.
        server: it.
        port: its port.
    """

    shelf: Shelf
    health: Health
    server: grpc.aio.Server
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def says(self, serving: bool) -> None:
        answer = health_pb2.HealthCheckResponse
        await self.health.set(INDEXER, answer.SERVING if serving else answer.NOT_SERVING)


async def start(port: int = 0, *, ready: bool = True) -> Reader:
    server, health = grpc.aio.server(options=[("grpc.so_reuseport", 0)]), Health()
    shelf = Shelf()  # type: ignore[abstract]  # only what the gateway calls
    indexer_pb2_grpc.add_IndexerServiceServicer_to_server(shelf, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reader = Reader(shelf, health, server, server.add_insecure_port(f"127.0.0.1:{port}"))
    await reader.says(ready)
    await server.start()
    return reader


@asynccontextmanager
async def reader(*, ready: bool = True) -> AsyncIterator[Reader]:
    started = await start(ready=ready)
    try:
        yield started
    finally:
        await started.server.stop(0)


def writer() -> Shelf:
    return Shelf()  # type: ignore[abstract]  # as above


async def call(gateway: Gateway, rpc: str, request: Any) -> Any:
    """The answer; of a stream, the last message."""
    method, told = pb.DESCRIPTOR.services_by_name["SearchService"].methods_by_name[rpc], getattr(gateway.grpc, rpc)
    if not method.server_streaming:
        return await told(request, timeout=60)
    *_, last = [message async for message in told(iter(request) if method.client_streaming else request, timeout=60)]
    return last


async def refusal(gateway: Gateway, rpc: str, request: Any) -> LikenessError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(gateway, rpc, request)
    return from_rpc_error(caught.value, error_pb2.REASON_INTERNAL, "the gateway")


async def test_what_may_be_a_little_behind_is_asked_of_readers_and_all_else_of_the_writer() -> None:
    write = writer()
    async with reader() as read, serving(write, indexer_read_address=read.address) as gateway:
        asked = []
        for rpc, request, _, _ in CALLS:
            write.calls.clear()
            read.shelf.calls.clear()
            await call(gateway, rpc, request)
            asked.append((rpc, read.shelf.asked_for, write.asked_for))

    assert asked == [(rpc, set(reads.split()), set(writes.split())) for rpc, _, reads, writes in CALLS]
    every = {method.name for method in pb.DESCRIPTOR.services_by_name["SearchService"].methods}
    assert {rpc for rpc, *_ in CALLS} == every


async def test_a_thumbnail_is_looked_up_at_a_reader() -> None:
    write = writer()
    async with reader() as read, serving(write, indexer_read_address=read.address) as gateway:
        answer = await gateway.http.get("/thumbnails/images/a")
    assert answer.status_code == 404  # there is the item, and no file
    assert read.shelf.asked_for == {"GetCollection", "GetItems"}
    assert not write.asked_for


async def test_what_deletes_files_believes_the_writer_alone(tmp_path: Path) -> None:
    (tmp_path / ("a" * 32)).mkdir()
    write = writer()
    async with (
        reader() as read,
        serving(write, indexer_read_address=read.address, media_url=str(tmp_path)),
    ):
        await asyncio.wait_for(write.until_asked("ListCollections", 1), 60)
    assert not read.shelf.asked_for


async def test_while_readers_are_away_searches_fail_and_the_writer_is_not_asked_instead() -> None:
    write = writer()
    async with reader() as read, serving(write, indexer_read_address=read.address, ride_out_s=0) as gateway:
        await read.server.stop(0)
        error = await refusal(gateway, "Search", SEARCH)
        assert write.asked_for == set()
        await call(gateway, "UpdateMetadata", pb.UpdateMetadataRequest(updates=[SET]))
        status = await call(gateway, "GetStatus", pb.GetStatusRequest())

    assert error.reason_name == "INDEXER_UNAVAILABLE"
    assert f"the reader at {read.address}" in error.message
    assert {each.name: each.serving for each in status.services} == {"embedder": True, "indexer": True, "reader": False}
    assert [each.address for each in status.services if each.name == "reader"] == [read.address]


async def test_while_the_writer_is_away_searches_go_on_and_writes_fail() -> None:
    write = writer()
    async with (
        reader() as elsewhere,
        reader() as read,
        serving(write, indexer_address=elsewhere.address, indexer_read_address=read.address, ride_out_s=0) as gateway,
    ):
        await elsewhere.server.stop(0)
        found = await call(gateway, "Search", SEARCH)
        error = await refusal(gateway, "UpdateMetadata", pb.UpdateMetadataRequest(updates=[SET]))
        described = await refusal(gateway, "GetCollection", pb.GetCollectionRequest(name="images"))
        status = await call(gateway, "GetStatus", pb.GetStatusRequest())

    assert [hit.item.id for hit in found.hits] == ["b"]
    for each in (error, described):
        assert each.reason_name == "INDEXER_UNAVAILABLE"
        assert f"the indexer at {elsewhere.address}" in each.message
    assert {each.name: each.serving for each in status.services} == {"embedder": True, "indexer": False, "reader": True}


async def test_without_the_setting_one_indexer_is_asked_everything() -> None:
    write = writer()
    async with serving(write) as gateway:
        await call(gateway, "Search", SEARCH)
        status = await call(gateway, "GetStatus", pb.GetStatusRequest())
    assert write.asked_for == {"Query", "GetItems", "GetFacets", "ListCollections"}
    assert [each.name for each in status.services] == ["embedder", "indexer"]


def of(readers: Iterable[Reader]) -> Readers:
    where = ",".join(reader.address for reader in readers)
    return Readers(GatewaySettings(indexer_read_address=f"ipv4:{where}"))


COUNT = indexer_pb2.CountItemsRequest(collection="images")


async def test_readers_are_asked_in_turn_but_for_those_that_do_not_serve() -> None:
    async with reader() as one, reader() as other, asyncio.timeout(60):
        readers = of([one, other])

        async def asked(times: int) -> int:
            """How many of so many calls came to the first."""
            before = len(one.shelf.calls)
            for _ in range(times):
                await readers.count(COUNT, 20)
            return len(one.shelf.calls) - before

        while not (one.shelf.calls and other.shelf.calls):
            await asked(1)
        await one.says(False)
        while await asked(10):  # the word takes a moment to get there
            pass
        assert await asked(20) == 0
        await one.says(True)
        while not await asked(1):
            pass
        await readers.close()


async def test_a_restart_of_the_only_reader_is_ridden_out() -> None:
    port = free_port()
    readers = Readers(GatewaySettings(indexer_read_address=f"127.0.0.1:{port}", ride_out_s=60))
    impatient = Readers(GatewaySettings(indexer_read_address=f"127.0.0.1:{port}", ride_out_s=0))
    counting = asyncio.create_task(readers.count(COUNT, 60))
    with pytest.raises(LikenessError) as away:  # by now the first call has failed, too
        await impatient.count(COUNT, 60)
    started = await start(port)
    assert await counting == 2
    await readers.close()
    await impatient.close()
    await started.server.stop(0)
    assert away.value.reason_name == "INDEXER_UNAVAILABLE"


@pytest.mark.parametrize("first", [0, 1])
async def test_a_start_waits_for_a_reader_that_serves_whichever_it_is(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_WATCH_S", 0.2)
    monkeypatch.setattr(backend, "_WATCH_AGAIN_S", 0.0)
    async with reader(ready=False) as one, reader(ready=False) as other:
        readers = of([one, other])
        waiting = asyncio.create_task(readers.wait_until_serving())
        for each in (one, other):
            await asyncio.wait_for(each.health.until_watched(2), 60)
        assert not waiting.done()
        await (one, other)[first].says(True)
        await asyncio.wait_for(waiting, 60)
        await readers.close()


async def test_an_address_where_something_else_is_is_told_with_its_setting() -> None:
    server, health = grpc.aio.server(), health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with pytest.raises(LikenessError) as caught:
        async with serving(writer(), indexer_read_address=f"127.0.0.1:{port}"):
            pass
    await server.stop(0)
    assert f"127.0.0.1:{port} is not the reader" in caught.value.message
    assert "set LIKENESS_INDEXER_READ_ADDRESS" in caught.value.message
