"""How many parts a decoder makes for a JPEG 2000 picture: precincts, code blocks, tiles and packets.

A codestream of 88 bytes can ask for a precinct and a code block at each pixel (ISO/IEC 15444-1, B.6 and B.7). OpenJPEG
takes some 300 bytes for each, in C code that nothing interrupts: 1.7 KB a pixel of three components. So the parts are
counted from the markers (Annex A) before anything is decoded: never fewer than OpenJPEG makes, and for usual files
hardly more. What the bodies of the tile-parts hold is not looked at. Where the passes of code blocks end one by one,
which hardly any encoder does, they could have 116 bytes of memory taken for each byte of the file: that is refused.
"""

from collections.abc import Iterator
from typing import NamedTuple

_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_SOC_SIZ = b"\xff\x4f\xff\x51"
_COD, _COC, _POC, _SOT, _SOD, _EOC = 0xFF52, 0xFF53, 0xFF5F, 0xFF90, 0xFF93, 0xFFD9
# COD, COC, POC, CAP, TLM, PLM, PLT, CPF, QCD, QCC, RGN, PPM, PPT, CRG and COM. Behind one that OpenJPEG does not know
# it looks for the next that it does, within the other's content too: a COD could hide there. Part 2's MCT, MCC, MCO
# and CBD it knows, and copies to every tile: 1.2 MB of them, in 100 tiles, take 120 MB.
_KNOWN = {0xFF00 | low for low in b"\x52\x53\x5f\x50\x55\x57\x58\x59\x5c\x5d\x5e\x60\x61\x63\x64"}
# Encoders write a tile-part for each tile, or for each resolution level of it; so many markers are read in 0.1 s.
_MOST_MARKERS = 50_000
_MOST_BOXES = 1000
_MOST_STYLES = 64
_MOST_COMPONENTS = 4  # Pillow decodes no more
_MOST_TILES = 65_535
_MOST_LEVELS = 32
_TERMINATED = 4  # of a code block's style (Table A.19)

# As measured with OpenJPEG 2.5.4, where a part takes 290 to 430 bytes and 0.8 µs: a tile takes 9 KB and for each
# component 1.1 KB, be it in the file or not; a packet 80 ns; a place to look for packets at 50 ns; and 2 bytes note
# whether a tile's packet was there, for as many in each layer, component and resolution level as one of them has.
_TILE, _TILE_COMPONENT, _PACKETS, _PLACES, _NOTES = 24, 3, 10, 16, 200


class _Style(NamedTuple):
    """A coding style (A.6.1): exponents of the code blocks' size, and each resolution level's precinct byte."""

    xcb: int
    ycb: int
    precincts: bytes


