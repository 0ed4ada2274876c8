"""Thumbnails: small, upright, without anything of the original but its pixels."""

import io

import numpy as np
import pytest
from likeness.common.v1 import types_pb2
from PIL import Image

from gateway import thumbnails
from tests.pictures import noise


def halves(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """A picture whose left half is red and whose right half is blue."""
    picture = Image.new("RGB", size, "red")
    picture.paste("blue", (size[0] // 2, 0, *size))
    return picture.convert(mode)


def encoded(picture: Image.Image, kind: str, **options: object) -> types_pb2.Image:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return types_pb2.Image(encoded=out.getvalue())


def opened(image: types_pb2.Image) -> Image.Image:
    rendered = thumbnails.render(image)
    assert rendered is not None
    picture = Image.open(io.BytesIO(rendered))
    assert picture.format == "WEBP"
    return picture


def test_the_longest_side_becomes_256_and_a_small_picture_stays_as_it_is() -> None:
    assert opened(encoded(halves((3000, 1500)), "JPEG")).size == (256, 128)
    assert opened(encoded(halves((300, 900)), "PNG")).size == (85, 256)
    assert opened(encoded(halves((40, 30)), "PNG")).size == (40, 30)
    assert opened(encoded(halves((5000, 3)), "JPEG")).size == (256, 1)


@pytest.mark.parametrize(
    ("size", "small"),
    [
        ((500, 334), (250, 167)),
        ((480, 300), (240, 150)),
        ((478, 300), (256, 161)),
        ((1080, 1920), (135, 240)),
        ((2049, 1000), (256, 125)),
    ],
)
def test_a_jpeg_that_is_decoded_at_almost_256_is_not_resized(size: tuple[int, int], small: tuple[int, int]) -> None:
    assert opened(encoded(halves(size), "JPEG")).size == small


def test_a_jpeg_decoded_at_a_half_shows_what_a_careful_reduction_does() -> None:
    picture = Image.open(io.BytesIO(noise(1, (500, 334)))).convert("L").convert("RGB")
    careful = np.asarray(picture.resize((250, 167), Image.Resampling.LANCZOS)).astype(int)

    shown = np.asarray(opened(encoded(picture, "JPEG", quality=95)).convert("RGB")).astype(int)

    assert np.abs(shown - careful).mean() < 5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_it_stands_upright_and_carries_no_metadata(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: what is left goes up
    exif[0x010F] = "Secret camera"

    picture = opened(encoded(halves((600, 400)), kind, exif=exif, icc_profile=b"profile" * 20))

    assert picture.size == (171, 256)
    assert not picture.getexif()
    assert not {"icc_profile", "xmp", "comment"} & picture.info.keys()
    shown = np.asarray(picture.convert("RGB")).astype(int)
    redness = shown[..., 0] - shown[..., 2]
    assert (redness[:60].mean() > 150, redness[-60:].mean() < -150) == (True, True)


def test_decoded_pixels_have_one_too() -> None:
    pixels = np.zeros((300, 600, 3), np.uint8)
    pixels[:, 300:] = (0, 0, 255)
    image = types_pb2.Image(rgb=types_pb2.RgbImage(width=600, height=300, pixels=pixels.tobytes()))

    assert opened(image).size == (256, 128)


def test_a_transparent_picture_stays_transparent() -> None:
    picture = halves((600, 400), "RGBA")
    picture.putalpha(0)

    assert opened(encoded(picture, "PNG")).convert("RGBA").getpixel((20, 20))[3] == 0  # type: ignore[index]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16", "F"])
def test_every_kind_of_pixels_becomes_a_picture_with_something_on_it(mode: str) -> None:
    if mode in ("I;16", "F"):
        ramp = np.linspace(0, 60_000, 400 * 600).reshape(400, 600)
        picture = Image.fromarray(ramp.astype(np.uint16 if mode == "I;16" else np.float32))
    else:
        picture = halves((600, 400), mode)

    shown = np.asarray(opened(encoded(picture, "TIFF")).convert("RGB"))

    assert shown.shape == (171, 256, 3)
    assert int(shown.max()) - int(shown.min()) > 40


def test_a_large_jpeg_is_not_decoded_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    shrunk = thumbnails._shrunk

    def noting(picture: Image.Image) -> Image.Image:
        small = shrunk(picture)
        sizes.append(picture.size)
        return small

    monkeypatch.setattr(thumbnails, "_shrunk", noting)
    opened(encoded(halves((4000, 3000)), "JPEG"))

    assert sizes == [(500, 375)]


def test_what_cannot_be_decoded_has_none() -> None:
    whole = encoded(halves((600, 400)), "JPEG").encoded

    assert thumbnails.render(types_pb2.Image(encoded=whole[: len(whole) // 2])) is None
