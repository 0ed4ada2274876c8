from pathlib import Path
from typing import Any, cast

import pytest

from indexer import roles
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
