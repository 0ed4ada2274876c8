"""Indexes that Chroma was killed in the middle of writing, made of those of before and after, in its order."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import chromadb
import numpy as np
from chromadb.api.models.Collection import Collection
from structlog.testing import capture_logs

from indexer.chroma_server import LocalChroma
from indexer.index_files import HEADER, LENGTHS, NAMES, ROWS, UPPER, Header, Names
from indexer.reclaim import COPIES

DIMENSION = 16
# A place in the log before all others: nothing has been noted of an index that is written for the first time.
NEVER = 0
DATABASE = Path("chroma/chroma.sqlite3")
# In the order in which Chroma writes them.
FILES = (HEADER, ROWS, LENGTHS, UPPER, NAMES)

Tear = Callable[[Path, Path], None]


async def nothing(_: str) -> None:
    return


class Chroma:
    """Chroma over a directory, as the indexer starts it."""

    def __init__(self, data: Path) -> None:
        self._data = data

    async def __aenter__(self) -> "Chroma":
        self._server = LocalChroma(self._data, 60, self._up, nothing)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop()

    async def _up(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.client = chromadb.HttpClient(host=host, port=int(port))


def vectors(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, DIMENSION)).astype(np.float32)


def add(collection: Collection, first: int, n: int, seed: int) -> None:
    """Upserts of items by their numbers, each with a vector of its own."""
    for begin in range(first, first + n, 100):
        numbers = range(begin, min(begin + 100, first + n))
        given = vectors(seed, first + n)[list(numbers)]
        collection.upsert([f"i{number}" for number in numbers], given, metadatas=[{"n": number} for number in numbers])


def before(collection: Collection) -> None:
    """What is there when the index has been written once, and 800 more entries of the log not yet."""
    if collection.name.endswith("-deletions"):
        add(collection, 0, 2000, 1)
        return
    add(collection, 0, 1100, 1)
    collection.delete([f"i{number}" for number in range(0, 150, 3)])
    add(collection, 300, 50, 2)
    add(collection, 1100, 600, 1)


def after(collection: Collection) -> None:
    """Just enough to have it written again, with the last of it."""
    if collection.name.endswith("-deletions"):
        for begin in range(0, 1000, 100):
            collection.delete([f"i{number}" for number in range(begin, begin + 100)])
        return
    collection.delete([f"i{number}" for number in range(151, 200, 3)])
    add(collection, 1690, 40, 3)
    add(collection, 10, 5, 3)
    collection.delete(["i20"])  # whose label, if all this is done once more, comes after all others
    add(collection, 20, 1, 3)
    add(collection, 1730, 200, 1)


def held(collection: Collection) -> dict[str, tuple[int, np.ndarray]]:
    found = collection.get(include=["embeddings", "metadatas"])
    metadatas, embeddings = found["metadatas"], found["embeddings"]
    assert metadatas is not None
    assert embeddings is not None
    return {
        item_id: (int(metadata["n"]), np.asarray(vector))  # type: ignore[arg-type]
        for item_id, metadata, vector in zip(found["ids"], metadatas, embeddings, strict=True)
    }


def index_of(database: sqlite3.Connection, name: str) -> str:
    query = (
        "SELECT s.id FROM segments s JOIN collections c ON c.id = s.collection WHERE c.name = ? AND scope = 'VECTOR'"
    )
    return str(database.execute(query, (name,)).fetchone()[0])


def whole(*names: str) -> Tear:
    """These files are those of after."""

    def tear(path: Path, new: Path) -> None:
        for name in names:
            shutil.copy(new / name, path / name)

    return tear


def begun(name: str, share: float) -> Tear:
    """A file of which the first part is that of after."""

    def tear(path: Path, new: Path) -> None:
        there, wanted = (path / name).read_bytes(), (new / name).read_bytes()
        end = int(len(wanted) * share)
        (path / name).write_bytes(wanted[:end] + there[end:])

    return tear


def rows_until(share: float) -> Tear:
    """Rows of which the first are those of after; those behind the old ones are missing, the last is cut off."""

    def tear(path: Path, new: Path) -> None:
        header = Header.read(new)
        end = int(header.rows * share) * header.row_bytes + 100
        begun(ROWS, end / (new / ROWS).stat().st_size)(path, new)

    return tear


def hole(path: Path, new: Path) -> None:
    """As far as the files go, but rows in the middle were never written."""
    old, header = Header.read(path).rows, Header.read(new)
    whole(HEADER, ROWS, LENGTHS)(path, new)
    with (path / ROWS).open("r+b") as file:
        file.seek(old * header.row_bytes)
        file.write(bytes((header.rows - old - 3) * header.row_bytes))


def both(*tears: Tear) -> Tear:
    def tear(path: Path, new: Path) -> None:
        for each in tears:
            each(path, new)

    return tear


def cut(name: str, size: int) -> Tear:
    """A file that was begun anew, and cut off."""

    def tear(path: Path, new: Path) -> None:
        (path / name).write_bytes((new / name).read_bytes()[:size])

    return tear


def full(share: float) -> Tear:
    """The rows and their lengths end where the disk was full; Chroma wrote the names of all, which are small."""

    def tear(path: Path, new: Path) -> None:
        whole(*FILES)(path, new)
        header = Header.read(new)
        for name, size in ((ROWS, header.row_bytes), (LENGTHS, 4)):
            with (path / name).open("r+b") as file:
                file.truncate(int(header.rows * share) * size + 3)

    return tear


def no_names(path: Path, _: Path) -> None:
    (path / NAMES).unlink()


TEARS: dict[str, Tear] = {
    "header": whole(HEADER),
    "old-rows": both(whole(HEADER), rows_until(0.3)),
    "new-rows": both(whole(HEADER), rows_until(0.8)),
    "hole": hole,
    "rows": whole(HEADER, ROWS),
    "lengths": both(whole(HEADER, ROWS), begun(LENGTHS, 0.9)),
    "half-upper": both(whole(HEADER, ROWS, LENGTHS), begun(UPPER, 0.4)),
    "upper-cut": both(whole(HEADER, ROWS, LENGTHS), cut(UPPER, 2000)),
    "upper": whole(HEADER, ROWS, LENGTHS, UPPER),
    "names-empty": both(whole(*FILES), cut(NAMES, 0)),
    "names-cut": both(whole(*FILES), cut(NAMES, 20_000)),
    "first-names": both(whole(*FILES), cut(NAMES, 500)),
    "deletions": both(whole(*FILES), cut(NAMES, 0)),
    "names-gone": both(whole(*FILES), no_names),
    "full": full(0.8),
    "full-hole": both(hole, whole(UPPER, NAMES)),
}
SOUND: dict[str, Tear] = {"untouched": whole(), "not-noted": whole(*FILES)}
COLLECTIONS = [f"cosine-{tear}" for tear in (*TEARS, *SOUND)] + ["l2-hole", "l2-names-cut", "l2-untouched"]


Held = dict[str, tuple[int, np.ndarray]]


@dataclass
class Seen:
    """What was seen of a collection.

    Attributes:
        expected: what it holds.
        mended: whether its index was.
        held: what it gives back.
        found: of 100 of its vectors, how many find their own item.
        later: what it gives back when more was written and Chroma was started again.
        again: whether its index was mended then.
        last: what it held after more was written instead, just before another kill cut off the names.
        left: what it gives back after that.
    """

    expected: Held
    mended: bool = False
    held: Held = field(default_factory=dict)
    found: int = 0
    later: Held = field(default_factory=dict)
    again: bool = False
    last: Held = field(default_factory=dict)
    left: Held = field(default_factory=dict)


async def see(folder: Path) -> dict[str, Seen]:
    """Has Chroma started over indexes in pieces, one for each way to tear one, by collection."""
    data = folder / "data"
    async with Chroma(data) as chroma:
        for name in COLLECTIONS:
            chroma.client.create_collection(name, metadata={"hnsw:space": name.partition("-")[0]})
    with closing(sqlite3.connect(data / DATABASE)) as database, database:
        database.execute(
            "UPDATE embeddings_queue_config SET config_json_str = replace(config_json_str, 'true', 'false')"
        )
    await write(data, before)
    shutil.copytree(data, folder / "before")
    with closing(sqlite3.connect(data / DATABASE)) as database:
        noted = dict(database.execute("SELECT segment_id, seq_id FROM max_seq_id").fetchall())
        segments = {name: index_of(database, name) for name in COLLECTIONS}
    await write(data, after)
    shutil.copytree(data / COPIES, folder / "names")  # of the start before the kill
    assert "i1900" not in Names.read_file(folder / "names" / segments["cosine-names-cut"]).labels
    async with Chroma(data) as chroma:
        seen = {name: Seen(held(chroma.client.get_collection(name))) for name in COLLECTIONS}
    shutil.copytree(data, folder / "after")
    with closing(sqlite3.connect(data / DATABASE)) as database, database:
        for segment in segments.values():
            forget(database, segment, NEVER if segment == segments["cosine-first-names"] else noted[segment])
    for name, segment in segments.items():
        path = data / "chroma" / segment
        shutil.rmtree(path)
        shutil.copytree(folder / "before" / "chroma" / segment, path)
        (TEARS | SOUND)[name.partition("-")[2]](path, folder / "after" / "chroma" / segment)
    shutil.rmtree(data / COPIES)
    shutil.copytree(folder / "names", data / COPIES)
    twin = folder / "twin"
    shutil.copytree(data, twin)

    with capture_logs() as lines:
        async with Chroma(data) as chroma:
            for name, each in seen.items():
                collection = chroma.client.get_collection(name)
                each.held, each.found = held(collection), found(collection, each.expected)
    mended = {line["collection"] for line in lines if line["log_level"] == "warning"}
    await write(data, lambda collection: add(collection, 2000, 1100, 4))
    with capture_logs() as lines:
        async with Chroma(data) as chroma:
            for name, each in seen.items():
                each.later = held(chroma.client.get_collection(name))
    for name, each in seen.items():
        each.mended, each.again = name in mended, any(line.get("collection") == name for line in lines)

    # The other directory: killed once more before Chroma was ever stopped.
    async with Chroma(twin) as chroma:
        for name, each in seen.items():
            collection = chroma.client.get_collection(name)
            noted[segments[name]] = await asyncio.to_thread(once_more, collection, twin / DATABASE, segments[name])
            each.last = held(collection)
    with closing(sqlite3.connect(twin / DATABASE)) as database, database:
        for segment in segments.values():
            forget(database, segment, noted[segment])
    for segment in segments.values():
        (twin / "chroma" / segment / NAMES).write_bytes(b"")
    async with Chroma(twin) as chroma:
        for name, each in seen.items():
            each.left = held(chroma.client.get_collection(name))
    return seen


def once_more(collection: Collection, path: Path, segment: str) -> int:
    """Items are deleted, added again, and more are added, until the index has just been written.

    Returns:
        what was noted before that.
    """
    query = "SELECT seq_id FROM max_seq_id WHERE segment_id = ?"
    with closing(sqlite3.connect(path)) as database:
        collection.count()  # takes what is left in the log
        noted = int((database.execute(query, (segment,)).fetchone() or (NEVER,))[0])
        collection.delete(["i1000", "i1001"])
        add(collection, 1001, 1, 5)
        for first in range(4000, 8000, 100):
            add(collection, first, 100, 5)
            if (database.execute(query, (segment,)).fetchone() or (NEVER,)) != (noted,):
                return noted
    raise AssertionError("the index was not written again")


async def write(data: Path, what: Callable[[Collection], None]) -> None:
    async with Chroma(data) as chroma:
        for name in COLLECTIONS:
            await asyncio.to_thread(what, chroma.client.get_collection(name))


def forget(database: sqlite3.Connection, segment: str, noted: int) -> None:
    """Chroma has not noted yet that the index is written: its log is still there."""
    (there,) = database.execute("SELECT seq_id FROM max_seq_id WHERE segment_id = ?", (segment,)).fetchone()
    assert there > noted, "the index was not written again"
    database.execute("UPDATE max_seq_id SET seq_id = ? WHERE segment_id = ?", (noted, segment))
    if noted == NEVER:
        database.execute("DELETE FROM max_seq_id WHERE segment_id = ?", (segment,))
    topic = "SELECT '%/' || collection FROM segments WHERE id = ?"
    database.execute(f"DELETE FROM embeddings_queue WHERE seq_id <= ? AND topic LIKE ({topic})", (noted, segment))


def found(collection: Collection, expected: Held) -> int:
    """How many of a hundred items are what is nearest to their vectors."""
    some = sorted(expected)[:: len(expected) // 100][:100]
    answers = collection.query(query_embeddings=[expected[item_id][1] for item_id in some], n_results=1)
    return sum(answer == [item_id] for answer, item_id in zip(answers["ids"], some, strict=True))


def differing(one: Held, other: Held) -> list[str]:
    """The ids that are in one of them, or have other vectors or metadata there."""
    return [
        item_id
        for item_id in sorted(one.keys() | other.keys())
        if item_id not in one
        or item_id not in other
        or one[item_id][0] != other[item_id][0]
        or not np.allclose(one[item_id][1], other[item_id][1], atol=1e-5)
    ]
