"""What a benchmark writes: whether each part was measured in that run, and nothing of another commit or machine."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results
from benchmarks.embedder import report as embedder
from benchmarks.embedder.scope import Scope as EmbedderScope
from benchmarks.embedder.scope import Target
from benchmarks.gateway import report as gateway
from benchmarks.gateway.scope import Scope as GatewayScope
from benchmarks.indexer import report as indexer
from benchmarks.indexer.scope import Scope as IndexerScope

LOAD: dict[str, Any] = {"open": [{"load": 5.0, "goodput": 0.95, "refused_p50_ms": 6.0}], "beside_bulk": []}
GROWTH: dict[str, Any] = {"memory": {"slope_mb_per_hour": 1.5, "standard_error_mb_per_hour": 2.0}}
EMBEDDER = EmbedderScope.of(Target(), quick=True, clients=1, peers=False)
INDEXER = IndexerScope.of(quick=True, sizes=None, clients=2, peers=False)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes where the figures are."""
    for module in (embedder, gateway, indexer):
        path = tmp_path / "results" / f"{module.__name__}.json"
        monkeypatch.setattr(module, "RESULTS", dataclasses.replace(module.RESULTS, path=path))
    monkeypatch.setattr(results, "commit", lambda _: "one")


def load(scope: EmbedderScope = EMBEDDER) -> dict[str, Any]:
    return embedder.write(scope, "load", LOAD, 1.0)


def growth(scope: EmbedderScope = EMBEDDER) -> dict[str, Any]:
    return embedder.write(scope, "growth", GROWTH, 1.0)


def speed(size: int) -> dict[str, Any]:
    return indexer.write(INDEXER, "speed", size, {"rows": []}, 1.0)


def test_sections_run_apart_are_merged_unless_target_commit_or_machine_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    growth()
    load()
    told = json.loads(embedder.RESULTS.path.read_text())
    assert list(told["sections"]) == ["load", "growth"]
    assert told["summary"]["overload5_goodput"] == 0.95
    monkeypatch.setattr(results, "commit", lambda _: "another")
    assert list(load()["sections"]) == ["load"]
    monkeypatch.setattr(results, "machine", lambda: {"cpu": "another"})
    assert list(growth()["sections"]) == ["growth"]
    other = EmbedderScope.of(Target(model="starter"), quick=True, clients=1, peers=False)
    assert list(load(other)["sections"]) == ["load"]


def test_sizes_run_apart_are_merged_unless_the_commit_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    speed(50_000)
    indexer.write(INDEXER, "startup", 50_000, {"row": {"rss_mib": 2.0, "empty_rss_mib": 1.0}}, 1.0)
    speed(10_000)
    told = json.loads(indexer.RESULTS.path.read_text())
    assert list(told["sections"]) == ["startup", "speed"]
    assert set(told["sections"]["speed"]["sizes"]) == {"10000", "50000"}
    monkeypatch.setattr(results, "commit", lambda _: "another")
    assert list(speed(10_000)["sections"]["speed"]["sizes"]) == ["10000"]


def test_sections_of_an_earlier_run_are_named_with_their_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_RUN", "the first run")
    growth()
    first = load()
    assert first["from_earlier_runs"] == {}

    monkeypatch.setattr(results, "_RUN", "the second run")
    load()
    told = json.loads(embedder.RESULTS.path.read_text())
    assert told["from_earlier_runs"] == {"growth": first["sections"]["growth"]["date"]}
    assert told["summary"]["rss_slope_mb_per_hour"] == 1.5, "it is of that section"
    assert growth()["from_earlier_runs"] == {}


def test_sizes_of_an_earlier_run_are_named_with_their_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_RUN", "the first run")
    date = speed(10_000)["sections"]["speed"]["sizes"]["10000"]["date"]
    speed(50_000)
    monkeypatch.setattr(results, "_RUN", "the second run")
    assert speed(50_000)["from_earlier_runs"] == {"speed sizes 10000": date}


def test_the_tables_say_which_figures_are_of_an_earlier_run(capsys: pytest.CaptureFixture[str]) -> None:
    searches = gateway.write(GatewayScope.of("starter", quick=True), "rates", {"rows": []}, 1.0)
    poison = embedder.write(EMBEDDER, "poison", {"missing": "it"}, 1.0)
    for module, whole in ((embedder, poison), (indexer, speed(10_000)), (gateway, searches)):
        module.show(whole)
        assert "earlier" not in capsys.readouterr().out
        module.show({**whole, "from_earlier_runs": {"startup": "2026-01-02"}})
        assert "from earlier runs: startup (2026-01-02)" in capsys.readouterr().out


def test_a_cell_shows_nested_figures() -> None:
    assert results.shown({"plain": 0.999, "filtered": None}) == "plain 0.999, filtered –"
    assert results.shown([1.0, 20.0]) == "1.000 20.0"


def test_what_is_not_installed_has_no_version() -> None:
    assert results.versions(["numpy", "never-made"]).keys() == {"python", "numpy", "never-made"}
    assert results.versions(["never-made"])["never-made"] is None
