"""A picture's header is read without decoding a pixel, and what cannot be taken is refused by reason."""

import io
import struct
import zlib
from typing import Any

import pytest
from likeness.common.v1 import error_pb2
from PIL import Image

from chassis.beyond_pixels import MOST_SCANS, pixels_at_once
from chassis.errors import LikenessError
from chassis.pictures import PictureLimits, open_header
from tests.unit.chassis.test_jpeg2000 import hostile

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


def jpeg(before_the_rest: bytes = b"") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(out, "JPEG")
    return out.getvalue()[:2] + before_the_rest + out.getvalue()[2:]


EXIF_PART = b"\xff\xe1\x00\x12Exif\0\0" + bytes(10)
COMMENT = b"\xff\xfe\x00\x06nice"


@pytest.mark.parametrize(
    "before", [b"", EXIF_PART * 60, COMMENT * 1000, b"\xff" * 60_000, COMMENT[:2] + b"\xff\xf0" + bytes(0xFFEE)]
)
def test_a_jpeg_with_a_good_deal_before_its_picture_is_read(before: bytes) -> None:
    assert open_header(jpeg(before), LIMITS, "image").size == (16, 16)


@pytest.mark.parametrize(
    "before",
    [
        EXIF_PART * 65,
        EXIF_PART * 60_000,
        COMMENT * 2001,
        b"\xff\xd9" * 600_000,
        b"\xff" * 1_000_000,
        (b"\xff" * 60 + COMMENT) * 1500,
        b"\xff\x00" * 500_000,
    ],
)
def test_a_jpeg_whose_header_would_take_long_to_read_is_refused(before: bytes) -> None:
    with pytest.raises(LikenessError, match="before its picture; save it anew") as caught:
        open_header(jpeg(before), LIMITS, "image")

    assert caught.value.reason == error_pb2.REASON_IMAGE_DAMAGED


def progressive(more_scans: int = 0, **options: Any) -> bytes:
    """A JPEG of ten scans, the last of them so many times more."""
    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(out, "JPEG", progressive=True, **options)
    whole = out.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * more_scans + whole[-2:]


def test_a_jpeg_2000_of_a_precinct_for_each_pixel_is_refused() -> None:
    with pytest.raises(LikenessError, match=r"JPEG 2000 that takes [\d,]+ precincts") as caught:
        open_header(hostile((256, 256))["precincts of one sample"], LIMITS, "image")

    assert caught.value.reason == error_pb2.REASON_IMAGE_DAMAGED


def test_an_avif_that_is_larger_than_it_says_is_refused() -> None:
    out = io.BytesIO()
    Image.new("RGB", (3000, 2000), "teal").save(out, "AVIF", speed=10)
    whole = out.getvalue()
    size = whole.index(b"ispe") + 8
    small = whole[:size] + struct.pack(">II", 16, 16) + whole[size + 8 :]
    with Image.open(io.BytesIO(small)) as opened:
        assert opened.size == (16, 16)

    with pytest.raises(LikenessError, match="its frames have 6,000,000 pixels") as caught:
        open_header(small, PictureLimits(2**20, 100_000), "image")

    assert caught.value.reason == error_pb2.REASON_IMAGE_TOO_MANY_PIXELS
    taken = open_header(small, PictureLimits(2**20, 6_000_000), "image")
    assert pixels_at_once(taken, small) == 6_000_000


def test_a_jpeg_of_more_scans_than_any_encoder_makes_is_refused() -> None:
    assert open_header(progressive(MOST_SCANS - 10), LIMITS, "image").size == (256, 256)

    with pytest.raises(LikenessError, match="more than 100 scans, where ten are usual; save it anew") as caught:
        open_header(progressive(MOST_SCANS - 9), LIMITS, "image")

    assert caught.value.reason == error_pb2.REASON_IMAGE_DAMAGED


def test_a_jpeg_whose_scans_have_one_colour_each_is_refused_for_too_many_as_well() -> None:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(out, "JPEG", subsampling=0)
    whole = out.getvalue()
    start = whole.index(b"\xff\xda")
    scan_of_one = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + whole[start + 14 : -2]

    with pytest.raises(LikenessError, match="more than 100 scans"):
        open_header(whole[:start] + scan_of_one * 101 + b"\xff\xd9", LIMITS, "image")


