"""A converted model runs in the fastest number format that keeps its vectors close, or in the one that is asked for."""

from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import structlog

from chassis.errors import LikenessError
from embedder.backends import eight_bit, openvino_formats
from embedder.backends.openvino_clip import OpenVinoBackend, read_folder
from embedder.backends.openvino_formats import native_precisions, open_converted
from embedder.backends.probes import Probes, least_cosine, vectors
from embedder.inputs import Array, Pixels, Tokens
from embedder.spec import ModelSpec

Identity = tuple[ModelSpec, Probes]
PRECISIONS = ("bf16", "fp16", "int8")


class Short:
    """Stands in for formats that a CPU may not have: vectors off by set cosines."""

    of_pictures: ClassVar[dict[str, float]] = {}
    of_texts: ClassVar[dict[str, float]] = {}
    failing: ClassVar[dict[str, Exception]] = {}
    real = OpenVinoBackend

    def __init__(self, folder: Path, dimension: int, precision: str, threads: int) -> None:
        if precision in self.failing:
            raise self.failing[precision]
        self.precision, self.texts_in = precision, precision
        self._real = self.real(folder, dimension, "fp32", threads)

    def encode_images(self, pixels: Pixels) -> Array:
        return self._real.encode_images(pixels) * np.float32(self.of_pictures.get(self.precision, 1.0))

    def encode_texts(self, tokens: Tokens) -> Array:
        return self._real.encode_texts(tokens) * np.float32(self.of_texts.get(self.texts_in, 1.0))

    def take_texts_from(self, other: "Short") -> None:
        self.texts_in = other.texts_in


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what this CPU computes in and how fast, at which cosines to fp32's vectors, and what fails."""

    def set_to(
        speeds: dict[str, float],
        of_pictures: dict[str, float] | None = None,
        of_texts: dict[str, float] | None = None,
        *,
        failing: dict[str, Exception] | None = None,
        worth_trying: bool = True,
    ) -> None:
        of = {"fp32": 1.0} | speeds
        monkeypatch.setattr(openvino_formats, "native_precisions", lambda: set(of))
        monkeypatch.setattr(openvino_formats, "speedup", lambda one, other, _: of[one.precision] / of[other.precision])
        monkeypatch.setattr(openvino_formats, "OpenVinoBackend", Short)
        monkeypatch.setattr(eight_bit, "is_worth_trying", lambda *_: worth_trying)
        for name, value in (("of_pictures", of_pictures), ("of_texts", of_texts), ("failing", failing)):
            monkeypatch.setattr(Short, name, value or {})

    return set_to


def opened(folder: Path, asked: str) -> tuple[Any, MutableMapping[str, Any]]:
    """The backend, and the line that says why."""
    with structlog.testing.capture_logs() as lines:
        backend = open_converted(read_folder(folder), asked, threads=1)
    (line,) = (line for line in lines if line["event"] == "precision chosen")
    assert line["precision"] == backend.precision
    return backend, line


@pytest.mark.parametrize(
    ("speeds", "cosines", "chosen"),
    [
        ({"bf16": 1.7}, {}, "bf16"),
        ({"bf16": 1.05}, {}, "fp32"),
        ({"bf16": 1.7}, {"bf16": 0.9985}, "fp32"),
        ({"bf16": 1.7}, {"bf16": 0.9992}, "bf16"),
        ({"bf16": 1.7}, {"bf16": float("nan")}, "fp32"),
        ({"int8": 2.4}, {"int8": 0.9996}, "int8"),
        ({"int8": 2.4}, {"int8": 0.9992}, "fp32"),  # of what is not tried, some may lose more
        ({"int8": 1.05}, {}, "fp32"),
        ({"bf16": 0.6, "int8": 2.4}, {}, "int8"),
        ({"bf16": 2.5, "int8": 2.4}, {}, "bf16"),
        ({"bf16": 2.3, "int8": 2.4}, {}, "bf16"),  # which comes closer, as a rule
        ({"bf16": 1.7, "int8": 2.4}, {}, "int8"),
        ({"bf16": 1.7, "int8": 2.4}, {"int8": 0.99}, "bf16"),
        ({}, {}, "fp32"),
    ],
)
def test_auto_is_the_fastest_format_that_stays_close(
    converted_once: Path, machine: Callable[..., None], speeds: dict[str, float], cosines: dict[str, float], chosen: str
) -> None:
    machine(speeds, cosines)
    backend, line = opened(converted_once, "auto")
    assert (backend.precision, line["log_level"]) == (chosen, "info")


