"""Picture to model input."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose

from embedder import preprocess as preprocessing
from embedder.preprocess import Pixels, Preprocess, geometry_of
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


class RowsFirst(Image.Image):
    """A picture that Pillow resizes in the order that was its only one before version 13, rows before columns.

    Since then it begins with the columns where more than twice as many rows as columns fall away.
    """

    def resize(self, size: Any, *arguments: Any, **options: Any) -> Image.Image:
        rows = super().resize((size[0], self.height), *arguments, **options)
        return rows.resize(size, *arguments, **options)


class ColumnsFirst(Image.Image):
    """A picture that Pillow resizes in the other order."""

    def resize(self, size: Any, *arguments: Any, **options: Any) -> Image.Image:
        columns = super().resize((self.width, size[1]), *arguments, **options)
        return columns.resize(size, *arguments, **options)


def rows_first(picture: Image.Image) -> Image.Image:
    return _as(RowsFirst, picture)


def columns_first(picture: Image.Image) -> Image.Image:
    return _as(ColumnsFirst, picture)


def _as(kind: type[Image.Image], picture: Image.Image) -> Image.Image:
    made = picture.copy()
    made.__class__ = kind
    return made


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


@pytest.fixture(autouse=True, params=["cykooz", "pillow"])
def resample(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What resizes: both that there are."""
    if request.param == "pillow":
        monkeypatch.setattr(preprocessing, "_resample", preprocessing._with_pillow)
    else:
        pytest.importorskip("cykooz_resizer")
        assert preprocessing._resample is preprocessing._with_cykooz


def levels(a: Pixels, b: Pixels) -> npt.NDArray[np.int64]:
    return np.abs(a.astype(np.int64) - b.astype(np.int64))


def assert_near(got: Pixels, expected: Pixels) -> None:
    """Whether they differ by no more than the rounding of a resize's weights makes of a photograph."""
    assert levels(got, expected).max() <= 2
    assert (got != expected).mean() < 0.01


def test_the_golden_picture_gives_the_golden_input() -> None:
    folder = shared("clip-preproc-fixture")
    expected = np.load(next(folder.rglob("expected_preprocessed_image.npy")))[0]
    preprocess, _ = ours({})
    pixels = preprocess(Image.open(next(folder.rglob("franz-kafka.jpg"))).convert("RGB"))
    cfg = PreprocessCfg()
    got = (pixels.astype(np.float64) / 255 - cfg.mean) / cfg.std
    one_level = 1 / 255 / min(cfg.std)
    assert np.abs(got.transpose(2, 0, 1) - expected).max() < 2.01 * one_level
    assert np.abs(got.transpose(2, 0, 1) - expected).mean() < 0.01 * one_level


@pytest.mark.parametrize("config", CONFIGS)
def test_photographs_get_open_clips_own_pixels(photographs: list[Path], config: dict[str, Any]) -> None:
    preprocess, geometry = ours(config)
    for path in photographs:
        picture = Image.open(path).convert("RGB")
        got = preprocess(picture)
        assert got.dtype == np.uint8
        assert got.shape == (geometry.height, geometry.width, 3)
        assert_near(got, open_clips(config, rows_first(picture)))


def test_the_pictures_of_a_data_set_get_open_clips_own_pixels() -> None:
    preprocess, _ = ours({})
    paths = sorted(shared("aio60").rglob("*.jpg"))[::20]
    assert paths
    for path in paths:
        picture = Image.open(path).convert("RGB")
        assert_near(preprocess(picture), open_clips({}, picture))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    target=st.one_of(st.integers(1, 70), st.tuples(st.integers(1, 70), st.integers(1, 70))),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    fill=st.integers(0, 255),
)
def test_any_picture_gets_open_clips_own_pixels(
    size: tuple[int, int], target: int | tuple[int, int], mode: str, interpolation: str, fill: int
) -> None:
    config = {"size": target, "resize_mode": mode, "interpolation": interpolation, "fill_color": fill}
    picture = noise(*size)
    preprocess, geometry = ours(config)
    got = preprocess(picture)
    try:
        expected = open_clips(config, rows_first(picture))
    except ValueError:  # of a strip, the shorter side is rounded to nothing: open_clip fails, we do not
        assert got.shape == (geometry.height, geometry.width, 3)
        return
    if mode == "squash" and size[0] < geometry.width and size[1] > geometry.height:
        expected = open_clips(config, columns_first(picture))
    # Of noise a handful of pixels is no sample: more of them may differ, but no further.
    assert levels(got, expected).max() <= 2


def test_what_is_the_right_size_already_is_taken_as_it_is() -> None:
    preprocess, _ = ours({})
    for size in ((224, 224), (224, 300), (301, 224)):
        picture = noise(*size)
        assert np.array_equal(preprocess(picture), open_clips({}, picture))


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


@pytest.mark.parametrize("config", [{}, {"resize_mode": "longest"}, {"resize_mode": "squash"}, {"size": (96, 224)}])
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 30_000), (1, 1), (1, 9), (9, 1), (1, 9_000_000)])
def test_strips_are_resized_without_the_pixels_that_nobody_keeps(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], size: tuple[int, int]
) -> None:
    preprocess, geometry = ours(config)
    most, resample = max(2 * max(size), 224 * 224), preprocessing._resample

    def watched(picture: Image.Image, to: tuple[int, int], box: Any, how: Any) -> Image.Image:
        assert to[0] * to[1] <= most
        assert max(box.right - box.left, box.bottom - box.top) <= 2 * 65_536  # each pixel of which has weights
        return resample(picture, to, box, how)

    monkeypatch.setattr(preprocessing, "_resample", watched)
    assert preprocess(noise(*size)).shape == (geometry.height, geometry.width, 3)


def test_a_strip_of_which_little_is_kept_is_not_averaged_however_long_it_is() -> None:
    preprocess, _ = ours({})
    strip = noise(140_000, 350)
    middle = strip.crop((69_000, 0, 71_000, 350))
    assert levels(preprocess(strip), preprocess(middle)).max() <= 1


def test_a_side_that_is_averaged_first_keeps_its_colours_in_place() -> None:
    strip = Image.new("RGB", (400_000, 2), "red")
    strip.paste((0, 0, 255), (200_000, 0, 400_000, 2))
    preprocess, _ = ours({"resize_mode": "squash"})
    row = preprocess(strip)[112]
    assert (row[:110] == (255, 0, 0)).all()
    assert (row[114:] == (0, 0, 255)).all()


def test_a_strip_shows_its_middle() -> None:
    strip = Image.new("RGB", (20_000, 10), "red")
    strip.paste((0, 0, 255), (9_995, 0, 10_005, 10))
    preprocess, _ = ours({"interpolation": "bilinear"})
    assert (preprocess(strip)[60:160, 60:160] == (0, 0, 255)).all()
