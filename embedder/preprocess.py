"""Upright picture → the pixels that the model sees: open_clip's validation transform.

The pixels are those that open_clip's transform has before ``ToTensor`` (``image_transform_v2`` in
open_clip/transform.py, and torchvision's ``Resize`` and ``CenterCrop``), but for rounding: at most 2 of 255 levels, and
with bicubic in less than 1 of 100 values. Mean and deviation are the model's business.

Pillow resizes in two passes, along the rows and then along the columns, and rounds to 8 bits in between. So does this
module, but only the pixels that the crop will keep, and with cykooz_resizer, which takes a fifth of Pillow's time, or a
seventh for photographs of 12 megapixels. There is none for Linux on ARM, where Pillow makes both passes. (Since
version 13 Pillow begins with the columns where more than twice as many rows as columns fall away.)

As nothing else is resized, a strip of 1 × 20,000 pixels does not become 224 × 4,480,000 (3 GB) on its way.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedder.spec import Geometry

Pixels = npt.NDArray[np.uint8]

# Who changes a rule of this module raises ``decode.DECODE_RULES``: the model's fingerprint has to change with it.

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Of a side of which more pixels are reduced, as no JPEG or WebP has, pixels are averaged before: each takes 32 bytes of
# weights.
_LONGEST = 65_536
_SUPPORT = 2.0  # pixels that the widest filter in use reaches to either side, at scale 1


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
        # The shorter side of a strip may be rounded down to nothing.
        width, height = (max(1, side) for side in resized_size(*picture.size, geometry))
        factors = (
            _too_long(picture.width, width, geometry.width),
            _too_long(picture.height, height, geometry.height),
        )
        if factors != (1, 1):
            picture = picture.reduce(factors)
        across, down = _kept(picture.width, width, geometry.width), _kept(picture.height, height, geometry.height)
        if (across.count, down.count) != (geometry.width, geometry.height):
            out[:] = geometry.fill
        part = out[down.at : down.at + down.count, across.at : across.at + across.count]
        part[:] = np.asarray(_resized(picture, across, down, _resampling(geometry)))
        return out


def _too_long(source: int, resized: int, wanted: int) -> int:
    """How many pixels along a side are averaged to one before it is reduced; 1 for all but endless strips."""
    reduced = source * min(resized, wanted) // resized  # of the source
    return max(1, -(-reduced // _LONGEST))


@dataclass(frozen=True)
class _Kept:
    """Along one axis: which pixels of the picture, once it is resized, the model sees.

    Attributes:
        source: pixels before resizing.
        resized: and after it.
        first: the first of those that are kept.
        count: how many are.
        at: where the first of them comes to lie.
    """

    source: int
    resized: int
    first: int
    count: int
    at: int

    @property
    def box(self) -> tuple[float, float]:
        """Where they come from: from and to, in source pixels."""
        scale = self.source / self.resized
        return self.first * scale, min((self.first + self.count) * scale, float(self.source))

    @property
    def reach(self) -> tuple[int, int]:
        """The source pixels that have a part in them: from and to."""
        if self.source == self.resized:
            return self.first, self.first + self.count
        margin = _SUPPORT * max(self.source / self.resized, 1.0) + 1
        begin, end = self.box
        return max(0, math.floor(begin - margin)), min(self.source, math.ceil(end + margin))


def _kept(source: int, resized: int, wanted: int) -> _Kept:
    """What open_clip's ``CenterCropOrPad`` and torchvision's ``CenterCrop`` keep."""
    before = _before(resized, wanted)
    return _Kept(source, resized, max(0, before), min(resized, wanted), max(0, -before))


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


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float


def _resized(picture: Image.Image, across: _Kept, down: _Kept, how: Image.Resampling) -> Image.Image:
    """The part that is kept of the resized picture."""
    (left, right), (top, bottom) = across.box, down.box
    if across.source < across.resized and down.source > down.resized:  # the other way round it would grow first
        first, end = across.reach
        columns = _pass(picture, (end - first, down.count), _Box(first, top, end, bottom), how)
        return _pass(columns, (across.count, down.count), _Box(left - first, 0, right - first, down.count), how)
    first, end = down.reach
    rows = _pass(picture, (across.count, end - first), _Box(left, first, right, end), how)
    return _pass(rows, (across.count, down.count), _Box(0, top - first, across.count, bottom - first), how)


def _pass(picture: Image.Image, size: tuple[int, int], box: _Box, how: Image.Resampling) -> Image.Image:
    """Resizes what lies in a box; the filter sees the pixels around it too."""
    if size == (box.right - box.left, box.bottom - box.top):  # then its sides are whole numbers
        return picture if size == picture.size else picture.crop(box)
    return _resample(picture, size, box, how)


def _with_pillow(picture: Image.Image, size: tuple[int, int], box: _Box, how: Image.Resampling) -> Image.Image:
    return picture.resize(size, how, box=box)


def _with_cykooz(picture: Image.Image, size: tuple[int, int], box: _Box, how: Image.Resampling) -> Image.Image:
    resized = Image.new("RGB", size, None)
    crop = cykooz_resizer.CropBox(box.left, box.top, box.right - box.left, box.bottom - box.top)
    options = cykooz_resizer.ResizeOptions(resize_alg=_CONVOLUTION[how], crop_box=crop)
    # One of its own for each: it keeps what it needed for the largest picture.
    cykooz_resizer.Resizer().resize_pil(picture, resized, options)
    return resized


if find_spec("cykooz_resizer"):
    import cykooz_resizer

    _CONVOLUTION = {
        Image.Resampling.BICUBIC: cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom),
        Image.Resampling.BILINEAR: cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear),
    }
    _resample = _with_cykooz
else:
    _resample = _with_pillow
