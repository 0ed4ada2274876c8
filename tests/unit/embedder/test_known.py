"""Which converted model belongs to settings seen before."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import structlog

from embedder.backends import known
from embedder.backends.preparation import Prepared
from embedder.settings import EmbedderSettings


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache" / "digest").mkdir(parents=True)
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"weights")
    (tmp_path / "model" / "open_clip_config.json").write_text("{}")
    return tmp_path / "model"


def of(model: Path) -> EmbedderSettings:
    return EmbedderSettings(model=f"local-dir:{model}")


def remember(settings: EmbedderSettings, folder: Path) -> None:
    seen = known.state(settings)
    assert seen is not None
    known.remember(seen, Prepared(folder, "a model"))


def test_what_was_remembered_is_found_while_nothing_changes(cache: Path, model: Path) -> None:
    assert known.find(cache, of(model)) is None
    remember(of(model), cache / "digest")
    assert known.find(cache, of(model)) == Prepared(cache / "digest", "a model")


def test_other_bytes_of_the_same_size_and_date_are_noticed(cache: Path, model: Path) -> None:
    remember(of(model), cache / "digest")
    file = model / "weights.bin"
    before = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert known.find(cache, of(model)) is None


def test_a_new_file_is_noticed(cache: Path, model: Path) -> None:
    remember(of(model), cache / "digest")
    (model / "more.json").write_text("{}")
    assert known.find(cache, of(model)) is None


def test_other_settings_are_another_model(cache: Path, model: Path) -> None:
    checkpoint = str(model / "weights.bin")
    remember(EmbedderSettings(model="ViT-B-32", pretrained=checkpoint), cache / "digest")
    assert known.find(cache, EmbedderSettings(model="ViT-B-32", pretrained=checkpoint)) == Prepared(
        cache / "digest", "a model"
    )
    assert known.find(cache, EmbedderSettings(model="ViT-B-16", pretrained=checkpoint)) is None


def test_a_model_of_a_hub_is_identified_anew_each_time() -> None:
    assert known.state(EmbedderSettings(model="ViT-B-32", pretrained="laion2b_s34b_b79k")) is None


def test_a_checkpoint_whose_tokenizer_a_hub_holds_is_identified_anew_each_time(model: Path) -> None:
    checkpoint = str(model / "weights.bin")
    assert known.state(EmbedderSettings(model="ViT-B-16-SigLIP", pretrained=checkpoint)) is None
    (model / "open_clip_config.json").write_text('{"model_cfg": {"text_cfg": {"hf_tokenizer_name": "x/y"}}}')
    assert known.state(of(model)) is None


def test_a_folder_that_is_gone_is_not_found(cache: Path, model: Path) -> None:
    remember(of(model), cache / "digest")
    shutil.rmtree(cache / "digest")
    assert known.find(cache, of(model)) is None


def test_a_cache_that_cannot_be_written_to_is_no_harm(tmp_path: Path, model: Path) -> None:
    (tmp_path / "digest").touch()
    remember(of(model), tmp_path / "digest")
    assert known.find(tmp_path, of(model)) is None


def test_a_cache_that_cannot_be_looked_into_is_no_harm(
    cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, pattern: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    remember(of(model), cache / "digest")
    monkeypatch.setattr(Path, "glob", refuse)  # as of a user who may not; root always may
    with structlog.testing.capture_logs() as logs:
        assert known.find(cache, of(model)) is None
    assert "Permission denied" in logs[0]["error"]


def test_a_note_that_is_being_written_is_no_harm(cache: Path, model: Path) -> None:
    remember(of(model), cache / "digest")
    note = next(cache.glob("*/known/*"))
    note.write_text("")
    assert known.find(cache, of(model)) is None
