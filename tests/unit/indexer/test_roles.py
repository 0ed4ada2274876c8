from pathlib import Path
from typing import Any, cast

import pytest
from likeness.common.v1 import error_pb2
from structlog.testing import capture_logs

from chassis.errors import LikenessError
from indexer import aftermath, roles
from indexer.catalog import Collections
from indexer.registry import Registry
from indexer.settings import IndexerSettings
from indexer.writers import Writers
from tests.unit.indexer.held_store import HeldStore


class Nothing:
    """A registry of no collections."""

    uids: set[str] = set()  # noqa: RUF012 (never changed)


@pytest.mark.parametrize("clean", [True, False])
async def test_a_writer_is_unsettled_until_the_requests_of_one_that_did_not_stop_in_good_order_can_hardly_come(
    clean: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def loaded(*_: Any) -> None:
        pass

    monkeypatch.setattr(roles, "_load", loaded)
    settings = IndexerSettings(data_dir=tmp_path, chroma_url="http://127.0.0.1:9", store_timeout_s=0.1)
    writer = roles.Writer(settings)
    writer._clean = clean
    assert not writer.unsettled
    await writer.load(cast(Collections, None), cast(Registry, Nothing()), Writers(HeldStore(), 64, 1024))
    assert writer.unsettled is not clean
    if writer._aftermath is not None:
        await writer._aftermath
    assert not writer.unsettled


async def test_late_writes_are_looked_for_until_it_succeeds_whatever_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [ZeroDivisionError("a fault"), LikenessError(error_pb2.REASON_STORE_UNAVAILABLE, "away")]
    unsettled: list[bool] = []

    async def loaded(*_: Any) -> None:
        pass

    async def look_again(*_: Any) -> int:
        unsettled.append(writer.unsettled)
        if len(unsettled) <= len(faults):
            raise faults[len(unsettled) - 1]
        return 0

    monkeypatch.setattr(roles, "_load", loaded)
    monkeypatch.setattr(roles, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(aftermath, "look_again", look_again)
    settings = IndexerSettings(data_dir=tmp_path, chroma_url="http://127.0.0.1:9", store_timeout_s=0.1)
    writer = roles.Writer(settings)
    writer._clean = False
    with capture_logs() as lines:
        await writer.load(cast(Collections, None), cast(Registry, Nothing()), Writers(HeldStore(), 64, 1024))
        assert writer._aftermath is not None
        await writer._aftermath
    assert len(unsettled) > len(faults)
    assert all(unsettled)
    assert not writer.unsettled
    assert [line["log_level"] for line in lines] == ["error", "warning"]
    assert lines[0]["exc_info"] is faults[0]
