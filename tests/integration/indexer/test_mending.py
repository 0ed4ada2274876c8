"""An index that Chroma was killed in writing is mended; what cannot be is left alone, and nothing is guessed."""

import asyncio
import errno
import os
import pickle
import shutil
import sqlite3
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import chromadb
import pytest
from structlog.testing import capture_logs

from chassis import durable
from chassis.durable import replace
from chassis.errors import LikenessError
from indexer.index_files import HEADER, LENGTHS, NAMES, ROWS, UPPER, Header, Names
from indexer.mend import DAMAGED, DamagedError, mend
from tests.integration.indexer.torn import (
    COLLECTIONS,
    DATABASE,
    SOUND,
    Chroma,
    Held,
    Seen,
    add,
    begun,
    both,
    differing,
    held,
    index_of,
    see,
    vectors,
    whole,
)
from tests.processes import run_to_end, start_chroma


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torn")


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Seen]:
    return asyncio.run(see(folder))


@pytest.mark.parametrize("name", COLLECTIONS)
def test_nothing_is_missing_after_a_kill(seen: dict[str, Seen], name: str) -> None:
    each = seen[name]
    assert len(each.expected) >= 1000
    assert differing(each.held, each.expected) == []
    assert each.found >= 98
    assert each.mended == (name.partition("-")[2] not in SOUND)


@pytest.mark.parametrize("name", COLLECTIONS)
def test_what_is_written_afterwards_is_kept_too(seen: dict[str, Seen], name: str) -> None:
    given = vectors(4, 3100)
    more = {f"i{number}": (number, given[number]) for number in range(2000, 3100)}
    assert differing(seen[name].later, seen[name].expected | more) == []
    assert not seen[name].again


@pytest.mark.parametrize("name", COLLECTIONS)
def test_names_are_found_again_after_a_second_kill(seen: dict[str, Seen], name: str) -> None:
    each = seen[name]
    assert len(each.last) > 1900
    assert differing(each.left, each.last) == []


def zero_label(path: Path, _: sqlite3.Connection) -> None:
    header = Header.read(path)
    with (path / ROWS).open("r+b") as file:
        file.seek(5 * header.row_bytes + header.label_at)
        file.write(bytes(8))


def rows_cut(path: Path, _: sqlite3.Connection) -> None:
    (path / ROWS).write_bytes((path / ROWS).read_bytes()[:1000])


def no_header(path: Path, _: sqlite3.Connection) -> None:
    (path / HEADER).write_bytes(bytes(100))


def another_order(path: Path, database: sqlite3.Connection) -> None:
    """No pickle, two ids that have changed places in SQLite, and a log that tells."""
    (path / NAMES).unlink()
    database.execute("UPDATE max_seq_id SET seq_id = seq_id - 300 WHERE segment_id = ?", (path.name,))
    segment = "SELECT m.id FROM segments m JOIN segments v USING (collection) WHERE v.id = ? AND m.scope = 'METADATA'"
    for old, new in (("i1800", "aside"), ("i1801", "i1800"), ("aside", "i1801")):
        update = f"UPDATE embeddings SET embedding_id = ? WHERE embedding_id = ? AND segment_id = ({segment})"
        assert database.execute(update, (new, old, path.name)).rowcount == 1


def too_few(path: Path, database: sqlite3.Connection) -> None:
    """No pickle, and fewer ids than rows."""
    (path / NAMES).unlink()
    database.execute("DELETE FROM embeddings WHERE embedding_id = 'i1800'")


HARMS: dict[str, Callable[[Path, sqlite3.Connection], None]] = {
    "are not all there": zero_label,
    "ends after 1000 bytes": rows_cut,
    "not of the expected format": no_header,
    "do not have the vectors of their ids": another_order,
    "rows exist for": too_few,
}


@pytest.mark.parametrize("why", HARMS)
def test_what_cannot_be_mended_is_left_as_it_is_and_named(
    seen: dict[str, Seen], folder: Path, tmp_path: Path, why: str
) -> None:
    assert seen
    directory = tmp_path / "chroma"
    shutil.copytree(folder / "after" / "chroma", directory)
    with closing(sqlite3.connect(directory / "chroma.sqlite3")) as database, database:
        path = directory / index_of(database, "l2-untouched")
        HARMS[why](path, database)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    shutil.copytree(folder / "names", tmp_path / "names")
    with pytest.raises(DamagedError, match=f"l2-untouched: .*{why}") as raised:
        mend(directory, tmp_path / "names")
    assert sum(name in str(raised.value) for name in COLLECTIONS) == 1
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def cut_off(folder: Path, directory: Path) -> Path:
    """Chroma's files as a kill leaves them, with one index half written; where that is."""
    shutil.copytree(folder / "before" / "chroma", directory)
    with closing(sqlite3.connect(directory / "chroma.sqlite3")) as database:
        path = directory / index_of(database, "l2-untouched")
    both(whole(HEADER, ROWS, LENGTHS), begun(UPPER, 0.4))(path, folder / "after" / "chroma" / path.name)
    return path


