"""Writes beyond the budget where all is to be served from memory: refused, until there is room."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import grpc
import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.collections import Collection
from indexer.reads import Reader
from indexer.registry import Registry
from indexer.served import estimate
from indexer.settings import IndexerSettings, Reads
from indexer.status import Mode
from indexer.store import ChromaStore
from tests.unit.indexer.test_registry import Chroma, Seen, filled, modes, nothing, refusal

BUDGET = 2**20


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def chroma() -> Chroma:
    return Chroma()


@pytest.fixture
async def registry(seen: Seen, chroma: Chroma, tmp_path: Path) -> AsyncIterator[Registry]:
    settings = IndexerSettings(reads=Reads.MEMORY, memory_budget_mb=BUDGET >> 20, recall_probe_s=0)
    made = Registry(settings, cast(ChromaStore, chroma), cast(Reader, None), seen, tmp_path, nothing)
    yield made
    await made.stop()


def fits(registry: Registry, collection: Collection) -> int:
    """How many more items there is room for."""
    return (BUDGET - registry.status().memory_bytes) // estimate(collection)


def refused(registry: Registry, collection: Collection, items: int) -> LikenessError:
    error = refusal(registry, collection, items)
    assert error is not None
    assert error.reason == error_pb2.REASON_MEMORY_FULL
    return error


async def test_what_fits_is_taken_and_one_item_more_is_refused(registry: Registry) -> None:
    col = filled(registry, "col", 100)
    most = fits(registry, col)
    assert most > 100
    registry.admit(col, most)
    refused(registry, col, most + 1)
    registry.admit(col, most)
    assert modes(registry) == {"col": Mode.MEMORY}, "nothing leaves memory for it"


async def test_the_refusal_says_how_full_it_is_and_what_to_do(registry: Registry) -> None:
    col = filled(registry, "col", 450)
    error = refused(registry, col, 1000)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.retry_after_s is None, "waiting alone does not help"
    assert f"take {registry.status().memory_bytes >> 20} MiB of 1;" in error.message
    for way_out in ("raise LIKENESS_MEMORY_BUDGET_MB", "delete collections or items", "LIKENESS_READS to auto"):
        assert way_out in error.message


async def test_all_collections_share_the_budget_and_a_deleted_one_makes_room_at_once(registry: Registry) -> None:
    col, other = filled(registry, "col", 200), filled(registry, "other", 200)
    more = fits(registry, col) + 100
    refused(registry, col, more)
    registry.deleted(other.uid)
    registry.admit(col, more)


async def test_a_refused_write_has_dead_rows_cleared_away_which_makes_room(registry: Registry, seen: Seen) -> None:
    col = filled(registry, "col", 100, dead=400)
    more = fits(registry, col) + 100
    refused(registry, col, more)
    await seen.done.wait()
    assert registry.status_of(col).dead_rows == 0
    registry.admit(col, more)


async def test_a_collection_that_chroma_serves_takes_no_memory_and_is_not_refused(registry: Registry) -> None:
    col, other = filled(registry, "col", 100), filled(registry, "other", 100)
    serving = registry.serving(other.uid)
    assert serving is not None
    assert serving.on_failure is not None
    serving.on_failure(MemoryError())  # it could not follow a write
    assert modes(registry) == {"col": Mode.MEMORY, "other": Mode.CHROMA}
    more = fits(registry, col) + 1
    registry.admit(other, more)
    refused(registry, col, more)


async def test_nothing_is_refused_for_memory_while_chroma_is_away_which_is_what_the_write_fails_with(
    registry: Registry, chroma: Chroma
) -> None:
    col = filled(registry, "col", 100)
    more = fits(registry, col) + 1
    refused(registry, col, more)
    chroma.connected = False
    registry.admit(col, more)
