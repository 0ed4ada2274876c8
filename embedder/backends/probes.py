"""A handful of inputs to compare two ways of running a model with: shortcuts, formats of numbers, backends."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedder.backends import Backend
from embedder.inputs import Array, Pixels, Tokens

# The least cosine to float32's vectors at which a shorter number format may be chosen unasked.
CLOSE_ENOUGH = 0.999

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
