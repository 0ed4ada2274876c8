"""Finding and loading models."""

import errno
import json
import logging
from pathlib import Path

import open_clip
import pytest
import torch

from chassis.errors import LikenessError
from embedder import models
from embedder.models import BUILTIN, Builtin, LoadedModel, load
from tests.unit.embedder import tiny


def refusal(model: str, pretrained: str = "", like: str = "") -> str:
    with pytest.raises(LikenessError) as caught:
        load(model, pretrained, like)
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


def test_a_file_in_a_folder_that_may_not_be_looked_into_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)  # as of a user who may not; root always may
    assert "LIKENESS_PRETRAINED: /closed/weights.pt cannot be read" in refusal("ViT-B-32", "/closed/weights.pt")


def test_weights_for_a_model_that_brings_its_own_are_refused(tiny_checkpoint: Path) -> None:
    assert "brings its own weights" in refusal("starter", str(tiny_checkpoint))
    assert "brings its own weights" in refusal("local-dir:/somewhere", "openai")


def test_a_checkpoint_of_another_model_is_refused(tiny_checkpoint: Path) -> None:
    assert "does not fit ViT-B-32" in refusal("ViT-B-32", str(tiny_checkpoint), "laion2b_s34b_b79k")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not a checkpoint")
    assert "LIKENESS_PRETRAINED" in refusal("ViT-B-32", str(path), "laion2b_s34b_b79k")


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


@pytest.mark.parametrize(
    ("model", "offered"),
    [
        ("ViT-B-32", "laion2b_s34b_b79k"),
        ("ViT-B-32", "together with LIKENESS_MODEL=ViT-B-32-quickgelu: openai"),
        # Its tags all have the other activation function, and so most of its files.
        ("ViT-L-14-336", "fine-tuned from: together with LIKENESS_MODEL=ViT-L-14-336-quickgelu: openai"),
    ],
)
def test_a_checkpoint_file_of_a_model_whose_tags_have_another_activation_needs_to_know_its_own(
    tmp_path: Path, model: str, offered: str
) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"never read")
    message = refusal(model, str(file))
    assert message.startswith("FIELD_INVALID: LIKENESS_PREPROCESS_LIKE: is not set")
    assert offered in message
    assert "local-dir:<folder>" in message


def test_a_checkpoint_file_like_a_tag_of_another_activation_is_refused_with_the_tags_model(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"never read")
    message = refusal("ViT-L-14", str(file), "openai")
    assert "LIKENESS_PREPROCESS_LIKE: 'openai' was trained with another activation function" in message
    assert "set LIKENESS_MODEL=ViT-L-14-quickgelu" in message


def test_a_checkpoint_file_of_a_model_that_is_named_after_its_activation_needs_no_tag(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"no checkpoint")
    assert "LIKENESS_PRETRAINED" in refusal("ViT-B-32-quickgelu", str(file))


@pytest.mark.parametrize("options", [{"trust_remote_code": True}, {"clean": "lower", "use_fast": False}])
def test_a_configuration_that_could_have_its_tokenizer_run_code_is_refused_and_nothing_runs(
    tmp_path: Path, options: dict[str, object]
) -> None:
    folder = tmp_path / "model"
    name = tiny.save_folder(folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "some/where", "tokenizer_kwargs": options}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    auto_map = {"AutoTokenizer": ["attack.Attack", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Attack", "auto_map": auto_map}))
    witness = tmp_path / "witness"
    (folder / "attack.py").write_text(
        "from pathlib import Path\n"
        "from transformers import PreTrainedTokenizer\n"
        f"Path({str(witness)!r}).touch()\n"
        "class Attack(PreTrainedTokenizer): pass\n"
    )
    assert f"tokenizer_kwargs of its configuration hold {list(options)[-1]}, which may run code" in refusal(name)
    assert not witness.exists()


def test_the_options_of_tokenizers_that_open_clips_own_models_have_are_known() -> None:
    texts = [(open_clip.get_model_config(name) or {})["text_cfg"] for name in open_clip.list_models()]
    used = {option for text in texts for option in text.get("tokenizer_kwargs", {})}
    assert used
    assert used <= models._TOKENIZER_OPTIONS
