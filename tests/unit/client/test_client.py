import struct
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import grpc
import pytest
from likeness.common.v1 import error_pb2, metadata_pb2, types_pb2
from likeness.gateway.v1 import gateway_pb2 as pb

from likeness_client import (
    AllOf,
    Client,
    Comparison,
    Fingerprint,
    IndexInterruptedError,
    IndexOutcome,
    IngestLimits,
    IngestOptions,
    LikenessError,
    NoneOf,
    Operator,
    Picture,
    Skipped,
    Term,
    Violation,
    WhereError,
)
from tests.unit.client.fake_gateway import BAD, Break, FakeGateway, serving, shutting_down, status

QUICK = IngestLimits(first_backoff_s=0.001)


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def pictures(number: int) -> Iterator[Picture]:
    return (Picture(f"picture {i}".encode(), id=f"id-{i}") for i in range(number))


def test_a_search_sends_each_term_with_its_weight(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    client.search(
        Term.image(tmp_path / "cat.jpg"),
        Term.image(b"dog", weight=0.5),
        Term.text("red", weight=-0.5),
        Term.id("x"),
        Term.vector([0.5, -2.0], weight=2),
    )
    (request,) = gateway.search_requests
    assert [(t.WhichOneof("term"), t.weight) for t in request.terms] == [
        ("image", 1.0),
        ("image", 0.5),
        ("text", -0.5),
        ("id", 1.0),
        ("vector", 2.0),
    ]
    assert [request.terms[0].image.encoded, request.terms[1].image.encoded] == [b"cat", b"dog"]
    assert request.terms[2].text == "red"
    assert request.terms[3].id == "x"
    assert request.terms[4].vector.f32 == struct.pack("<2f", 0.5, -2.0)


def test_a_search_left_to_its_defaults_is_the_contracts(client: Client, gateway: FakeGateway) -> None:
    client.search(Term.text("a cat"))
    (request,) = gateway.search_requests
    assert (request.collection, request.top_k) == ("", 10)
    assert not request.HasField("filter")
    assert not request.HasField("min_score")
    assert not request.HasField("expected_fingerprint")
    assert (request.fields.metadata, request.fields.vector) == (True, False)


def test_a_search_sends_what_narrows_it(client: Client, gateway: FakeGateway) -> None:
    condition = 'not label = "cat" and width >= 300'
    model = Fingerprint("m", "ab" * 32, 512)
    client.search(
        Term.text("a"), where=condition, collection="pets", top_k=3, min_score=0.0, expected_fingerprint=model
    )
    same = AllOf(
        (
            NoneOf((Comparison("labels", Operator.CONTAINS, ("cat",)),)),
            Comparison("width", Operator.GE, (300,)),
        )
    )
    client.search(Term.text("a"), where=same)
    first, second = gateway.search_requests
    assert first.filter == second.filter
    negation, width = first.filter.all_of.filters
    assert negation.none_of.filters[0].comparison == metadata_pb2.Comparison(
        key="labels", op=metadata_pb2.OPERATOR_CONTAINS, values=[metadata_pb2.Value(string_value="cat")]
    )
    assert width.comparison == metadata_pb2.Comparison(
        key="width", op=metadata_pb2.OPERATOR_GE, values=[metadata_pb2.Value(int_value=300)]
    )
    assert (first.collection, first.top_k, first.min_score) == ("pets", 3, 0.0)
    assert first.HasField("min_score")
    assert first.expected_fingerprint.digest == model.digest


def test_a_condition_that_is_none_is_refused_before_anything_is_sent(client: Client, gateway: FakeGateway) -> None:
    with pytest.raises(WhereError):
        client.search(Term.text("a"), where="width >=")
    assert gateway.search_requests == []


def test_hits_come_back_as_plain_values(client: Client, gateway: FakeGateway) -> None:
    item = pb.Item(id="a", uri="file:///a.jpg", labels=["cat", "pet"])
    item.metadata.fields["width"].int_value = 300
    item.metadata.fields["latitude"].double_value = 48.5
    item.metadata.fields["camera"].string_value = "Canon"
    item.metadata.fields["flash"].bool_value = False
    item.metadata.fields["tags"].strings_value.values.extend(["x", "y"])
    item.vector.f32 = struct.pack("<2f", 0.5, -2.0)
    gateway.found.hits.add(item=item, score=0.75)
    gateway.found.hits.add(item=pb.Item(id="b"), score=0.5)
    gateway.found.fingerprint.model = "starter"
    gateway.found.timings.total.FromMilliseconds(12)
    found = client.search(Term.text("a cat"), include_vectors=True)
    assert gateway.search_requests[0].fields.vector
    assert [(hit.rank, hit.item.id, hit.score) for hit in found.hits] == [(1, "a", 0.75), (2, "b", 0.5)]
    first = found.hits[0].item
    assert (first.uri, first.labels, first.vector) == ("file:///a.jpg", ("cat", "pet"), (0.5, -2.0))
    expected = {"camera": "Canon", "flash": False, "latitude": 48.5, "tags": ["x", "y"], "width": 300}
    assert first.metadata == expected
    assert found.hits[1].item.vector is None
    assert (found.fingerprint.model, found.timings.total_s) == ("starter", 0.012)


def test_a_refusal_carries_code_reason_message_and_fields(client: Client, gateway: FakeGateway) -> None:
    gateway.refusal = status(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "the queue is full", field="terms[0].image", retry_after_s=1.5
    )
    with pytest.raises(LikenessError) as caught:
        client.search(Term.image(b"cat"))
    error = caught.value
    assert (error.code, error.reason, error.message) == ("RESOURCE_EXHAUSTED", "OVERLOADED", "the queue is full")
    assert error.violations == [Violation("terms[0].image", "the queue is full")]
    assert error.retry_after_s == 1.5
    assert str(error) == "OVERLOADED: the queue is full"


def test_a_gateway_that_is_not_there_is_said_in_plain_words(nobody: str) -> None:
    with Client(nobody) as client, pytest.raises(LikenessError) as caught:
        client.status()
    assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "GATEWAY_UNREACHABLE")
    assert caught.value.message == f"no gateway answers at {nobody} (Connection refused)"


