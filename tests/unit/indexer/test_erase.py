"""What an erasure says of backups, and of a control that fails."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from likeness.common.v1 import error_pb2
from structlog.testing import capture_logs

from chassis.errors import LikenessError
from indexer.collections import Collection, Fingerprint, Metric
from indexer.erase import Erased, Erasure
from indexer.jobs import Job
from indexer.reads import Reader
from indexer.writes import StoredRecord, Update

PHOTOS = Collection("photos", "key", Fingerprint("m", "d" * 64, 2), Metric.L2, datetime.now(UTC), uid="uid")
OWN, FOREIGN = "photos/20260102T000000.000Z", "older/20260101T000000.000Z"


class Store:
    """A store and its writers at once, with one item."""

    def __init__(self) -> None:
        self.items = {"a": StoredRecord("a", np.ones(2, np.float32), {}, 1)}

    async def read(self, collection: Collection, ids: Sequence[str]) -> list[StoredRecord]:
        return [self.items[i] for i in ids if i in self.items]

    async def existing(self, collection: Collection, ids: Sequence[str]) -> set[str]:
        return self.items.keys() & set(ids)

    @contextmanager
    def refusing(self, collection: Collection, ids: AbstractSet[str]) -> Iterator[None]:
        yield

    async def update_metadata(self, collection: Collection, updates: Sequence[Update]) -> tuple[int, list[str]]:
        return len(updates), []

    async def delete(self, collection: Collection, ids: Sequence[str]) -> int:
        return sum(self.items.pop(i, None) is not None for i in ids)


class Backups:
    """One of the collection, and one of a collection of another name; both hold the item.

    Attributes:
        there: those there are.
        refusal: why none can be deleted.
    """

    def __init__(self, refusal: error_pb2.Reason.ValueType | None = None) -> None:
        self.there = [OWN, FOREIGN]
        self.refusal = refusal

    async def holding(self, collection: str, ids: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        assert (collection, list(ids)) == ("photos", ["a"])
        return [OWN], [FOREIGN]

    async def delete(self, name: str) -> None:
        if self.refusal is not None:
            raise LikenessError(self.refusal, name)
        self.there.remove(name)


async def erase(store: Store, backups: Backups, *, delete_backups: bool) -> Erased:
    """Erases the item over a Chroma that is somebody else's."""

    def reader(_: Collection) -> Reader:
        raise AssertionError("nothing is searched, so nothing is compared")

    async def everything() -> Sequence[Collection]:
        return [PHOTOS]

    async def nothing() -> None:
        pass

    erasure = Erasure(store, store, reader, backups, everything, None)

    async def work(job: Job[Erased]) -> Erased:
        return await erasure(job, PHOTOS, ["a"], delete_backups=delete_backups, begin=nothing, purge=nothing)

    return await Job("erasure", "photos", work).result()


@pytest.mark.parametrize("delete_backups", [False, True])
async def test_backups_of_the_collection_are_named_or_deleted_and_those_of_others_always_named(
    *, delete_backups: bool
) -> None:
    store, backups = Store(), Backups()

    erased = await erase(store, backups, delete_backups=delete_backups)

    assert (erased.deleted, store.items) == (1, {})
    assert erased.backups == ([FOREIGN] if delete_backups else [OWN, FOREIGN])
    assert erased.deleted_backups == ([OWN] if delete_backups else [])
    assert backups.there == ([FOREIGN] if delete_backups else [OWN, FOREIGN])


@pytest.mark.parametrize(
    ("refusal", "left", "deleted"),
    [
        (error_pb2.REASON_COLLECTION_BUSY, [OWN, FOREIGN], []),  # it is being restored
        (error_pb2.REASON_SNAPSHOT_NOT_FOUND, [FOREIGN], [OWN]),  # somebody else was quicker
    ],
)
async def test_a_backup_that_cannot_be_deleted_does_not_cost_the_report(
    refusal: error_pb2.Reason.ValueType, left: list[str], deleted: list[str]
) -> None:
    erased = await erase(Store(), Backups(refusal), delete_backups=True)
    assert (erased.deleted, erased.backups, erased.deleted_backups) == (1, left, deleted)


async def test_a_backup_storage_that_fails_is_said() -> None:
    with pytest.raises(LikenessError) as caught:
        await erase(Store(), Backups(error_pb2.REASON_STORE_UNAVAILABLE), delete_backups=True)
    assert caught.value.reason == error_pb2.REASON_STORE_UNAVAILABLE


async def test_a_control_that_fails_is_an_incident_whose_cause_the_log_and_the_caller_are_told(tmp_path: Path) -> None:
    store = Store()
    store.items["picture-0001"] = StoredRecord("picture-0001", np.ones(2, np.float32), {}, 1)
    (tmp_path / "chroma").mkdir()

    async def work(job: Job[Erased]) -> Erased:
        async def begun() -> None:
            raise AssertionError("nothing is erased that cannot be found")

        erasure = Erasure(store, store, _unasked, Backups(), _unasked, tmp_path)
        return await erasure(job, PHOTOS, ["picture-0001"], delete_backups=False, begin=begun, purge=begun)

    with capture_logs() as logs, pytest.raises(LikenessError) as caught:
        await Job("erasure", "photos", work).result()

    assert caught.value.reason == error_pb2.REASON_INTERNAL
    [line] = [each for each in logs if "incident" in each]
    assert f"incident {line['incident']}" in caught.value.message
    for told in (caught.value.message, str(line["exc_info"])):
        assert "nothing was erased. Rebuild the collection" in told
    assert "picture-0001" in store.items


def _unasked(*_: object) -> NoReturn:
    raise AssertionError("nothing was erased, so nothing is compared")
