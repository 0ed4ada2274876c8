"""What an erasure says of backups."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import pytest

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
    """One of the collection, and one of a collection of another name; both hold the item."""

    def __init__(self) -> None:
        self.there = [OWN, FOREIGN]

    async def holding(self, collection: str, ids: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        assert (collection, list(ids)) == ("photos", ["a"])
        return [OWN], [FOREIGN]

    async def delete(self, name: str) -> None:
        self.there.remove(name)


@pytest.mark.parametrize("delete_backups", [False, True])
async def test_backups_of_the_collection_are_named_or_deleted_and_those_of_others_always_named(
    *, delete_backups: bool
) -> None:
    store, backups = Store(), Backups()

    def reader(_: Collection) -> Reader:
        raise AssertionError("nothing is searched, so nothing is compared")

    async def everything() -> Sequence[Collection]:
        return [PHOTOS]

    async def nothing() -> None:
        pass

    erasure = Erasure(store, store, reader, backups, everything, None)

    async def work(job: Job[Erased]) -> Erased:
        return await erasure(job, PHOTOS, ["a"], delete_backups=delete_backups, begin=nothing, purge=nothing)

    erased = await Job("erasure", "photos", work).result()

    assert (erased.deleted, store.items) == (1, {})
    assert erased.backups == ([FOREIGN] if delete_backups else [OWN, FOREIGN])
    assert erased.deleted_backups == ([OWN] if delete_backups else [])
    assert backups.there == ([FOREIGN] if delete_backups else [OWN, FOREIGN])
