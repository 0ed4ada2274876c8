"""A small WebP of a picture. Runs in threads.

A photograph as JPEG, 500 × 334, 32 KB: 1.5 ms of CPU, a third of it for decoding, the rest for WebP.
"""

import io
import math
import threading
from contextlib import nullcontext

import numpy as np
import structlog
from likeness.common.v1 import types_pb2
from PIL import Image, ImageOps

from chassis.pictures import FORMATS, eight_bit_grey

log = structlog.get_logger()

LONGEST_SIDE = 256

# What a scale of libjpeg's makes of a JPEG is taken as it is, if its longest side comes to this or more. Photographs of
# 500 pixels, decoded at a half, are closer to a careful reduction than by way of all pixels and BILINEAR (SSIM to
# LANCZOS 0.995 and 0.986), for half of the work.
_LEAST_SIDE = 240
_JPEG_SCALES = (8, 4, 2)

# Method 0 takes 2.4 ms for 256 × 256, method 4 8 ms, for a file a sixth smaller.
_QUALITY, _METHOD = 75, 0

# Of pictures that have more pixels to decode, one is in memory at a time: up to 200 MB at the largest that is taken.
_LARGE_PIXELS = 8_000_000
_large = threading.Lock()


def render(image: types_pb2.Image) -> bytes | None:
    """A picture as WebP, longest side at most 256 px, upright, without metadata of its own.

    A larger picture's longest side becomes 256 px, or 240 to 256 if it is a JPEG. A large JPEG is decoded at a reduced
    size (libjpeg's scaled inverse DCT, Pillow's ``draft``), never in full.

    Args:
        image: one that the embedder has taken: encoded, or RGB pixels.

    Returns:
        The file's bytes; None if, against expectation, it cannot be decoded here.
    """
    try:
        with _open(image) as opened:
            with _large if _to_decode(opened) > _LARGE_PIXELS else nullcontext():
                small = _shrunk(opened)
            out = io.BytesIO()
            # A fresh picture: no EXIF, comment or colour profile of the original gets into the file.
            bare = Image.frombytes(small.mode, small.size, small.tobytes())
            bare.save(out, "WEBP", quality=_QUALITY, method=_METHOD)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever odd bytes lead them to
        log.warning("no thumbnail", why=repr(error))
        return None
    return out.getvalue()


def _open(image: types_pb2.Image) -> Image.Image:
    if image.WhichOneof("source") == "rgb":
        return Image.frombytes("RGB", (image.rgb.width, image.rgb.height), image.rgb.pixels)
    return Image.open(io.BytesIO(image.encoded), formats=FORMATS)


def _to_decode(opened: Image.Image) -> int:
    """Has a JPEG decoded at the smallest of its scales that is large enough; tells the pixels."""
    whole = opened.width * opened.height
    longest = max(opened.size)
    if longest > LONGEST_SIDE:
        scale = next((each for each in _JPEG_SCALES if math.ceil(longest / each) >= _LEAST_SIDE), 1)
        opened.draft(None, (max(1, opened.width // scale), max(1, opened.height // scale)))
    # Of a progressive one libjpeg keeps all coefficients, at any scale.
    return whole if "progressive" in opened.info else opened.width * opened.height


def _shrunk(opened: Image.Image) -> Image.Image:
    """The picture's pixels, upright, in mode RGB or RGBA, at the thumbnail's size."""
    opened.load()
    picture: Image.Image = opened
    if picture.mode in ("P", "PA", "1", "LA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    scale = min(1.0, LONGEST_SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    return _eight_bit(_upright(picture), opened)


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception as error:  # whatever garbage leads Pillow's EXIF reader to: the pixels are fine
        log.debug("EXIF not readable", error=repr(error))
        return picture


def _eight_bit(picture: Image.Image, opened: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return eight_bit_grey(picture, opened).convert("RGB")
    if picture.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(picture, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        values -= values.min()
        return Image.fromarray((values * (255.0 / max(float(values.max()), 1e-9))).astype(np.uint8)).convert("RGB")
    return picture if picture.mode in ("RGB", "RGBA") else picture.convert("RGB")
