"""What a JPEG 2000 decoder makes for a picture is counted from its markers, never too low; nothing is decoded."""

import io
import itertools
import random
import struct
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chassis.jpeg2000 import most_parts, parts
from tests.pictures import shared

# Parts that a tile counts for, and each of its components.
TILE, TILE_COMPONENT = 24, 3


def saved(mode: str = "RGB", size: tuple[int, int] = (1024, 1024), **options: Any) -> bytes:
    """A picture as Pillow writes it."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize(size).convert(mode).save(out, "JPEG2000", **options)
    return out.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">HH", marker, len(content) + 2) + content


def siz(size: tuple[int, int], components: int, **grid: Any) -> bytes:
    """A SIZ marker; grid may give offset, tile, tile_offset and steps."""
    tile, steps = grid.get("tile", size), grid.get("steps", [(1, 1)] * components)
    offset, tile_offset = grid.get("offset", (0, 0)), grid.get("tile_offset", (0, 0))
    content = struct.pack(">H8IH", 0, *size, *offset, *tile, *tile_offset, components)
    return b"\xff\x4f" + segment(0xFF51, content + b"".join(bytes([7, *step]) for step in steps))


def spcod(levels: int, block: tuple[int, int], precincts: bytes) -> bytes:
    return bytes([levels, block[0], block[1], 0, 1]) + precincts


def cod(levels: int = 0, block: tuple[int, int] = (4, 4), precincts: bytes = b"", layers: int = 1) -> bytes:
    scod = struct.pack(">BBHB", 1 if precincts else 0, 0, layers, 0)
    return segment(0xFF52, scod + spcod(levels, block, precincts))


def coc(component: int, levels: int = 0, block: tuple[int, int] = (4, 4), precincts: bytes = b"") -> bytes:
    return segment(0xFF53, bytes([component, 1 if precincts else 0]) + spcod(levels, block, precincts))


def tile_part(header: bytes = b"", tile: int = 0, body: bytes = b"", length: int | None = None) -> bytes:
    content = struct.pack(">HIBB", tile, 14 + len(header) + len(body) if length is None else length, 0, 1)
    return segment(0xFF90, content) + header + b"\xff\x93" + body


QCD = segment(0xFF5C, b"\x40\x40")
EOC = b"\xff\xd9"
LARGE = (7000, 7000)


def hostile(size: tuple[int, int]) -> dict[str, bytes]:
    """Files of 80 to 160 bytes that would have a decoder take far more than their pixels do. Never decode one."""
    tiny, plain = cod(precincts=b"\0"), cod()
    width, height = size
    return {
        "precincts of one sample": siz(size, 3) + tiny + QCD + tile_part() + EOC,
        "precincts of one sample, one component": siz(size, 1) + tiny + QCD + tile_part() + EOC,
        "precincts of one sample, to the end": siz(size, 3) + tiny + QCD + tile_part(length=0) + EOC,
        "precincts of 2 × 2": siz(size, 3) + cod(1, precincts=b"\x11\x11") + QCD + tile_part() + EOC,
        "code blocks of 4 × 4": siz(size, 3) + cod(block=(0, 0)) + QCD + tile_part() + EOC,
        "code blocks of 4 × 4, subsampled": siz(size, 3, steps=[(1, 1), (2, 2), (2, 2)]) + cod(5, (0, 0)) + tile_part(),
        "tiles": siz(size, 3, tile=(1 + width // 250, 1 + height // 250)) + plain + QCD + tile_part() + EOC,
        "COC": siz(size, 3) + plain + coc(2, precincts=b"\0") + QCD + tile_part() + EOC,
        "COC before COD": siz(size, 3) + coc(2, precincts=b"\0") + plain + QCD + tile_part() + EOC,
        "COD in a tile-part": siz(size, 3) + plain + QCD + tile_part(tiny) + EOC,
        "COC in a tile-part": siz(size, 3) + plain + QCD + tile_part(coc(0, precincts=b"\0")) + EOC,
        "COD in the second tile-part": siz(size, 3) + plain + QCD + tile_part() + tile_part(tiny) + EOC,
        "layers": siz(size, 3) + cod(precincts=b"\x66", layers=65_535) + QCD + tile_part() + EOC,
        "layers of hardly any packets": siz(size, 3)
        + cod(20, precincts=b"\xff" * 20 + b"\x88", layers=60_000)
        + tile_part(),
        "places for packets": siz(size, 3) + cod(1, precincts=b"\x0f\xf1") + coc(1, precincts=b"\x0f") + tile_part(),
    }


def box(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    return struct.pack(">I", 8 + len(content) if length is None else length) + kind + content


def in_jp2(codestream: bytes, length: int | None = None, longer: bytes = b"") -> bytes:
    begin = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"jp2h", b"")
    return begin + box(b"jp2c", longer + codestream, length)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"irreversible": True},
        {"num_resolutions": 1},
        {"num_resolutions": 10},
        {"codeblock_size": (32, 32)},
        {"quality_layers": [40, 20, 10, 5, 2, 1]},
        {"tile_size": (256, 256)},
        {"tile_size": (512, 512)},
        {"tile_size": (1024, 1024)},
        {"precinct_size": (128, 128)},
        {"precinct_size": (256, 256), "progression": "RPCL"},
        {"tile_size": (256, 256), "precinct_size": (128, 128), "codeblock_size": (32, 32)},
    ],
    ids=str,
)
def test_a_usual_file_has_at_most_a_third_of_the_most(mode: str, options: dict[str, Any]) -> None:
    assert 0 < parts(saved(mode, no_jp2=mode == "RGB", **options)) <= most_parts(1024 * 1024) // 3


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize(
    "options", [{"tile_size": (128, 128)}, {"codeblock_size": (16, 16)}, {"precinct_size": (64, 64)}], ids=str
)
def test_an_unusual_file_is_still_below_the_most(mode: str, options: dict[str, Any]) -> None:
    assert parts(saved(mode, no_jp2=True, **options)) <= most_parts(1024 * 1024)


def test_a_small_picture_is_below_the_most_however_it_is_coded() -> None:
    for block, mode in itertools.product((4, 16, 64), ("L", "RGB", "RGBA")):
        assert parts(saved(mode, (96, 64), codeblock_size=(block, block))) <= most_parts(96 * 64)


@pytest.mark.parametrize("name", hostile(LARGE))
@pytest.mark.parametrize("size", [(800, 800), (4000, 3000), LARGE], ids=str)
def test_a_hostile_file_is_above_the_most_within_milliseconds(name: str, size: tuple[int, int]) -> None:
    codestream = hostile(size)[name]
    for encoded in (codestream, in_jp2(codestream)):
        begin = time.thread_time()
        assert parts(encoded) > most_parts(size[0] * size[1])
        assert time.thread_time() - begin < 0.5


def test_a_codestream_is_found_whatever_way_its_box_gives_its_length() -> None:
    codestream = hostile((800, 800))["COC"]
    expected = parts(codestream)

    assert parts(in_jp2(codestream)) == expected
    assert parts(in_jp2(codestream, 0)) == expected
    assert parts(in_jp2(codestream, 1, struct.pack(">Q", 16 + len(codestream)))) == expected
    assert parts(in_jp2(codestream, 20)) == expected  # OpenJPEG reads on, behind the box
    assert parts(in_jp2(codestream) + box(b"uuid", b"\0" * 16)) == expected


def test_the_count_is_that_of_the_standard_for_a_picture_that_nothing_cuts() -> None:
    """256 × 192 at 2 levels: 64 × 48, then twice three sub-bands, in precincts of 32 × 32."""
    encoded = siz((256, 192), 1) + cod(2, (2, 2), b"\x55\x55\x55") + tile_part()
    precincts = 2 * 2 + 3 * (4 * 3) + 3 * (8 * 6)
    blocks = 4 * 3 + 3 * 4 * 3 + 3 * 8 * 6  # 16 × 16, all that a sub-band has of a precinct
    packets = 4 // 10 + 12 // 10 + 48 // 10
    places = 3 * (8 * 6 // 16)

    assert parts(encoded) == precincts + blocks + packets + places + TILE + TILE_COMPONENT


def ceildiv(number: int, by: int) -> int:
    return -(-number // by)


def spans(grid: dict[str, Any], size: tuple[int, int], axis: int, step: int) -> Iterator[tuple[int, int]]:
    """A component's samples in each tile, in one direction (B.12)."""
    first, tile = grid["tile_offset"][axis], grid["tile"][axis]
    for begin in range(first, size[axis], tile):
        yield ceildiv(max(begin, grid["offset"][axis]), step), ceildiv(min(begin + tile, size[axis]), step)


