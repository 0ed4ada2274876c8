"""How many pixels an AVIF's decoder makes is read from its bitstreams, whatever its boxes say."""

import io
import random
import struct
import time
from typing import Any

import pytest
from PIL import Image

from chassis.avif import coded_pixels
from tests.pictures import shared


def saved(size: tuple[int, int] = (33, 21), mode: str = "RGB", frames: int = 1, **options: Any) -> bytes:
    pictures = [Image.linear_gradient("L").rotate(90 * turn).resize(size).convert(mode) for turn in range(frames)]
    if mode == "RGBA":
        pictures[0].putalpha(100)
    if frames > 1:
        options |= {"save_all": True, "append_images": pictures[1:]}
    out = io.BytesIO()
    pictures[0].save(out, "AVIF", speed=10, **options)
    return out.getvalue()


def box(kind: bytes, *content: bytes, size_64: bool = False) -> bytes:
    whole = b"".join(content)
    if size_64:
        return struct.pack(">I4sQ", 1, kind, len(whole) + 16) + whole
    return struct.pack(">I4s", len(whole) + 8, kind) + whole


def obu(kind: int, content: bytes) -> bytes:
    return bytes([kind << 3 | 2, len(content) & 127 | 128, len(content) >> 7]) + content


def bits(*numbers: tuple[int, int]) -> bytes:
    """Numbers of so many bits each, padded."""
    text = "".join(f"{value:0{count}b}" for value, count in numbers if count)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8))


def size_fields(width: int, height: int) -> list[tuple[int, int]]:
    return [(15, 4), (15, 4), (width - 1, 16), (height - 1, 16)]


def still(width: int, height: int) -> bytes:
    """A sequence header and the begin of a frame, as a reduced_still_picture_header has them."""
    return obu(1, bits((0b00011, 5), (0, 5), *size_fields(width, height), (0, 16))) + obu(6, b"\x10" * 40)


def video(width: int, height: int, frame: bytes, *, timed: bool = False, points: int = 1) -> bytes:
    """The same with everything that can stand before the size, and a frame header."""
    timing = [(1, 1), (1, 32), (1, 32), (0, 1), (1, 1), (9, 5), (1, 32), (4, 5), (11, 5)] if timed else [(0, 1)]
    point = [(0, 12), (8, 5), (0, 1), *([(1, 1), (0, 21)] if timed else []), (1, 1), (3, 4)]
    header = [(0, 5), *timing, (1, 1), (points - 1, 5), *point * points, *size_fields(width, height)]
    tools = [(1, 1), (3, 4), (2, 3), (0, 7), (1, 1), (0, 2), (1, 1), (1, 1), (6, 3), (0, 16)]
    return obu(1, bits(*header, *tools)) + obu(6, frame)


def frame(*, override: int, timed: bool = False, kind: int = 0) -> bytes:
    presented = [(0, 12)] if timed else []
    resilient = [(0, 1)] if kind in (1, 2) else []
    return bits(
        (0, 1), (kind, 2), (1, 1), *presented, *resilient, (0, 1), (1, 1), (0, 1), (5, 8), (override, 1), (0, 99)
    )


def avif(*items: bytes, version: int = 0, idat: bool = False, cut: int = 1, method: int | None = None) -> bytes:
    """A file of these items, each in CUT extents, of an iloc version; in the mdat box or the idat box."""
    wide = ">I" if version == 2 else ">H"
    infe = b"".join(
        box(b"infe", bytes([3 if version == 2 else 2, 0, 0, 0]), struct.pack(wide, index), b"\0\0av01\0")
        for index in range(1, len(items) + 1)
    )
    iinf = box(b"iinf", b"\0\0\0\0", struct.pack(">H", len(items)), infe)
    method = int(idat) if method is None else method

    def whole(start: int) -> bytes:
        table, place = struct.pack(">B3xBB", version, 0x44, 0x40) + struct.pack(wide, len(items)), 0
        for index, item in enumerate(items, 1):
            table += struct.pack(wide, index) + (struct.pack(">H", method) if version else b"")
            table += struct.pack(">HIH", 0, start, cut)
            for part in range(cut):
                begin, end = len(item) * part // cut, len(item) * (part + 1) // cut
                table += struct.pack(">II", place + begin, end - begin)
            place += len(item)
        stored = box(b"idat", *items) if idat else b""
        meta = box(b"meta", b"\0\0\0\0", iinf, box(b"iloc", table), stored)
        return box(b"ftyp", b"avif\0\0\0\0avifmif1") + meta + box(b"mdat", *([] if idat else items))

    return whole(0 if idat else len(whole(0)) - sum(map(len, items)))


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (33, 21), (257, 130), (1200, 7), (640, 480)])
@pytest.mark.parametrize("subsampling", ["4:0:0", "4:2:0", "4:2:2", "4:4:4"])
def test_an_avif_of_pillows_has_the_pixels_of_its_size(size: tuple[int, int], subsampling: str) -> None:
    assert coded_pixels(saved(size, subsampling=subsampling)) == (size[0] * size[1],) * 2