class _Axis(NamedTuple):
    """The reference grid in one direction (B.2, B.3): the image area, the tiles' first edge, their size and number."""

    begin: int
    end: int
    tile_begin: int
    tile: int
    tiles: int

    def cells(self, scale: int, cell: int, halves: int = 1) -> int:
        """Cells of a grid in all tiles at a scale, in samples or, of 2 halves, in a sub-band's coefficients."""
        begin, end = -(-self.begin // scale), -(-self.end // scale)
        if begin == end:
            return 0
        cell *= halves
        # A tile's edge between cells cuts none in two; any other does.
        aligned = self.tile % (scale * cell) == self.tile_begin % (scale * cell) == 0
        return -(-end // cell) - begin // cell + (0 if aligned else self.tiles - 1)

    def in_one_tile(self, step: int) -> int:
        """Cells of so many steps of the reference grid that a tile has at most."""
        return min(self.tile, self.end - self.begin) // step + 2


def most_parts(pixels: int) -> int:
    """The most parts to decode for a picture: 18 bytes of memory a pixel, beside 2 MB.

    Args:
        pixels: width × height.
    """
    return 4096 + pixels // 24


def parts(encoded: bytes) -> int:
    """Precincts (of each sub-band) and code blocks of a whole picture, and what its tiles and packets take beside them.

    Args:
        encoded: a codestream, or a JP2 file.

    Returns:
        At least what OpenJPEG makes, over all tiles, components and resolution levels.

    Raises:
        ValueError: the structure cannot be followed; the message says where.
    """
    begin = _codestream(encoded)
    x, y, steps = _size(_segment(encoded, begin + 2))
    layers, progressions = 0, 1
    main: set[tuple[int, _Style]] = set()  # with the component, or -1 for all
    tiled: set[tuple[int, _Style]] = set()
    for marker, content, in_tile in _markers(encoded, begin + 2):
        if marker == _POC:  # each entry goes through the packets once more
            progressions = min(33, progressions + len(content) // 7)
        elif marker in (_COD, _COC):
            if marker == _COD:
                layers = max(layers, int.from_bytes(content[2:4]))
            (tiled if in_tile else main).add(_style(marker, content))
            if len(main) + len(tiled) > _MOST_STYLES:
                raise ValueError(f"more than {_MOST_STYLES} coding styles")
    if all(component >= 0 for component, _ in main):
        raise ValueError("the main header has no COD marker")
    total = x.tiles * y.tiles * (_TILE + _TILE_COMPONENT * len(steps))
    nearest, busiest, resolutions = (2**31, 2**31), 0, 0
    for component, (dx, dy) in enumerate(steps):
        counts: list[list[int]] = []
        for styles in (main, tiled):
            ours = {style for whose, style in styles if whose in (-1, component)}
            counts.append([_parts_of(style, x, y, (dx, dy), layers) for style in ours])
            for _, _, precincts in ours:
                resolutions = max(resolutions, len(precincts))
                for level, byte in enumerate(reversed(precincts)):
                    across, down = dx << level + (byte & 15), dy << level + (byte >> 4)
                    nearest = min(nearest[0], across), min(nearest[1], down)
                    busiest = max(busiest, x.in_one_tile(across) * y.in_one_tile(down))
        # The main header gives one style to all tiles that have none of their own; those may have any.
        total += max(counts[0]) + sum(counts[1])
    places = x.cells(1, nearest[0]) * y.cells(1, nearest[1]) * progressions
    return total + resolutions * len(steps) * (places // _PLACES + busiest * layers // _NOTES)


def _parts_of(style: _Style, x: _Axis, y: _Axis, step: tuple[int, int], layers: int) -> int:
    """What one component makes in all tiles (B.5 to B.7) at its steps (XRsiz, YRsiz) on the reference grid."""
    total = 0
    for level, byte in enumerate(reversed(style.precincts)):
        lowest = level == len(style.precincts) - 1
        bands, halves = (1, 1) if lowest else (3, 2)
        ppx, ppy, across, down = byte & 15, byte >> 4, step[0] << level, step[1] << level
        precincts = x.cells(across, 1 << ppx) * y.cells(down, 1 << ppy)
        columns = x.cells(across, 1 << min(style.xcb, ppx - halves + 1), halves)
        rows = y.cells(down, 1 << min(style.ycb, ppy - halves + 1), halves)
        total += bands * (precincts + columns * rows) + precincts * layers // _PACKETS
    return total


def _style(marker: int, content: bytes) -> tuple[int, _Style]:
    """The component that a COD or COC marker is for, -1 for all, and its coding style (A.6.1, A.6.2)."""
    whole = content + b"\0\0"
    component, scod, spcod = (-1, whole[0], content[5:]) if marker == _COD else (whole[0], whole[1], content[2:])
    if len(spcod) < 5 or spcod[0] > _MOST_LEVELS or max(spcod[1], spcod[2]) > 8:
        raise ValueError("a COD or COC marker is cut, or has more levels or larger code blocks than there can be")
    if spcod[3] & _TERMINATED:
        raise ValueError("its coding passes end one by one; save it without termination on each coding pass")
    precincts = spcod[5 : 6 + spcod[0]] if scod & 1 else b"\xff" * (spcod[0] + 1)
    if len(precincts) != spcod[0] + 1 or any(not byte & 15 or not byte >> 4 for byte in precincts[1:]):
        raise ValueError("a COD or COC marker has not all precincts, or has some of no size")
    return component, _Style(spcod[1] + 2, spcod[2] + 2, precincts)


def _size(content: bytes) -> tuple[_Axis, _Axis, list[tuple[int, int]]]:
    """Both directions of the reference grid, and each component's steps on it, as SIZ says (A.5.1)."""
    count = int.from_bytes(content[34:36])
    if len(content) != 36 + 3 * count or not 1 <= count <= _MOST_COMPONENTS:
        raise ValueError(f"a SIZ marker of {len(content)} bytes for {count} components; 1 to 4 are decoded")
    x_end, y_end, x, y, x_tile, y_tile, x_first, y_first = (int.from_bytes(content[i : i + 4]) for i in range(2, 34, 4))
    axes = []
    for begin, end, tile, first in ((x, x_end, x_tile, x_first), (y, y_end, y_tile, y_first)):
        if not first <= begin < min(end, first + tile) or end >= 2**31:
            raise ValueError("no picture, or no tile, is where the SIZ marker says")
        axes.append(_Axis(begin, end, first, tile, -((first - end) // tile)))
    steps = [(content[i + 1], content[i + 2]) for i in range(36, len(content), 3)]
    if axes[0].tiles * axes[1].tiles > _MOST_TILES or any(0 in step for step in steps):
        raise ValueError("more tiles than there can be, or samples without a distance")
    return axes[0], axes[1], steps


def _markers(encoded: bytes, place: int) -> Iterator[tuple[int, bytes, bool]]:
    """Each marker, its content, and whether a tile-part's header has it; place is that of SIZ."""
    tile_part, end = -1, len(encoded)
    place += 4 + len(_segment(encoded, place))
    for _ in range(_MOST_MARKERS):
        marker = _number(encoded, place, 2)
        if marker == _SOD and tile_part >= 0:
            if place + 2 > end:
                raise ValueError(f"the tile-part at byte {tile_part} ends within its header")
            place, tile_part = end, -2
            if len(encoded) - place < 2 or _number(encoded, place, 2) == _EOC:
                return
        elif marker == _SOT and tile_part < 0:
            content = _segment(encoded, place)
            length = int.from_bytes(content[2:6])
            if len(content) != 8 or 0 < length < 14:
                raise ValueError(f"the SOT marker at byte {place} is no whole one")
            tile_part, end = place, min(place + length, len(encoded)) if length else len(encoded)
            place += 12
        elif marker in _KNOWN and tile_part != -2:
            content = _segment(encoded, place)
            yield marker, content, tile_part >= 0
            place += 4 + len(content)
        else:
            raise ValueError(f"{marker:04x} at byte {place} is no marker that can stand there")
    raise ValueError(f"more than {_MOST_MARKERS} markers")


def _codestream(encoded: bytes) -> int:
    """Where the codestream begins: at once, or within a JP2's first box of that kind (Annex I)."""
    place = 0
    if encoded.startswith(_JP2):
        for _ in range(_MOST_BOXES):
            length, kind, header = _number(encoded, place, 4), encoded[place + 4 : place + 8], 8
            if length == 1:
                length, header = _number(encoded, place + 8, 8), 16
            if kind == b"jp2c":
                place += header
                break
            if length < header:
                raise ValueError(f"the box at byte {place} says {length} bytes")
            place += length
    # To the file's end, whatever the box's length is: OpenJPEG does not heed it.
    if encoded[place : place + 4] != _SOC_SIZ:
        raise ValueError("no codestream is where it should begin")
    return place


def _segment(encoded: bytes, place: int) -> bytes:
    """The content of the marker segment at a place, behind its length."""
    length = _number(encoded, place + 2, 2)
    if length < 2 or place + 2 + length > len(encoded):
        raise ValueError(f"the marker at byte {place} says {length} bytes")
    return encoded[place + 4 : place + 2 + length]


def _number(encoded: bytes, place: int, size: int) -> int:
    if place + size > len(encoded):
        raise ValueError(f"the file ends at byte {len(encoded)}, within its structure")
    return int.from_bytes(encoded[place : place + size])
