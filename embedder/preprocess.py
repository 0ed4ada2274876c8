"""Upright picture → the pixels that the model sees: open_clip's validation transform on Pillow and numpy alone.

The pixels are, to the bit, those that open_clip's transform has before ``ToTensor`` (``image_transform_v2`` in
open_clip/transform.py, and torchvision's ``Resize`` and ``CenterCrop``). Mean and deviation are the model's business.

Most models resize the shorter side and crop the centre. A strip of 1 × 20,000 pixels would become 224 × 4,480,000
(3 GB) only for 224 × 224 of it to be kept. Of such pictures just the part that the crop will keep is resized.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedder.spec import Geometry

Pixels = npt.NDArray[np.uint8]

# Who changes a rule of this module raises ``decode.DECODE_RULES``: the model's fingerprint has to change with it.

# Below this ratio of the sides the plain transform runs, and the result is open_clip's to the bit; at 8 it resizes to
# 224 × 1,792. Above, photographs differ by at most 2 levels of 255 and 0.01 in the mean: Pillow rounds between its two
# passes, and may take them in the other order.
CUT_ABOVE = 8.0

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_BICUBIC_SUPPORT = 2.0  # pixels that the widest filter in use reaches to either side, at scale 1


def geometry_of(config: Mapping[str, Any]) -> Geometry:
    """Reads it from open_clip's ``preprocess_cfg``.

    Args:
        config: ``size`` is one number or (height, width), ``fill_color`` one number or three; what is missing or None
            is as open_clip has it by default.

    Raises:
        ValueError: the resize mode is none of open_clip's.
    """
    size, fill = config["size"], config.get("fill_color") or 0
    height, width = (size, size) if isinstance(size, int) else size
    mode = config.get("resize_mode") or "shortest"
    if mode not in ("shortest", "longest", "squash"):
        raise ValueError(f"resize_mode is {mode!r}; expected shortest, longest or squash")
    # open_clip takes "random" for bicubic too, outside of training.
    interpolation = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
    red, green, blue = (fill, fill, fill) if isinstance(fill, int) else fill
    return Geometry(int(width), int(height), mode, interpolation, (int(red), int(green), int(blue)))


def resized_size(width: int, height: int, geometry: Geometry) -> tuple[int, int]:
    """The (width, height), in pixels, that a picture of that size is resized to before anything is cropped or padded.

    Of a strip, a side may come out as 0.
    """
    if geometry.resize_mode == "squash":
        return geometry.width, geometry.height
    if geometry.resize_mode == "longest" or geometry.width != geometry.height:  # open_clip's ResizeKeepRatio
        ratios = width / geometry.width, height / geometry.height
        ratio = max(ratios) if geometry.resize_mode == "longest" else min(ratios)
        return round(width / ratio), round(height / ratio)
    side = geometry.width  # torchvision's Resize
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


class Preprocess:
    """Turns upright RGB pictures into the pixels that the model sees. Safe to call from many threads."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry

    def __call__(self, picture: Image.Image, out: Pixels | None = None) -> Pixels:
        """Resizes, crops and pads one picture.

        Args:
            picture: mode RGB, upright.
            out: where to write the result, uint8 [height, width, 3]; a new array if None.

        Returns:
            R, G, B, uint8 [height, width, 3]; ``out`` itself if that was given.

        Raises:
            ValueError: ``out`` has another shape or type, or the picture another mode.
        """
        geometry = self._geometry
        shape = (geometry.height, geometry.width, 3)
        if picture.mode != "RGB":
            raise ValueError(f"a picture of mode {picture.mode}; expected RGB")
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8:
            raise ValueError(f"out is {out.dtype} {list(out.shape)}; expected uint8 {list(shape)}")
        if max(picture.size) > CUT_ABOVE * min(picture.size):
            picture = limit_aspect(picture, geometry)
        width, height = resized_size(*picture.size, geometry)
        size = max(1, width), max(1, height)  # the shorter side of a strip may be rounded down to nothing
        if size != picture.size:
            picture = picture.resize(size, _resampling(geometry))
        _write_centre(picture, out, geometry.fill)
        return out


def _write_centre(picture: Image.Image, out: Pixels, fill: tuple[int, int, int]) -> None:
    """Crops the centre, or pads around it, as open_clip's ``CenterCropOrPad`` and torchvision's ``CenterCrop`` do."""
    height, width = out.shape[:2]
    left, top = _before(picture.width, width), _before(picture.height, height)
    kept = min(width, picture.width), min(height, picture.height)
    if kept != picture.size:
        picture = picture.crop((max(0, left), max(0, top), max(0, left) + kept[0], max(0, top) + kept[1]))
    if kept != (width, height):
        out[:] = fill
        out = out[max(0, -top) : max(0, -top) + kept[1], max(0, -left) : max(0, -left) + kept[0]]
    out[:] = np.asarray(picture)


def _before(source: int, wanted: int) -> int:
    """Pixels to cut off before the first one that is kept; less than 0 for pixels to add."""
    if wanted > source:
        return -((wanted - source) // 2)
    return round((source - wanted) / 2.0)


def _resampling(geometry: Geometry) -> Image.Resampling:
    # For a model input that is not square, open_clip resizes the shorter side bicubically whatever the configuration.
    if geometry.resize_mode == "shortest" and geometry.width != geometry.height:
        return Image.Resampling.BICUBIC
    return _RESAMPLING[geometry.interpolation]


def limit_aspect(picture: Image.Image, geometry: Geometry) -> Image.Image:
    """The picture as the transform's resize and crop would leave it, made without the pixels in between.

    The transform then finds nothing left to resize or crop. Modes without the trap are returned as they are.

    Args:
        picture: of any size and aspect ratio.
        geometry: the model's.
    """
    return _resized_centre(picture, geometry) if geometry.resize_mode == "shortest" else picture


def _resized_centre(picture: Image.Image, geometry: Geometry) -> Image.Image:
    """Resizes only what the centre crop keeps.

    Pillow's ``box`` asks for a part of the resized picture while its filter still sees the pixels around that part, so
    the values are those of resizing everything. Pillow keeps ``box`` in float32; the picture is first cropped near it,
    since small coordinates lose less.
    """
    resized = resized_size(*picture.size, geometry)
    across = _span(picture.width, resized[0], geometry.width)
    down = _span(picture.height, resized[1], geometry.height)
    near = picture.crop((across.crop_from, down.crop_from, across.crop_to, down.crop_to))
    box = (across.box_from, down.box_from, across.box_to, down.box_to)
    return near.resize((geometry.width, geometry.height), _resampling(geometry), box=box)


@dataclass(frozen=True)
class _Span:
    """Along one axis: the source pixels to crop to, and the box to resize within that crop."""

    crop_from: int
    crop_to: int
    box_from: float
    box_to: float


def _span(source: int, resized: int, kept: int) -> _Span:
    scale = source / resized
    offset = _before(resized, kept)
    begin, end = offset * scale, min((offset + kept) * scale, float(source))
    margin = _BICUBIC_SUPPORT * max(scale, 1.0) + 1
    crop_from, crop_to = max(0, math.floor(begin - margin)), min(source, math.ceil(end + margin))
    return _Span(crop_from, crop_to, begin - crop_from, end - crop_from)
