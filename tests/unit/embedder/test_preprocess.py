"""Picture to model input."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose

from embedder.preprocess import CUT_ABOVE, Pixels, Preprocess, geometry_of, limit_aspect
from embedder.spec import Geometry
from tests.pictures import shared

CONFIGS: list[dict[str, Any]] = [
    {},
    {"interpolation": "bilinear"},
    {"size": (96, 224)},
    {"size": (224, 96), "interpolation": "bilinear"},
    {"resize_mode": "longest", "fill_color": 127},
    {"resize_mode": "longest", "size": (96, 224), "interpolation": "bilinear"},
    {"resize_mode": "squash"},
    {"resize_mode": "squash", "size": (96, 224), "interpolation": "bilinear"},
]


def open_clips(config: dict[str, Any], picture: Image.Image) -> Pixels:
    """What open_clip's own transform has before it turns to floats."""
    steps = image_transform_v2(PreprocessCfg(**config), is_train=False).transforms
    assert [type(step).__name__ for step in steps[-2:]] == ["MaybeToTensor", "Normalize"]
    return np.asarray(Compose(steps[:-2])(picture))


def ours(config: dict[str, Any]) -> tuple[Preprocess, Geometry]:
    geometry = geometry_of(PreprocessCfg(**config).__dict__)
    return Preprocess(geometry), geometry


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8))


def levels(a: Pixels, b: Pixels) -> npt.NDArray[np.int64]:
    return np.abs(a.astype(np.int64) - b.astype(np.int64))


def test_the_golden_picture_gives_the_golden_input() -> None:
    folder = shared("clip-preproc-fixture")
    expected = np.load(next(folder.rglob("expected_preprocessed_image.npy")))[0]
    preprocess, _ = ours({})
    pixels = preprocess(Image.open(next(folder.rglob("franz-kafka.jpg"))).convert("RGB"))
    cfg = PreprocessCfg()
    got = (pixels.astype(np.float64) / 255 - cfg.mean) / cfg.std
    assert np.abs(got.transpose(2, 0, 1) - expected).max() < 1e-5


@pytest.mark.parametrize("config", CONFIGS)
def test_photographs_get_open_clips_own_pixels_to_the_bit(photographs: list[Path], config: dict[str, Any]) -> None:
    preprocess, geometry = ours(config)
    for path in photographs:
        picture = Image.open(path).convert("RGB")
        got = preprocess(picture)
        assert got.dtype == np.uint8
        assert got.shape == (geometry.height, geometry.width, 3)
        assert np.array_equal(got, open_clips(config, picture)), path.name


def test_the_pictures_of_a_data_set_get_open_clips_own_pixels_to_the_bit() -> None:
    preprocess, _ = ours({})
    paths = sorted(shared("aio60").rglob("*.jpg"))[::20]
    assert paths
    for path in paths:
        picture = Image.open(path).convert("RGB")
        assert np.array_equal(preprocess(picture), open_clips({}, picture)), path


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)).filter(lambda s: max(s) <= CUT_ABOVE * min(s)),
    target=st.one_of(st.integers(1, 70), st.tuples(st.integers(1, 70), st.integers(1, 70))),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    fill=st.integers(0, 255),
)
def test_any_picture_gets_open_clips_own_pixels_to_the_bit(
    size: tuple[int, int], target: int | tuple[int, int], mode: str, interpolation: str, fill: int
) -> None:
    config = {"size": target, "resize_mode": mode, "interpolation": interpolation, "fill_color": fill}
    picture = noise(*size)
    preprocess, _ = ours(config)
    try:
        expected = open_clips(config, picture)
    except ValueError:  # of a strip, the shorter side is rounded to nothing: open_clip fails, we do not
        assert preprocess(picture).dtype == np.uint8
        return
    assert np.array_equal(preprocess(picture), expected)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("size", [(300, 200), (224, 96), (20, 30), (5000, 10)])
def test_the_result_is_written_where_it_is_wanted(config: dict[str, Any], size: tuple[int, int]) -> None:
    preprocess, geometry = ours(config)
    slab = np.full((3, geometry.height, geometry.width, 3), 99, np.uint8)
    picture = noise(*size)
    row = slab[1]
    assert preprocess(picture, row) is row
    assert np.array_equal(slab[1], preprocess(picture))
    assert (slab[0] == 99).all()
    assert (slab[2] == 99).all()


