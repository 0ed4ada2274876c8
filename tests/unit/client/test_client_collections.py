"""Collections and aliases through the gateway, and embedding a collection anew: what is sent, told and tried again."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from likeness.common.v1 import error_pb2
from likeness.gateway.v1 import gateway_pb2 as pb

from likeness_client import Client, LikenessError, backoff
from likeness_client.indexer.types import Alias, Metric
from tests.unit.client.command import likeness
from tests.unit.client.fake_collections import failure
from tests.unit.client.fake_gateway import FakeGateway, shutting_down, status


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def test_a_collection_is_made_described_changed_and_deleted(client: Client, gateway: FakeGateway) -> None:
    made = client.create_collection("photos", metric=Metric.L2, description="holidays")
    assert (made.name, made.metric, made.description, made.fingerprint.model) == (
        "photos",
        Metric.L2,
        "holidays",
        "starter",
    )
    assert client.update_collection("photos", description="").description == ""
    assert client.collection("photos").uid == made.uid
    client.delete_collection("photos")
    assert not gateway.collections


def test_every_page_of_collections_is_read(client: Client, gateway: FakeGateway) -> None:
    for name in ("aaa", "bbb", "ccc"):
        client.create_collection(name)
    assert [found.name for found in client.collections()] == ["aaa", "bbb", "ccc"]


def test_an_alias_is_set_listed_and_deleted(client: Client, gateway: FakeGateway) -> None:
    assert client.set_alias("now", "one", expected="") == ""
    assert client.set_alias("now", "two") == "one"
    first, second = [request for request in gateway.requests if isinstance(request, pb.SetAliasRequest)]
    assert (first.HasField("expected_collection"), second.HasField("expected_collection")) == (True, False)
    assert client.aliases() == [Alias("now", "two")]
    assert client.delete_alias("now") == "two"


def told(gateway: FakeGateway) -> None:
    lost = failure("b", error_pb2.REASON_ORIGINAL_MISSING, "there is no picture")
    gateway.reembedding = [
        pb.ReembedCollectionResponse(done=2, total=4, embedded=1, failed=1, failures=[lost], next_page_token="b"),
        pb.ReembedCollectionResponse(done=4, total=4, embedded=2, unchanged=1, failed=1),
        pb.ReembedCollectionResponse(
            done=4, total=4, embedded=2, unchanged=1, failed=1, removed=3, switched=True, finished=True
        ),
    ]


def test_a_collection_is_embedded_anew_and_the_end_is_told(client: Client, gateway: FakeGateway) -> None:
    told(gateway)
    seen: list[tuple[int, int]] = []
    done = client.reembed(
        "now",
        "new",
        alias="now",
        switch_despite_failures=True,
        keep_originals=True,
        keep_extra_items=True,
        fetch_uris=True,
        on_progress=lambda some, total: seen.append((some, total)),
    )
    assert (done.total, done.embedded, done.unchanged, done.failed, done.removed, done.switched) == (
        4,
        2,
        1,
        1,
        3,
        True,
    )
    assert [(each.id, each.error.message) for each in done.failures] == [("b", "there is no picture")]
    assert seen == [(2, 4), (4, 4), (4, 4)]
    (request,) = gateway.requests
    assert request == pb.ReembedCollectionRequest(
        collection="now",
        target="new",
        alias="now",
        switch_despite_failures=True,
        keep_originals=True,
        keep_extra_items=True,
        fetch_uris=True,
    )


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.001)


@pytest.mark.usefixtures("hasty")
def test_a_broken_stream_goes_on_behind_the_last_page(client: Client, gateway: FakeGateway) -> None:
    told(gateway)
    gateway.reembedding_breaks = [shutting_down()]
    done = client.reembed("photos", "new")
    first, second = gateway.requests
    assert isinstance(first, pb.ReembedCollectionRequest)
    assert isinstance(second, pb.ReembedCollectionRequest)
    assert (first.page_token, second.page_token) == ("", "b")
    assert (done.embedded, done.failed, len(done.failures)) == (3, 1, 1)


def progress(done: int, embedded: int, unchanged: int, token: str, **more: Any) -> pb.ReembedCollectionResponse:
    return pb.ReembedCollectionResponse(
        done=done, total=6, embedded=embedded, unchanged=unchanged, next_page_token=token, **more
    )


def finished(done: int, embedded: int, unchanged: int) -> pb.ReembedCollectionResponse:
    return progress(done, embedded, unchanged, "", finished=True)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "streams",
    [
        # Broken within the second page: what was embedded of it is unchanged to the next stream.
        [
            [progress(2, 2, 0, "b"), progress(3, 3, 0, "b")],
            [progress(1, 0, 1, "b"), progress(2, 1, 1, "d"), progress(4, 2, 2, ""), finished(4, 2, 2)],
        ],
        # Broken twice there.
        [
            [progress(2, 2, 0, "b"), progress(3, 3, 0, "b")],
            [progress(1, 0, 1, "b")],
            [progress(2, 1, 1, "d"), progress(4, 2, 2, ""), finished(4, 2, 2)],
        ],
        # Broken in the second round: the next stream begins at the beginning, and finds everything unchanged.
        [
            [progress(2, 2, 0, "b"), progress(6, 5, 1, "")],
            [progress(2, 0, 2, "b"), progress(6, 0, 6, ""), finished(6, 0, 6)],
        ],
        # Broken within the second page, and then in the second round.
        [
            [progress(2, 1, 1, "b"), progress(3, 2, 1, "b")],
            [progress(1, 0, 1, "b"), progress(4, 3, 1, "")],
            [progress(6, 0, 6, ""), finished(6, 0, 6)],
        ],
        # Broken within the first page.
        [[progress(1, 1, 0, "")], [progress(2, 1, 1, "b"), progress(6, 4, 2, ""), finished(6, 4, 2)]],
    ],
)
def test_what_streams_that_broke_did_is_counted_once(
    client: Client, gateway: FakeGateway, streams: list[list[pb.ReembedCollectionResponse]]
) -> None:
    gateway.reembeddings = list(streams)
    seen: list[tuple[int, int]] = []
    done = client.reembed("photos", "new", on_progress=lambda some, total: seen.append((some, total)))

    assert (done.total, done.embedded, done.unchanged, done.failed) == (6, 5, 1, 0)
    assert seen[-1] == (6, 6)
    assert gateway.reembeddings == []


def test_a_stream_that_breaks_behind_its_end_is_not_opened_again(client: Client, gateway: FakeGateway) -> None:
    gateway.reembedding = [finished(6, 5, 1)]
    gateway.reembedding_breaks = [shutting_down()]

    done = client.reembed("photos", "new")

    assert (done.embedded, done.unchanged) == (5, 1)
    assert len(gateway.requests) == 1


@pytest.mark.usefixtures("hasty")
def test_what_will_not_pass_is_raised_and_so_is_what_does_not_pass(client: Client, gateway: FakeGateway) -> None:
    gateway.reembedding = [pb.ReembedCollectionResponse(total=4)]
    gateway.reembedding_breaks = [status(grpc.StatusCode.FAILED_PRECONDITION, "MODEL_MISMATCH", "two models")]
    with pytest.raises(LikenessError, match="two models"):
        client.reembed("photos", "new")
    assert len(gateway.requests) == 1


@pytest.mark.usefixtures("hasty")
def test_streams_that_tell_they_live_and_do_nothing_are_given_up(client: Client, gateway: FakeGateway) -> None:
    gateway.reembedding = [pb.ReembedCollectionResponse(total=4)]
    gateway.reembedding_breaks = [shutting_down() for _ in range(20)]
    with pytest.raises(LikenessError, match="SHUTTING_DOWN"):
        client.reembed("photos", "new")
    assert len(gateway.requests) == 6


@pytest.mark.usefixtures("hasty")
def test_streams_that_find_again_what_earlier_ones_did_are_given_up(client: Client, gateway: FakeGateway) -> None:
    gateway.reembeddings = [[progress(2, 0, 2, "")]] * 8
    with pytest.raises(LikenessError, match="the connection broke"):
        client.reembed("photos", "new")
    assert len(gateway.requests) == 6


@pytest.mark.usefixtures("hasty")
def test_streams_that_each_do_something_are_followed_however_many_break(client: Client, gateway: FakeGateway) -> None:
    gateway.reembeddings = [[progress(1, 1, 0, f"{number:02}")] for number in range(20)] + [[finished(0, 0, 0)]]
    told: list[str] = []
    done = client.reembed("photos", "new", on_reconnect=lambda error, _wait_s: told.append(error.code))
    assert (done.embedded, told) == (20, ["UNAVAILABLE"] * 20)


@pytest.mark.usefixtures("hasty")
def test_a_stream_that_broke_while_the_alias_was_moved_counts_as_done(client: Client, gateway: FakeGateway) -> None:
    moved = status(grpc.StatusCode.FAILED_PRECONDITION, "ALIAS_MOVED", "it stands for new")
    gateway.reembedding = [pb.ReembedCollectionResponse(done=4, total=4, embedded=4)]
    gateway.reembedding_breaks = [shutting_down(), moved]
    gateway.aliases["now"] = "new"
    assert client.reembed("photos", "new", alias="now").switched
    gateway.reembedding_breaks = [moved]
    with pytest.raises(LikenessError, match="ALIAS_MOVED"):
        client.reembed("photos", "new", alias="now")


def test_what_may_not_be_repeated_is_sent_once(client: Client, gateway: FakeGateway) -> None:
    calls = 0

    def refuse(request: pb.CreateCollectionRequest, context: grpc.ServicerContext) -> pb.CreateCollectionResponse:
        nonlocal calls
        calls += 1
        context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    gateway.on_create = refuse
    with pytest.raises(LikenessError):
        client.create_collection("photos")
    assert calls == 1


def test_an_alias_is_moved_once_even_where_the_answer_is_lost(client: Client, gateway: FakeGateway) -> None:
    gateway.alias_breaks = [shutting_down()]
    with pytest.raises(LikenessError, match="SHUTTING_DOWN"):
        client.set_alias("now", "new", expected="old")
    assert [type(request) for request in gateway.requests] == [pb.SetAliasRequest]


def test_the_command_tells_what_became_of_it(address: str, gateway: FakeGateway) -> None:
    told(gateway)
    result = likeness("reembed", "photos", "new", "--alias", "now", "--switch-despite-failures", server=address)
    assert result.exit_code == 1
    assert result.stdout == (
        "Collection new: embedded 2 pictures; 1 were there already; 1 could not be embedded; "
        "3 that the source lacks are deleted. now stands for it now.\n"
    )
    assert result.stderr == "b: ORIGINAL_MISSING: there is no picture\n"


def test_the_command_asks_before_it_deletes_what_the_source_lacks(address: str, gateway: FakeGateway) -> None:
    told(gateway)
    gateway.stored = {i: pb.IndexItem(id=i) for i in "abc"}
    gateway.lacking["photos"] = {"b"}
    no = likeness("reembed", "photos", "new", server=address, stdin="n\n")
    assert (no.exit_code, gateway.requests_of(pb.ReembedCollectionRequest)) == (1, 0)
    assert "Of the first 3 pictures of collection new, photos lacks 1 picture, such as b." in no.stderr
    likeness("reembed", "photos", "new", server=address, stdin="y\n")
    likeness("reembed", "photos", "new", "--yes", server=address)
    likeness("reembed", "photos", "new", "--keep-extra-items", server=address)
    assert gateway.requests_of(pb.ReembedCollectionRequest) == 3


@pytest.mark.usefixtures("hasty")
def test_the_command_tells_that_it_goes_on_over_another_stream(address: str, gateway: FakeGateway) -> None:
    told(gateway)
    gateway.reembedding_breaks = [shutting_down()]
    result = likeness("reembed", "photos", "new", server=address)
    assert "SHUTTING_DOWN: the gateway is stopping\nGoing on in 0.001 s.\n" in result.stderr


def test_the_command_as_json_has_the_promised_shape(address: str, gateway: FakeGateway) -> None:
    gateway.reembedding = [pb.ReembedCollectionResponse(done=1, total=1, embedded=1, switched=True, finished=True)]
    options = ["--keep-originals", "--keep-extra-items", "--fetch-uris", "--format", "json"]
    result = likeness("reembed", "photos", "new", *options, server=address)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "total": 1,
        "embedded": 1,
        "unchanged": 0,
        "failed": 0,
        "removed": 0,
        "switched": True,
        "failures": [],
    }
    (request,) = gateway.requests
    assert isinstance(request, pb.ReembedCollectionRequest)
    assert (request.keep_originals, request.keep_extra_items, request.fetch_uris) == (True, True, True)
