"""A picture's header is read without decoding a pixel, and what cannot be taken is refused by reason."""

import io
import struct
import zlib

import pytest
from likeness.common.v1 import error_pb2
from PIL import Image

from chassis.errors import LikenessError
from chassis.pictures import PictureLimits, open_header

LIMITS = PictureLimits(max_encoded_bytes=2_000_000, max_pixels=64_000_000)


def encoded(kind: str, size: tuple[int, int] = (24, 16)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "teal").save(out, kind)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    ihdr = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_every_accepted_format_is_opened(kind: str) -> None:
    opened = open_header(encoded(kind), LIMITS, "image")

    assert (opened.format, opened.size) == (kind, (24, 16))


@pytest.mark.parametrize("size", [(50_000, 50_000), (12_000, 9_000), (65_535, 65_535)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(LikenessError, match="at most 64,000,000 are taken: scale the picture down") as caught:
        open_header(png_header(*size), LIMITS, "image")

    assert caught.value.reason == error_pb2.REASON_IMAGE_TOO_MANY_PIXELS


def test_a_picture_of_one_pixel_too_many_is_told_both_numbers() -> None:
    with pytest.raises(LikenessError, match="64000001 × 1 is 64,000,001 pixels; at most 64,000,000 are taken"):
        LIMITS.check_pixels(64_000_001, 1, "image")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_a_picture_whose_header_is_cut_or_overwritten_is_damaged(kind: str) -> None:
    whole = encoded(kind)

    for content in (whole[:14], whole[:14] + b"\xa5" * (len(whole) - 14)):
        with pytest.raises(LikenessError) as caught:
            open_header(content, LIMITS, "image")
        assert caught.value.reason == error_pb2.REASON_IMAGE_DAMAGED


@pytest.mark.parametrize(
    "content",
    [
        png_header(0, 0),
        png_header(24, 16).replace(b"IHDR\0", b"IHDR\1"),  # its checksum is another's
        b"GIF89a" + b"\0" * 14,  # no frame
        b"\xff\xd8\xff\xe0" + b"\0" * 100,
    ],
)
def test_a_damaged_header_is_not_taken_for_another_format(content: bytes) -> None:
    with pytest.raises(LikenessError, match=r"begins as (PNG|GIF|JPEG), but its header cannot be read") as caught:
        open_header(content, LIMITS, "image")

    assert caught.value.reason == error_pb2.REASON_IMAGE_DAMAGED


@pytest.mark.parametrize(
    "content",
    [
        b"\x7fELF" + b"\0" * 60,
        b"%PDF-1.7 ...",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"PK\x03\x04" + b"\0" * 40,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n",
        b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf" + b"\0" * 100,
        encoded("ICO"),
        encoded("PPM"),
    ],
)
def test_what_is_no_accepted_picture_is_refused(content: bytes) -> None:
    with pytest.raises(LikenessError) as caught:
        open_header(content, LIMITS, "terms[0].image.encoded")

    assert caught.value.reason == error_pb2.REASON_IMAGE_FORMAT_UNSUPPORTED
    assert caught.value.violations[0].field == "terms[0].image.encoded"


def test_no_bytes_at_all_are_refused() -> None:
    with pytest.raises(LikenessError, match="no bytes"):
        open_header(b"", LIMITS, "image")


def test_a_file_over_the_byte_limit_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(LikenessError, match="at most 2000000") as caught:
        open_header(b"\0" * 2_000_001, LIMITS, "image")

    assert caught.value.reason == error_pb2.REASON_IMAGE_TOO_LARGE
