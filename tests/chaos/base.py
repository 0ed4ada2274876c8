"""The items that are there before the first kill: stored once, kept under build/ and copied for each run."""

import shutil
from itertools import islice
from pathlib import Path

from tests.chaos.indexer import Indexer
from tests.chaos.items import Source
from tests.chaos.ledger import Content
from tests.chaos.report import say
from tests.processes import ROOT

WORK = ROOT / "build" / "chaos"
# Another number makes another base: raise it when the items or the stored layout change.
_VERSION = 1
_CHUNK = 512
_ABSORBED_S = 900.0


def contents(n: int) -> dict[str, Content]:
    """The items by id; the same for the same number."""
    return {f"base-{i:06d}": content for i, content in enumerate(Source((_VERSION, n)).contents(n))}


def prepared(n: int) -> Path:
    """A data directory that holds them, with a serving snapshot; made if it is not there."""
    folder = WORK / f"base-{_VERSION}-{n}"
    if folder.is_dir():
        return folder
    half_made = folder.with_name(f".{folder.name}")
    shutil.rmtree(half_made, ignore_errors=True)
    say(f"Storing {n} items in {folder}, once (some 350 a second) …")
    with Indexer(half_made, WORK / "logs") as indexer:
        indexer.start()
        indexer.client.create()
        items = iter(contents(n).items())
        while chunk := dict(islice(items, _CHUNK)):
            indexer.client.upsert(chunk)
        indexer.wait("complete graph", lambda: unindexed(indexer) == 0, _ABSORBED_S, 0.5)
        indexer.stop()
    half_made.rename(folder)
    return folder


def copied(n: int, to: Path) -> Path:
    """A copy of it that may be spoiled."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(prepared(n), to)
    return to


def unindexed(indexer: Indexer) -> int:
    """Rows that are not in the graph yet."""
    status = indexer.client.status()
    return int(status.unindexed_rows) if status is not None else 0
