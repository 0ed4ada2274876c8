"""Vectors are open_clip's own."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from chassis.errors import LikenessError
from embedder.backends.torch_clip import TorchBackend, resolve_device
from embedder.models import LoadedModel, load
from embedder.preprocess import Geometry, Preprocess
from tests.unit.embedder import tiny

TEXTS = ["a cat", "two dogs running on the beach", "a " * 200]


def test_vectors_equal_open_clips_own(tiny_model: LoadedModel, tiny_checkpoint: Path, photographs: list[Path]) -> None:
    network, transform = open_clip.create_model_from_pretrained(tiny.NAME, pretrained=str(tiny_checkpoint))
    network.eval()
    tokens = open_clip.get_tokenizer(tiny.NAME)(TEXTS)
    pictures = [Image.open(path).convert("RGB") for path in photographs]
    with torch.no_grad():
        expected_pictures = network.encode_image(torch.stack([transform(p) for p in pictures]), normalize=True).numpy()
        expected_texts = network.encode_text(tokens, normalize=True).numpy()

    backend = TorchBackend(tiny_model, "cpu", "fp32", threads=1)
    preprocess = Preprocess(tiny_model.transform, Geometry.of(tiny_model.preprocess))
    got_pictures = backend.encode_images(np.stack([preprocess(p) for p in pictures]))
    got_texts = backend.encode_texts(tokens.numpy())
    assert got_pictures.dtype == got_texts.dtype == np.float32
    assert ((got_pictures * expected_pictures).sum(axis=1) > 0.9999).all()
    assert ((got_texts * expected_texts).sum(axis=1) > 0.9999).all()
    assert np.allclose(np.linalg.norm(got_pictures, axis=1), 1, atol=1e-5)
    assert backend.dimension == 64


def test_the_starters_vectors_are_those_of_its_own_network(photographs: list[Path]) -> None:
    from embedder.starter import load_starter  # noqa: PLC0415 (seconds, for this test only)

    network, transform, tokenizer = load_starter()
    pictures = [Image.open(path).convert("RGB") for path in photographs]
    with torch.no_grad():
        expected = network.encode_image(torch.stack([transform(p) for p in pictures]), normalize=True).numpy()
        expected_texts = network.encode_text(tokenizer(TEXTS), normalize=True).numpy()
    loaded = load("starter", "")
    backend = TorchBackend(loaded, "cpu", "fp32", threads=1)
    preprocess = Preprocess(loaded.transform, Geometry.of(loaded.preprocess))
    got = backend.encode_images(np.stack([preprocess(p) for p in pictures]))
    assert ((got * expected).sum(axis=1) > 0.9999).all()
    assert ((backend.encode_texts(tokenizer(TEXTS).numpy()) * expected_texts).sum(axis=1) > 0.9999).all()


def test_a_vector_does_not_depend_on_its_batch(tiny_model: LoadedModel) -> None:
    backend = TorchBackend(tiny_model, "cpu", "fp32", threads=2)
    pixels = np.random.default_rng(0).standard_normal((7, 3, 64, 64)).astype(np.float32)
    together = backend.encode_images(pixels)
    alone = np.concatenate([backend.encode_images(pixels[n : n + 1]) for n in range(7)])
    assert np.abs(together - alone).max() < 1e-4


def test_bfloat16_stays_near_float32_and_gives_unit_float32(tiny_checkpoint: Path) -> None:
    pixels = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    full = TorchBackend(load(tiny.NAME, str(tiny_checkpoint)), "cpu", "fp32", threads=1).encode_images(pixels)
    half = TorchBackend(load(tiny.NAME, str(tiny_checkpoint)), "cpu", "bf16", threads=1).encode_images(pixels)
    assert half.dtype == np.float32
    assert ((full * half).sum(axis=1) > 0.999).all()


def test_float16_on_a_cpu_is_refused(tiny_model: LoadedModel) -> None:
    with pytest.raises(LikenessError, match="LIKENESS_PRECISION"):
        TorchBackend(tiny_model, "cpu", "fp16", threads=1)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    for wanted in ("cuda", "cuda:3", "mps"):
        with pytest.raises(LikenessError, match="LIKENESS_DEVICE"):
            resolve_device(wanted)


def test_auto_takes_the_fastest_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == "cuda:0"
    assert resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(LikenessError, match="finds 2 CUDA devices"):
        resolve_device("cuda:2")
