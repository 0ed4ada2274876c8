"""Finding and loading models."""

import logging
from pathlib import Path

import open_clip
import pytest
import torch

from chassis.errors import LikenessError
from embedder import models
from embedder.models import BUILTIN, Builtin, LoadedModel, load
from tests.unit.embedder import tiny


def refusal(model: str, pretrained: str = "") -> str:
    with pytest.raises(LikenessError) as caught:
        load(model, pretrained)
    return str(caught.value)


def test_a_name_and_a_local_file_load(tiny_model: LoadedModel) -> None:
    assert tiny_model.name == f"{tiny.NAME}/weights.pt"
    assert not tiny_model.network.training


def test_a_local_folder_loads(tmp_path: Path) -> None:
    loaded = load(tiny.save_folder(tmp_path / "model"), "")
    assert loaded.preprocess["mean"] == tiny.PREPROCESS_CONFIG["mean"]


def test_a_local_folder_without_weights_is_refused(tmp_path: Path) -> None:
    name = tiny.save_folder(tmp_path / "model")
    (tmp_path / "model" / "open_clip_pytorch_model.bin").unlink()
    assert "cannot be loaded" in refusal(name)


def test_an_unknown_name_is_refused_with_the_nearest_names() -> None:
    message = refusal("vit-b32")
    assert "LIKENESS_MODEL" in message
    assert "ViT-B-32" in message
    assert "starter" in refusal("startr")


def test_an_unknown_tag_is_refused_with_the_nearest_tags_and_all_of_them() -> None:
    message = refusal("ViT-B-32", "laion2b_s34b_b79")
    assert "Did you mean laion2b_s34b_b79k" in message
    assert "LIKENESS_PRETRAINED" in message


def test_a_model_without_weights_is_refused_and_not_filled_at_random() -> None:
    assert "not set" in refusal("ViT-B-32")


def test_a_missing_file_is_refused() -> None:
    assert "'/nowhere/weights.pt' is neither a file nor" in refusal("ViT-B-32", "/nowhere/weights.pt")


def test_weights_for_a_model_that_brings_its_own_are_refused(tiny_checkpoint: Path) -> None:
    assert "brings its own weights" in refusal("starter", str(tiny_checkpoint))
    assert "brings its own weights" in refusal("local-dir:/somewhere", "openai")


def test_a_checkpoint_of_another_model_is_refused(tiny_checkpoint: Path) -> None:
    assert "does not fit ViT-B-32" in refusal("ViT-B-32", str(tiny_checkpoint))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not a checkpoint")
    assert "LIKENESS_PRETRAINED" in refusal("ViT-B-32", str(path))


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, tiny_checkpoint: Path) -> None:
    witness = tmp_path / "witness"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (witness,)

    path = tmp_path / "weights.pt"
    torch.save({"state_dict": Attack()}, path)
    assert "would run code" in refusal(tiny.NAME, str(path))
    assert not witness.exists()


def test_a_tag_trained_with_another_activation_is_refused_with_its_sibling() -> None:
    assert "LIKENESS_MODEL=ViT-B-32-quickgelu" in refusal("ViT-B-32", "openai")


def test_an_activation_that_only_the_list_of_tags_leaves_out_is_no_reason_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise RuntimeError("no route to the hub")

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", unreachable)
    assert "no route to the hub" in refusal("roberta-ViT-B-32", "laion2b_s12b_b32k")


def test_a_download_that_fails_says_what_was_tried_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise RuntimeError("Failed to download weights for tag 'laion2b_s34b_b79k': no route to the hub")

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", unreachable)
    message = refusal("ViT-B-32", "laion2b_s34b_b79k")
    assert "no route to the hub" in message
    assert "HF_HOME" in message


def test_a_builtin_that_cannot_be_built_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> models.Triple:
        raise RuntimeError("a part is missing; install it")

    monkeypatch.setitem(BUILTIN, "broken", Builtin(broken, 1))
    assert "broken cannot be loaded: a part is missing; install it" in refusal("broken")


def test_loading_does_not_chatter_in_the_log(tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load(tiny.NAME, str(tiny_checkpoint))
    assert [r.message for r in caplog.records if r.name == "root"] == []


def test_a_checkpoint_file_is_preprocessed_as_its_models_tags_are(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(open_clip.create_model("ViT-S-32-alt").state_dict(), file)

    assert load("ViT-S-32-alt", str(file)).preprocess["mean"] == open_clip.OPENAI_DATASET_MEAN


def test_a_checkpoint_file_of_a_model_whose_tags_differ_needs_to_know_which(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"never read")

    with pytest.raises(LikenessError, match="LIKENESS_PREPROCESS_LIKE") as unset:
        load("ViT-L-14", str(file))
    with pytest.raises(LikenessError, match="none of ViT-L-14's tags"):
        load("ViT-L-14", str(file), "nonsense")
    assert "laion2b_s32b_b82k" in unset.value.message
