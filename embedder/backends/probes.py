"""A handful of inputs to compare two ways of running a model with: shortcuts, formats of numbers, backends."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedder.backends import Backend
from embedder.inputs import Array, Pixels, Tokens

# The least cosine to float32's vectors at which a shorter number format may be chosen unasked.
CLOSE_ENOUGH = 0.999
# How many times as fast it has to be besides, on a CPU. Instructions for bfloat16 alone promise nothing: 1.7 times as
# fast on an AMD EPYC with AVX-512, 0.55 times on an Intel Xeon whose AMX the virtual machine hides.
FAST_ENOUGH = 1.1
_ROUNDS, _LONGEST_S = 3, 1.0

TEXTS = (
    "a",
    "a photo of a cat",
    "two dogs run along a beach while a child in a red coat throws a yellow ball into the water",
    "word " * 400,  # more than any model reads
)


@dataclass(frozen=True)
class Probes:
    """Pictures and texts.

    Attributes:
        pixels: uint8 [4, height, width, 3].
        tokens: int64 [4, context_length], padded.
    """

    pixels: Pixels
    tokens: Tokens


def probe_pixels(height: int, width: int) -> Pixels:
    """Noise, fine and coarse, bright and dim: uint8 [4, height, width, 3]."""
    random = np.random.default_rng(0)
    fine = random.integers(0, 256, (2, height, width, 3))
    coarse = random.integers(0, 256, (2, -(-height // 16), -(-width // 16), 3))
    coarse = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    pictures = np.concatenate([fine, coarse])
    pictures[1::2] //= 3
    return pictures.astype(np.uint8)


def least_cosine(ones: Sequence[Array], others: Sequence[Array]) -> float:
    """The least cosine between vectors of the same place; NaN if one of them is none."""
    cosines = [np.einsum("nd,nd->n", a, b) for a, b in zip(ones, others, strict=True)]
    return float(np.min(np.concatenate(cosines)))  # not Python's min, which passes over NaN


def vectors(backend: Backend, probes: Probes) -> list[Array]:
    """What a backend makes of them: of pictures, then of texts."""
    return [backend.encode_images(probes.pixels), backend.encode_texts(probes.tokens)]


def speedup(short: Backend, exact: Backend, probes: Probes) -> float:
    """How many times as fast one backend embeds the pictures as another; both have done so before.

    They take turns, up to three times in about a second, and the fastest time of each counts: whatever else the machine
    does makes some slower, and none faster.
    """
    best = [float("inf"), float("inf")]
    begun = time.perf_counter()
    for _ in range(_ROUNDS):
        for i, backend in enumerate((short, exact)):
            before = time.perf_counter()
            backend.encode_images(probes.pixels)
            best[i] = min(best[i], time.perf_counter() - before)
        if time.perf_counter() - begun > _LONGEST_S:
            break
    return best[1] / best[0]
