"""Aliases: another name wherever a collection's will do, moved from one to another under load."""

import threading
import time
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from likeness.common.v1 import error_pb2, types_pb2
from likeness.indexer.v1 import indexer_pb2 as pb

from chassis.metadata import from_proto
from tests.integration.indexer.calls import (
    EVERYTHING,
    FINGERPRINT,
    LABELLED,
    OTHER_MODEL,
    Start,
    Stub,
    compared,
    connect,
    count,
    create,
    ids,
    item,
    like,
    pages,
    query,
    refusal,
    unit,
    upsert,
)


def point(stub: Stub, alias: str, collection: str, expected: str | None = None) -> str:
    """Sets an alias; returns what it stood for."""
    request = pb.SetAliasRequest(alias=alias, collection=collection, expected_collection=expected)
    return stub.SetAlias(request).previous_collection


def aliases(stub: Stub) -> dict[str, str]:
    return {alias.name: alias.collection for alias in stub.ListAliases(pb.ListAliasesRequest()).aliases}


def test_an_alias_stands_for_a_collection_in_every_rpc(stub: Stub) -> None:
    name = create(stub, "aliased.all")
    assert point(stub, "another.name", name) == ""
    al = "another.name"
    assert upsert(stub, al, item(1, k=1), item(2, k=2)) == 2
    parts = [
        pb.UpsertItemsStreamRequest(collection=al, items=[item(3, k=3)]),
        pb.UpsertItemsStreamRequest(collection=al),
    ]
    assert stub.UpsertItemsStream(iter(parts)).stored == 1
    updates = [pb.MetadataUpdate(id="i1", set=item(1, m=7).metadata)]
    assert stub.UpdateMetadata(pb.UpdateMetadataRequest(collection=al, updates=updates)).updated == 1
    assert ids(stub, al, "i1", "i2", "i3") == ["i1", "i2", "i3"]
    assert stub.DeleteItems(pb.DeleteItemsRequest(collection=al, filter=compared("k", "EQ", 2))).deleted == 1
    assert count(stub, al) == count(stub, name) == 2
    assert [len(page) for page in pages(stub, pb.ListItemsRequest(collection=al, page_size=1))][:2] == [1, 1]
    assert stub.GetFacets(pb.GetFacetsRequest(collection=al, facets=[pb.FacetRequest(key="k")])).count == 2
    assert query(stub, al, like(unit(3))).results[0].hits[0].id == "i3"
    described = stub.GetCollection(pb.GetCollectionRequest(name=al)).collection
    assert (described.name, list(described.aliases), described.count) == (name, [al], 2)
    listed = {c.name: list(c.aliases) for c in stub.ListCollections(pb.ListCollectionsRequest()).collections}
    assert listed[name] == [al]
    assert al not in listed
    assert stub.UpdateCollection(pb.UpdateCollectionRequest(name=al, description="x")).collection.name == name


def test_what_cannot_be_is_refused(stub: Stub) -> None:
    one, two = create(stub, "refused.one"), create(stub, "refused.two")
    point(stub, "refused.alias", one)
    reasons: list[tuple[Callable[[], object], str]] = [
        (lambda: point(stub, two, one), "COLLECTION_EXISTS"),
        (lambda: create(stub, "refused.alias"), "COLLECTION_EXISTS"),
        (lambda: point(stub, "refused.new", "refused.alias"), "FIELD_INVALID"),
        (lambda: point(stub, "refused.new", "nowhere"), "COLLECTION_NOT_FOUND"),
        (lambda: point(stub, "Refused", one), "FIELD_INVALID"),
        (lambda: point(stub, "refused.alias", two, two), "ALIAS_MOVED"),
        (lambda: point(stub, "refused.alias", two, ""), "ALIAS_MOVED"),
        (lambda: stub.DeleteCollection(pb.DeleteCollectionRequest(name=one)), "COLLECTION_ALIASED"),
        (lambda: stub.DeleteCollection(pb.DeleteCollectionRequest(name="refused.alias")), "FIELD_INVALID"),
        (lambda: stub.DeleteAlias(pb.DeleteAliasRequest(alias="refused.new")), "ALIAS_NOT_FOUND"),
    ]
    for call, reason in reasons:
        assert refusal(call).reason_name == reason
    assert aliases(stub)["refused.alias"] == one
    assert point(stub, "refused.alias", two, one) == one
    stub.DeleteCollection(pb.DeleteCollectionRequest(name=one))
    assert stub.DeleteAlias(pb.DeleteAliasRequest(alias="refused.alias")).collection == two
    assert refusal(lambda: count(stub, "refused.alias")).reason == error_pb2.REASON_COLLECTION_NOT_FOUND