def test_another_server_at_the_address_is_said_in_plain_words() -> None:
    with serving(None) as address, Client(address) as client, pytest.raises(LikenessError) as caught:
        client.status()
    assert caught.value.code == "UNIMPLEMENTED"
    assert "is it a Likeness gateway" in caught.value.message


def test_a_deadline_that_passes_is_said_with_its_length(address: str, gateway: FakeGateway) -> None:
    gateway.silent = True
    with Client(address, timeout=0.2) as client, pytest.raises(LikenessError) as caught:
        client.search(Term.text("a cat"))
    assert (caught.value.code, caught.value.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert "within 0.2 s" in caught.value.message


@pytest.mark.parametrize("timeout", [float("inf"), 1e10, None])
def test_any_time_is_a_time_to_wait(address: str, timeout: float | None) -> None:
    with Client(address, timeout=timeout) as client:
        assert client.status().version == "0.1.0"


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_no_time_is_no_time_to_wait(address: str, timeout: float) -> None:
    with pytest.raises(ValueError, match="expected more than 0"):
        Client(address, timeout=timeout)


def test_more_ids_than_a_call_takes_are_sent_in_several(client: Client, gateway: FakeGateway) -> None:
    gateway.stored = {f"id-{i}": pb.IndexItem() for i in range(1500)}
    ids = [f"id-{i}" for i in range(2000)]
    found = client.get(ids, collection="pets")
    assert [item.id for item in found.items] == ids[:1500]
    assert list(found.missing_ids) == ids[1500:]
    assert client.delete(ids) == 1500
    for requests in (gateway.get_requests, gateway.delete_requests):
        assert [len(request.ids) for request in requests] == [1024, 976]
    assert gateway.get_requests[0].collection == "pets"


def test_the_status_names_a_service_that_is_down(client: Client, gateway: FakeGateway) -> None:
    down = status(grpc.StatusCode.UNAVAILABLE, "EMBEDDER_UNAVAILABLE", "connection refused")
    error = error_pb2.ItemError(status=down, reason=error_pb2.REASON_EMBEDDER_UNAVAILABLE)
    gateway.status.services.add(name="embedder", address="e:1", error=error)
    gateway.status.services.add(name="indexer", address="i:1", serving=True)
    gateway.status.collections.add(name="images", count=3)
    state = client.status()
    assert not state.serving
    assert state.model is None
    assert str(state.services[0].error) == "EMBEDDER_UNAVAILABLE: connection refused"
    assert state.services[1].error is None
    assert (state.collections[0].name, state.collections[0].count) == ("images", 3)


def test_a_picture_is_sent_with_all_that_is_said_of_it(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    path = tmp_path / "a b.jpg"
    path.write_bytes(b"cat")
    told = Picture(path, labels=("cat",), metadata={"n": 1, "x": 0.5, "s": "t", "b": True, "l": ["p", "q"]})
    (outcome,) = client.index([told], collection="pets", create_collection=False)
    assert (outcome.picture, outcome.stored, outcome.size) == (told, True, 3)
    (start,) = gateway.starts
    assert (start.collection, start.create_collection) == ("pets", False)
    (item,) = gateway.stored.values()
    assert item.id == ""
    assert (item.uri, list(item.labels), item.image.encoded) == (path.as_uri(), ["cat"], b"cat")
    assert {key: value.WhichOneof("kind") for key, value in item.metadata.fields.items()} == {
        "n": "int_value",
        "x": "double_value",
        "s": "string_value",
        "b": "bool_value",
        "l": "strings_value",
    }


def test_five_thousand_pictures_never_have_more_than_the_window_unanswered(
    client: Client, gateway: FakeGateway
) -> None:
    gateway.answer_after = 256  # answers only when the window is full: fewer in flight would wait for ever
    taken, answered, most = count(), 0, 0

    def stream() -> Iterator[Picture]:
        nonlocal most
        for picture in pictures(5120):
            most = max(most, next(taken) + 1 - answered)
            yield picture

    for outcome in client.index(stream()):
        assert outcome.stored
        answered += 1
    assert answered == len(gateway.stored) == 5120
    assert most == 256


def test_large_pictures_are_bounded_by_their_bytes(client: Client, gateway: FakeGateway) -> None:
    gateway.answer_after = 4
    taken, answered, most = count(), 0, 0

    def stream() -> Iterator[Picture]:
        nonlocal most
        for i in range(40):
            most = max(most, next(taken) + 1 - answered)
            yield Picture(bytes(1000), id=f"id-{i}")

    for _ in client.index(stream(), limits=IngestLimits(max_unanswered_bytes=4000)):
        answered += 1
    assert answered == 40
    assert most == 4


def test_what_cannot_be_sent_fails_alone_and_by_name(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    limits = gateway.status.model.limits
    limits.max_encoded_bytes, limits.max_message_bytes = 100, 150
    good, large = tmp_path / "good.jpg", tmp_path / "large.jpg"
    good.write_bytes(b"good")
    large.write_bytes(bytes(101))
    given = {
        "gone": Picture(tmp_path / "gone.jpg"),
        "directory": Picture(tmp_path),
        "large": Picture(large),
        "wordy": Picture(bytes(90), labels=("long " * 20,)),
        "half a character": Picture(b"x", labels=("\ud800",)),
        "bad": Picture(BAD),
        "good": Picture(good),
    }
    outcomes = list(client.index(given.values()))
    assert len(outcomes) == len(given)
    reasons = {outcome.picture.image: outcome.error and outcome.error.reason for outcome in outcomes}
    assert {name: reasons[picture.image] for name, picture in given.items()} == {
        "gone": "FILE_UNREADABLE",
        "directory": "FILE_UNREADABLE",
        "large": "IMAGE_TOO_LARGE",
        "wordy": "IMAGE_TOO_LARGE",
        "half a character": "FIELD_INVALID",
        "bad": "IMAGE_DAMAGED",
        "good": None,
    }
    assert [item.image.encoded for item in gateway.stored.values()] == [b"good"]


def test_a_stream_that_breaks_midway_loses_and_repeats_no_outcome(client: Client, gateway: FakeGateway) -> None:
    gateway.breaks.extend([Break(300, shutting_down()), Break(1, shutting_down()), Break(77, shutting_down())])
    told: list[tuple[str, int]] = []

    def note(error: LikenessError, unanswered: int, wait_s: float) -> None:
        told.append((error.reason, unanswered))

    outcomes = list(client.index(pictures(1000), limits=QUICK, on_reconnect=note))
    assert sorted(outcome.id for outcome in outcomes) == sorted(f"id-{i}" for i in range(1000))
    assert all(outcome.stored for outcome in outcomes)
    assert set(gateway.stored) == {outcome.id for outcome in outcomes}
    assert len(gateway.starts) == 4
    assert [reason for reason, _ in told] == ["SHUTTING_DOWN"] * 3
    assert all(0 < unanswered <= 256 for _, unanswered in told)


def test_a_new_stream_goes_on_with_the_last_token(client: Client, gateway: FakeGateway) -> None:
    gateway.breaks.extend([Break(30, shutting_down()), Break(0, shutting_down()), Break(7, shutting_down())])

    list(client.index(pictures(100), limits=QUICK))

    assert [start.resume_token for start in gateway.starts] == ["", "token-1", "token-1", "token-3"]


def test_a_stream_that_was_let_go_for_its_silence_is_followed_by_another(client: Client, gateway: FakeGateway) -> None:
    silent = status(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "no item came for 300 s")
    gateway.breaks.extend([Break(3, silent), Break(1, silent)])

    outcomes = list(client.index(pictures(10), limits=QUICK))

    assert sorted(outcome.id for outcome in outcomes) == sorted(f"id-{i}" for i in range(10))
    assert len(gateway.starts) == 3


def test_streams_that_are_let_go_again_and_again_are_given_up(client: Client, gateway: FakeGateway) -> None:
    gateway.refusal = status(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "no item came for 300 s")
    with pytest.raises(IndexInterruptedError, match="DEADLINE_EXCEEDED"):
        list(client.index(pictures(10), limits=QUICK))
    assert len(gateway.starts) == 6


def test_nothing_is_sent_while_the_gateway_asks_for_a_pause(client: Client, gateway: FakeGateway) -> None:
    gateway.backoff = (50, 1.0)
    told: list[float] = []

    outcomes = list(client.index(pictures(300), limits=IngestLimits(max_unanswered=20), on_backoff=told.append))

    assert (told, len(outcomes)) == ([1.0], 300)
    began = gateway.backed_off_at
    # Up to the window may have been on its way before the client had heard; then nothing until the pause is over.
    late = [at - began for at in gateway.arrived_at if at > began]
    gaps = [later - earlier for earlier, later in zip([0.0, *late], late, strict=False)]
    before = gaps.index(max(gaps))
    assert before <= 20
    assert late[before] >= 1.0


def test_what_is_there_already_is_no_error_and_not_stored(client: Client) -> None:
    options = IngestOptions(skip_existing=True)
    first = list(client.index(pictures(2), options=options))
    again = list(client.index(pictures(2), options=options))

    assert [(o.stored, o.skipped) for o in first] == [(True, None)] * 2
    assert [(o.stored, o.error, o.skipped) for o in again] == [(False, None, Skipped("EXISTS", o.id)) for o in again]


def test_a_stream_that_never_recovers_names_what_has_no_answer(client: Client, gateway: FakeGateway) -> None:
    gateway.breaks.extend([Break(10, shutting_down())] + [Break(0, shutting_down())] * 5)
    outcomes: list[IndexOutcome] = []
    given = list(pictures(600))
    remaining = iter(given)
    with pytest.raises(IndexInterruptedError) as caught:
        outcomes.extend(client.index(remaining, limits=IngestLimits(reconnects=2, first_backoff_s=0.001)))
    assert caught.value.reason == "SHUTTING_DOWN"
    seen = {outcome.picture.id for outcome in outcomes}
    unanswered = [picture.id for picture in caught.value.unanswered]
    not_taken = [picture.id for picture in remaining]
    assert sorted([*seen, *unanswered, *not_taken]) == sorted(picture.id for picture in given)
    assert len(gateway.starts) == 3


def test_a_refusal_that_would_not_pass_is_not_tried_again(client: Client, gateway: FakeGateway) -> None:
    gateway.refusal = status(grpc.StatusCode.FAILED_PRECONDITION, "MODEL_MISMATCH", "another model")
    with pytest.raises(LikenessError) as caught:
        list(client.index(pictures(3), limits=QUICK))
    assert caught.value.reason == "MODEL_MISMATCH"
    assert len(gateway.starts) == 1


def test_an_error_of_the_callers_own_iterable_reaches_the_caller(client: Client) -> None:
    def stream() -> Iterator[Picture]:
        yield from pictures(3)
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(client.index(stream()))


def test_an_ingest_can_be_left_before_its_end(client: Client, gateway: FakeGateway) -> None:
    outcomes = client.index(pictures(5000))
    first = next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]  # a generator, said to be an iterator
    assert first.stored
    assert len(gateway.stored) < 5000


def test_the_model_expected_of_an_ingest_is_sent(client: Client, gateway: FakeGateway) -> None:
    list(client.index(pictures(1), expected_fingerprint=Fingerprint("m", "ab" * 32, 512)))
    assert gateway.starts[0].expected_fingerprint == types_pb2.ModelFingerprint(
        model="m", digest="ab" * 32, dimension=512
    )


def test_a_files_uri_is_its_plain_absolute_name(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a b.jpg").write_bytes(b"picture")
    list(client.index([Picture(tmp_path / "sub" / ".." / "a b.jpg", id="a")]))

    assert gateway.stored["a"].uri == (tmp_path / "a b.jpg").as_uri()


def test_a_path_too_long_for_a_uri_is_taken_without_one(client: Client, gateway: FakeGateway, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["写真" * 40] * 6)
    deep.mkdir(parents=True)
    (deep / "猫.jpg").write_bytes(b"picture")

    list(client.index([Picture(deep / "猫.jpg", id="a")]))

    assert len((deep / "猫.jpg").as_uri()) > 4096
    assert gateway.stored["a"].uri == ""
