"""Picture → the model's input: the model's own open_clip transform, guarded against extreme aspect ratios.

Most models resize the shorter side and crop the centre. A strip of 1 × 20,000 pixels would become 224 × 4,480,000
(3 GB) only for 224 × 224 of it to be kept. Of such pictures just the part that the crop will keep is resized.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from embedder.inputs import Array

# Below this ratio of the sides the plain transform runs, and the result is open_clip's to the bit; at 8 it resizes to
# 224 × 1,792. Above, photographs differ by at most 2 levels of 255 and 0.01 in the mean: Pillow rounds between its two
# passes, and may take them in the other order.
CUT_ABOVE = 8.0

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_BICUBIC_SUPPORT = 2.0  # pixels that the widest filter in use reaches to either side, at scale 1


@dataclass(frozen=True)
class Geometry:
    """What of open_clip's preprocessing decides which pixels are kept.

    Attributes:
        width: of the model's input, in pixels.
        height: of the model's input, in pixels.
        resize_mode: "shortest", "longest" or "squash".
        interpolation: "bicubic" or "bilinear".
    """

    width: int
    height: int
    resize_mode: str
    interpolation: str

    @staticmethod
    def of(config: Mapping[str, Any]) -> "Geometry":
        """Reads it from open_clip's ``preprocess_cfg``, whose size is one number or (height, width)."""
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else size
        return Geometry(width, height, config["resize_mode"], config["interpolation"])


class Preprocess:
    """Turns upright RGB pictures into the model's input. Safe to call from many threads."""

    def __init__(self, transform: Callable[[Image.Image], torch.Tensor], geometry: Geometry) -> None:
        self._transform = transform
        self._geometry = geometry

    def __call__(self, picture: Image.Image) -> Array:
        """Applies the model's transform.

        Args:
            picture: mode RGB, upright.

        Returns:
            float32 [3, height, width], normalised by the model's own mean and standard deviation.
        """
        width, height = picture.size
        if max(width, height) > CUT_ABOVE * min(width, height):
            picture = limit_aspect(picture, self._geometry)
        return self._transform(picture).numpy()


def limit_aspect(picture: Image.Image, geometry: Geometry) -> Image.Image:
    """The picture as the transform's resize and crop would leave it, made without the pixels in between.

    The transform then finds nothing left to resize or crop. Modes without the trap are returned as they are.

    Args:
        picture: of any size and aspect ratio.
        geometry: the model's.
    """
    if geometry.resize_mode == "shortest":
        return _resized_centre(picture, geometry)
    if geometry.resize_mode == "longest":
        # The transform rounds the shorter side of a strip down to nothing, which cannot be resized to.
        ratio = max(picture.width / geometry.width, picture.height / geometry.height)
        size = (round(picture.width / ratio), round(picture.height / ratio))
        if min(size) < 1:
            return picture.resize((max(1, size[0]), max(1, size[1])), _RESAMPLING[geometry.interpolation])
    return picture


def _resized_centre(picture: Image.Image, geometry: Geometry) -> Image.Image:
    """Resizes only what the centre crop keeps.

    Pillow's ``box`` asks for a part of the resized picture while its filter still sees the pixels around that part, so
    the values are those of resizing everything. Pillow keeps ``box`` in float32; the picture is first cropped near it,
    since small coordinates lose less.
    """
    resized = _size_of_shortest(picture, geometry)
    across = _span(picture.width, resized[0], geometry.width)
    down = _span(picture.height, resized[1], geometry.height)
    near = picture.crop((across.crop_from, down.crop_from, across.crop_to, down.crop_to))
    box = (across.box_from, down.box_from, across.box_to, down.box_to)
    # For a model input that is not square, open_clip resizes bicubically whatever the configuration says.
    square = geometry.width == geometry.height
    resample = _RESAMPLING[geometry.interpolation] if square else Image.Resampling.BICUBIC
    return near.resize((geometry.width, geometry.height), resample, box=box)


def _size_of_shortest(picture: Image.Image, geometry: Geometry) -> tuple[int, int]:
    """The (width, height) that the transform would resize to."""
    width, height = picture.size
    if geometry.width != geometry.height:  # open_clip's ResizeKeepRatio
        ratio = min(width / geometry.width, height / geometry.height)
        return round(width / ratio), round(height / ratio)
    side = geometry.width  # torchvision's Resize
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


@dataclass(frozen=True)
class _Span:
    """Along one axis: the source pixels to crop to, and the box to resize within that crop."""

    crop_from: int
    crop_to: int
    box_from: float
    box_to: float


def _span(source: int, resized: int, kept: int) -> _Span:
    scale = source / resized
    offset = round((resized - kept) / 2.0)  # torchvision's CenterCrop
    begin, end = offset * scale, min((offset + kept) * scale, float(source))
    margin = _BICUBIC_SUPPORT * max(scale, 1.0) + 1
    crop_from, crop_to = max(0, math.floor(begin - margin)), min(source, math.ceil(end + margin))
    return _Span(crop_from, crop_to, begin - crop_from, end - crop_from)
