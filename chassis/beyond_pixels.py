"""What makes a decoder do more than a picture's pixels ask for. Nothing is decoded.

A JPEG's segments before its picture, and its scans; a TIFF's tiles. An AVIF's frames: see ``avif``; a JPEG 2000's
parts: see ``jpeg2000``.
"""

import io
import re
import struct

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile

from chassis import avif

# libjpeg goes through all of a picture's blocks for every scan, however little is in it: 4 ms for 49 megapixels;
# 2,000 scans, in 28 KB, take 8 s. Encoders make ten or so; libtiff draws its line for JPEGs inside of TIFFs here.
MOST_SCANS = 100
# Parts of a file, thumbnails and profiles among them, that are looked at to count its scans; of more it has too many.
_MOST_PARTS = 20_000

# Markers of a JPEG (ITU-T T.81, B.1.1.3): start of scan, end of image, and the one before others that has no content.
_SOS, _EOI, _TEM = b"\xda", b"\xd9", b"\x01"
# A marker that ends a scan's data: neither an escaped byte, nor a restart, nor padding.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
# Pillow reads what stands before a JPEG's first scan byte by byte, and puts the parts of an EXIF together anew with
# each: 32 MiB of parts of 20 bytes would take it a quarter of an hour, of bytes between them 17 s.
_MOST_SEGMENTS, _MOST_EXIF_PARTS, _MOST_BYTES_BETWEEN = 2000, 64, 64 * 1024
_APP1, _EXIF = b"\xe1", b"Exif\0\0"
_WITHOUT_CONTENT = (b"\xd8", _EOI, _TEM)

# The header of a scan (B.2.3) with three components: marker, length and count, then nine more bytes.
_SCAN_OF_THREE = b"\xff\xda\x00\x0c\x03"
_SCAN_HEADER_BYTES = 14

# The bytes of a TIFF's whole numbers, by type: those that libtiff takes for the size of a tile.
_WHOLE = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}


def has_too_much_before_its_scans(encoded: bytes) -> bool:
    """Whether a JPEG has so much before its first scan that to read its header takes long; False of anything else."""
    if not encoded.startswith(b"\xff\xd8"):
        return False
    place, exif, between = 2, 0, 0
    for _ in range(_MOST_SEGMENTS):
        marker = _MARKER.search(encoded, place, place + _MOST_BYTES_BETWEEN)
        if marker is None:
            return place + _MOST_BYTES_BETWEEN < len(encoded)
        between += marker.start() - place
        place = marker.end()
        if marker[1] == _SOS:
            return False
        exif += marker[1] == _APP1 and encoded.startswith(_EXIF, place + 2)
        if exif > _MOST_EXIF_PARTS or between > _MOST_BYTES_BETWEEN:
            return True
        if marker[1] not in _WITHOUT_CONTENT:
            place += max(2, int.from_bytes(encoded[place : place + 2]))
    return True


def has_one_scan(opened: Image.Image) -> bool:
    """Whether a JPEG of three colours is sequential, and its first scan, whose header Pillow has just read, has all.

    libjpeg decodes no other scan of such a one.
    """
    if not isinstance(opened, JpegImageFile) or opened.layers != 3 or "progressive" in opened.info:
        return False
    file = opened.fp
    if file is None or file.tell() < _SCAN_HEADER_BYTES:
        return False
    file.seek(-_SCAN_HEADER_BYTES, io.SEEK_CUR)
    return bytes(file.read(_SCAN_HEADER_BYTES)).startswith(_SCAN_OF_THREE)


def has_too_many_scans(opened: Image.Image, encoded: bytes) -> bool:
    """Whether a picture is a JPEG of more scans than ``MOST_SCANS``.

    Args:
        opened: the picture, nothing of it decoded.
        encoded: its file's bytes.
    """
    if not isinstance(opened, JpegImageFile) or has_one_scan(opened):
        return False
    # First what takes microseconds, but counts what stands in thumbnails or behind the picture, such as a video.
    return _looks_like_scans(encoded) > MOST_SCANS and _is_scanned_more_often(encoded, MOST_SCANS)


def pixels_at_once(opened: Image.Image, encoded: bytes) -> int:
    """Pixels that are in memory at once when a picture is decoded in full.

    Its own, or those of a TIFF's larger tile, or of what an AVIF holds, whatever its size is said to be.

    Args:
        opened: the picture, nothing of it decoded.
        encoded: its file's bytes.
    """
    pixels = opened.width * opened.height
    if opened.format == "AVIF":
        return max(pixels, avif.coded_pixels(encoded)[0])
    if not isinstance(opened, TiffImageFile):
        return pixels
    width, height = tile_size(opened, encoded)
    return max(pixels, width * height)


def tile_size(opened: TiffImageFile, encoded: bytes) -> tuple[int, int]:
    """Width and height of a TIFF's tiles, in pixels; (0, 0) of one in strips, which are no larger than the picture.

    Read from the file, since Pillow leaves out numbers of types that libtiff takes; of several the greatest counts.
    """
    order = "<" if encoded[:2] == b"II" else ">"
    many, entry = ("Q", "HHQ8s") if encoded[2:4] in (b"\x2b\0", b"\0\x2b") else ("H", "HHL4s")
    begin = opened.tag_v2.offset or 0
    (count,) = struct.unpack_from(order + many, encoded, begin)
    begin += struct.calcsize(order + many)
    size = struct.calcsize(order + entry)
    sides = {TILEWIDTH: 0, TILELENGTH: 0}
    whole = (len(encoded) - begin) // size
    for tag, kind, _, value in struct.iter_unpack(order + entry, encoded[begin : begin + min(count, whole) * size]):
        if tag in sides and kind in _WHOLE:
            side = int.from_bytes(value[: _WHOLE[kind]], "little" if order == "<" else "big")
            sides[tag] = max(sides[tag], side)
    return sides[TILEWIDTH], sides[TILELENGTH]


def _looks_like_scans(encoded: bytes) -> int:
    """How often the marker of a scan stands in a file, be it one or not: in a sixth of ``bytes.count``'s time."""
    each = np.frombuffer(encoded, np.uint8)
    return int(np.count_nonzero((each[:-1] == 0xFF) & (each[1:] == _SOS[0])))


def _is_scanned_more_often(encoded: bytes, most: int) -> bool:
    """Whether a JPEG has more scans than MOST up to its end, as libjpeg finds them."""
    scans, place = 0, 2
    for _ in range(_MOST_PARTS):
        marker = _MARKER.search(encoded, place)
        if marker is None or marker[1] == _EOI:
            return False
        scans += marker[1] == _SOS
        if scans > most:
            return True
        place = marker.end()
        if marker[1] != _TEM:
            place += max(2, int.from_bytes(encoded[place : place + 2]))
    return True
