"""Picture to model input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from embedder.preprocess import Geometry, Preprocess, limit_aspect
from tests.pictures import shared

# One level of 255, divided by the smallest of the standard deviations.
ONE_LEVEL = 1 / 255 / 0.26


def transform_of(**config: Any) -> tuple[Any, Preprocess, Geometry]:
    configuration = PreprocessCfg(**config)
    plain = image_transform_v2(configuration, is_train=False)
    geometry = Geometry.of(configuration.__dict__)
    return plain, Preprocess(plain, geometry), geometry


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8))


def test_the_golden_picture_gives_the_golden_input() -> None:
    folder = shared("clip-preproc-fixture")
    expected = np.load(next(folder.rglob("expected_preprocessed_image.npy")))[0]
    _, preprocess, _ = transform_of()
    got = preprocess(Image.open(next(folder.rglob("franz-kafka.jpg"))).convert("RGB"))
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() < 1e-5


@pytest.mark.parametrize("config", [{}, {"resize_mode": "longest"}, {"resize_mode": "squash"}, {"size": (224, 112)}])
def test_ordinary_pictures_get_open_clips_own_input_to_the_bit(photographs: list[Path], config: dict[str, Any]) -> None:
    plain, preprocess, _ = transform_of(**config)
    for path in photographs:
        picture = Image.open(path).convert("RGB")
        assert np.array_equal(preprocess(picture), plain(picture).numpy())


@pytest.mark.parametrize("config", [{}, {"interpolation": "bilinear"}, {"size": (96, 224)}, {"size": (224, 96)}])
@pytest.mark.parametrize(
    "size", [(640, 480), (480, 640), (451, 300), (1999, 333), (97, 1203), (3001, 301), (50, 733), (224, 500), (7, 61)]
)
def test_the_cut_gives_what_resizing_everything_gives(config: dict[str, Any], size: tuple[int, int]) -> None:
    plain, _, geometry = transform_of(**config)
    picture = noise(*size)
    cut = limit_aspect(picture, geometry)
    assert cut.size == (geometry.width, geometry.height)
    difference = np.abs(plain(cut).numpy() - plain(picture).numpy()) / ONE_LEVEL
    # Noise is the worst case: it overshoots, and Pillow clips between its two passes, whose order may differ.
    assert difference.max() <= 12
    assert difference.mean() < 0.3


@pytest.mark.parametrize("ratio", [3, 7, 8.5, 20])
@pytest.mark.parametrize("upright", [True, False])
def test_a_strip_of_a_photograph_is_cut_to_within_two_levels(
    photographs: list[Path], ratio: float, upright: bool
) -> None:
    plain, _, geometry = transform_of()
    for path in photographs:
        picture = Image.open(path).convert("RGB")
        if upright:
            picture = picture.transpose(Image.Transpose.ROTATE_90)
        strip = picture.crop((0, 40, picture.width, 40 + round(picture.width / ratio)))
        difference = np.abs(plain(limit_aspect(strip, geometry)).numpy() - plain(strip).numpy()) / ONE_LEVEL
        assert difference.max() <= 2.01
        assert difference.mean() < 0.01


@pytest.mark.parametrize("config", [{}, {"resize_mode": "longest"}, {"resize_mode": "squash"}, {"size": (96, 224)}])
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 30_000), (1, 1), (1, 9), (9, 1)])
def test_strips_are_resized_without_the_pixels_that_nobody_keeps(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], size: tuple[int, int]
) -> None:
    _, preprocess, geometry = transform_of(**config)
    made: list[int] = []
    resize = Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *arguments: Any, **options: Any) -> Image.Image:
        made.append(size[0] * size[1])
        return resize(self, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    got = preprocess(noise(*size))
    assert got.shape == (3, geometry.height, geometry.width)
    assert np.isfinite(got).all()
    assert max(made) <= 8 * 224 * 224


def test_a_strip_shows_its_middle() -> None:
    strip = Image.new("RGB", (20_000, 10), "red")
    strip.paste((0, 0, 255), (9_995, 0, 10_005, 10))
    plain, preprocess, _ = transform_of(interpolation="bilinear")
    got = preprocess(strip)
    assert np.abs(got[:, 60:160, 60:160] - plain(Image.new("RGB", (224, 224), "blue")).numpy()[:, :1, :1]).max() < 1e-6
