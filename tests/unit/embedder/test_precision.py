"""The arithmetic of ``python -m benchmarks.embedder.precision``, and what it says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.embedder import precision
from benchmarks.embedder.precision import costs, spread
from embedder.engine import Engine
from embedder.inputs import Array, Pixels
from embedder.settings import EmbedderSettings
from tests.unit.embedder import fake_worker as fake


def rows(*angles: float) -> Array:
    """Unit vectors at so many degrees."""
    return np.stack([[np.cos(np.radians(a)), np.sin(np.radians(a))] for a in angles]).astype(np.float32)


def test_the_least_and_the_mean_cosine_are_those_of_vectors_of_the_same_place() -> None:
    found = costs(rows(0, 90, 200), rows(0, 30, 200 + 1))
    assert found.least == pytest.approx(0.5, abs=1e-6)
    assert found.mean == pytest.approx((1 + 0.5 + np.cos(np.radians(1))) / 3, abs=1e-6)
    assert (found.worst, found.below) == (1, 1)


def test_a_cosine_does_not_depend_on_the_length_of_a_vector() -> None:
    assert costs(rows(10, 20), rows(10, 20) * np.float32(0.99)).least == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("none", [np.nan, 0.0])
def test_what_is_no_vector_is_not_passed_over(none: float) -> None:
    broken = rows(10, 20, 30)
    broken[1] = none
    found = costs(rows(10, 20, 30), broken)
    assert (np.isnan(found.least), np.isnan(found.mean), found.worst, found.below) == (True, True, 1, 1)


def test_pictures_are_taken_from_everywhere_in_a_folder(tmp_path: Path) -> None:
    for name in "abcdefghij":
        (tmp_path / name).mkdir()
        (tmp_path / name / "picture.JPG").touch()
        (tmp_path / name / "notes.txt").touch()
    assert [path.parent.name for path in spread(tmp_path, 4)] == ["a", "c", "f", "h"]
    assert len(spread(tmp_path, 0)) == len(spread(tmp_path, 99)) == 10


class _Off(fake.FakeBackend):
    """Its vectors are off by 3 degrees where the picture is bright, and by nothing elsewhere."""

    def encode_images(self, pixels: Pixels) -> Array:
        levels = pixels[:, 0, 0, 0].astype(float)
        return rows(*(levels + 3 * (levels > 128) if self.precision != "fp32" else levels))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings that models are loaded by; unasked they run in bfloat16."""
    loads: list[dict[str, Any]] = []

    def load(settings: EmbedderSettings) -> Engine:
        loads.append(settings.model_dump(include={"model", "precision", "backend"}))
        chosen = "bf16" if settings.precision == "auto" else settings.precision
        return Engine(replace(fake.spec(), precision=chosen), _Off(precision=chosen))

    monkeypatch.setattr(precision, "load_engine", load)
    return loads


def test_it_compares_the_default_with_fp32_over_the_pictures(
    asked: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for level in range(40):
        Image.new("RGB", (20, 16), (level,) * 3).save(tmp_path / f"{level}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert precision.main(["--pictures", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "is bf16; to fp32's, over 40 pictures" in said.out
    assert "least cosine 1.000000" in said.out
    assert "broken.png" in said.err
    Image.new("RGB", (20, 16), (200,) * 3).save(tmp_path / "bright.png")
    assert precision.main(["--pictures", str(tmp_path)]) == 1, "more than 0.001 is lost"
    lost = np.cos(np.radians(3))
    expected = f"least cosine {lost:.6f} (bright.png), mean {(40 + lost) / 41:.6f}; 1 below 0.999"
    assert expected in capsys.readouterr().out
    assert [each["precision"] for each in asked] == ["auto", "fp32"] * 2
    assert [each["backend"] for each in asked] == ["auto", "torch"] * 2, "fp32 on the same backend"


def test_where_the_default_is_fp32_it_says_so(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert precision.main(["--precision", "fp32"]) == 0
    assert "is fp32 here" in capsys.readouterr().out
    assert len(asked) == 1