@pytest.mark.parametrize("quality", [0, 1, 25, 50, 75, 99, 100])
def test_quality_changes_no_pixels(quality: int) -> None:
    assert coded_pixels(saved((130, 70), quality=quality)) == (9100, 9100)


def test_transparency_counts_beside_the_colours() -> None:
    assert coded_pixels(saved((130, 70), "RGBA")) == (9100, 18200)


def test_metadata_count_nothing() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a gradient"

    assert coded_pixels(saved(exif=exif, xmp=b"<x/>" * 100, icc_profile=b"icc" * 100)) == (693, 693)


@pytest.mark.parametrize(("mode", "total"), [("RGB", 2 * 693), ("RGBA", 4 * 693)])
def test_an_animation_counts_its_still_picture_and_the_first_of_each_track(mode: str, total: int) -> None:
    assert coded_pixels(saved(mode=mode, frames=4)) == (693, total)


def test_the_shared_avif_has_the_pixels_of_its_size() -> None:
    content = (shared("poison") / "ok_avif.avif").read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        assert coded_pixels(content)[0] == opened.width * opened.height


@pytest.mark.parametrize("frames", [1, 3])
def test_a_file_that_calls_itself_small_is_told_its_real_pixels(frames: int) -> None:
    content = bytearray(saved((2000, 1500), frames=frames))
    for kind, place in ((b"ispe", 8), (b"tkhd", 92)):
        if kind in content:
            struct.pack_into(
                ">II", content, content.index(kind) + place, *((16, 16) if place == 8 else (16 << 16,) * 2)
            )

    with Image.open(io.BytesIO(content)) as opened:
        assert opened.size == (16, 16)
    assert coded_pixels(bytes(content))[0] == 3_000_000


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("cut", [1, 2, 7])
def test_items_are_found_by_every_version_of_their_places(version: int, cut: int) -> None:
    items = [still(100, 200), still(3000, 2000), still(8, 8)]

    for idat in {False, version > 0}:
        assert coded_pixels(avif(*items, version=version, idat=idat, cut=cut)) == (6_000_000, 6_020_064)


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("points", [1, 3, 32])
@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_a_frame_counts_with_the_most_that_a_size_of_its_own_can_be(timed: bool, points: int, kind: int) -> None:
    usual = avif(video(16, 12, frame(override=0, timed=timed, kind=kind), timed=timed, points=points))
    larger = avif(video(16, 12, frame(override=1, timed=timed, kind=kind), timed=timed, points=points))

    assert coded_pixels(usual) == ((192, 192) if kind != 3 else (1 << 32, 1 << 32))
    assert coded_pixels(larger) == (1 << 32, 1 << 32)


def test_every_frame_of_an_item_counts() -> None:
    again = obu(3, b"\x80")  # show_existing_frame
    assert coded_pixels(avif(still(10, 10) + obu(6, b"\x10" * 40) + still(20, 20) + again)) == (400, 1000)
    assert coded_pixels(avif(video(16, 12, frame(override=0)) + again)) == (192, 192)