def made(span: tuple[int, int], deeper: int, lowest: bool, precinct: int, block: int) -> list[tuple[int, int]]:
    """Precincts, and code blocks of each kind of sub-band, in one direction (B.15 to B.20), as OpenJPEG makes them."""
    low, high = ceildiv(span[0], 1 << deeper), ceildiv(span[1], 1 << deeper)
    cells = ceildiv(high, 1 << precinct) - (low >> precinct) if low < high else 0
    each = []
    for shift in (0,) if lowest else (0, 1):
        half = 0 if lowest else 1
        begin, end = ((edge - shift + half) >> half for edge in (low, high))
        side, exponent, blocks = 1 << precinct - half, min(block, precinct - half), 0
        for cell in range(cells):
            left = ((low >> precinct) + cell) * side
            a, b = max(left, begin), min(left + side, end)
            blocks += max(0, ceildiv(b, 1 << exponent) - (a >> exponent))
        each.append((cells, blocks))
    return each


def counted(size: tuple[int, int], grid: dict[str, Any], block: tuple[int, int], precincts: bytes) -> int:
    """Precincts of each sub-band and code blocks, one tile and one sub-band at a time."""
    total = 0
    for step, (level, byte) in itertools.product(grid["steps"], enumerate(precincts)):
        deeper, lowest = len(precincts) - 1 - level, level == 0
        across = [made(s, deeper, lowest, byte & 15, block[0] + 2) for s in spans(grid, size, 0, step[0])]
        down = [made(s, deeper, lowest, byte >> 4, block[1] + 2) for s in spans(grid, size, 1, step[1])]
        for x, y in itertools.product(across, down):
            bands = [(x[0], y[0])] if lowest else [(x[1], y[0]), (x[0], y[1]), (x[1], y[1])]
            total += sum(a[0] * b[0] + a[1] * b[1] for a, b in bands)
    return total


