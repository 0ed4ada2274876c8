"""A handful of inputs to compare two ways of running a model with: shortcuts, formats of numbers, backends."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedder.backends import Backend
from embedder.inputs import Array, Pixels, Tokens

# The least cosine to float32's vectors, of these inputs, at which a shorter number format may be chosen unasked. No
# input may cost more than 0.001. What 8-bit integers cost differs more from one to another, so half of that, 0.0005, is
# left to those that are not tried.
CLOSE_ENOUGH = {"bf16": 0.999, "fp16": 0.999, "int8": 0.9995}
# How many times as fast as the best before it has to be besides, on a CPU. Instructions for bfloat16 alone promise
# nothing: 1.7 times as fast as fp32 on an AMD EPYC with AVX-512, 0.55 times on an Intel Xeon whose AMX the virtual
# machine hides.
FAST_ENOUGH = 1.1
_ROUNDS, _LONGEST_S = 3, 1.0

TEXTS = (
    "",
    "a",
    "a photo of a cat",
    "two dogs run along a beach while a child in a red coat throws a yellow ball into the water",
    "sunset",
    "white ceramic mug, 350 ml, dishwasher safe",
    "SKU 4711-0815",
    "un vélo rouge devant une boulangerie",
    "海边的日落",
    "🚲🌅",
    "a handwritten note: 3 eggs, 200 g flour, 1/2 l milk; on the back of it the address of a bakery, a telephone "
    "number and a drawing of a cat",
    "word " * 400,  # more than any model reads
)


@dataclass(frozen=True)
class Probes:
    """Pictures and texts.

    Attributes:
        pixels: uint8 [8, height, width, 3].
        tokens: int64 [n, context_length], padded; the last one full.
    """

    pixels: Pixels
    tokens: Tokens


def probe_pixels(height: int, width: int) -> Pixels:
    """uint8 [8, height, width, 3].

    Noise, fine and coarse; two that are rough at every scale, as photographs are; a small thing on white; a smooth
    gradient; nearly black; lines on white, as print is.
    """
    random = np.random.default_rng(0)
    layers = {size: _squares(random, size, height, width) for size in (1, 2, 4, 8, 16, 32, 64)}
    rough = np.sum([layer * size for size, layer in layers.items()], axis=0)
    rough = (rough - rough.min()) * (255 / np.ptp(rough))
    rough[1] /= 3
    thing, gradient, black, lines = np.full((4, height, width, 3), 255, np.float32)
    across = slice(width * 3 // 8, width * 5 // 8)
    thing[height * 3 // 8 : height * 5 // 8, across] = layers[8][0, height * 3 // 8 : height * 5 // 8, across]
    gradient *= np.linspace(0.2, 1, width, dtype=np.float32)[:, None] * np.array([1, 0.8, 0.6], np.float32)
    black[:] = layers[2][1] / 32
    for row in range(height // 16, height - 2, max(height // 16, 3)):
        lines[row : row + 2, : width - row // 2] = layers[1][1, row : row + 2, : width - row // 2] / 2
    pictures = [layers[1][0], layers[16][0], *rough, thing, gradient, black, lines]
    return np.stack(pictures).astype(np.uint8)


def _squares(random: np.random.Generator, size: int, height: int, width: int) -> Array:
    """Two pictures of squares of random colours: float32 [2, height, width, 3], from 0 to 255."""
    colours = random.integers(0, 256, (2, -(-height // size), -(-width // size), 3)).astype(np.float32)
    return colours.repeat(size, axis=1).repeat(size, axis=2)[:, :height, :width]


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
