"""How far long work is: a bar on a terminal; elsewhere lines, or nothing; and the answer alone on stdout."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from likeness.common.v1 import types_pb2
from likeness.gateway.v1 import gateway_pb2 as pb
from rich.console import Console

from likeness_client import progress
from likeness_client.progress import IngestProgress, WorkProgress, readable_bytes
from tests.unit.client.command import likeness
from tests.unit.client.fake_gateway import FakeGateway

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Shown(io.StringIO):
    """What was written to stderr."""

    @property
    def lines(self) -> list[str]:
        """Without what moves the cursor and colours; a bar that was drawn again is there again."""
        return [line.rstrip() for line in _CONTROL.sub("", self.getvalue()).replace("\r", "\n").split("\n") if line]


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], Shown]:
    """Makes stderr a terminal of 80 columns, or none."""

    def replaced(terminal: bool) -> Shown:
        shown = Shown()
        console = Console(file=shown, force_terminal=terminal, width=80, highlight=False, markup=False, emoji=False)
        monkeypatch.setattr(progress, "err", lambda: console)
        return shown

    return replaced


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def test_work_shows_a_bar_with_its_stage_and_counts_on_a_terminal(stderr: Callable[[bool], Shown]) -> None:
    shown = stderr(True)
    with WorkProgress("comparing") as bar:
        bar.update("comparing", 1500, 2000)
    assert re.search(r"^Comparing [━╸╺ ]{10,} 1,500 of 2,000 ", shown.lines[-1])

    with WorkProgress("reading") as bar:
        bar.update("reading", 1, 4)
        bar.say("a word beside it")
        bar.update("writing", 2500, 0)
    assert "a word beside it" in shown.lines
    assert re.search(r"^Writing \S+ 2,500 ", shown.lines[-1])  # of how many is not known
    assert " of " not in shown.lines[-1]


def test_work_says_nothing_off_a_terminal_but_what_it_is_told_to(stderr: Callable[[bool], Shown]) -> None:
    shown = stderr(False)
    with WorkProgress("comparing") as bar:
        for done in range(100):
            bar.update("comparing", done, 100)
        bar.say("Interrupted.")
    assert shown.getvalue() == "Interrupted.\n"


def test_an_ingest_shows_a_bar_with_its_pace_on_a_terminal(stderr: Callable[[bool], Shown], clock: Clock) -> None:
    shown = stderr(True)
    with IngestProgress(4) as bar:
        for _ in range(3):
            clock.now += 10
            bar.advance(1_500_000)
        bar.say("one is damaged")
    assert "one is damaged" in shown.lines
    assert re.search(r"^Indexing [━╸╺ ]{10,} 3 of 4 0\.1/s, 4\.5 MB ", shown.lines[-1])
    assert "pictures" not in shown.getvalue()  # the line that others get


def test_an_ingest_writes_a_line_now_and_then_off_a_terminal(stderr: Callable[[bool], Shown], clock: Clock) -> None:
    shown = stderr(False)
    with IngestProgress(2000) as bar:
        for _ in range(1200):
            clock.now += 0.01
            bar.advance(1000)
        bar.say("one is damaged")
    lines = shown.getvalue().splitlines()
    assert [line.split(" pictures, ")[0] for line in lines] == ["500 of 2,000", "1,000 of 2,000", "one is damaged"]
    assert lines[0] == "500 of 2,000 pictures, 100.0/s, 500.0 kB"


@pytest.mark.parametrize(
    ("command", "stage", "count"),
    [
        (["duplicates"], "Comparing", "3 of 3"),
        (["label", "suggest", "cat", "dog"], "Classifying", "3 of 3"),
        (["label", "add", "pet", "--all"], "Labelling", "3"),
    ],
)
def test_a_long_command_draws_its_bar_beside_its_answer(
    *,
    command: list[str],
    stage: str,
    count: str,
    address: str,
    gateway: FakeGateway,
    stderr: Callable[[bool], Shown],
) -> None:
    for item_id, encoded in (("a", b"cat"), ("b", b"cat"), ("c", b"dog")):
        gateway.stored[item_id] = pb.IndexItem(id=item_id, image=types_pb2.Image(encoded=encoded))
    shown = stderr(True)
    result = likeness(*command, "--format", "json", server=address)
    assert json.loads(result.stdout)
    assert re.search(rf"^{stage} .*[━╸╺].* {count}( |$)", shown.lines[-1])


def test_an_index_of_files_draws_its_bar(address: str, tmp_path: Path, stderr: Callable[[bool], Shown]) -> None:
    for n in range(3):
        (tmp_path / f"{n}.jpg").write_bytes(bytes(1000))
    shown = stderr(True)
    result = likeness("index", tmp_path, "--format", "json", server=address)
    assert json.loads(result.stdout)["stored"] == 3
    assert re.search(r"^Indexing .*━.* 3 of 3 [0-9,.]+/s, 3\.0 kB", shown.lines[-1])


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (12_345_678, "12.3 MB"),
        (2e9, "2.0 GB"),
        (3e15, "3000.0 TB"),
    ],
)
def test_bytes_are_told_in_the_unit_that_fits(count: float, text: str) -> None:
    assert readable_bytes(count) == text
