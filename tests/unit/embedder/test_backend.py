"""Vectors on torch are open_clip's own, whatever is left out on the way to them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose

from chassis.errors import LikenessError
from embedder.backends import is_out_of_memory, torch_clip
from embedder.backends import probes as probes_module
from embedder.backends.probes import Probes, least_cosine, probe_pixels, speedup, vectors
from embedder.backends.torch_clip import Parts, TorchBackend, halves, resolve_device, with_checked_precision
from embedder.backends.towers import Towers, build_towers
from embedder.inputs import Array, Pixels
from embedder.models import LoadedModel, load
from embedder.preprocess import Preprocess, geometry_of
from embedder.spec import ModelSpec
from tests.unit.embedder import tiny

TEXTS = ["a cat", "two dogs running on the beach", "a " * 200]

Identity = tuple[ModelSpec, Probes]


def on_cpu(towers: Towers, precision: str = "fp32") -> TorchBackend:
    return TorchBackend(towers, "cpu", precision, threads=1)


def towers_of(config: dict[str, Any]) -> tuple[Towers, Any, Probes]:
    """Random weights in an architecture other than the tiny one; its towers, itself, and inputs."""
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    network = kind(**config).eval().requires_grad_(False)
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    probes = Probes(probe_pixels(64, 64), tokenizer(["a", *TEXTS]).numpy())
    preprocess = {**tiny.PREPROCESS_CONFIG, "size": 64}
    loaded = LoadedModel("other", network, lambda _: torch.empty(0), tokenizer, preprocess, {})
    return build_towers(loaded, probes.tokens, 0), network, probes


def test_vectors_equal_open_clips_own(tiny_towers: Towers, tiny_checkpoint: Path, photographs: list[Path]) -> None:
    network, transform = open_clip.create_model_from_pretrained(tiny.NAME, pretrained=str(tiny_checkpoint))
    network.eval()
    tokens = open_clip.get_tokenizer(tiny.NAME)(TEXTS)
    pictures = [Image.open(path).convert("RGB") for path in photographs]
    with torch.no_grad():
        expected_pictures = network.encode_image(torch.stack([transform(p) for p in pictures]), normalize=True).numpy()
        expected_texts = network.encode_text(tokens, normalize=True).numpy()

    backend = on_cpu(tiny_towers)
    preprocess = Preprocess(geometry_of(network.visual.preprocess_cfg))
    same_pixels = np.stack([np.asarray(Compose(transform.transforms[:-2])(picture)) for picture in pictures])
    got_pictures = backend.encode_images(same_pixels)
    got_texts = backend.encode_texts(tokens.numpy())
    assert got_pictures.dtype == got_texts.dtype == np.float32
    assert np.abs(got_pictures - expected_pictures).max() < 1e-5
    assert np.abs(got_texts - expected_texts).max() < 1e-5
    assert backend.dimension == got_pictures.shape[1] == 64
    from_our_pixels = backend.encode_images(np.stack([preprocess(picture) for picture in pictures]))
    assert (from_our_pixels * expected_pictures).sum(axis=1).min() > 0.999999


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_a_device_that_computes_other_vectors_than_the_cpu_is_refused(
    tiny_towers: Towers, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    class Somewhere(TorchBackend):
        """On the CPU, whatever is asked for; elsewhere its pictures come out otherwise."""

        def __init__(self, towers: Towers, where: str, precision: str, threads: int, compiled: bool = False) -> None:
            super().__init__(towers, "cpu", precision, threads, compiled)
            self.where = where

        def encode_images(self, pixels: Pixels) -> Array:
            found = super().encode_images(pixels)
            return found if self.where == "cpu" or right else found[:, ::-1]

    monkeypatch.setattr(torch_clip, "TorchBackend", Somewhere)
    probes = Probes(probe_pixels(64, 64), np.zeros((2, 32), np.int64))
    right = False
    with pytest.raises(LikenessError, match="computes other vectors than the CPU"):
        with_checked_precision(tiny_towers, device, "fp32", probes, threads=1, compiled=False)
    right = True
    assert with_checked_precision(tiny_towers, device, "fp32", probes, threads=1, compiled=False).precision == "fp32"


def test_the_starters_vectors_are_those_of_its_own_network(photographs: list[Path]) -> None:
    from embedder.backends.identify import identify  # noqa: PLC0415 (as below)
    from embedder.starter import load_starter  # noqa: PLC0415 (seconds, for this test only)

    network, transform, tokenizer = load_starter()
    pictures = [Image.open(path).convert("RGB") for path in photographs]
    with torch.no_grad():
        expected = network.encode_image(torch.stack([transform(p) for p in pictures]), normalize=True).numpy()
        expected_texts = network.encode_text(tokenizer(TEXTS), normalize=True).numpy()
    loaded = load("starter", "")
    spec, probes = identify(loaded)
    towers = build_towers(loaded, probes.tokens, spec.tokenizer.pad_id)
    backend, preprocess = on_cpu(towers), Preprocess(spec.geometry)
    got = backend.encode_images(np.stack([preprocess(p) for p in pictures]))
    assert ((got * expected).sum(axis=1) > 0.9999).all()
    assert ((backend.encode_texts(tokenizer(TEXTS).numpy()) * expected_texts).sum(axis=1) > 0.9999).all()
    assert towers.texts_cut  # its text tower masks padding out


def test_a_vector_does_not_depend_on_its_batch(tiny_towers: Towers, tiny_identity: Identity) -> None:
    backend = TorchBackend(tiny_towers, "cpu", "fp32", threads=2)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    together = backend.encode_images(pixels)
    alone = np.concatenate([backend.encode_images(pixels[n : n + 1]) for n in range(8)])
    assert np.abs(together - alone).max() < 1e-4


def test_a_text_cut_to_its_own_length_keeps_its_vector(tiny_towers: Towers, tiny_identity: Identity) -> None:
    backend, (_, probes) = on_cpu(tiny_towers), tiny_identity
    assert tiny_towers.texts_cut
    full = backend.encode_texts(probes.tokens)
    for row, expected in zip(probes.tokens, full, strict=True):
        length = int(np.flatnonzero(row).max()) + 1
        assert np.abs(backend.encode_texts(row[None, :length])[0] - expected).max() < 1e-5


_VISION = tiny.MODEL_CONFIG["vision_cfg"]
_TEXT = tiny.MODEL_CONFIG["text_cfg"]


@pytest.mark.parametrize(
    ("vision", "text", "custom_text", "texts_cut"),
    [
        ({}, {}, True, True),
        ({}, {"pool_type": "eos", "eos_id": 49407}, True, True),
        ({"ls_init_value": 0.1}, {"ls_init_value": 0.1, "proj_bias": True}, True, True),
        ({"pool_type": "avg"}, {}, False, True),
        ({"block_type": "custom"}, {}, False, True),
        ({"attentional_pool": True, "attn_pooler_heads": 4}, {"embed_cls": True}, True, False),
        ({}, {"pool_type": "last", "no_causal_mask": True}, True, False),
        ({"layers": (1, 1, 1, 1), "width": 16}, {"block_type": "custom"}, False, False),
    ],
)
def test_shortcuts_are_taken_only_where_they_change_nothing(
    vision: dict[str, Any], text: dict[str, Any], custom_text: bool, texts_cut: bool
) -> None:
    config = {"embed_dim": 64, "vision_cfg": _VISION | vision, "text_cfg": _TEXT | text, "custom_text": custom_text}
    towers, network, probes = towers_of(config)
    mean, std = (torch.tensor(tiny.PREPROCESS_CONFIG[name]).view(3, 1, 1) for name in ("mean", "std"))
    pixels = torch.from_numpy(probes.pixels).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        pictures = network.encode_image((pixels - mean) / std, normalize=True).numpy()
        texts = network.encode_text(torch.from_numpy(probes.tokens), normalize=True).numpy()
    got = vectors(on_cpu(towers), probes)
    assert np.abs(got[0] - pictures).max() < 1e-5
    assert np.abs(got[1] - texts).max() < 1e-5
    assert towers.texts_cut == texts_cut


def test_texts_are_not_cut_where_the_end_reaches_the_beginning(
    tiny_model: LoadedModel, tiny_identity: Identity
) -> None:
    network: Any = tiny_model.network
    network.attn_mask.zero_()
    assert not build_towers(tiny_model, tiny_identity[1].tokens, 0).texts_cut


def test_bfloat16_stays_near_float32_and_gives_unit_float32(tiny_towers: Towers, tiny_identity: Identity) -> None:
    probes = tiny_identity[1]
    full = vectors(on_cpu(tiny_towers), probes)
    half = vectors(on_cpu(tiny_towers, "bf16"), probes)
    assert next(tiny_towers.parameters()).dtype == torch.bfloat16
    assert all(part.dtype == np.float32 for part in half)
    assert all(np.allclose(np.linalg.norm(part, axis=1), 1, atol=1e-5) for part in half)
    assert least_cosine(full, half) > 0.999
    assert max(np.abs(a - b).max() for a, b in zip(full, half, strict=True)) > 0  # it was bfloat16 that ran


@pytest.fixture
def native_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_clip, "has_native_bf16", lambda _: True)
    monkeypatch.setattr(torch_clip, "speedup", lambda *_: 1.7)


def checked(towers: Towers, precision: str, probes: Probes) -> TorchBackend:
    return with_checked_precision(towers, "cpu", precision, probes, threads=1, compiled=False)


@pytest.mark.usefixtures("native_bf16")
def test_auto_precision_is_bf16_where_the_device_has_it(tiny_towers: Towers, tiny_identity: Identity) -> None:
    assert checked(tiny_towers, "auto", tiny_identity[1]).precision == "bf16"


def test_auto_precision_is_fp32_where_the_device_lacks_bf16(
    tiny_towers: Towers, tiny_identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_clip, "has_native_bf16", lambda _: False)
    assert checked(tiny_towers, "auto", tiny_identity[1]).precision == "fp32"


@pytest.mark.usefixtures("native_bf16")
def test_auto_precision_is_fp32_where_bf16_is_slower(
    tiny_towers: Towers, tiny_identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_clip, "speedup", lambda *_: 0.55)
    assert checked(tiny_towers, "auto", tiny_identity[1]).precision == "fp32"
    assert checked(tiny_towers, "bf16", tiny_identity[1]).precision == "bf16"  # by name it is taken all the same


class _Timed:
    """Takes so long, by a clock of its own, for each batch of pictures."""

    now = 0.0

    def __init__(self, *seconds: float) -> None:
        self._seconds = iter(seconds)

    def encode_images(self, _pixels: object) -> None:
        _Timed.now += next(self._seconds)


def test_two_backends_are_timed_in_turn_by_the_best_of_each(
    tiny_identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: _Timed.now)
    quick: Any = _Timed(0.05, 0.01, 0.9)
    slow: Any = _Timed(0.03, 0.02, 0.02)
    assert speedup(quick, slow, tiny_identity[1]) == pytest.approx(2)


def test_slow_backends_are_timed_once(tiny_identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: _Timed.now)
    short: Any = _Timed(4.0)
    exact: Any = _Timed(2.0)
    assert speedup(short, exact, tiny_identity[1]) == pytest.approx(0.5)


@pytest.mark.usefixtures("native_bf16")
def test_auto_precision_is_fp32_where_bf16_would_cost_too_much(
    tiny_towers: Towers, tiny_identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = vectors(on_cpu(tiny_towers), tiny_identity[1])
    monkeypatch.setitem(probes_module.CLOSE_ENOUGH, "bf16", 1.1)
    backend = checked(tiny_towers, "auto", tiny_identity[1])
    assert backend.precision == "fp32"
    assert least_cosine(before, vectors(backend, tiny_identity[1])) > 0.999999  # its weights were left as they are
    monkeypatch.setitem(probes_module.CLOSE_ENOUGH, "bf16", 0.999)
    monkeypatch.setattr(torch_clip, "least_cosine", lambda *_: float("nan"))
    assert checked(tiny_towers, "auto", tiny_identity[1]).precision == "fp32"
    with pytest.raises(LikenessError, match="bf16 cannot be used with this model"):
        checked(tiny_towers, "bf16", tiny_identity[1])


def test_float16_on_a_cpu_is_refused(tiny_towers: Towers, tiny_identity: Identity) -> None:
    with pytest.raises(LikenessError, match="LIKENESS_PRECISION"):
        checked(tiny_towers, "fp16", tiny_identity[1])


def test_a_compiler_that_fails_is_named_at_the_start(
    tiny_towers: Towers, tiny_identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(*_: object, **__: object) -> Any:
        def run(_: object) -> None:
            raise RuntimeError("no C++ compiler")

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(LikenessError, match=r"LIKENESS_COMPILE.*no C\+\+ compiler"):
        with_checked_precision(tiny_towers, "cpu", "fp32", tiny_identity[1], threads=1, compiled=True)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto")[0] == "cpu"
    for wanted in ("cuda", "cuda:3", "mps"):
        with pytest.raises(LikenessError, match="LIKENESS_DEVICE"):
            resolve_device(wanted)


def test_auto_takes_the_fastest_kind_and_each_process_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto")[0] == resolve_device("cuda")[0] == "cuda:0"
    assert [resolve_device("auto", index)[0] for index in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert resolve_device("cuda:1", worker_index=2)[0] == "cuda:1"
    with pytest.raises(LikenessError, match="finds 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 64, 255])
def test_the_halves_of_a_batch_are_the_batch(rows: int) -> None:
    parts = halves(rows)
    assert [n for part in parts for n in range(rows)[part]] == list(range(rows))
    assert len(parts) == (1 if rows < 16 else 2)


class _NoStream:
    """Stands in for CUDA's streams, which this machine lacks; notes who waits for what."""

    def __init__(self) -> None:
        self.waited: list[object] = []

    def wait_stream(self, other: object) -> None:
        self.waited.append(other)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_a_batch_reaches_the_gpu_in_order_each_half_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    copies, current = _NoStream(), _NoStream()
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    pixels = torch.arange(20 * 12, dtype=torch.uint8).view(20, 2, 2, 3)
    staged = torch.zeros_like(pixels)
    parts: Iterator[torch.Tensor] = Parts(pixels, staged, torch.device("cpu"), copies)
    first = next(parts)
    assert torch.equal(first, pixels[:10])
    assert not staged[10:].any()  # the second half comes over while the first is computed
    assert torch.equal(torch.cat([first, *parts]), pixels)
    assert current.waited == [copies, copies]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("Exception from src/inference/src/cpp/infer_request.cpp:223:\nstd::bad_alloc"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_failures(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_torchs_own_cpu_allocator_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_probes_differ_so_that_a_comparison_says_something(tiny_towers: Towers, tiny_identity: Identity) -> None:
    for part in vectors(on_cpu(tiny_towers), tiny_identity[1]):
        cosines: Array = part @ part.T
        assert (cosines[~np.eye(len(part), dtype=bool)] < 0.9999).all()


def test_of_the_last_block_only_the_row_that_counts_is_computed(tiny_towers: Towers, tiny_identity: Identity) -> None:
    shapes: list[tuple[int, ...]] = []
    blocks = [tower.get_submodule("encode") for tower in (tiny_towers.image, tiny_towers.text)]
    for module in (m for block in blocks for name, m in block.named_modules() if name.endswith("resblocks.1.mlp")):
        module.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    vectors(on_cpu(tiny_towers), tiny_identity[1])
    assert {(len(tiny_identity[1].pixels), 64), (len(tiny_identity[1].tokens), 64)} <= set(shapes)
    assert all(len(shape) == 2 for shape in shapes)
