"""Pictures for tests: scikit-image's photographs, hostile ones made here, and the shared test data."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.demo import sample_pictures

SHARED = Path(os.environ.get("LIKENESS_SHARED", Path(__file__).resolve().parent.parent.parent / "shared")) / "data"


def shared(name: str) -> Path:
    """A folder of the shared test data; the test is skipped, by the folder's name, where it is missing."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs the folder {SHARED / name}")
    return SHARED / name


def samples(directory: Path) -> dict[str, Path]:
    """A dozen real photographs, by name without suffix."""
    directory.mkdir(exist_ok=True)
    sample_pictures(directory)
    return {path.stem: path for path in sorted(directory.iterdir())}


def noise(seed: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A small JPEG that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(out, "JPEG", quality=90)
    return out.getvalue()


def hostile() -> dict[str, tuple[bytes, str]]:
    """Pictures that must be refused, and the reason each must be refused with."""
    whole = noise(0, (320, 240))
    return {
        "empty": (b"", "IMAGE_FORMAT_UNSUPPORTED"),
        "text": (b"this is no picture", "IMAGE_FORMAT_UNSUPPORTED"),
        "html": (b"<!doctype html><script>alert(1)</script>", "IMAGE_FORMAT_UNSUPPORTED"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EOF\n", "IMAGE_FORMAT_UNSUPPORTED"),
        "cut in half": (whole[: len(whole) // 2], "IMAGE_DAMAGED"),
        "bomb": (_png(50_000, 50_000), "IMAGE_TOO_MANY_PIXELS"),
        "warning-sized bomb": (_png(12_000, 9_000), "IMAGE_TOO_MANY_PIXELS"),
        "no pixels": (_png(64, 64, b"not zlib"), "IMAGE_DAMAGED"),
        "too many bytes": (whole + b"\0" * (33 * 2**20), "IMAGE_TOO_LARGE"),
    }


def _png(width: int, height: int, content: bytes | None = None) -> bytes:
    """A one-bit PNG of any claimed size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000) if content is None else content
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
