"""How many pixels an AVIF file's decoder makes, read from the AV1 bitstreams inside. Nothing is decoded.

Pillow takes a picture's size from the ``ispe`` or ``tkhd`` box, but the decoder makes frames of the size that the AV1
bitstream says: a file of 1 KB that calls itself 16 × 16 can hold 16384 × 16384. Boxes are those of ISO/IEC 14496-12 and
AVIF 1.1, OBUs those of the AV1 bitstream specification, 5.3 to 5.9; what is ambiguous in them is refused.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

# Steps: boxes, items, extents, OBUs and operating points that are looked at. A grid of 256 cells takes 3,400.
_MOST_STEPS = 20_000
# A sequence header has at most 32 operating points, 400 bytes in all; of a frame header 10 bytes are read.
_SEQUENCE_HEADER_BYTES, _FRAME_HEADER_BYTES = 512, 32
_OBU_SEQUENCE_HEADER, _OBU_WITH_FRAME_HEADER = 1, (3, 6, 7)
_KEY_FRAME, _SWITCH_FRAME = 0, 3
_SELECT = 2  # SELECT_SCREEN_CONTENT_TOOLS and SELECT_INTEGER_MV: every frame says it


def coded_pixels(encoded: bytes) -> tuple[int, int]:
    """Counts the pixels of an AVIF file's AV1 frames: of all items, and of every track's first sample.

    A frame counts with the sequence header's max_frame_width × max_frame_height, or with the most that its own size
    can be where it has one: dav1d lets that be larger.

    Args:
        encoded: the file's bytes.

    Returns:
        Pixels of the largest frame, or of the largest sequence header if that has more; and of all frames together.

    Raises:
        ValueError: the structure cannot be followed, a part lies outside of the file, an image has no sequence header
            before its frames, or there are more parts than are looked at.
    """
    file, steps = memoryview(encoded), _Steps()
    top = _unique(_boxes(file, steps, to_the_first_damage=True), b"meta", b"moov")
    images: list[_Joined] = []
    config_obus: list[memoryview] = []
    if b"meta" in top:
        images += _items(top[b"meta"], file, steps, config_obus)
    if b"moov" in top:
        images += _first_samples(top[b"moov"], file, steps, config_obus)
    if not images:
        raise ValueError("no AV1 image in a whole meta or moov box")
    counted = [_obu_pixels(image, steps) for image in images]
    # libavif does not read those, and the images repeat them: they count for the largest alone.
    configured = [_obu_pixels(_Joined([obus]), steps)[0] for obus in config_obus if obus]
    largest = max([largest for largest, _ in counted] + configured)
    return largest, max(largest, sum(total for _, total in counted))


class _Steps:
    """Bounds the work on one file."""

    def __init__(self) -> None:
        self._left = _MOST_STEPS

    def take(self, count: int = 1) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError(f"more than {_MOST_STEPS} boxes, items, extents and OBUs")


class _Fields:
    """Reads a box's whole numbers one after another."""

    def __init__(self, content: memoryview, at: int = 0) -> None:
        self._content, self.at = content, at

    def read(self, size: int) -> int:
        begin, self.at = self.at, self.at + size
        if self.at > len(self._content):
            raise ValueError(f"a box of {len(self._content)} bytes ends early")
        return int.from_bytes(self._content[begin : self.at])


