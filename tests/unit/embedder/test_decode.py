"""Bytes to upright RGB."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image

from chassis.errors import LikenessError
from chassis.pictures import PictureLimits
from embedder.decode import open_picture, upright_rgb
from embedder.inputs import EncodedPicture, RgbPicture
from embedder.spec import Geometry
from tests.pictures import shared

LIMITS = PictureLimits(32 * 2**20, 64_000_000)
ROOT = Path(__file__).resolve().parents[3]
GEOMETRY = Geometry(224, 224, "shortest", "bicubic")


def decode(encoded: bytes, limits: PictureLimits = LIMITS, geometry: Geometry = GEOMETRY) -> Image.Image:
    return upright_rgb(header(encoded, limits), limits, "inputs[0].image.encoded", geometry)


def header(encoded: bytes, limits: PictureLimits = LIMITS) -> Image.Image:
    return open_picture(EncodedPicture(encoded, "inputs[0].image"), limits)


def reason(encoded: bytes, limits: PictureLimits = LIMITS) -> str:
    with pytest.raises(LikenessError) as caught:
        decode(encoded, limits)
    assert caught.value.violations[0].field == "inputs[0].image.encoded"
    return caught.value.reason_name


def encoded(picture: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, format_, **options)
    return out.getvalue()


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference in levels of 255."""
    assert a.size == b.size
    return float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean())


@pytest.fixture
def reference() -> Image.Image:
    """A picture that no flip and no turn leaves as it is."""
    y, x = np.mgrid[0:40, 0:60]
    pixels: npt.NDArray[np.uint8] = np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def animated_webp_header(width: int, height: int) -> bytes:
    """A canvas of any size with one frame of 1 × 1."""
    frame = encoded(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)

    def u24(number: int) -> bytes:
        return struct.pack("<I", number)[:3]

    body = chunk(b"VP8X", bytes([2, 0, 0, 0]) + u24(width - 1) + u24(height - 1)) + chunk(b"ANIM", b"\0" * 6)
    body += chunk(b"ANMF", u24(0) * 4 + u24(100) + b"\0" + frame)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(reference: Image.Image, orientation: int) -> None:
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = reference.transpose(back[orientation]) if orientation in back else reference
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for format_, tolerance in (("PNG", 0.0), ("TIFF", 0.0), ("JPEG", 3.0), ("WEBP", 4.0)):
        assert difference(decode(encoded(stored, format_, exif=exif)), reference) <= tolerance, format_


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0" + bytes(range(256)),
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
    ],
)
def test_garbage_exif_counts_as_none(reference: Image.Image, exif: bytes) -> None:
    assert difference(decode(encoded(reference, "JPEG", exif=exif)), reference) < 3


@pytest.mark.parametrize("orientation", [0, 9, 99])
def test_an_orientation_out_of_range_counts_as_none(reference: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    assert difference(decode(encoded(reference, exif=exif)), reference) == 0


def test_sixteen_bit_grey_is_scaled_and_not_clipped(reference: Image.Image) -> None:
    grey = np.asarray(reference.convert("L"), np.uint16)
    got = np.asarray(decode(encoded(Image.fromarray(grey * 257))))
    assert (got == grey[..., None]).all()


def tiff(bits: int, photometric: int, content: bytes) -> bytes:
    """Four by four pixels of grey, uncompressed, which Pillow cannot write like this."""
    tags = {256: 4, 257: 4, 258: bits, 259: 1, 262: photometric, 277: 1, 278: 4, 279: len(content)}
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


@pytest.mark.parametrize(
    ("bits", "photometric", "row", "expected"),
    [
        (16, 1, struct.pack("<4H", 65535, 32768, 16384, 0), [255, 128, 64, 0]),
        (16, 0, struct.pack("<4H", 65535, 32768, 16384, 0), [0, 127, 191, 255]),
        (12, 1, bytes.fromhex("fff800400000"), [255, 128, 64, 0]),
        (8, 0, bytes([255, 128, 64, 0]), [0, 127, 191, 255]),
    ],
)
def test_grey_of_a_tiff_is_scaled_by_its_bits_and_white_may_be_zero(
    bits: int, photometric: int, row: bytes, expected: list[int]
) -> None:
    got = np.asarray(decode(tiff(bits, photometric, row * 4)))
    assert got[0, :, 0].tolist() == expected


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 1e9])
def test_float_and_long_grey_is_scaled_to_eight_bits(top: float) -> None:
    ramp = np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)
    got = np.asarray(decode(encoded(Image.fromarray(ramp), "TIFF")))[..., 0].reshape(-1).astype(int)
    assert (np.abs(got - np.linspace(0, 255, 64)) <= 1.01).all()


def test_float_grey_with_nan_and_negative_numbers_is_decoded() -> None:
    values = np.array([[np.nan, -1.0], [0.0, 3.0]], np.float32)
    assert decode(encoded(Image.fromarray(values), "TIFF")).getextrema() == ((0, 255),) * 3


@pytest.mark.parametrize("kind", [np.float32, np.int32])
@pytest.mark.parametrize("value", [-5, 70_000])
def test_float_and_long_grey_of_one_value_is_black(kind: type[np.generic], value: int) -> None:
    one = Image.fromarray(np.full((4, 4), value, kind))
    assert decode(encoded(one, "TIFF")).getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "I;16"])