def test_no_picture_has_more_parts_than_are_said_and_few_have_much_fewer() -> None:
    dice, over = random.Random(20), []
    for _ in range(400):
        offset, levels = (dice.randrange(90), dice.randrange(90)), dice.randrange(5)
        size = (offset[0] + dice.randint(1, 200), offset[1] + dice.randint(1, 200))
        tile_offset = (dice.randint(0, offset[0]), dice.randint(0, offset[1]))
        tile = tuple(o - t + dice.randint(1, 99) for o, t in zip(offset, tile_offset, strict=True))
        steps = [(dice.randint(1, 4), dice.randint(1, 4)) for _ in range(dice.randint(1, 4))]
        grid = {"offset": offset, "tile": tile, "tile_offset": tile_offset, "steps": steps}
        precincts = bytes(dice.randint(level > 0, 8) << 4 | dice.randint(level > 0, 8) for level in range(levels + 1))
        block = (dice.randrange(4), dice.randrange(4))
        encoded = siz(size, len(steps), **grid) + cod(levels, block, precincts) + tile_part()
        tiles = ceildiv(size[0] - tile_offset[0], tile[0]) * ceildiv(size[1] - tile_offset[1], tile[1])
        said, exact = parts(encoded), counted(size, grid, block, precincts)

        assert said >= exact + tiles * (TILE + TILE_COMPONENT * len(steps)), (size, grid, block, precincts.hex())
        over.append(said / (exact + tiles * (TILE + TILE_COMPONENT * len(steps))))
    assert np.median(over) < 1.5


