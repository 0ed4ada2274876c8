from pathlib import Path

import pytest
import skimage

from embedder.models import LoadedModel, load
from tests.unit.embedder import tiny

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.register(folder)
    return tiny.save_checkpoint(folder / "weights.pt")


@pytest.fixture
def tiny_model(tiny_checkpoint: Path) -> LoadedModel:
    return load(tiny.NAME, str(tiny_checkpoint))


@pytest.fixture
def photographs() -> list[Path]:
    """Bundled photographs of several sizes and modes."""
    return [PHOTOGRAPHS / name for name in ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "retina.jpg")]