def test_a_page_token_does_not_go_over_to_another_collection_with_its_alias(stub: Stub) -> None:
    one, two = create(stub, "tokens.one"), create(stub, "tokens.two")
    for name in (one, two):
        upsert(stub, name, item(1), item(2))
    point(stub, "tokens", one)
    token = stub.ListItems(pb.ListItemsRequest(collection="tokens", page_size=1)).next_page_token
    by_name = stub.ListItems(pb.ListItemsRequest(collection=one, page_size=1, page_token=token))
    assert [i.id for i in by_name.items] == ["i2"]
    point(stub, "tokens", two)
    call = pb.ListItemsRequest(collection="tokens", page_size=1, page_token=token)
    error = refusal(lambda: stub.ListItems(call))
    assert error.violations[0].field == "page_token"


def test_another_model_is_refused_on_every_write_and_query_naming_both(stub: Stub) -> None:
    name = create(stub, "guarded")
    upsert(stub, name, item(1))
    point(stub, "guarded.alias", name)
    for al in (name, "guarded.alias"):
        calls: list[Callable[[], object]] = [
            lambda al=al: stub.UpsertItems(  # type: ignore[misc]
                pb.UpsertItemsRequest(collection=al, expected_fingerprint=OTHER_MODEL, items=[item(2)])
            ),
            lambda al=al: stub.UpsertItemsStream(  # type: ignore[misc]
                iter([pb.UpsertItemsStreamRequest(collection=al, expected_fingerprint=OTHER_MODEL, items=[item(2)])])
            ),
            lambda al=al: stub.UpdateMetadata(  # type: ignore[misc]
                pb.UpdateMetadataRequest(
                    collection=al, expected_fingerprint=OTHER_MODEL, updates=[pb.MetadataUpdate(id="i1", replace=True)]
                )
            ),
            lambda al=al: stub.DeleteItems(  # type: ignore[misc]
                pb.DeleteItemsRequest(collection=al, expected_fingerprint=OTHER_MODEL, ids=["i1"])
            ),
            lambda al=al: stub.Query(  # type: ignore[misc]
                pb.QueryRequest(collection=al, expected_fingerprint=OTHER_MODEL, queries=[like(unit(1))])
            ),
        ]
        for call in calls:
            error = refusal(call)
            assert error.reason == error_pb2.REASON_MODEL_MISMATCH
            assert FINGERPRINT.model in error.message
            assert OTHER_MODEL.model in error.message
            assert "use an embedder with the collection's model" in error.message
    assert ids(stub, name, "i1", "i2") == ["i1"]


def test_aliases_are_there_after_a_restart(start: Start) -> None:
    service = start()
    with connect(service) as channel:
        stub = Stub(channel)
        for name in ("kept.one", "kept.two"):
            upsert(stub, create(stub, name), item(1, of=name))
        for target in ("kept.one", "kept.two"):
            point(stub, "kept", target)
        point(stub, "kept.too", "kept.one")
    service.kill()
    with connect(start()) as channel:
        stub = Stub(channel)
        assert aliases(stub) == {"kept": "kept.two", "kept.too": "kept.one"}
        (found,) = stub.GetItems(pb.GetItemsRequest(collection="kept", ids=["i1"], fields=LABELLED)).items
        assert from_proto(found.metadata, "metadata") == {"of": "kept.two"}


_DIMENSIONS = (8, 16)


