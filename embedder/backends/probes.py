"""A handful of inputs to compare two ways of running a model with: shortcuts, formats of numbers, backends."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedder.backends import Backend
from embedder.inputs import Array, Pixels, Tokens

# The least cosine to float32's vectors, of these inputs, at which a shorter number format may be chosen unasked. 0.999
# is what any input may cost. What 8-bit integers cost differs more from one to another: so something is left for those
# that are not tried (``docs/performance.md``).
CLOSE_ENOUGH = {"bf16": 0.999, "fp16": 0.999, "int8": 0.9993}
# How many times as fast it has to be besides, on a CPU. Instructions for bfloat16 alone promise nothing: 1.7 times as
# fast on an AMD EPYC with AVX-512, 0.55 times on an Intel Xeon whose AMX the virtual machine hides.
FAST_ENOUGH = 1.1
_ROUNDS, _LONGEST_S = 3, 1.0

TEXTS = (
    "a",
    "a photo of a cat",
    "two dogs run along a beach while a child in a red coat throws a yellow ball into the water",
    "sunset",
    "an aerial view of a city at night",
    "white ceramic mug, 350 ml, dishwasher safe",
    "the logo of a bank",
    "a handwritten note: 3 eggs, 200 g flour, 1/2 l milk",
    "un vélo rouge devant une boulangerie",
    "portrait of an old woman with blue eyes and a grey scarf",
    "SKU 4711-0815",
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
    """Noise, fine and coarse, and four that are rough at every scale as photographs are: uint8 [8, height, width, 3].

    Every second one is dim.
    """
    random = np.random.default_rng(0)
    layers = {size: _squares(random, size, height, width) for size in (1, 2, 4, 8, 16, 32, 64)}
    rough = np.sum([layer * size for size, layer in layers.items()], axis=0)
    rough = (rough - rough.min()) * (255 / np.ptp(rough))
    pictures = np.concatenate([layers[1][:2], layers[16][:2], rough])
    pictures[1::2] /= 3
    return pictures.astype(np.uint8)


def _squares(random: np.random.Generator, size: int, height: int, width: int) -> Array:
    """Four pictures of squares of random colours: float32 [4, height, width, 3], from 0 to 255."""
    colours = random.integers(0, 256, (4, -(-height // size), -(-width // size), 3)).astype(np.float32)
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