def test_8_bits_are_not_tried_where_they_cannot_gain(converted_once: Path, machine: Callable[..., None]) -> None:
    machine({"int8": 2.4}, worth_trying=False)
    assert opened(converted_once, "auto")[0].precision == "fp32"


@pytest.mark.parametrize("error", [RuntimeError("no such property"), MemoryError()])
def test_a_format_that_fails_costs_itself_alone(
    converted_once: Path, machine: Callable[..., None], error: Exception
) -> None:
    machine({"bf16": 1.7, "int8": 2.4}, failing={"int8": error})
    backend, line = opened(converted_once, "auto")
    assert backend.precision == "bf16"
    assert f"int8: fails here: {error}" in line["reason"]


@pytest.mark.parametrize("asked", PRECISIONS)
def test_a_format_asked_for_by_name_is_taken_even_if_it_is_slow_and_costs_more(
    converted_once: Path, machine: Callable[..., None], asked: str
) -> None:
    machine({asked: 0.5}, {asked: 0.99}, worth_trying=False)
    backend, line = opened(converted_once, asked)
    assert (backend.precision, backend.texts_in, line["log_level"]) == (asked, asked, "warning")
    machine({asked: 0.5}, {asked: float("nan")})
    with pytest.raises(LikenessError, match=f"LIKENESS_PRECISION.*{asked} cannot be used with this model"):
        open_converted(read_folder(converted_once), asked, threads=1)


@pytest.mark.parametrize("asked", ["auto", "int8"])  # a model process that is started again is given it by name
@pytest.mark.parametrize("of_texts", [0.9992, float("nan")])
def test_texts_stay_in_fp32_where_only_pictures_stay_close(
    converted_once: Path, machine: Callable[..., None], asked: str, of_texts: float
) -> None:
    machine({"int8": 2.4}, of_texts={"int8": of_texts})
    backend, line = opened(converted_once, asked)
    assert (backend.precision, backend.texts_in) == ("int8", "fp32")
    assert line["log_level"] == "info"
    assert "of texts (which fp32 embeds then)" in line["reason"]


def test_texts_can_be_embedded_as_another_backend_does(converted_once: Path, tiny_identity: Identity) -> None:
    exact, mixed = (OpenVinoBackend(converted_once, 64, name, 1) for name in ("fp32", "int8"))
    pixels, tokens = tiny_identity[1].pixels, tiny_identity[1].tokens
    assert not np.array_equal(mixed.encode_texts(tokens), exact.encode_texts(tokens))
    mixed.take_texts_from(exact)
    assert np.array_equal(mixed.encode_texts(tokens), exact.encode_texts(tokens))
    assert not np.array_equal(mixed.encode_images(pixels), exact.encode_images(pixels))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_precision_that_this_cpu_does_not_have_is_refused(
    converted_once: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(openvino_formats, "native_precisions", lambda: {"fp32"})
    with pytest.raises(LikenessError, match=f"LIKENESS_PRECISION.*{precision} is asked for, but this CPU.*one of fp32"):
        open_converted(read_folder(converted_once), precision, threads=1)
    assert opened(converted_once, "auto")[0].precision == "fp32"


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("fpu avx2 avx512_vnni", True),
        ("fpu avx_vnni", True),
        ("fpu avx2 avx512f", False),
        ("fpu avx_vnni_int16", False),
    ],
)
def test_8_bits_take_instructions_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, found: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t:\n")
    monkeypatch.setattr(openvino_formats, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("sys.platform", "linux")
    assert ("int8" in native_precisions()) is found
    assert "fp32" in native_precisions()


def test_8_bits_give_nearly_the_same_vectors_whatever_else_is_in_the_batch(
    converted_once: Path, tiny_identity: Identity
) -> None:
    exact, backend = (OpenVinoBackend(converted_once, 64, name, 2) for name in ("fp32", "int8"))
    expected, got = vectors(exact, tiny_identity[1]), vectors(backend, tiny_identity[1])
    assert 0.99 < least_cosine(expected, got) < 0.9999999, "either not close or not rounded"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    together = backend.encode_images(pixels)
    alone = np.concatenate([backend.encode_images(pixels[n : n + 1]) for n in range(8)])
    assert np.abs(together - alone).max() < 5e-4  # where a rounding falls the other way; int8 is 0.005 off fp32


@pytest.mark.parametrize("tower", ["image", "text"])
def test_both_towers_round_what_comes_in_by_the_groups_of_their_weights(converted_once: Path, tower: str) -> None:
    backend = OpenVinoBackend(converted_once, 64, "int8", 1)
    compiled = getattr(backend, f"_{tower}").get_compiled_model()
    assert int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == eight_bit.GROUP[tower]