def test_every_usual_pixel_format_becomes_rgb(reference: Image.Image, mode: str) -> None:
    source = reference.convert("L").convert(mode) if mode in ("I;16", "1") else reference.convert(mode)
    got = decode(encoded(source, "TIFF" if mode == "CMYK" else "PNG"))
    assert got.mode == "RGB"
    if mode != "I;16":
        assert difference(got, source.convert("RGB")) == 0


def test_a_cmyk_jpeg_keeps_its_colours(reference: Image.Image) -> None:
    assert difference(decode(encoded(reference.convert("CMYK"), "JPEG", quality=95)), reference) < 4


def test_alpha_is_dropped_as_open_clip_drops_it(reference: Image.Image) -> None:
    transparent = reference.copy()
    transparent.putalpha(Image.new("L", reference.size, 0))
    assert difference(decode(encoded(transparent)), reference) == 0


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_counts(format_: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if format_ == "WEBP" else {}
    got = decode(encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options))
    assert got.getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "JPEG2000", "TIFF"])
def test_a_truncated_picture_is_damaged(photographs: list[Path], format_: str) -> None:
    whole = encoded(Image.open(photographs[0]).convert("RGB"), format_)
    assert decode(whole).size == (451, 300)
    assert reason(whole[: len(whole) // 2]) == "IMAGE_DAMAGED"


def test_what_is_no_picture_is_unsupported() -> None:
    for junk in (b"", b"hello", b"<svg/>", b"%PDF-1.7", bytes(range(256))):
        assert reason(junk) == "IMAGE_FORMAT_UNSUPPORTED"


def test_a_picture_of_too_many_bytes_is_refused(reference: Image.Image) -> None:
    assert reason(encoded(reference), PictureLimits(100, 10**6)) == "IMAGE_TOO_LARGE"


def test_a_postscript_file_named_jpg_starts_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"
    assert reason(eps) == "IMAGE_FORMAT_UNSUPPORTED"
    assert started == []


@pytest.mark.parametrize("size", [(50_000, 50_000), (16_000, 12_000), (12_000, 9_000), (8_001, 8_000)])
def test_too_many_pixels_are_refused_by_the_header(size: tuple[int, int]) -> None:
    assert reason(png_header(*size)) == "IMAGE_TOO_MANY_PIXELS"
    assert reason(animated_webp_header(*size)) == "IMAGE_TOO_MANY_PIXELS"


def test_refusing_a_bomb_allocates_nothing(tmp_path: Path) -> None:
    bombs = [png_header(50_000, 50_000), png_header(12_000, 9_000), animated_webp_header(16_383, 16_383)]
    bombs.append(
        b"GIF89a"
        + struct.pack("<HH", 65535, 65535)
        + b"\0\0\0,\0\0\0\0"
        + struct.pack("<HH", 65535, 65535)
        + b"\0\2\0;"
    )
    for number, bomb in enumerate(bombs):
        (tmp_path / f"{number}").write_bytes(bomb)
    # In a process of its own: the high-water mark of this one says nothing any more.
    script = """
import resource, sys
from pathlib import Path
from tests.unit.embedder.test_decode import reason, decode, encoded, Image
decode(encoded(Image.new("RGB", (64, 64))))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    assert reason(path.read_bytes()) == "IMAGE_TOO_MANY_PIXELS", path
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 8 * 1024, "KiB more than before"


def test_decoded_pixels_are_taken_as_they_are(reference: Image.Image) -> None:
    picture = RgbPicture(60, 40, reference.tobytes(), "inputs[0].image")
    assert difference(upright_rgb(open_picture(picture, LIMITS), LIMITS, "x", GEOMETRY), reference) == 0


@pytest.mark.parametrize(
    ("width", "height", "size", "field", "name"),
    [
        (0, 4, 0, "rgb.width", "FIELD_INVALID"),
        (4, 0, 0, "rgb.height", "FIELD_INVALID"),
        (4, 4, 47, "rgb.pixels", "FIELD_INVALID"),
        (4, 4, 49, "rgb.pixels", "FIELD_INVALID"),
        (2**32 - 1, 2**32 - 1, 0, "rgb", "IMAGE_TOO_MANY_PIXELS"),
    ],
)
def test_decoded_pixels_that_do_not_add_up_are_refused(
    width: int, height: int, size: int, field: str, name: str
) -> None:
    with pytest.raises(LikenessError) as caught:
        open_picture(RgbPicture(width, height, b"\0" * size, "inputs[0].image"), LIMITS)
    assert (caught.value.reason_name, caught.value.violations[0].field) == (name, f"inputs[0].image.{field}")


def manifest() -> list[tuple[str, str, str]]:
    lines = (shared("poison") / "manifest.tsv").read_text().splitlines()[1:]
    return [(row[0], row[1], row[2]) for row in (line.split("\t") for line in lines)]


def test_every_poison_file_is_decoded_or_refused_as_its_manifest_says() -> None:
    folder, wrong = shared("poison"), []
    for name, expected, looks_like in manifest():
        content = (folder / name).read_bytes()
        try:
            got = decode(content)
        except LikenessError as error:
            if expected != "reject" or not error.reason_name.startswith("IMAGE_"):
                wrong.append((name, str(error)))
            continue
        if expected == "reject":
            wrong.append((name, "was decoded"))
        elif looks_like and difference(got, decode((folder / looks_like).read_bytes())) > 12:
            wrong.append((name, f"does not look like {looks_like}"))
    assert len(manifest()) > 70
    assert wrong == []
