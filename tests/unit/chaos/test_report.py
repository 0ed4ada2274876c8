"""What a run of the chaos test comes to: a fault, or what has not been seen and is said not to have been."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.chaos import __main__ as chaos
from tests.chaos import scenarios
from tests.chaos.rounds import Outcome

Run = Callable[[str, list[Outcome]], int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Has a scenario come to these outcomes; returns the exit code."""
    monkeypatch.setattr(chaos, "WORK", tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run_one(name: str, outcomes: list[Outcome]) -> int:
        def scenario(folder: Path, logs: Path, seed: int) -> Iterator[Outcome]:
            yield from outcomes

        monkeypatch.setitem(chaos.SCENARIOS, name, scenario)
        monkeypatch.setattr(sys, "argv", ["chaos", "--only", name])
        return chaos.main()

    return run_one


def kills(aim: str, *hits: bool) -> list[Outcome]:
    return [Outcome(f"{aim} {n + 1}", aim=aim, hit=hit) for n, hit in enumerate(hits)]


def test_a_scenario_whose_kills_all_missed_is_a_fault(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("rebuild", kills("rebuild", False, False)) == 1
    shown = capsys.readouterr().out
    assert "NEVER HIT: rebuild: none of 2 kills came in time" in shown
    assert "never hit: 1" in shown
    assert "kills that came in time: rebuild 0 of 2" in shown


def test_of_two_moments_each_has_to_be_hit(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = kills("snapshot, stopping", True, True) + kills("snapshot, serving", False, False)
    assert run("snapshot", outcomes) == 1
    shown = capsys.readouterr().out
    assert "NEVER HIT: snapshot, serving: none of 2" in shown
    assert "NEVER HIT: snapshot, stopping" not in shown


def test_one_kill_that_hit_is_enough_and_how_many_did_is_said(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("rebuild", kills("rebuild", False, True, False)) == 0
    shown = capsys.readouterr().out
    assert "kills that came in time: rebuild 1 of 3" in shown
    assert "never hit: 0" in shown


def test_what_was_skipped_is_no_fault_and_is_said_in_table_and_closing_lines(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("disk", [Outcome("disk full", skipped="no disk")]) == 0
    *before, last = capsys.readouterr().out.strip().splitlines()
    (row,) = [line for line in before if line.startswith("│")]
    assert "SKIPPED: no disk" in row
    assert "0 rounds and scenarios" in "".join(before)
    assert last == "SKIPPED, so not seen here: disk full: no disk"


@pytest.mark.parametrize("hit", [True, False])
def test_a_scenario_says_of_each_kill_whether_it_came_in_time(hit: bool) -> None:
    killed: list[str] = []
    indexer = SimpleNamespace(kill=lambda: killed.append("indexer"))
    outcome = Outcome("one", aim="rebuild")
    scenarios._kill(cast(Any, indexer), outcome, lambda: hit)
    assert (killed, outcome.hit, "missed" in outcome.note) == (["indexer"], hit, not hit)
