"""What ``make bench-embedder`` writes says of each section whether it was measured in that run."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.embedder import report
from benchmarks.embedder.scope import Scope, Target

LOAD: dict[str, Any] = {"open": [{"load": 5.0, "goodput": 0.95, "refused_p50_ms": 6.0}], "beside_bulk": []}
GROWTH: dict[str, Any] = {"memory": {"slope_mb_per_hour": 1.5, "standard_error_mb_per_hour": 2.0}}


def test_sections_of_an_earlier_run_are_named_with_their_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "commit", lambda: "one")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "embedder.json")
    scope = Scope.of(Target(), quick=True, clients=1, peers=False)

    monkeypatch.setattr(report, "_RUN", "the first run")
    report.write(scope, "growth", GROWTH, 1.0)
    first = report.write(scope, "load", LOAD, 1.0)
    assert first["from_earlier_runs"] == {}

    monkeypatch.setattr(report, "_RUN", "the second run")
    report.write(scope, "load", LOAD, 1.0)
    told = json.loads(report.RESULTS.read_text())
    assert told["from_earlier_runs"] == {"growth": first["sections"]["growth"]["date"]}
    assert told["summary"]["rss_slope_mb_per_hour"] == 1.5, "it is of that section"

    again = report.write(scope, "growth", GROWTH, 1.0)
    assert again["from_earlier_runs"] == {}


def test_sections_written_before_runs_were_told_apart_count_as_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "commit", lambda: "one")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "embedder.json")
    scope = Scope.of(Target(), quick=True, clients=1, peers=False)
    old = report.write(scope, "growth", GROWTH, 1.0)
    del old["sections"]["growth"]["run"]
    report.RESULTS.write_text(json.dumps(old))
    assert list(report.write(scope, "load", LOAD, 1.0)["from_earlier_runs"]) == ["growth"]


def test_the_tables_say_which_figures_are_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "embedder.json")
    whole = report.write(Scope.of(Target(), quick=True, clients=1, peers=False), "poison", {"missing": "it"}, 1.0)
    report.show(whole)
    assert "earlier" not in capsys.readouterr().out
    report.show({**whole, "from_earlier_runs": {"growth": "2026-01-02"}})
    assert "from earlier runs: growth (2026-01-02)" in capsys.readouterr().out
