"""How the indexer starts, or says why it does not."""

from pathlib import Path

import pytest

from chassis.health import serving
from tests.integration.indexer.calls import PORT
from tests.processes import launch, run_to_end


def test_help_prints_every_setting() -> None:
    done = run_to_end("indexer", {}, ["--help"])
    assert done.returncode == 0
    for name in ("INDEXER_PORT", "DATA_DIR", "CHROMA_URL", "CHROMA_TOKEN", "WRITE_CHUNK", "WRITE_QUEUE", "DRAIN_S"):
        assert f"LIKENESS_{name}" in done.stdout
    assert "50052" in done.stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (PORT, "70000"),
        ("LIKENESS_WRITE_CHUNK", "1025"),
        ("LIKENESS_CHROMA_URL", "chroma:8000"),
        ("LIKENESS_CHROMA_URL", "http://host:99999"),
    ],
)
def test_a_bad_setting_is_named_and_ends_with_2(name: str, value: str) -> None:
    done = run_to_end("indexer", {name: value})
    assert done.returncode == 2
    assert name in done.stderr
    assert value in done.stderr


def test_a_chroma_that_cannot_be_found_ends_with_1(tmp_path: Path) -> None:
    env = {PORT: "0", "LIKENESS_CHROMA_URL": "http://127.0.0.1:9", "LIKENESS_CHROMA_START_S": "0.1"}
    done = run_to_end("indexer", env)
    assert done.returncode == 1
    assert "http://127.0.0.1:9" in done.stderr


def test_a_stop_while_starting_ends_with_0(tmp_path: Path) -> None:
    # Nobody answers there, so it goes on starting for as long as the test looks.
    env = {"LIKENESS_CHROMA_URL": "http://127.0.0.1:9", "LIKENESS_CHROMA_START_S": "120"}
    service = launch("indexer", env, PORT, tmp_path)
    assert serving(service.address, 30) == "NOT_SERVING"
    assert serving(service.address, 30, service="live") is None
    assert service.stop() == 0


def test_a_damaged_data_directory_ends_with_1_and_chromas_own_words(tmp_path: Path) -> None:
    (tmp_path / "chroma").mkdir()
    (tmp_path / "chroma" / "chroma.sqlite3").write_text("not a database")
    done = run_to_end("indexer", {PORT: "0", "LIKENESS_DATA_DIR": str(tmp_path), "LIKENESS_CHROMA_START_S": "20"})
    assert done.returncode == 1
    assert str(tmp_path / "chroma") in done.stderr
    assert "not a database" in done.stderr