def test_a_place_of_another_shape_and_a_picture_of_another_mode_are_refused() -> None:
    preprocess, _ = ours({})
    with pytest.raises(ValueError, match="expected uint8"):
        preprocess(noise(9, 9), np.empty((3, 224, 224), np.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        preprocess(noise(9, 9), np.empty((224, 224, 3), np.float32))
    with pytest.raises(ValueError, match="expected RGB"):
        preprocess(noise(9, 9).convert("L"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"size": 64}, Geometry(64, 64, "shortest", "bicubic", (0, 0, 0))),
        ({"size": [32, 64], "resize_mode": None, "interpolation": "random"}, Geometry(64, 32, "shortest", "bicubic")),
        (
            {"size": (8, 8), "resize_mode": "longest", "interpolation": "bilinear", "fill_color": 7},
            Geometry(8, 8, "longest", "bilinear", (7, 7, 7)),
        ),
        ({"size": 8, "fill_color": (1, 2, 3)}, Geometry(8, 8, "shortest", "bicubic", (1, 2, 3))),
    ],
)
def test_the_geometry_is_read_from_open_clips_configuration(config: dict[str, Any], expected: Geometry) -> None:
    assert geometry_of(config) == expected


def test_an_unknown_resize_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="resize_mode is 'stretch'"):
        geometry_of({"size": 8, "resize_mode": "stretch"})


@pytest.mark.parametrize("config", [{}, {"interpolation": "bilinear"}, {"size": (96, 224)}, {"size": (224, 96)}])
@pytest.mark.parametrize(
    "size", [(640, 480), (480, 640), (451, 300), (1999, 333), (97, 1203), (3001, 301), (50, 733), (224, 500), (7, 61)]
)
def test_the_cut_gives_what_resizing_everything_gives(config: dict[str, Any], size: tuple[int, int]) -> None:
    _, geometry = ours(config)
    picture = noise(*size)
    cut = limit_aspect(picture, geometry)
    assert cut.size == (geometry.width, geometry.height)
    difference = levels(np.asarray(cut), open_clips(config, picture))
    # Noise is the worst case: it overshoots, and Pillow clips between its two passes, whose order may differ.
    assert difference.max() <= 12
    assert difference.mean() < 0.3


@pytest.mark.parametrize("ratio", [3, 7, 8.5, 20])
@pytest.mark.parametrize("upright", [True, False])
def test_a_strip_of_a_photograph_is_cut_to_within_two_levels(
    photographs: list[Path], ratio: float, upright: bool
) -> None:
    _, geometry = ours({})
    for path in photographs:
        picture = Image.open(path).convert("RGB")
        if upright:
            picture = picture.transpose(Image.Transpose.ROTATE_90)
        strip = picture.crop((0, 40, picture.width, 40 + round(picture.width / ratio)))
        difference = levels(np.asarray(limit_aspect(strip, geometry)), open_clips({}, strip))
        assert difference.max() <= 2
        assert difference.mean() < 0.01


@pytest.mark.parametrize("config", [{}, {"resize_mode": "longest"}, {"resize_mode": "squash"}, {"size": (96, 224)}])
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 30_000), (1, 1), (1, 9), (9, 1)])
def test_strips_are_resized_without_the_pixels_that_nobody_keeps(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], size: tuple[int, int]
) -> None:
    preprocess, geometry = ours(config)
    made: list[int] = []
    resize = Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *arguments: Any, **options: Any) -> Image.Image:
        made.append(size[0] * size[1])
        return resize(self, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    assert preprocess(noise(*size)).shape == (geometry.height, geometry.width, 3)
    assert max(made) <= 8 * 224 * 224


def test_a_strip_shows_its_middle() -> None:
    strip = Image.new("RGB", (20_000, 10), "red")
    strip.paste((0, 0, 255), (9_995, 0, 10_005, 10))
    preprocess, _ = ours({"interpolation": "bilinear"})
    assert (preprocess(strip)[60:160, 60:160] == (0, 0, 255)).all()
