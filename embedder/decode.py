"""Picture bytes → upright 8-bit RGB pixels, safely.

Every rule here shapes vectors; who changes one raises ``DECODE_RULES``, which is part of the model's fingerprint.

1. Format, byte count and pixel count are checked by the header (``chassis.pictures``); only then pixels are decoded.
2. The first frame or page counts. What is cut short or damaged is refused, not filled up with grey.
3. EXIF orientation is applied; one that is no number from 1 to 8, or EXIF that cannot be read, counts as none.
4. Pixels become RGB as Pillow's ``convert`` does it, before resizing: alpha is dropped, palettes are looked up, ICC
   profiles are not applied. More than 8 bits a channel are scaled to 8, where ``convert`` would clip grey to white.
5. A JPEG of three colours is decoded at 1/8, 1/4 or 1/2 of its size (libjpeg's scaled inverse DCT, Pillow's ``draft``)
   where both sides divide by that and the result is still ``LEFT_TO_RESIZE`` times larger than what the model's resize
   makes of it. Grey and CMYK JPEGs, and sides that do not divide, are decoded in full: half a column more would shift
   the picture.

Rule 5's tolerance: the cosine of the vector to that of the picture decoded in full is at least 0.999. Measured by
``python -m benchmarks.reduced_decode --quick`` with starter and a random ViT-B-32: enlarged photographs with noise,
texture and white noise, each at the smallest size that is reduced to a quarter: least cosine 0.9976 where twice the
size is left, 0.9997 where three times is; aio60 (500 × 334) is never reduced. Bare patterns (a zone plate, stripes)
are outside of it with starter (0.85 to 0.98): what the resize leaves of them is nearly one grey, and adding -1, 0 or 1
at random to the pixels of the exact input moves their vectors as far (0.70 to 0.97). With ViT-B-32 they are within it
(0.9999).
"""

import numpy as np
import numpy.typing as npt
from likeness.common.v1 import error_pb2
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile

from chassis.beyond_pixels import has_one_scan
from chassis.errors import LikenessError, invalid
from chassis.pictures import PictureLimits, damaged, eight_bit_grey, open_header
from embedder.inputs import Picture, RgbPicture
from embedder.preprocess import resized_size
from embedder.spec import Geometry

DECODE_RULES = 3

# A picture decoded at reduced scale is still at least this many times larger than what it is resized to.
LEFT_TO_RESIZE = 3.0

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


def open_picture(picture: Picture, limits: PictureLimits) -> Image.Image:
    """Checks what can be checked without decoding; costs no memory to speak of.

    Returns:
        The picture; ``size`` says how many pixels ``upright_rgb`` will decode.

    Raises:
        LikenessError: IMAGE_TOO_LARGE, IMAGE_FORMAT_UNSUPPORTED, IMAGE_DAMAGED, IMAGE_TOO_MANY_PIXELS; of a decoded
            picture FIELD_INVALID; OVERLOADED if there is no memory for it just now.
    """
    if isinstance(picture, RgbPicture):
        return _from_pixels(picture, limits)
    return open_header(picture.encoded, limits, f"{picture.field}.encoded")