class _Bits:
    """Reads an OBU's f(n) and uvlc() numbers one after another."""

    def __init__(self, content: bytes) -> None:
        self._value, self._left = int.from_bytes(content), 8 * len(content)

    def f(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("an OBU ends early")
        return self._value >> self._left & (1 << count) - 1

    def uvlc(self) -> int:
        leading_zeros = 0
        while not self.f(1):
            leading_zeros += 1
            if leading_zeros == 32:  # from here on dav1d and the specification read differently
                raise ValueError("a uvlc() number of more than 32 bits")
        return (1 << leading_zeros) - 1 + self.f(leading_zeros)


class _Joined:
    """The extents of an item, one behind the other, without a copy."""

    def __init__(self, extents: list[memoryview]) -> None:
        self._extents = extents
        self._ends = list(accumulate(map(len, extents)))
        self.size = self._ends[-1] if extents else 0

    def read(self, at: int, count: int, steps: _Steps) -> bytes:
        """Bytes from AT on, at most COUNT."""
        out = b""
        for index in range(bisect_right(self._ends, at), len(self._extents)):
            steps.take()
            extent = self._extents[index]
            begin = at + len(out) - self._ends[index] + len(extent)
            out += extent[begin : begin + count - len(out)]
            if len(out) == count:
                break
        return out


def _boxes(
    content: memoryview, steps: _Steps, *, to_the_first_damage: bool = False
) -> Iterator[tuple[bytes, memoryview]]:
    """Type and content of boxes, one behind the other.

    Those of the file itself only up to the first that is cut or none: there libavif ends as well, or fails.
    """
    at, end = 0, len(content)
    while at < end:
        steps.take()
        head = content[at : at + 16]
        size, header_size = int.from_bytes(head[:4]), 8
        if size == 1:
            size, header_size = int.from_bytes(head[8:]), 16
        elif size == 0:
            size = end - at
        if not header_size <= size <= end - at:
            if to_the_first_damage:
                return
            raise ValueError(f"a box of {size} bytes where {end - at} are left")
        yield bytes(head[4:8]), content[at + header_size : at + size]
        at += size


def _unique(boxes: Iterator[tuple[bytes, memoryview]], *types: bytes) -> dict[bytes, memoryview]:
    """The content of boxes of these types, of which there may be one each."""
    found: dict[bytes, memoryview] = {}
    for kind, content in boxes:
        if kind in found:
            raise ValueError(f"more than one {kind.decode()} box")
        if kind in types:
            found[kind] = content
    return found


def _only(content: memoryview, kind: bytes, steps: _Steps) -> memoryview:
    """The content of the one box of a type."""
    found = _unique(_boxes(content, steps), kind)
    if kind not in found:
        raise ValueError(f"no {kind.decode()} box")
    return found[kind]


def _items(meta: memoryview, file: memoryview, steps: _Steps, config_obus: list[memoryview]) -> Iterator["_Joined"]:
    """The data of every item of type av01."""
    found = _unique(_boxes(meta[4:], steps), b"iinf", b"iloc", b"idat", b"iprp")
    if b"iprp" in found:
        properties = _boxes(_only(found[b"iprp"], b"ipco", steps), steps)
        config_obus += [content[4:] for kind, content in properties if kind == b"av1C"]
    iinf = found.get(b"iinf", memoryview(b""))
    coded: set[int] = set()
    for kind, infe in _boxes(iinf[8 if any(iinf[:1]) else 6 :], steps):
        id_size = 4 if bytes(infe[:1]) == b"\3" else 2
        if kind == b"infe" and bytes(infe[6 + id_size : 10 + id_size]) == b"av01":
            coded.add(_Fields(infe, 4).read(id_size))
    extents = _extents(found[b"iloc"], coded, file, found.get(b"idat"), steps) if b"iloc" in found else {}
    if coded - extents.keys():
        raise ValueError(f"no extent of the items {sorted(coded - extents.keys())[:3]}")
    return (_Joined(parts) for parts in extents.values())


def _extents(
    iloc: memoryview, coded: set[int], file: memoryview, idat: memoryview | None, steps: _Steps
) -> dict[int, list[memoryview]]:
    """The extents of the coded items."""
    fields = _Fields(iloc)
    version = fields.read(4) >> 24
    sizes = fields.read(2)
    offset_size, length_size, base_offset_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    if version > 2 or not {offset_size, length_size, base_offset_size, index_size} <= {0, 4, 8}:
        raise ValueError("an iloc box of no known version and field sizes")
    id_size = 4 if version == 2 else 2
    found: dict[int, list[memoryview]] = {}
    for _ in range(fields.read(id_size)):
        steps.take()
        item = fields.read(id_size)
        construction_method = fields.read(2) & 15 if version else 0
        fields.read(2)  # data_reference_index
        base_offset = fields.read(base_offset_size)
        source = {0: file, 1: idat}.get(construction_method)
        if item in coded and (source is None or item in found):
            raise ValueError(f"item {item} is placed twice, or by construction method {construction_method}")
        parts = []
        for _ in range(fields.read(2)):
            steps.take()
            fields.read(index_size)
            offset = base_offset + fields.read(offset_size)
            length = fields.read(length_size)
            if item in coded and source is not None:
                parts.append(_part(source, offset, length))
        if item in coded:
            found[item] = parts
    return found


def _part(source: memoryview, offset: int, length: int) -> memoryview:
    """LENGTH bytes from OFFSET on."""
    if length == 0 or offset + length > len(source):
        raise ValueError(f"{length} bytes of an image from {offset} on, where there are {len(source)}")
    return source[offset : offset + length]


def _first_samples(
    moov: memoryview, file: memoryview, steps: _Steps, config_obus: list[memoryview]
) -> Iterator[_Joined]:
    """The first sample of every track that has AV1 samples."""
    for trak in [content for kind, content in _boxes(moov, steps) if kind == b"trak"]:
        table = trak
        for kind in (b"mdia", b"minf", b"stbl"):
            table = _only(table, kind, steps)
        found = _unique(_boxes(table, steps), b"stsd", b"stco", b"co64", b"stsz")
        entries = [
            content for kind, content in _boxes(found.get(b"stsd", memoryview(b""))[8:], steps) if kind == b"av01"
        ]
        if not entries:
            continue
        if b"stsz" not in found or (b"stco" in found) == (b"co64" in found):
            raise ValueError("an AV1 track without one table of sizes and one of offsets")
        for entry in entries:
            config_obus += [content[4:] for kind, content in _boxes(entry[78:], steps) if kind == b"av1C"]
        offset = _Fields(found[b"stco"], 8).read(4) if b"stco" in found else _Fields(found[b"co64"], 8).read(8)
        size = _Fields(found[b"stsz"], 4).read(4) or _Fields(found[b"stsz"], 12).read(4)
        yield _Joined([_part(file, offset, size)])


@dataclass(frozen=True)
class _SequenceHeader:
    """What the size of frames, and its place in their headers, depends on. A number that is not there has 0 bits."""

    max_pixels: int
    override_pixels: int  # the most that a frame of another size can have
    reduced_still_picture_header: bool
    frame_presentation_time_bits: int = 0
    frame_id_bits: int = 0
    seq_force_screen_content_tools: int = _SELECT
    seq_force_integer_mv: int = _SELECT


def _obu_pixels(data: _Joined, steps: _Steps) -> tuple[int, int]:
    """Pixels of the largest of the frames and sequence headers in some OBUs, and of all frames."""
    header: _SequenceHeader | None = None
    largest = total = at = 0
    while at < data.size:
        steps.take()
        head = data.read(at, 10, steps)
        kind, has_extension, has_size = head[0] >> 3 & 15, head[0] >> 2 & 1, head[0] >> 1 & 1
        at += 1 + has_extension
        size = data.size - at
        if has_size:
            size, size_bytes = _leb128(head[1 + has_extension :])
            at += size_bytes
        if at + size > data.size:
            raise ValueError(f"an OBU of {size} bytes where {data.size - at} are left")
        pixels = 0
        if kind == _OBU_SEQUENCE_HEADER:
            header = _sequence_header(_Bits(data.read(at, min(size, _SEQUENCE_HEADER_BYTES), steps)), steps)
            pixels = header.max_pixels
        elif kind in _OBU_WITH_FRAME_HEADER:
            if header is None:  # the decoder would take that of another image
                raise ValueError("a frame before its sequence header")
            pixels = _frame_pixels(header, _Bits(data.read(at, min(size, _FRAME_HEADER_BYTES), steps)))
            total += pixels
        largest = max(largest, pixels)
        at += size
    if not largest:
        raise ValueError("an AV1 image without a sequence header")
    return largest, max(largest, total)


def _leb128(content: bytes) -> tuple[int, int]:
    """A number, and its bytes."""
    value = 0
    for index, byte in enumerate(content[:8]):
        value |= (byte & 127) << 7 * index
        if byte < 128 and value < 1 << 32:
            return value, index + 1
    raise ValueError("an OBU's size is no leb128() number of 32 bits")


def _sequence_header(bits: _Bits, steps: _Steps) -> _SequenceHeader:
    """Reads a sequence_header_obu (5.5.1) up to seq_force_integer_mv."""
    bits.f(4)  # seq_profile, still_picture
    reduced = bool(bits.f(1))
    presentation_bits = 0
    if reduced:
        bits.f(5)  # seq_level_idx
    else:
        presentation_bits = _timing_and_operating_points(bits, steps)
    width_bits, height_bits = bits.f(4) + 1, bits.f(4) + 1
    max_pixels = (bits.f(width_bits) + 1) * (bits.f(height_bits) + 1)
    if reduced:
        return _SequenceHeader(max_pixels, 1 << width_bits + height_bits, True)
    frame_id_bits = bits.f(4) + 2 + bits.f(3) + 1 if bits.f(1) else 0
    bits.f(7)  # use_128x128_superblock to enable_dual_filter
    if bits.f(1):  # enable_order_hint
        bits.f(2)  # enable_jnt_comp, enable_ref_frame_mvs
    tools = _SELECT if bits.f(1) else bits.f(1)
    integer_mv = _SELECT if not tools or bits.f(1) else bits.f(1)
    override_pixels = 1 << width_bits + height_bits
    return _SequenceHeader(max_pixels, override_pixels, False, presentation_bits, frame_id_bits, tools, integer_mv)


def _timing_and_operating_points(bits: _Bits, steps: _Steps) -> int:
    """Reads those of a sequence header; returns how many bits a frame_presentation_time has, 0 where there is none."""
    equal_picture_interval = decoder_model_info_present = buffer_delay_bits = presentation_bits = 0
    if bits.f(1):  # timing_info_present_flag
        bits.f(64)  # num_units_in_display_tick, time_scale
        equal_picture_interval = bits.f(1)
        if equal_picture_interval:
            bits.uvlc()  # num_ticks_per_picture_minus_1
        decoder_model_info_present = bits.f(1)
        if decoder_model_info_present:
            buffer_delay_bits = bits.f(5) + 1
            bits.f(32 + 5)  # num_units_in_decoding_tick, buffer_removal_time_length_minus_1
            presentation_bits = bits.f(5) + 1
    initial_display_delay_present = bits.f(1)
    steps.take(6)
    for _ in range(bits.f(5) + 1):
        steps.take(2)
        bits.f(12)  # operating_point_idc
        if bits.f(5) > 7:  # seq_level_idx
            bits.f(1)  # seq_tier
        if decoder_model_info_present and bits.f(1):
            bits.f(2 * buffer_delay_bits + 1)  # decoder_buffer_delay, encoder_buffer_delay, low_delay_mode_flag
        if initial_display_delay_present and bits.f(1):
            bits.f(4)  # initial_display_delay_minus_1
    return 0 if equal_picture_interval else presentation_bits


def _frame_pixels(header: _SequenceHeader, bits: _Bits) -> int:
    """Pixels of a frame, whose uncompressed_header (5.9.2) is read up to its frame_size_override_flag.

    Of one shown again 0. Of one with a size of its own, as in scaled layers, the most that it can have: encoders make
    that less than four times the max_frame_width × max_frame_height.
    """
    if header.reduced_still_picture_header:
        return header.max_pixels
    if bits.f(1):  # show_existing_frame
        return 0
    frame_type, show_frame = bits.f(2), bits.f(1)
    bits.f(header.frame_presentation_time_bits if show_frame else 1)  # or showable_frame
    if frame_type != _SWITCH_FRAME and not (frame_type == _KEY_FRAME and show_frame):
        bits.f(1)  # error_resilient_mode
    bits.f(1)  # disable_cdf_update
    tools = header.seq_force_screen_content_tools
    if (bits.f(1) if tools == _SELECT else tools) and header.seq_force_integer_mv == _SELECT:
        bits.f(1)  # force_integer_mv
    bits.f(header.frame_id_bits)
    frame_size_override_flag = frame_type == _SWITCH_FRAME or bits.f(1)
    return header.override_pixels if frame_size_override_flag else header.max_pixels