def test_a_progression_order_change_goes_through_all_places_again() -> None:
    one = siz(LARGE, 1) + cod(precincts=b"\x44")
    change = segment(0xFF5F, bytes(7 * 20))

    assert parts(one + change + tile_part()) > parts(one + tile_part()) * 3 // 2


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "no codestream"),
        (b"\xff\xd8\xff\xe0", "no codestream"),
        (in_jp2(b"")[:40] + box(b"uuid", b"", 0), "says 0 bytes"),
        (in_jp2(b"nothing of that kind"), "no codestream"),
        (siz((9, 9), 5) + cod() + tile_part(), "1 to 4 are decoded"),
        (siz((9, 9), 1, tile=(0, 9)) + cod() + tile_part(), "no picture, or no tile"),
        (siz((9, 9), 1, steps=[(0, 1)]) + cod() + tile_part(), "without a distance"),
        (siz(LARGE, 1, tile=(1, 1)) + cod() + tile_part(), "more tiles than there can be"),
        (siz((9, 9), 1) + tile_part(), "no COD"),
        (siz((9, 9), 1) + coc(0) + tile_part(), "no COD"),
        (siz((9, 9), 1) + cod(33) + tile_part(), "more levels"),
        (siz((9, 9), 1) + cod(1, precincts=b"\x11\x01") + tile_part(), "of no size"),
        (siz((9, 9), 1) + cod(2, precincts=b"\x11\x11") + tile_part(), "not all precincts"),
        (siz((9, 9), 1) + cod() + tile_part() + cod(precincts=b"\0"), "ff52 at byte .* can stand there"),
        (siz((9, 9), 1) + segment(0xFF6F, cod(precincts=b"\0")) + cod() + tile_part(), "ff6f at byte"),
        (siz((9, 9), 1) + segment(0xFF74, bytes(60)) + cod() + tile_part(), "ff74 at byte"),
        (siz((9, 9), 1) + cod() + tile_part(cod(), length=14), "ends within its header"),
        (siz((9, 9), 1) + cod() + tile_part(length=12), "no whole one"),
        (siz((9, 9), 1) + cod() + segment(0xFF64, b"")[:-1] + b"\xff", "says 255 bytes"),
        (siz((9, 9), 1) + cod() + tile_part() * 40_000, "more than 50000 markers"),
        (siz((9, 9), 1) + cod() + b"".join(coc(0, b) for b in range(33)) * 2, "ends at byte"),
        (siz((9, 9), 2) + cod() + b"".join(coc(c, b) for c in range(2) for b in range(33)), "more than 64 coding"),
        (siz((9, 9), 1)[:40] + cod() + tile_part(), "says|SIZ"),
        (siz((9, 9), 1) + cod().replace(b"\0\1", b"\4\1") + tile_part(), "end one by one"),
        (siz((9, 9), 1) + segment(0xFF53, b"") + cod() + tile_part(), "COC marker is cut"),
        (siz((9, 9), 1) + segment(0xFF52, b"\1\0\0") + tile_part(), "COC marker is cut"),
        (in_jp2(b"")[:12] + box(b"free", b"") * 2000, "no codestream"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_reason(encoded: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parts(encoded)


def test_every_cut_and_overwritten_file_is_counted_or_refused_at_once() -> None:
    codestream, dice = saved("RGB", (48, 32), no_jp2=True, tile_size=(32, 32)), random.Random(7)
    files = [saved("RGB", (48, 32)), codestream, *hostile((300, 300)).values()]
    broken = [file[:end] for file in files for end in range(len(file))]
    for _ in range(3000):
        file = bytearray(dice.choice(files))
        for _ in range(dice.randint(1, 4)):
            file[dice.randrange(len(file) if dice.random() < 0.5 else min(len(file), 140))] = dice.randrange(256)
        broken.append(bytes(file))
    numbers, refused = 0, 0
    for content in broken:
        begin = time.thread_time()
        try:
            numbers += parts(content) >= 0
        except ValueError:
            refused += 1
        assert time.thread_time() - begin < 1
    assert numbers + refused == len(broken)
    assert min(numbers, refused) > 1000


def test_the_longest_walk_takes_a_fraction_of_a_second() -> None:
    styles = b"".join(coc(c, 32, (b, b), bytes([b + 1 << 4 | 1]) * 33) for c in range(4) for b in range(9))
    encoded = siz(LARGE, 4, tile=(28, 28)) + cod(32, precincts=b"\x11" * 33) + styles
    encoded += b"".join(tile_part(tile=tile) for tile in range(24_000)) + EOC
    begin = time.thread_time()

    assert parts(encoded) > most_parts(LARGE[0] * LARGE[1])
    assert time.thread_time() - begin < 0.5


def test_the_shared_pictures_are_below_the_most() -> None:
    found = [path for path in shared("poison").rglob("*") if path.suffix in (".jp2", ".j2k", ".jpx")]
    assert found
    for path in found:
        with Image.open(path) as opened:
            assert parts(path.read_bytes()) <= most_parts(opened.width * opened.height), path.name
