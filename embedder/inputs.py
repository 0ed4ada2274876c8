"""What a call brings and what becomes of it, between transport and pipeline: no protobuf, no model."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from chassis.errors import LikenessError
from chassis.pictures import PictureLimits

Array = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
Kind = Literal["image", "text"]
KINDS: tuple[Kind, ...] = ("image", "text")


class Lane(IntEnum):
    """Who goes first; in that order."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(frozen=True)
class Limits:
    """What is refused.

    Attributes:
        pictures: bytes and pixels of one picture.
        max_inputs: most inputs in one call.
        max_text_bytes: most bytes of UTF-8 in one text.
    """

    pictures: PictureLimits
    max_inputs: int
    max_text_bytes: int


@dataclass(frozen=True)
class EncodedPicture:
    """A picture file's bytes.

    Attributes:
        encoded: the file's content.
        field: where it stands in the request, for errors.
    """

    encoded: bytes
    field: str


@dataclass(frozen=True)
class RgbPicture:
    """A decoded picture.

    Attributes:
        width: in pixels.
        height: in pixels.
        pixels: rows of R, G, B bytes, unchecked.
        field: where it stands in the request, for errors.
    """

    width: int
    height: int
    pixels: bytes
    field: str


@dataclass(frozen=True)
class Text:
    """A text.

    Attributes:
        text: non-empty, within the byte limit.
    """

    text: str


@dataclass(frozen=True)
class Faulty:
    """An input that was refused before it reached the pipeline."""

    error: LikenessError


Picture = EncodedPicture | RgbPicture
Input = Picture | Text | Faulty


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        result: the vector, float32 [dimension], L2-normalised, or why there is none.
        truncated: whether a text's end was not read.
    """

    result: Array | LikenessError
    truncated: bool = False


@dataclass(frozen=True)
class Timings:
    """Where a call's time went, in seconds; see EmbedTimings of the contract.

    Attributes:
        queue: time in which none of the call's inputs was worked on.
        decode: thread time of decoding and resizing, summed over the inputs.
        inference: forward passes that held one of the inputs.
        batch_size: inputs in the largest forward pass.
    """

    queue: float
    decode: float
    inference: float
    batch_size: int