class Clients:
    """Threads that query an alias until they are told to stop, and note what was not as it must be.

    Everything in a collection says which one it is: the fingerprint's digest, the dimension, and the items' ids,
    metadata and vectors.
    """

    def __init__(self, channel: grpc.Channel, alias: str, threads: int) -> None:
        self.faults: list[str] = []
        self.answers: list[str] = []
        self._stub = Stub(channel)
        self._alias = alias
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=(n,), daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def wait_for(self, answers: int) -> None:
        """Returns when so many more queries were answered."""
        wanted, until = len(self.answers) + answers, time.monotonic() + 60
        while len(self.answers) < wanted:
            assert not self.faults, self.faults[:3]
            assert time.monotonic() < until, (len(self.answers), wanted)
            time.sleep(0.005)

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _guarded(self, n: int) -> None:
        try:
            self._run(n)
        except Exception as error:
            self.faults.append(f"client {n} ended with {error!r}")

    def _run(self, n: int) -> None:
        # By a stored id, so that the query fits both dimensions; every other client, with a filter and vectors.
        example = pb.Example(id="common")
        where = compared("all", "EQ", 1) if n % 2 else None
        request = pb.QueryRequest(
            collection=self._alias,
            queries=[pb.Query(examples=[example], top_k=20, filter=where)] * 4,
            fields=EVERYTHING,
        )
        while not self._done.is_set():
            try:
                answer = self._stub.Query(request, timeout=60)
            except grpc.RpcError as error:
                self.faults.append(str(error))
                continue
            of = {answer.fingerprint.digest[:1]}
            for result in answer.results:
                if result.HasField("error") or len(result.hits) != 20:
                    self.faults.append(f"{len(result.hits)} hits: {result.error}")
                for hit in result.hits:
                    of |= {hit.id[0], str(from_proto(hit.metadata, "metadata")["of"])}
                    if len(hit.vector.f32) != 4 * answer.fingerprint.dimension:
                        self.faults.append(f"{hit.id}: a vector of {len(hit.vector.f32)} bytes")
            if len(of) != 1:
                self.faults.append(f"mixed: {of}")
            self.answers.append(of.pop())


def generation(stub: Stub, name: str, letter: str, dimension: int) -> None:
    """A collection of a model of its own, all of which says ``letter``."""
    fingerprint = types_pb2.ModelFingerprint(model=f"model {letter}", digest=letter * 64, dimension=dimension)
    stub.CreateCollection(pb.CreateCollectionRequest(name=name, fingerprint=fingerprint))
    vectors = np.random.default_rng(dimension).normal(size=(200, dimension)).astype("<f4")
    items = [
        pb.Item(
            id=f"{letter}{n}",
            vector=types_pb2.Vector(f32=vector.tobytes()),
            metadata=item(n, of=letter, all=1).metadata,
        )
        for n, vector in enumerate(vectors)
    ]
    common = pb.Item(
        id="common", vector=types_pb2.Vector(f32=vectors[0].tobytes()), metadata=item(0, of=letter).metadata
    )
    stub.UpsertItems(pb.UpsertItemsRequest(collection=name, items=[*items, common], expected_fingerprint=fingerprint))


@pytest.mark.parametrize("reads", ["memory", "chroma"])
def test_re_embedding_and_switching_fails_no_query_and_mixes_none(start: Start, reads: str) -> None:
    service = start(LIKENESS_READS=reads)
    with connect(service) as channel:
        stub = Stub(channel)
        generation(stub, "photos-0", "a", _DIMENSIONS[0])
        point(stub, "photos", "photos-0")
        clients = Clients(channel, "photos", threads=4)
        try:
            clients.wait_for(20)
            for n in range(1, 7):
                letter, dimension = "ab"[n % 2], _DIMENSIONS[n % 2]
                old, new = f"photos-{n - 1}", f"photos-{n}"
                generation(stub, new, letter, dimension)
                clients.wait_for(10)
                assert point(stub, "photos", new, old) == old
                if n % 3 == 0:  # back, and there again
                    assert point(stub, "photos", old, new) == new
                    clients.wait_for(10)
                    assert point(stub, "photos", new, old) == old
                stub.DeleteCollection(pb.DeleteCollectionRequest(name=old))
                clients.wait_for(10)
        finally:
            clients.stop()
        assert clients.faults == []
        assert {"a", "b"} <= set(clients.answers)
        assert [c.name for c in stub.ListCollections(pb.ListCollectionsRequest()).collections] == ["photos-6"]


def test_queries_in_flight_are_answered_while_their_collection_is_deleted(start: Start) -> None:
    """Chroma answers slowly, so that the deletion comes in the middle of a query."""
    service = start(LIKENESS_READS="chroma", LIKENESS_SEARCHES="1")
    with connect(service) as channel:
        stub = Stub(channel)
        for n in range(3):
            generation(stub, f"slow-{n}", "ab"[n % 2], _DIMENSIONS[n % 2])
        point(stub, "slow", "slow-0")
        clients = Clients(channel, "slow", threads=8)
        try:
            for n in (1, 2):
                clients.wait_for(10)
                point(stub, "slow", f"slow-{n}")
                stub.DeleteCollection(pb.DeleteCollectionRequest(name=f"slow-{n - 1}"))
            clients.wait_for(10)
        finally:
            clients.stop()
        assert clients.faults == []