@pytest.mark.parametrize("files", [0, 1])
def test_mending_that_was_cut_off_is_done_again(
    seen: dict[str, Seen], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    assert seen
    places = {name: tmp_path / name / "chroma" for name in ("cut off", "not")}
    for place in places.values():
        path = cut_off(folder, place)
    replaced: list[str] = []

    def failing(path: Path, content: bytes) -> None:
        if len(replaced) == files:
            raise OSError(errno.ENOSPC, "no room")
        replaced.append(path.name)
        replace(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(durable, "replace", failing)
        with pytest.raises(OSError, match="no room"):
            mend(places["cut off"], tmp_path / "names")
    assert replaced == [UPPER][:files]
    assert [mend(place, tmp_path / "names") for place in places.values()] == [1, 1]
    mended, other = ({f.name: f.read_bytes() for f in (place / path.name).iterdir()} for place in places.values())
    assert mended == other


def test_items_whose_vectors_are_lost_are_told(seen: dict[str, Seen], folder: Path, tmp_path: Path) -> None:
    """After a power cut the files may be older than what SQLite has noted of them, and the log has been shortened."""
    assert seen
    directory = tmp_path / "chroma"
    shutil.copytree(folder / "after" / "chroma", directory)
    with closing(sqlite3.connect(directory / "chroma.sqlite3")) as database, database:
        segment = index_of(database, "l2-untouched")
        database.execute("DELETE FROM embeddings_queue")
    shutil.rmtree(directory / segment)
    shutil.copytree(folder / "before" / "chroma" / segment, directory / segment)
    whole(HEADER)(directory / segment, folder / "after" / "chroma" / segment)
    with capture_logs() as lines:
        assert mend(directory, tmp_path / "names") == 1
    (error,) = [line for line in lines if line["log_level"] == "error"]
    assert error["collection"] == "l2-untouched"
    assert (error["items"], error["such_as"][0]) == (930, "i1000")
    # These may be written again: from then on the order of SQLite's ids is no longer that of the labels.
    (directory / segment / NAMES).write_bytes(b"")
    with pytest.raises(DamagedError, match="cannot be read"):
        mend(directory, tmp_path / "names")


class Command:
    """Does something when it is read from a pickle."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._path),)


def test_a_pickle_that_would_do_something_does_nothing(seen: dict[str, Seen], folder: Path, tmp_path: Path) -> None:
    """Older versions of Chroma wrote objects of theirs: such names are left to Chroma."""
    assert seen
    directory = tmp_path / "chroma"
    shutil.copytree(folder / "after" / "chroma", directory)
    with closing(sqlite3.connect(directory / "chroma.sqlite3")) as database:
        path = directory / index_of(database, "l2-untouched")
    content = pickle.dumps({"total_elements_added": Command(tmp_path / "made")})
    (path / NAMES).write_bytes(content)
    with capture_logs() as lines:
        assert mend(directory, tmp_path / "names") == 0
    assert [line["collection"] for line in lines if line["log_level"] == "warning"] == ["l2-untouched"]
    assert (path / NAMES).read_bytes() == content
    assert not (tmp_path / "made").exists()


def test_names_without_a_copy_are_not_guessed(seen: dict[str, Seen], folder: Path, tmp_path: Path) -> None:
    """As where an earlier version, which kept none, was killed."""
    assert seen
    directory = tmp_path / "chroma"
    shutil.copytree(folder / "after" / "chroma", directory)
    with closing(sqlite3.connect(directory / "chroma.sqlite3")) as database:
        (directory / index_of(database, "l2-untouched") / NAMES).write_bytes(b"")
    with pytest.raises(DamagedError, match="there is no copy of it"):
        mend(directory, tmp_path / "names")


def test_copies_of_what_is_no_more_are_removed(seen: dict[str, Seen], folder: Path, tmp_path: Path) -> None:
    assert seen
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "of-a-deleted-collection").write_bytes(b"")
    assert mend(folder / "after" / "chroma", tmp_path / "names") == 0
    there = {path.name for path in (folder / "after" / "chroma").iterdir() if path.is_dir()}
    assert {path.name for path in (tmp_path / "names").iterdir()} == there | {"complete"}


def test_there_may_be_nothing_to_mend_yet(tmp_path: Path) -> None:
    assert mend(tmp_path / "chroma", tmp_path / "names") == 0


def test_without_room_for_copies_chroma_is_started_and_the_next_kill_is_not_guessed_at(
    seen: dict[str, Seen], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert seen
    directory = tmp_path / "chroma"
    shutil.copytree(folder / "after" / "chroma", directory)
    shutil.copytree(folder / "names", tmp_path / "names")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patched, capture_logs() as lines:
        patched.setattr(shutil, "copy2", full)
        assert mend(directory, tmp_path / "names") == 0
    assert [line["log_level"] for line in lines] == ["error"]
    with closing(sqlite3.connect(directory / "chroma.sqlite3")) as database:
        (directory / index_of(database, "l2-untouched") / NAMES).write_bytes(b"")
    with pytest.raises(DamagedError, match="there is no copy of it"):
        mend(directory, tmp_path / "names")


async def test_an_index_that_was_emptied_is_made_anew_by_chroma_and_then_mended_like_any_other(tmp_path: Path) -> None:
    async with Chroma(tmp_path) as chroma:
        collection = chroma.client.create_collection("emptied")
        add(collection, 0, 500, 1)
        for begin in range(0, 500, 100):  # with the last of them the index is written
            collection.delete([f"i{number}" for number in range(begin, begin + 100)])
    async with Chroma(tmp_path) as chroma:
        assert chroma.client.get_collection("emptied").count() == 0
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        path = tmp_path / "chroma" / index_of(database, "emptied")
    assert (Names.read(path).total, Header.read(path).rows) == (500, 0)
    async with Chroma(tmp_path) as chroma:
        collection = chroma.client.get_collection("emptied")
        add(collection, 2000, 1000, 1)
        expected = held(collection)
    assert len(expected) == 1000
    (path / NAMES).write_bytes(b"")
    async with Chroma(tmp_path) as chroma:
        assert differing(held(chroma.client.get_collection("emptied")), expected) == []


async def mended_by_an_indexer(folder: Path, data: Path) -> Held:
    cut_off(folder, data / "chroma")
    async with Chroma(data) as chroma:
        return held(chroma.client.get_collection("l2-untouched"))


async def started(data: Path) -> None:
    async with Chroma(data):
        pass


def in_chroma_at(url: str) -> Held:
    place = urlsplit(url)
    return held(chromadb.HttpClient(host=str(place.hostname), port=int(place.port or 0)).get_collection("l2-untouched"))


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_a_chroma_that_no_indexer_starts_is_mended_too(
    seen: dict[str, Seen], folder: Path, tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    assert seen
    expected = asyncio.run(mended_by_an_indexer(folder, tmp_path / "alike"))
    assert len(expected) > 1000
    directory = tmp_path / "alone" / "chroma"
    cut_off(folder, directory)
    orphan = directory / str(uuid.uuid4())
    orphan.mkdir()
    process, url = start_chroma(directory)
    processes.append(process)
    assert differing(in_chroma_at(url), expected) == []
    assert not orphan.exists()
    assert "has been mended" in next(directory.parent.glob("chroma-*.log")).read_text()
    # Nobody else starts one over the same files, until it is gone.
    told = ["--path", str(directory), "--names", str(directory / "names"), "--port", "1"]
    second = run_to_end("indexer.chroma_process", {}, told)
    assert (second.returncode, "is in use by" in second.stdout) == (1, True)
    with pytest.raises(LikenessError, match="is in use by"):
        asyncio.run(started(directory.parent))
    process.kill()
    process.wait()
    process, url = start_chroma(directory)
    processes.append(process)
    assert differing(in_chroma_at(url), expected) == []


def test_a_chroma_whose_index_cannot_be_mended_is_not_started(
    seen: dict[str, Seen], folder: Path, tmp_path: Path
) -> None:
    assert seen
    shutil.copytree(folder / "after" / "chroma", tmp_path / "chroma")
    with closing(sqlite3.connect(tmp_path / "chroma" / "chroma.sqlite3")) as database:
        rows_cut(tmp_path / "chroma" / index_of(database, "l2-untouched"), database)
    done = run_to_end("indexer.chroma_process", {}, ["--path", str(tmp_path / "chroma"), "--port", "1"])
    assert done.returncode == DAMAGED
    assert "l2-untouched" in done.stdout