def upright_rgb(
    opened: Image.Image, limits: PictureLimits, field: str, geometry: Geometry, left: float = LEFT_TO_RESIZE
) -> Image.Image:
    """Decodes what ``open_picture`` gave, and closes it.

    Args:
        opened: what ``open_picture`` gave.
        limits: what to refuse.
        field: where the picture stands in the request, for errors.
        geometry: of the model that will see the picture.
        left: how many times larger than what it is resized to a picture of reduced scale has to be; infinity decodes
            every picture in full.

    Returns:
        The picture in mode RGB, upright; a large JPEG at a half, a quarter or an eighth of its size.

    Raises:
        LikenessError: IMAGE_DAMAGED, IMAGE_TOO_MANY_PIXELS or IMAGE_FORMAT_UNSUPPORTED.
        MemoryError: there is no memory for it just now: see ``no_memory``.
    """
    scale = reduction(opened, geometry, left)
    try:
        if scale > 1:
            opened.draft(None, (opened.width // scale, opened.height // scale))
        opened.load()
    except MemoryError:
        raise  # ours, not the picture's: its header was within the limits
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        raise damaged(field, error) from error
    limits.check_pixels(*opened.size, field)
    # Read after loading: a PNG may carry EXIF behind its pixels, and a TIFF is turned upright by Pillow's own loader.
    turn = _UPRIGHT.get(_orientation(opened))
    rgb = _rgb(opened, field)
    upright = rgb if turn is None else rgb.transpose(turn)
    if upright is not opened:
        opened.close()  # the caller still holds it, and with it up to hundreds of megabytes of pixels
    return upright


def no_memory() -> LikenessError:
    """OVERLOADED: there was no memory for a picture within the limits. As ``open_picture`` says of a header."""
    message = "there is no memory to decode a picture just now; try again, or at another replica"
    return LikenessError(error_pb2.REASON_OVERLOADED, message, retry_after_s=1.0)


def reduction(opened: Image.Image, geometry: Geometry, left: float = LEFT_TO_RESIZE) -> int:
    """By how much ``upright_rgb`` divides the sides of a picture that is not decoded yet: 1, 2, 4 or 8."""
    if not isinstance(opened, JpegImageFile) or opened.mode != "RGB":
        return 1
    width, height = opened.size
    if geometry.width != geometry.height and _orientation(opened) in _SIDEWAYS:
        width, height = height, width
    # A strip's shorter side may be resized to nothing (0); that is mended to 1 later.
    across, down = (max(1, side) for side in resized_size(width, height, geometry))
    for scale in (8, 4, 2):
        whole = width % scale == 0 and height % scale == 0
        if whole and min(width / across, height / down) >= scale * left:
            return scale
    return 1


def decoded_pixels(opened: Image.Image, geometry: Geometry) -> int:
    """How many pixels ``upright_rgb`` will hold in memory for a picture that is not decoded yet.

    A JPEG of several scans (progressive, or one colour after the other) counts in full at any scale: libjpeg keeps all
    its coefficients, up to 6 bytes a pixel, until the last scan. So does one whose scans cannot be told, as in an MPO.
    """
    pixels = opened.width * opened.height
    scale = reduction(opened, geometry)
    return pixels // scale**2 if scale > 1 and has_one_scan(opened) else pixels


def _from_pixels(picture: RgbPicture, limits: PictureLimits) -> Image.Image:
    for name, side in (("width", picture.width), ("height", picture.height)):
        if side < 1:
            raise invalid(f"{picture.field}.rgb.{name}", "0 pixels; expected at least 1")
    limits.check_pixels(picture.width, picture.height, f"{picture.field}.rgb")
    expected = 3 * picture.width * picture.height
    if len(picture.pixels) != expected:
        description = (
            f"{len(picture.pixels)} bytes; expected {expected}: 3 bytes (R, G, B) for each of "
            f"{picture.width} × {picture.height} pixels, without padding"
        )
        raise invalid(f"{picture.field}.rgb.pixels", description)
    return Image.frombytes("RGB", (picture.width, picture.height), picture.pixels)


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever garbage leads Pillow's EXIF reader to: the pixels are fine
        return 1
    return value if isinstance(value, int) else 1


def _rgb(picture: Image.Image, field: str) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I;16"):
        # The high byte, as Pillow's readers take it of 16-bit colour.
        return eight_bit_grey(picture, picture).convert("RGB")
    if picture.mode in ("I", "F"):
        return Image.fromarray(_to_8_bit(np.asarray(picture, np.float32))).convert("RGB")
    try:
        return picture.convert("RGB")
    except ValueError as error:
        description = f"its pixel format {picture.mode} cannot be turned into RGB; send it as 8-bit RGB"
        raise invalid(field, description, error_pb2.REASON_IMAGE_FORMAT_UNSUPPORTED) from error


def _to_8_bit(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Scientific TIFFs say nothing of their range: take the narrowest usual one that holds the values."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        values, high = values - low, high - low
        top = high or 1.0  # 0: one value everywhere
    else:
        top = 1.0 if high <= 1 else 255.0 if high <= 255 else 65535.0
    return (values * np.float32(255.0 / top)).astype(np.uint8)
