"""The model's identity."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer

from embedder.fingerprint import fingerprint
from embedder.models import LoadedModel, load
from tests.unit.embedder import tiny

ROOT = Path(__file__).resolve().parents[3]


def digest(model: LoadedModel, **changed: Any) -> str:
    parts = {"tokenizer": model.tokenizer, "preprocess": model.preprocess, "architecture": model.architecture} | changed
    return fingerprint(model.network, **parts)


def test_the_digest_is_a_sha256(tiny_model: LoadedModel) -> None:
    assert len(digest(tiny_model)) == 64
    assert int(digest(tiny_model), 16)


def test_another_process_computes_the_same_digest(tiny_model: LoadedModel, tiny_checkpoint: Path) -> None:
    script = """
import sys
from pathlib import Path
from embedder.models import load
from tests.unit.embedder import tiny
from tests.unit.embedder.test_fingerprint import digest
tiny.register(Path(sys.argv[1]).parent)
print(digest(load(tiny.NAME, sys.argv[1])))
"""
    run = subprocess.run(
        [sys.executable, "-c", script, tiny_checkpoint], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == digest(tiny_model), run.stderr


def test_the_name_and_the_format_of_the_file_do_not_matter(tiny_model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"state_dict": tiny_model.network.state_dict()}, path)
    assert digest(load(tiny.NAME, str(path))) == digest(tiny_model)


def test_tokenizing_first_does_not_change_it(tiny_model: LoadedModel) -> None:
    before = digest(tiny_model)
    tiny_model.tokenizer(["some text that the tokenizer remembers"])
    assert digest(tiny_model) == before


def test_one_changed_weight_changes_it(tiny_model: LoadedModel) -> None:
    before = digest(tiny_model)
    weights = dict(tiny_model.network.state_dict())
    weights["visual.conv1.weight"][0, 0, 0, 0] += 1e-6
    assert digest(tiny_model) != before


def test_what_makes_no_vector_does_not_change_it(tiny_model: LoadedModel) -> None:
    before = digest(tiny_model)
    tiny_model.network.state_dict()["logit_scale"] += 1
    assert digest(tiny_model) == before


def test_a_weight_that_is_only_called_like_one_that_makes_no_vector_changes_it(tiny_model: LoadedModel) -> None:
    network: Any = tiny_model.network
    attention = network.visual.transformer.resblocks[0].attn
    attention.register_buffer("logit_scale", torch.ones(1))
    before = digest(tiny_model)
    attention.logit_scale += 1
    assert digest(tiny_model) != before


def test_numbers_of_the_preprocessing_may_be_whole(tiny_model: LoadedModel) -> None:
    whole, broken = (dict(tiny_model.preprocess) | {"mean": mean} for mean in ((0, 0, 0), [0.0, 0.0, 0.0]))
    assert digest(tiny_model, preprocess=whole) == digest(tiny_model, preprocess=broken)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c | {"mean": (0.5, 0.5, 0.5)},
        lambda c: c | {"std": (0.5, 0.5, 0.5)},
        lambda c: c | {"size": 32},
        lambda c: c | {"resize_mode": "squash"},
        lambda c: c | {"interpolation": "bilinear"},
    ],
)
def test_other_preprocessing_changes_it(
    tiny_model: LoadedModel, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    assert digest(tiny_model, preprocess=change(dict(tiny_model.preprocess))) != digest(tiny_model)


def test_other_decoding_rules_change_it(tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(tiny_model)
    monkeypatch.setattr("embedder.fingerprint.DECODE_RULES", 99)
    assert digest(tiny_model) != before


@pytest.mark.parametrize(
    "options",
    [
        {"context_length": 31},
        {"clean": "whitespace"},
        {"clean": "canonicalize"},
        {"additional_special_tokens": ["<x>"]},
    ],
)
def test_another_tokenizer_changes_it(tiny_model: LoadedModel, options: dict[str, Any]) -> None:
    same = SimpleTokenizer(context_length=32)
    assert digest(tiny_model, tokenizer=same) == digest(tiny_model)
    assert digest(tiny_model, tokenizer=SimpleTokenizer(**{"context_length": 32, **options})) != digest(tiny_model)


def test_another_activation_function_changes_it(tiny_model: LoadedModel) -> None:
    other = dict(tiny_model.architecture) | {"quick_gelu": False}
    assert digest(tiny_model, architecture=other) != digest(tiny_model)


def test_a_folder_that_spells_out_defaults_holds_the_same_model(
    tiny_model: LoadedModel, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    text = asdict(CLIPTextCfg(**tiny.MODEL_CONFIG["text_cfg"]))
    whole = tiny.MODEL_CONFIG | {
        "custom_text": False,
        "vision_cfg": asdict(CLIPVisionCfg(**tiny.MODEL_CONFIG["vision_cfg"])) | {"image_size": [64, 64]},
        "text_cfg": text | {"tokenizer_kwargs": {}},  # open_clip itself stumbles over its default
    }
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": whole, "preprocess_cfg": dict(tiny_model.preprocess)})
    )
    shutil.copy(tiny_checkpoint, tmp_path / "open_clip_pytorch_model.bin")
    assert digest(load(f"local-dir:{tmp_path}", "")) == digest(tiny_model)


@pytest.mark.parametrize(
    ("tower", "change"), [("vision_cfg", {"head_width": 32}), ("text_cfg", {"heads": 2}), ("text_cfg", {"eos_id": 3})]
)
def test_an_architecture_that_computes_something_else_from_the_same_weights_changes_it(
    tiny_model: LoadedModel, tower: str, change: dict[str, Any]
) -> None:
    other = dict(tiny_model.architecture) | {tower: tiny_model.architecture[tower] | change}
    assert digest(tiny_model, architecture=other) != digest(tiny_model)


def test_hashing_leaves_the_architecture_as_it_was(tiny_model: LoadedModel) -> None:
    before = json.dumps(tiny_model.architecture)
    digest(tiny_model)
    assert json.dumps(tiny_model.architecture) == before