def test_a_jpeg_of_four_colours_whose_first_scan_has_three_is_refused_for_too_many_as_well() -> None:
    out = io.BytesIO()
    Image.new("CMYK", (16, 16)).save(out, "JPEG", subsampling=0)
    whole = out.getvalue()
    start = whole.index(b"\xff\xda")
    scan_of_three = b"\xff\xda\0\x0c\x03" + whole[start + 5 : start + 11] + whole[start + 13 : -2]

    with pytest.raises(LikenessError, match="more than 100 scans"):
        open_header(whole[:start] + scan_of_three * 101 + b"\xff\xd9", LIMITS, "image")


def test_a_jpeg_of_more_parts_than_are_looked_at_is_refused_for_too_many_scans() -> None:
    comments = b"\xff\xfe\0\x02" * 20_000
    content = progressive(comment=b"\xff\xda" * 1000)
    start = content.index(b"\xff\xda\0", content.index(b"\xff\xda\0") + 1)  # between the first scan and the second

    with pytest.raises(LikenessError, match="more than 100 scans"):
        open_header(content[:start] + comments + content[start:], LIMITS, "image")


@pytest.mark.parametrize(
    "content",
    [
        progressive() + b"\xff\xda" * 1000,  # behind the picture: a video, as phones put it there
        progressive(comment=b"\xff\xda" * 1000),
        encoded("JPEG").replace(b"\xff\xd9", b"\xff\xda" * 1000),  # libjpeg decodes the first alone
    ],
)
def test_what_only_looks_like_scans_does_not_count(content: bytes) -> None:
    assert open_header(content, LIMITS, "image").format == "JPEG"


def tiff(*entries: tuple[int, int, int], order: str = "<", big: bool = False) -> bytes:
    """A TIFF of one grey pixel, deflated, with these entries more: tag, type, value."""
    pixel = zlib.compress(b"\x80")
    usual = [(256, 3, 1), (257, 3, 1), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    offsets, counts = (324, 325) if any(tag == 322 for tag, _, _ in entries) else (273, 279)
    header = 16 if big else 8
    usual += [(offsets, 4, header), (counts, 4, len(pixel)), *entries]
    usual.sort(key=lambda entry: entry[0])
    directory = struct.pack(order + ("Q" if big else "H"), len(usual))
    for tag, kind, value in usual:
        field = struct.pack(order + {3: "H", 4: "L", 16: "Q", 17: "q", 18: "Q"}[kind], value).ljust(
            8 if big else 4, b"\0"
        )
        directory += struct.pack(order + ("HHQ" if big else "HHL"), tag, kind, 1) + field
    begin = b"II" if order == "<" else b"MM"
    where = header + len(pixel)
    begin += struct.pack(order + "HHHQ", 43, 8, 0, where) if big else struct.pack(order + "HL", 42, where)
    return begin + pixel + directory + b"\0" * 8


@pytest.mark.parametrize(
    "content",
    [
        tiff((322, 4, 40_000), (323, 4, 16_000)),
        tiff((322, 3, 40_000), (323, 3, 16_000), order=">"),
        tiff((322, 16, 40_000), (323, 16, 16_000), big=True),
        tiff((322, 17, 40_000), (323, 18, 16_000), big=True),  # types that Pillow does not know, and libtiff does
        tiff((322, 4, 40_000), (322, 4, 16), (323, 4, 16), (323, 4, 16_000)),
    ],
)
def test_a_small_tiff_of_a_tile_with_too_many_pixels_is_refused(content: bytes) -> None:
    with pytest.raises(
        LikenessError, match="a tile of 40000 × 16000 is 640,000,000 pixels; at most 64,000,000"
    ) as caught:
        open_header(content, LIMITS, "image")

    assert caught.value.reason == error_pb2.REASON_IMAGE_TOO_MANY_PIXELS


def test_the_tile_of_a_tiff_counts_where_it_is_larger_than_the_picture() -> None:
    tiled = tiff((322, 4, 256), (323, 3, 512))
    stripped = tiff((278, 4, 2**32 - 1))

    assert pixels_at_once(open_header(tiled, LIMITS, "image"), tiled) == 256 * 512
    assert pixels_at_once(open_header(stripped, LIMITS, "image"), stripped) == 1


def test_a_picture_for_which_there_is_no_memory_is_not_called_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_args: Any, **_options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", no_memory)
    with pytest.raises(LikenessError, match="no memory") as caught:
        open_header(b"any", LIMITS, "image")

    assert caught.value.reason == error_pb2.REASON_OVERLOADED
    assert caught.value.retry_after_s
