"""Opens a picture's header safely; no pixel is decoded here, and what decoders leave as it is is read as it is meant.

The embedder decodes what passes; the gateway reads size, format and EXIF from it.
"""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from likeness.common.v1 import error_pb2
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from chassis import avif, jpeg2000
from chassis.beyond_pixels import MOST_SCANS, has_too_many_scans, has_too_much_before_its_scans, tile_size
from chassis.errors import LikenessError, invalid

# An explicit list: Pillow opens EPS by running Ghostscript, and dozens of formats that nobody sends. With each, as a
# pattern, the first bytes by which a file that Pillow does not recognise is a damaged one; of AVIF without the brands
# that HEIC has too.
_BEGINNINGS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb".{4}ftypavi[fs]",
    "JPEG2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
}
FORMATS = tuple(_BEGINNINGS)

# An AVIF's pictures together, in pictures of the largest size: itself, its transparency, twice of an animation.
_MOST_IN_ALL = 4

R = TypeVar("R")

# Pillow only warns between 89 and 179 megapixels. ``PictureLimits`` refuses both, and everything above.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
PILLOW_PIXEL_LIMIT = 178_956_970


@dataclass(frozen=True)
class PictureLimits:
    """What is refused before decoding.

    Attributes:
        max_encoded_bytes: most bytes of one encoded picture.
        max_pixels: most pixels (width × height) of one picture; at most ``PILLOW_PIXEL_LIMIT``.
    """

    max_encoded_bytes: int
    max_pixels: int

    def check_pixels(self, width: int, height: int, field: str, what: str = "") -> None:
        """Raises IMAGE_TOO_MANY_PIXELS if width × height is over the limit; the message says so of ``what``."""
        if width * height > self.max_pixels:
            description = (
                f"{what}{width} × {height} is {width * height:,} pixels; "
                f"at most {self.max_pixels:,} are taken: scale the picture down"
            )
            raise invalid(field, description, error_pb2.REASON_IMAGE_TOO_MANY_PIXELS)


def open_header(encoded: bytes, limits: PictureLimits, field: str) -> Image.Image:
    """Reads a picture's header: format, size, EXIF. The pixels are decoded only by a later ``load`` or ``convert``.

    Args:
        encoded: the picture file's bytes.
        limits: what to refuse.
        field: where the picture stands in the request, for the error.

    Returns:
        The opened image; ``size`` is as stored, before EXIF orientation.

    Raises:
        LikenessError: IMAGE_TOO_LARGE, IMAGE_FORMAT_UNSUPPORTED, IMAGE_DAMAGED, IMAGE_TOO_MANY_PIXELS, or OVERLOADED
            if there is no memory for it just now.
    """
    if not encoded:
        raise invalid(field, "no bytes; expected a picture file's content", error_pb2.REASON_IMAGE_FORMAT_UNSUPPORTED)
    if len(encoded) > limits.max_encoded_bytes:
        description = f"{len(encoded)} bytes; at most {limits.max_encoded_bytes} are taken: scale the picture down"
        raise invalid(field, description, error_pb2.REASON_IMAGE_TOO_LARGE)
    if has_too_much_before_its_scans(encoded):
        description = "a JPEG with thousands of segments, or much else, before its picture; save it anew"
        raise invalid(field, description, error_pb2.REASON_IMAGE_DAMAGED)
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError:
        description = (
            f"over {PILLOW_PIXEL_LIMIT:,} pixels; at most {limits.max_pixels:,} are taken: scale the picture down"
        )
        raise invalid(field, description, error_pb2.REASON_IMAGE_TOO_MANY_PIXELS) from None
    except UnidentifiedImageError:
        kind = _begins_as(encoded)
        if kind is not None:
            description = f"begins as {kind}, but its header cannot be read; send an undamaged file, or another format"
            raise invalid(field, description, error_pb2.REASON_IMAGE_DAMAGED) from None
        accepted = ", ".join(FORMATS)
        description = f"not recognised as a picture by its first bytes ({encoded[:8].hex(' ')}); expected {accepted}"
        raise invalid(field, description, error_pb2.REASON_IMAGE_FORMAT_UNSUPPORTED) from None
    except MemoryError as error:  # ours: the same picture is read another time
        message = "there is no memory to read a picture just now; try again, or at another replica"
        raise LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=1.0) from error
    except Exception as error:  # Pillow's readers raise whatever a hostile header leads them to
        raise damaged(field, error) from error
    limits.check_pixels(*image.size, field)
    _check_beyond_pixels(image, encoded, limits, field)
    return image


def _check_beyond_pixels(image: Image.Image, encoded: bytes, limits: PictureLimits, field: str) -> None:
    """Refuses what would cost its decoder far more than the pixels that it has."""
    if has_too_many_scans(image, encoded):
        description = f"a JPEG of more than {MOST_SCANS} scans, where ten are usual; save it anew"
        raise invalid(field, description, error_pb2.REASON_IMAGE_DAMAGED)
    if isinstance(image, TiffImageFile):
        width, height = tile_size(image, encoded)
        limits.check_pixels(width, height, field, "a tile of ")
    if image.format == "JPEG2000":
        most = jpeg2000.most_parts(image.width * image.height)
        if (parts := _read(jpeg2000.parts, encoded, field)) > most:
            description = (
                f"a JPEG 2000 that takes {parts:,} precincts, code blocks and the like to decode, of at most {most:,} "
                "for its size; save it anew"
            )
            raise invalid(field, description, error_pb2.REASON_IMAGE_DAMAGED)
    if image.format == "AVIF":
        largest, total = _read(avif.coded_pixels, encoded, field)
        if largest > limits.max_pixels or total > _MOST_IN_ALL * limits.max_pixels:
            description = (
                f"its frames have {largest:,} pixels, {total:,} in all, whatever its size says; "
                f"at most {limits.max_pixels:,} are taken: scale the picture down"
            )
            raise invalid(field, description, error_pb2.REASON_IMAGE_TOO_MANY_PIXELS)


def _read(structure: Callable[[bytes], R], encoded: bytes, field: str) -> R:
    try:
        return structure(encoded)
    except ValueError as error:
        raise damaged(field, error) from error


def eight_bit_grey(picture: Image.Image, opened: Image.Image) -> Image.Image:
    """The upper 8 bits of a picture of mode I;16, in mode L.

    Args:
        picture: as it was opened, or resized.
        opened: the picture as it was opened. A TIFF says how many bits it has (Pillow leaves 12 as they are), and
            whether 0 is white, which Pillow heeds of 8 bits alone.
    """
    bits, white_is_zero = 16, False
    if isinstance(opened, TiffImageFile):
        stated = opened.tag_v2.get(BITSPERSAMPLE, 16)
        bits = stated[0] if isinstance(stated, tuple) else stated
        white_is_zero = opened.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
    upper = np.clip(np.asarray(picture) >> max(0, bits - 8), 0, 255).astype(np.uint8)
    return Image.fromarray(255 - upper if white_is_zero else upper)


def _begins_as(encoded: bytes) -> str | None:
    """The accepted format whose first bytes these are, if any."""
    return next((kind for kind, first in _BEGINNINGS.items() if re.match(first, encoded, re.DOTALL)), None)


def damaged(field: str, error: Exception) -> LikenessError:
    """The error for a picture of an accepted format whose content cannot be read."""
    description = f"cannot be read ({str(error)[:200] or type(error).__name__}); send an undamaged file"
    return invalid(field, description, error_pb2.REASON_IMAGE_DAMAGED)
