"""Embedding a collection anew: what is taken over, what fails, what is caught up on, and when the alias moves."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from likeness.common.v1 import error_pb2, types_pb2
from likeness.gateway.v1 import gateway_pb2 as pb
from prometheus_client import CollectorRegistry

from chassis import metadata
from chassis.deadline import Deadline
from chassis.errors import LikenessError, from_status, invalid
from gateway import reembed
from gateway.fetch import Fetch
from gateway.fetch_policy import FetchPolicy
from gateway.media import Media, PictureMedia
from gateway.metrics import Metrics
from gateway.reembed import Reembed
from gateway.settings import GatewaySettings
from tests.pictures import noise
from tests.unit.gateway.behind import MODEL, OTHER, direction_of, vector
from tests.unit.gateway.hostile import Hostile, hostile, redirect, response
from tests.unit.gateway.shelves import Shelves, shelves

OLD = MODEL


@dataclass
class House:
    """Two services, files, a web server; "photos" is of the old model, the embedder has the new one.

    Attributes:
        told: what the last call said, message by message.
        between: called after each message, with how many there were.
    """

    services: Shelves
    media: Media
    web: Hostile
    reembed: Reembed
    stopping: asyncio.Event
    told: list[pb.ReembedCollectionResponse] = field(default_factory=list)
    between: Callable[[int], Awaitable[None]] | None = None

    async def take_in(self, item_id: str, encoded: bytes, *, kept: bool = True, **more: metadata.Plain) -> None:
        sha256 = hashlib.sha256(encoded).hexdigest()
        picture = PictureMedia(item_id, sha256, types_pb2.Image(encoded=encoded))
        async with self.media.replacing("uid-photos", [picture], thumbnails=False, originals=kept):
            self.services.store("photos", item_id, vector(1), sha256=sha256, bytes=len(encoded), **more)

    async def run(self, **request: Any) -> pb.ReembedCollectionResponse:
        """Embeds "photos" anew into "new"; the last message."""
        self.told = []

        async def write(message: pb.ReembedCollectionResponse) -> None:
            self.told.append(message)
            if self.between is not None:
                await self.between(len(self.told))

        asked = pb.ReembedCollectionRequest(**{"collection": "photos", "target": "new", **request})
        await self.reembed(asked, write, Deadline(60))
        return self.told[-1]

    async def refusal(self, **request: Any) -> LikenessError:
        with pytest.raises(LikenessError) as caught:
            await self.run(**request)
        return caught.value

    @property
    def embedded(self) -> list[str]:
        """Everything that was embedded, in order."""
        return sorted(each.image.encoded.decode() for call in self.services.asked("Embed") for each in call.inputs)

    @property
    def failures(self) -> dict[str, LikenessError]:
        named = [failure for message in self.told for failure in message.failures]
        found = {failure.id: from_status(failure.error.status) for failure in named}
        assert len(found) == len(named), "each is named once"
        return found


@asynccontextmanager
async def house(path: Path, *, fetch: bool = True) -> AsyncIterator[House]:
    async with shelves() as (services, embedder, indexer), hostile() as web:
        services.make("photos", OLD, types_pb2.METRIC_L2)
        services.model = OTHER
        settings, media, stopping = (
            GatewaySettings(fetch=fetch, ingest_batch_items=2),
            Media(str(path)),
            asyncio.Event(),
        )

        async def here(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        policy = FetchPolicy(ports=frozenset((web.port,)), allows=lambda address: address.is_loopback)
        fetching = Fetch(settings, Metrics(CollectorRegistry()), policy, here)
        yield House(services, media, web, Reembed(embedder, indexer, media, fetching, settings, stopping), stopping)
        await fetching.close()
        media.close()


async def test_every_picture_gets_a_vector_of_the_new_model_and_keeps_its_metadata(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        for i in range(5):
            await place.take_in(f"p{i}", f"picture {i}".encode(), labels=["cat"], n=i)
        place.services.aliases["now"] = "photos"
        last = await place.run(alias="now", keep_originals=True)
        shelf = place.services.shelves["new"]
        made = place.services.found["new"]
        sha256 = hashlib.sha256(b"picture 3").hexdigest()
        assert await place.media.original("uid-new", "p3", sha256) == b"picture 3"

    assert (last.done, last.total, last.embedded, last.failed, last.removed) == (5, 5, 5, 0, 0)
    assert (last.switched, last.finished) == (True, True)
    assert place.services.aliases == {"now": "new"}
    assert (made.fingerprint, made.metric) == (OTHER, types_pb2.METRIC_L2)
    assert {i: item.metadata for i, item in shelf.items()} == {
        i: item.metadata for i, item in place.services.shelves["photos"].items()
    }
    assert shelf["p3"].vector.f32 == direction_of(b"picture 3").tobytes()
    assert place.embedded == [f"picture {i}" for i in range(5)]


async def test_a_call_that_is_repeated_embeds_nothing_twice(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        for i in range(5):
            await place.take_in(f"p{i}", f"picture {i}".encode())
        await place.run()
        last = await place.run()
    assert (last.done, last.embedded, last.unchanged, last.switched) == (5, 0, 5, False)
    assert len(place.embedded) == 5


async def test_without_keeping_originals_the_target_has_none(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("a", b"picture")
        await place.run()
        sha256 = hashlib.sha256(b"picture").hexdigest()
        assert await place.media.original("uid-new", "a", sha256) is None
        assert await place.media.original("uid-photos", "a", sha256) == b"picture"


async def test_new_labels_are_taken_over_without_embedding_again(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("a", b"picture", labels=["cat"])
        await place.run()
        before = place.services.shelves["new"]["a"].vector
        await place.take_in("a", b"picture", kept=False, labels=["dog"])
        last = await place.run()
        item = place.services.shelves["new"]["a"]

    assert place.embedded == ["picture"]
    assert (last.done, last.embedded, last.unchanged, item.vector) == (1, 0, 1, before)
    assert metadata.from_proto(item.metadata, "metadata")["labels"] == ["dog"]


async def test_what_cannot_be_embedded_is_named_with_its_reason_and_keeps_the_alias(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("good", b"picture")
        await place.take_in("refused", b"bad picture")
        await place.take_in("lost", b"gone", kept=False, uri="http://example.org/a")
        place.services.store("photos", "foreign", vector(1))
        place.services.aliases["now"] = "photos"
        kept = await place.run(alias="now")
        failures = place.failures
        moved = await place.run(alias="now", switch_despite_failures=True)

    assert {i: error.reason_name for i, error in failures.items()} == {
        "refused": "FIELD_INVALID",
        "lost": "ORIGINAL_MISSING",
        "foreign": "ORIGINAL_MISSING",
    }
    assert (kept.done, kept.embedded, kept.failed, kept.switched, kept.finished) == (4, 1, 3, False, True)
    assert (moved.unchanged, moved.failed, moved.switched) == (1, 3, True)
    assert list(place.services.shelves["new"]) == ["good"]
    assert place.embedded.count("bad picture") == 2, "once a call, however many rounds it takes"


async def test_pictures_come_from_their_uris_if_they_are_still_the_same(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        for item_id, there in (("same", b"same"), ("changed", b"other!!"), ("longer", b"longer than it was")):
            place.web.answers[f"/{item_id}"] = response(there)
            await place.take_in(item_id, item_id.encode(), kept=False, uri=place.web.url(f"/{item_id}"))
        place.web.answers["/nonsense"] = redirect("http://[")
        await place.take_in("nonsense", b"nonsense", kept=False, uri=place.web.url("/nonsense"))
        await place.take_in("missing", b"missing", kept=False, uri=place.web.url("/none"))
        await place.take_in("private", b"private", kept=False, uri="http://10.0.0.1/a")
        without = await place.run()
        last = await place.run(fetch_uris=True)

    assert without.failed == 6
    assert {i: error.reason_name for i, error in place.failures.items()} == {
        "changed": "ORIGINAL_CHANGED",
        "longer": "FETCH_FAILED",
        "missing": "FETCH_FAILED",
        "nonsense": "FETCH_FAILED",
        "private": "FETCH_REFUSED",
    }
    assert (last.embedded, place.embedded) == (1, ["same"])


async def test_a_host_that_was_away_is_asked_again_in_the_next_round(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("a", b"picture", kept=False, uri=place.web.url("/a"))
        place.web.answers["/a"] = response(b"", status="503 Busy")

        async def repair(_: int) -> None:
            place.web.answers["/a"] = response(b"picture")

        place.between = repair
        last = await place.run(fetch_uris=True)

    assert place.failures["a"].reason_name == "FETCH_UNAVAILABLE"
    assert (last.done, last.embedded, last.failed) == (1, 1, 0)


async def test_what_is_written_and_deleted_meanwhile_is_caught_up_on(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        for i in range(3):
            await place.take_in(f"p{i}", f"picture {i}".encode())

        async def change(messages: int) -> None:
            if messages == 1:
                await place.take_in("p1", b"another")
                await place.take_in("p9", b"new one")
                del place.services.shelves["photos"]["p0"]

        place.between = change
        last = await place.run()
        shelf = place.services.shelves["new"]

    assert sorted(shelf) == ["p1", "p2", "p9"]
    assert shelf["p1"].vector.f32 == direction_of(b"another").tobytes()
    assert (last.removed, last.failed) == (1, 0)


async def test_items_that_the_source_lacks_go_unless_they_are_to_stay(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("a", b"picture")
        place.services.make("new", OTHER)
        place.services.store("new", "extra", vector(1))
        stays = await place.run(keep_extra_items=True)
        assert sorted(place.services.shelves["new"]) == ["a", "extra"]
        goes = await place.run()

    assert (stays.removed, goes.removed) == (0, 1)
    assert list(place.services.shelves["new"]) == ["a"]


async def test_a_target_that_serves_already_loses_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("a", b"picture")
        place.services.make("new", OTHER)
        place.services.store("new", "newer", vector(1))
        place.services.aliases["live"] = "new"
        by_name = await place.refusal()
        by_alias = await place.refusal(target="live", keep_extra_items=True)
        await place.run(keep_extra_items=True)

    assert by_name.reason_name == "COLLECTION_ALIASED"
    assert [violation.field for violation in by_alias.violations] == ["target"]
    assert sorted(place.services.shelves["new"]) == ["a", "newer"]


async def test_a_target_that_begins_to_serve_meanwhile_loses_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("a", b"picture")

        async def put_to_use(_: int) -> None:
            place.services.aliases["live"] = "new"
            place.services.store("new", "newer", vector(1))

        place.between = put_to_use
        error = await place.refusal()

    assert error.reason_name == "COLLECTION_ALIASED"
    assert sorted(place.services.shelves["new"]) == ["a", "newer"]


@pytest.mark.parametrize("which", ["photos", "new"])
async def test_a_collection_that_is_made_anew_meanwhile_ends_it_and_costs_no_picture(
    tmp_path: Path, which: str
) -> None:
    async with house(tmp_path) as place:
        for i in range(3):
            await place.take_in(f"p{i}", f"picture {i}".encode())

        async def make_anew(messages: int) -> None:
            if messages == 1:
                place.services.found[which].uid = "another"
                place.services.shelves[which].clear()
                if which == "new":
                    place.services.store("new", "somebody's", vector(1))

        place.between = make_anew
        error = await place.refusal(keep_originals=True, alias="now")
        kept = await place.media.original("uid-new", "p1", hashlib.sha256(b"picture 1").hexdigest())

    assert error.reason_name == "COLLECTION_NOT_FOUND"
    assert f"{which!r} was deleted and made anew" in error.message
    assert place.services.aliases == {}
    assert sorted(place.services.shelves["new"]) == (["p0", "p1", "p2"] if which == "photos" else ["somebody's"])
    assert kept == b"picture 1"


async def test_a_source_that_is_made_anew_amid_a_look_for_extra_items_deletes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as place:
        for i in range(3):
            await place.take_in(f"p{i}", f"picture {i}".encode())
        await place.run()
        get = place.reembed.indexer.get

        async def made_anew(request: Any, timeout_s: float) -> Any:
            if request.collection == "photos":
                place.services.found["photos"].uid = "another"
                place.services.shelves["photos"].clear()
            return await get(request, timeout_s)

        monkeypatch.setattr(place.reembed.indexer, "get", made_anew)
        error = await place.refusal()

    assert error.reason_name == "COLLECTION_NOT_FOUND"
    assert sorted(place.services.shelves["new"]) == ["p0", "p1", "p2"]


async def test_an_item_that_failed_and_is_then_deleted_does_not_keep_the_alias(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("good", b"picture")
        await place.take_in("refused", b"bad picture")
        place.services.aliases["now"] = "photos"

        async def delete(_: int) -> None:
            place.services.shelves["photos"].pop("refused", None)

        place.between = delete
        last = await place.run(alias="now")

    assert list(place.failures) == ["refused"]
    assert (last.done, last.embedded, last.failed, last.switched) == (1, 1, 0, True)


async def test_no_call_brings_the_embedder_more_bytes_than_its_messages_hold(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        place.services.max_message_bytes = 2**16 + 1000
        for i in range(3):
            await place.take_in(f"p{i}", b"%d" % i * 400)
        await place.run()
        sizes = sorted(len(call.inputs) for call in place.services.asked("Embed"))
        place.services.max_message_bytes = 2**16 + 700
        again = await place.run(target="newer")

    assert (sizes, again.embedded) == ([1, 2], 3)
    assert [len(call.inputs) for call in place.services.asked("Embed")[2:]] == [1, 1, 1]


async def test_a_picture_that_fits_into_no_message_fails_alone(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        place.services.max_message_bytes = 2**16 + 1000
        for item_id, length in (("a", 400), ("large", 1001), ("z", 400)):
            await place.take_in(item_id, b"x" * length)
        last = await place.run()

    assert (last.embedded, last.failed, last.finished) == (2, 1, True)
    assert place.failures["large"].reason_name == "IMAGE_TOO_LARGE"
    assert "1,001 bytes" in place.failures["large"].message


@pytest.mark.parametrize("made", [True, False])
async def test_thumbnails_are_made_unless_the_gateway_makes_none(tmp_path: Path, made: bool) -> None:
    encoded = noise(1)
    async with house(tmp_path) as place:
        await place.take_in("a", encoded)
        settings = place.reembed.settings.model_copy(update={"thumbnails": made})
        place.reembed = replace(place.reembed, settings=settings)
        await place.run()
        thumbnail = await place.media.thumbnail("uid-new", "a", hashlib.sha256(encoded).hexdigest())

    assert (thumbnail is not None) == made


async def test_a_source_that_never_rests_is_gone_through_five_more_times_and_no_more(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("a", b"picture")

        async def change(messages: int) -> None:
            place.services.store("photos", "a", vector(1), sha256=hashlib.sha256(b"picture").hexdigest(), n=messages)

        place.between = change
        last = await place.run()
    assert last.finished
    assert len(place.told) == 7


async def test_a_stream_goes_on_at_its_page_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reembed, "_PAGE", 4)
    async with house(tmp_path) as place:
        for i in range(6):
            await place.take_in(f"p{i}", b"picture %d" % i)
        await place.run()
        first = place.told[0]
        asked = len(place.services.asked("ListItems"))
        last = await place.run(page_token=first.next_page_token)
        listing = place.services.asked("ListItems")[asked]

    assert (first.done, first.total, first.next_page_token != "") == (4, 6, True)
    assert place.told[-1].next_page_token == ""
    assert listing.page_token == first.next_page_token
    assert (last.unchanged, last.finished) == (2, True)


async def test_nothing_is_done_once_the_alias_stands_for_something_else(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("a", b"picture")
        place.services.aliases["now"] = "photos"
        await place.run(collection="now", alias="now")
        place.services.store("new", "newer", vector(1))
        again = await place.refusal(alias="now")
        through_it = await place.refusal(collection="now", alias="now")

    assert (again.reason_name, through_it.reason_name) == ("ALIAS_MOVED", "ALIAS_MOVED")
    assert sorted(place.services.shelves["new"]) == ["a", "newer"]


async def test_an_alias_that_is_moved_by_others_meanwhile_stays_where_they_put_it(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("a", b"picture")
        place.services.make("third")

        async def move(_: int) -> None:
            place.services.aliases["now"] = "third"

        place.between = move
        assert (await place.refusal(alias="now")).reason_name == "ALIAS_MOVED"
    assert place.services.aliases == {"now": "third"}


async def test_a_move_without_an_answer_is_looked_at_before_it_is_repeated(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("a", b"picture")
        place.services.lose_answers_of.add("SetAlias")
        last = await place.run(alias="now")
    assert last.switched
    assert place.services.aliases == {"now": "new"}
    assert len(place.services.asked("SetAlias")) == 1


@pytest.mark.parametrize(
    ("request_", "reason", "where"),
    [
        ({"target": ""}, "FIELD_INVALID", "target"),
        ({"target": "photos"}, "MODEL_MISMATCH", ""),
        ({"target": "Bad"}, "FIELD_INVALID", "target"),
        ({"alias": "Bad"}, "FIELD_INVALID", "alias"),
        ({"alias": "photos"}, "COLLECTION_EXISTS", ""),
        ({"alias": "new"}, "FIELD_INVALID", "alias"),
        ({"collection": "none"}, "COLLECTION_NOT_FOUND", ""),
        ({"expected_fingerprint": OLD}, "MODEL_MISMATCH", ""),
        ({"target": "old"}, "MODEL_MISMATCH", ""),
        ({"fetch_uris": True}, "FETCH_DISABLED", "fetch_uris"),
    ],
)
async def test_a_call_that_makes_no_sense_is_refused_before_anything_is_made(
    tmp_path: Path, request_: dict[str, Any], reason: str, where: str
) -> None:
    async with house(tmp_path, fetch=False) as place:
        place.services.make("old", OLD)
        error = await place.refusal(**request_)
    assert error.reason_name == reason
    assert [violation.field for violation in error.violations] == ([where] if where else [])
    assert sorted(place.services.found) == ["old", "photos"]


async def test_a_collection_is_not_its_own_target(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        place.services.model = OLD
        place.services.aliases["now"] = "photos"
        error = await place.refusal(target="now")
    assert error.violations[0].field == "target"


async def test_nor_is_it_where_the_alias_stands_for_it(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        place.services.make("new", OTHER)
        place.services.aliases["now"] = "new"
        error = await place.refusal(collection="new", alias="now")
    assert (error.reason_name, error.violations[0].field) == ("FIELD_INVALID", "target")


async def test_a_refused_page_token_is_said_to_be_none_of_this_rpc(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        place.services.fail["ListItems"] = invalid("page_token", "'x' is none that ListItems gave")
        error = await place.refusal(page_token="x")
    assert error.message.startswith("page_token: 'x' is none that ReembedCollection gave")


async def test_one_collection_is_embedded_anew_once_at_a_time(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("a", b"picture")
        held, seen = asyncio.Event(), asyncio.Event()

        async def write(_: pb.ReembedCollectionResponse) -> None:
            seen.set()
            await held.wait()

        request = pb.ReembedCollectionRequest(collection="photos", target="new")
        first = asyncio.create_task(place.reembed(request, write, Deadline(60)))
        await seen.wait()
        assert (await place.refusal(target="newer")).reason_name == "COLLECTION_BUSY"
        held.set()
        await first
        assert (await place.run()).finished


async def test_it_ends_when_the_gateway_stops_and_says_where_to_go_on(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        for i in range(3):
            await place.take_in(f"p{i}", f"picture {i}".encode())

        async def stop(_: int) -> None:
            place.stopping.set()

        place.between = stop
        error = await place.refusal()
    assert error.reason_name == "SHUTTING_DOWN"
    assert len(place.told) == 1


async def test_a_model_that_changes_on_the_way_ends_it_and_nothing_is_mixed(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("a", b"picture")
        place.services.answers_with = OLD
        error = await place.refusal()
    assert error.reason_name == "MODEL_MISMATCH"
    assert not place.services.shelves["new"]


async def test_a_write_that_is_refused_ends_it_and_a_repeat_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path) as place:
        await place.take_in("a", b"picture")
        place.services.fail["UpsertItems"] = LikenessError(error_pb2.REASON_READ_ONLY, "a reader")
        error = await place.refusal()
        del place.services.fail["UpsertItems"]
        assert (await place.run()).embedded == 1
    assert error.reason_name == "READ_ONLY"


async def test_a_busy_embedder_or_indexer_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = {"embed": 2, "upsert": 1}
    async with house(tmp_path) as here:
        await here.take_in("a", b"A")
        for target, name in ((here.reembed.embedder, "embed"), (here.reembed.indexer, "upsert")):
            call = getattr(target, name)

            async def busy(*args: Any, call: Any = call, name: str = name, **more: Any) -> Any:
                if refusals[name]:
                    refusals[name] -= 1
                    raise LikenessError(error_pb2.REASON_OVERLOADED, "busy", retry_after_s=0.01)
                return await call(*args, **more)

            monkeypatch.setattr(target, name, busy)

        assert (await here.run()).embedded == 1
    assert refusals == {"embed": 0, "upsert": 0}
