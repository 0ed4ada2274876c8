"""Large JPEGs at reduced scale."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from embedder.decode import decoded_pixels, reduction, upright_rgb
from embedder.preprocess import Preprocess
from embedder.spec import Geometry
from embedder.starter import load_starter
from tests.unit.embedder.test_decode import GEOMETRY, LIMITS, decode, difference, encoded, header, reason

SMALL = Geometry(20, 20, "shortest", "bicubic")


def in_full(encoded: bytes) -> Image.Image:
    return upright_rgb(header(encoded), LIMITS, "inputs[0].image.encoded", GEOMETRY, math.inf)


@pytest.fixture
def reference() -> Image.Image:
    """A picture that no flip and no turn leaves as it is."""
    y, x = np.mgrid[0:40, 0:60]
    return Image.fromarray(np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "geometry", "scale"),
    [
        ((4000, 3000), GEOMETRY, 4),
        ((3000, 4000), GEOMETRY, 4),
        ((8000, 6000), GEOMETRY, 8),
        ((1792, 1344), GEOMETRY, 2),
        ((1792, 1342), GEOMETRY, 1),  # less than three times 448
        ((500, 334), GEOMETRY, 1),
        ((224, 224), GEOMETRY, 1),
        ((4001, 3000), GEOMETRY, 1),  # the last column would be half a pixel
        ((4002, 3000), GEOMETRY, 2),
        ((8000, 1000), GEOMETRY, 1),
        ((1000, 8000), Geometry(224, 224, "longest", "bicubic"), 8),
        ((1000, 8000), Geometry(224, 224, "squash", "bicubic"), 1),
        ((4000, 3000), Geometry(336, 336, "shortest", "bicubic"), 2),
        ((4000, 3000), Geometry(448, 224, "shortest", "bicubic"), 2),
        ((4000, 3000), Geometry(224, 448, "shortest", "bicubic"), 2),
        ((2400, 1200), Geometry(400, 200, "shortest", "bicubic"), 2),
        ((1200, 2400), Geometry(400, 200, "shortest", "bicubic"), 1),
        ((8, 30_000), Geometry(224, 224, "longest", "bicubic"), 2),
    ],
)
def test_a_jpeg_is_reduced_to_no_less_than_three_times_what_the_model_sees(
    size: tuple[int, int], geometry: Geometry, scale: int
) -> None:
    opened = header(encoded(Image.new("RGB", size), "JPEG"))
    assert reduction(opened, geometry) == scale
    assert decoded_pixels(opened, geometry) == size[0] * size[1] // scale**2
    picture = upright_rgb(opened, LIMITS, "x", geometry)
    assert picture.size == (size[0] // scale, size[1] // scale)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_reduced_as_it_will_be_seen(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    wide = Geometry(80, 20, "shortest", "bicubic")
    stored = encoded(Image.new("RGB", (960, 240)), "JPEG", exif=exif)
    sideways = orientation >= 5
    # Upright 960 × 240 is twelve times 80 × 20; 240 × 960 only three times.
    assert reduction(header(stored), wide) == (1 if sideways else 4)
    assert decode(stored, geometry=wide).size == ((240, 960) if sideways else (240, 60))
    assert decode(stored, geometry=SMALL).size == ((60, 240) if sideways else (240, 60))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_of_other_colours_is_decoded_in_full(mode: str) -> None:
    content = encoded(Image.new(mode, (960, 960)), "JPEG")
    assert reduction(header(content), SMALL) == 1
    assert decode(content, geometry=SMALL).size == (960, 960)


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF"])
def test_other_formats_are_decoded_in_full(format_: str) -> None:
    content = encoded(Image.new("RGB", (960, 960)), format_)
    assert decoded_pixels(header(content), SMALL) == 960 * 960
    assert decode(content, geometry=SMALL).size == (960, 960)


def test_of_several_pictures_in_a_jpeg_the_first_is_reduced() -> None:
    frames = [Image.new("RGB", (960, 960), colour) for colour in ("red", "blue")]
    got = decode(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]), geometry=SMALL)
    assert got.size == (120, 120)
    assert got.getpixel((5, 5)) == (254, 0, 0)


def test_a_jpeg_of_several_scans_counts_in_full_since_libjpeg_keeps_it_all(reference: Image.Image) -> None:
    large = reference.resize((960, 960))
    assert decoded_pixels(header(encoded(large, "JPEG")), SMALL) == 120 * 120
    progressive = encoded(large, "JPEG", progressive=True)
    assert decoded_pixels(header(progressive), SMALL) == 960 * 960
    assert decode(progressive, geometry=SMALL).size == (120, 120)
    # The same header with a first scan of one component only.
    whole = encoded(large, "JPEG")
    scan = whole.index(b"\xff\xda\x00\x0c\x03")
    one = whole[:scan] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + whole[scan + 14 :]
    assert decoded_pixels(header(one), SMALL) == 960 * 960


def test_counting_pixels_leaves_the_picture_to_be_decoded(reference: Image.Image) -> None:
    content = encoded(reference.resize((960, 960)), "JPEG")
    opened = header(content)
    decoded_pixels(opened, SMALL)
    assert difference(upright_rgb(opened, LIMITS, "x", SMALL), decode(content, geometry=SMALL)) == 0


def test_a_reduced_jpeg_that_is_cut_short_is_damaged(photographs: list[Path]) -> None:
    whole = encoded(Image.open(photographs[0]).convert("RGB").resize((4000, 3000)), "JPEG")
    assert decode(whole).size == (1000, 750)
    for share in (0.5, 0.9, 0.99):
        assert reason(whole[: int(len(whole) * share)]) == "IMAGE_DAMAGED"


def test_vectors_of_reduced_pictures_are_within_the_stated_tolerance(photographs: list[Path]) -> None:
    network, transform, _ = load_starter()
    *_, to_tensor, normalise = transform.transforms  # type: ignore[attr-defined]
    preprocess, rng = Preprocess(GEOMETRY), np.random.default_rng(5)
    found = []
    for number, path in enumerate([*photographs[:2], None]):
        size = (4000, 3000) if number else (3600, 2688)  # at least 3.35 and exactly 3 times larger than the input
        shape = (size[1], size[0], 3)
        if path is None:
            values = rng.random(shape, np.float32) * 255
        else:
            values = np.asarray(Image.open(path).convert("RGB").resize(size), np.float32)
            values = values + 10 * rng.standard_normal((*shape[:2], 1), np.float32)
        content = encoded(Image.fromarray(values.clip(0, 255).astype(np.uint8)), "JPEG", quality=90)
        assert reduction(header(content), GEOMETRY) == 4
        inputs = [normalise(to_tensor(preprocess(picture))) for picture in (in_full(content), decode(content))]
        with torch.inference_mode():
            exact, reduced = network.encode_image(torch.stack(inputs), normalize=True)
        found.append(float(exact @ reduced))
    assert min(found) >= 0.999, found
    assert min(found) < 1 - 1e-7, "nothing was reduced"