def test_a_header_in_the_configuration_counts_for_the_largest() -> None:
    content = avif(still(10, 10))
    meta = content.index(b"meta") - 4
    configuration = box(b"iprp", box(b"ipco", box(b"av1C", b"\x81\0\0\0", still(50, 50))))
    file = content[:meta] + box(b"meta", content[meta + 8 : content.index(b"mdat") - 4], configuration)
    file += content[content.index(b"mdat") - 4 :]
    place = file.index(b"iloc") + 16
    file = file[:place] + struct.pack(">I", file.index(still(10, 10), file.index(b"mdat"))) + file[place + 4 :]

    assert coded_pixels(file) == (2500, 2500)


def test_boxes_of_every_size_field_are_followed() -> None:
    content = avif(still(30, 40))
    end = content.index(b"mdat") - 4
    inside = avif(still(30, 40), version=1, idat=True)
    meta = inside.index(b"meta") - 4
    wide = box(b"meta", inside[meta + 8 : inside.index(b"mdat") - 4], size_64=True)

    assert coded_pixels(content[:end] + b"\0\0\0\0" + content[end + 4 :]) == (1200, 1200)
    assert coded_pixels(inside[:meta] + wide) == (1200, 1200)
    assert coded_pixels(content + b"what is no box") == (1200, 1200)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no AV1 image"),
        (b"\0\0\0\x08ftyp", "no AV1 image"),
        (avif(b"\x12\0"), "without a sequence header"),
        (avif(obu(6, b"\x10" * 40)), "a frame before its sequence header"),
        (avif(still(9, 9), version=1, method=2), "construction method 2"),
        (avif(still(9, 9), version=1, method=1), "construction method 1"),
        (avif(still(9, 9))[:-9], "no AV1 image|bytes of an image"),
        (avif(still(9, 9)[:-1]), "an OBU of"),
        (avif(b"\x0a" + b"\xff" * 9), "leb128"),
        (avif(still(9, 9)).replace(b"iloc", b"free"), "no extent of the items"),
        (avif(obu(1, bits((0, 5), (1, 1), (0, 64), (1, 1), (0, 400)))), "uvlc"),
        (avif(obu(1, b"\0")), "an OBU ends early"),
        (avif(b"\x12\0" * 25_000), "more than 20000"),
        (avif(*[still(9, 9)] * 5000), "more than 20000"),
        (saved(frames=2).replace(b"stsz", b"free"), "without one table"),
        (saved(frames=2).replace(b"minf", b"free"), "no minf box"),
    ],
)
def test_what_cannot_be_followed_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coded_pixels(content)


@pytest.mark.parametrize("content", [saved(mode="RGBA"), saved(frames=2), avif(still(9, 9), version=2, cut=3)])
def test_a_cut_or_changed_file_is_counted_or_refused(content: bytes) -> None:
    chance = random.Random(7)
    broken = [content[:end] for end in range(len(content))]
    for _ in range(1000):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
        broken.append(bytes(changed))
    slowest, refused = 0.0, 0
    for each in broken:
        began = time.thread_time()
        try:
            largest, total = coded_pixels(each)
            assert 0 < largest <= total
        except ValueError:
            refused += 1
        slowest = max(slowest, time.thread_time() - began)

    assert refused >= len(content) // 2
    assert slowest < 0.5  # 20 ms; more is a busy machine


def hostile() -> dict[str, bytes]:
    """Files of up to 32 MiB that are to take long."""
    size = 32 << 20
    many = video(16, 12, frame(override=0), timed=True, points=32)
    return {
        "OBUs": avif(b"\x12\0" * (size // 2)),
        "extents": avif(b"\x12\0" * 4000, cut=1500),
        "operating points": avif(many * 60),
        "boxes": b"\0\0\0\x08free" * (size // 8),
        "items": avif(*[still(9, 9)] * 440),
        "a long header": avif(still(9, 9) + obu(1, b"\0" * 16_000) * 1000),
        "metadata": avif(still(9, 9)) + box(b"free", bytes(size)),
    }


@pytest.mark.parametrize("name", ["OBUs", "extents", "operating points", "boxes", "items", "a long header", "metadata"])
def test_no_file_takes_long(name: str) -> None:
    content = hostile()[name]
    began = time.thread_time()
    try:
        coded_pixels(content)
        took = time.thread_time() - began
    except ValueError:
        took = time.thread_time() - began
    assert took < 0.5  # 20 ms; more is a busy machine
