"""What a picture's bytes say about it besides its pixels: format, size, hash, and EXIF date, camera and place."""

import hashlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import structlog
from likeness.common.v1 import types_pb2
from PIL import ExifTags
from PIL.Image import Exif, Image

from chassis.errors import invalid
from chassis.metadata import Plain
from chassis.pictures import PictureLimits, open_header

log = structlog.get_logger()

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_MAX_CAMERA = 128


def content_hash(image: types_pb2.Image) -> str:
    """SHA-256 of the picture, in hexadecimal: of the encoded bytes, or of size and pixels of a decoded picture."""
    if image.WhichOneof("source") == "rgb":
        digest = hashlib.sha256(f"rgb:{image.rgb.width}x{image.rgb.height}:".encode())
        digest.update(image.rgb.pixels)
        return digest.hexdigest()
    return hashlib.sha256(image.encoded).hexdigest()


def read(image: types_pb2.Image, limits: PictureLimits, field: str) -> dict[str, Plain]:
    """The metadata that a picture brings with it. No pixel is decoded.

    Args:
        image: the picture.
        limits: what the embedder takes.
        field: where the picture stands in the request, for the error.

    Returns:
        ``width`` and ``height`` in pixels as seen upright; of an encoded picture ``format`` and ``bytes``, and what
        its EXIF holds of ``taken_at`` (seconds since 1970), ``camera``, ``latitude`` and ``longitude`` (degrees).

    Raises:
        LikenessError: the picture is missing, of no accepted format, damaged or over a limit.
    """
    source = image.WhichOneof("source")
    if source is None:
        raise invalid(field, "is empty; expected an encoded picture or RGB pixels")
    if source == "rgb":
        limits.check_pixels(image.rgb.width, image.rgb.height, f"{field}.rgb")
        return {"width": image.rgb.width, "height": image.rgb.height}
    with open_header(image.encoded, limits, f"{field}.encoded") as opened:
        width, height = opened.size
        if opened.format != "TIFF" and _orientation(opened) in _SIDEWAYS:  # Pillow turns a TIFF's size itself
            width, height = height, width
        # A phone's JPEG with a second frame behind the first is "MPO" to Pillow.
        kind = "JPEG" if opened.format == "MPO" else str(opened.format)
        exif = _exif(opened)
    return {"format": kind, "width": width, "height": height, "bytes": len(image.encoded), **exif}


def _exif(opened: Image) -> dict[str, Plain]:
    try:
        exif = _read_exif(opened)
        facts: dict[str, Plain | None] = {"taken_at": _taken_at(exif), "camera": _camera(exif), **_place(exif)}
    except Exception as error:  # Pillow's EXIF reader raises whatever garbage leads it to; the picture itself is fine
        log.debug("EXIF not readable", error=repr(error))
        return {}
    return {key: value for key, value in facts.items() if value is not None}


def _orientation(opened: Image) -> object:
    try:
        return _read_exif(opened).get(ExifTags.Base.Orientation)
    except Exception as error:  # as above
        log.debug("EXIF not readable", error=repr(error))
        return None


def _read_exif(opened: Image) -> Exif:
    # PNG's own getexif decodes all pixels to look for EXIF behind them (measured: 250 MB for an 8,000 × 8,000 file).
    return Image.getexif(opened) if opened.format == "PNG" else opened.getexif()


def _taken_at(exif: Exif) -> int | None:
    detail = exif.get_ifd(ExifTags.IFD.Exif)
    written = detail.get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
    try:
        local = datetime.strptime(str(written).strip(" \x00"), "%Y:%m:%d %H:%M:%S")
        return int(local.replace(tzinfo=_zone(detail.get(ExifTags.Base.OffsetTimeOriginal))).timestamp())
    except ValueError:  # absent, or "0000:00:00 00:00:00" from a camera whose clock was never set
        return None


def _zone(offset: object) -> timezone:
    try:
        hours, minutes = str(offset).strip(" \x00").split(":")
        sign = -1 if hours.startswith("-") else 1
        return timezone(sign * timedelta(hours=abs(int(hours)), minutes=int(minutes)))
    except ValueError:
        return UTC


def _camera(exif: Exif) -> str | None:
    make, model = (_text(exif.get(tag)) for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    name = model if model.startswith(make) else f"{make} {model}"
    return name.strip()[:_MAX_CAMERA] or None


def _text(value: object) -> str:
    return "".join(c for c in str(value or "") if c.isprintable()).strip()


def _place(exif: Exif) -> dict[str, float]:
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    latitude = _degrees(gps.get(ExifTags.GPS.GPSLatitude), gps.get(ExifTags.GPS.GPSLatitudeRef), "S", 90)
    longitude = _degrees(gps.get(ExifTags.GPS.GPSLongitude), gps.get(ExifTags.GPS.GPSLongitudeRef), "W", 180)
    if latitude is None or longitude is None:
        return {}
    return {"latitude": latitude, "longitude": longitude}


def _degrees(parts: Any, reference: object, negative: str, most: int) -> float | None:
    """Degrees, minutes and seconds as degrees with a sign."""
    try:
        degrees, minutes, seconds = (float(part) for part in parts)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    value = degrees + minutes / 60 + seconds / 3600
    if not 0 <= value <= most:  # NaN too
        return None
    return -value if _text(reference).upper() == negative else value
