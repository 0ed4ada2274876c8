import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import skimage
from prometheus_client import CollectorRegistry

from embedder.assembly import open_pipeline
from embedder.backends.convert import converted
from embedder.backends.identify import identify
from embedder.backends.probes import Probes
from embedder.backends.towers import Towers, build_towers
from embedder.metrics import Metrics
from embedder.models import LoadedModel, load
from embedder.settings import EmbedderSettings
from embedder.spec import ModelSpec
from tests.unit.embedder import fake_worker, tiny
from tests.unit.embedder.bench import COMMAND, Bench, Build, Held

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.register(folder)
    return tiny.save_checkpoint(folder / "weights.pt")


@pytest.fixture
def tiny_model(tiny_checkpoint: Path) -> LoadedModel:
    return load(tiny.NAME, str(tiny_checkpoint))


@pytest.fixture(scope="session")
def tiny_identity(tiny_checkpoint: Path) -> tuple[ModelSpec, Probes]:
    return identify(load(tiny.NAME, str(tiny_checkpoint)))


@pytest.fixture
def tiny_towers(tiny_model: LoadedModel, tiny_identity: tuple[ModelSpec, Probes]) -> Towers:
    spec, probes = tiny_identity
    return build_towers(tiny_model, probes.tokens, spec.tokenizer.pad_id)


@pytest.fixture(scope="session")
def converted_once(
    tiny_checkpoint: Path, tiny_identity: tuple[ModelSpec, Probes], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny model's folder, converted for OpenVINO."""
    spec, probes = tiny_identity
    towers = build_towers(load(tiny.NAME, str(tiny_checkpoint)), probes.tokens, spec.tokenizer.pad_id)
    spec = replace(spec, backend="openvino", dimension=towers.dimension, texts_cut=towers.texts_cut)
    return converted(tmp_path_factory.mktemp("cache"), towers, spec, probes, threads=1)


@pytest.fixture
def photographs() -> list[Path]:
    """Bundled photographs of several sizes and modes."""
    return [PHOTOGRAPHS / name for name in ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "retina.jpg")]


@pytest.fixture
async def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Build]:
    """Makes a pipeline over a fake model process, whose bounds in seconds no slow machine meets."""
    held: asyncio.Queue[Held] = asyncio.Queue()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.put_nowait(Held(list(await reader.read(1000)), writer))

    control = await asyncio.start_unix_server(take, tmp_path / "control")
    monkeypatch.setenv(fake_worker.CONTROL, str(tmp_path / "control"))
    async with AsyncExitStack() as stack:

        async def make(**settings: Any) -> Bench:
            said: list[tuple[bool, str]] = []
            gave_up: list[str] = []

            async def say_ready(serving: bool, why: str) -> None:
                said.append((serving, why))

            async def give_up(why: str) -> None:
                gave_up.append(why)

            registry = CollectorRegistry()
            usual = {"decode_threads": 2, "max_queue_s": 3600.0, "max_bulk_queue_s": 3600.0, "stuck_s": 3600.0}
            usual |= {"max_batch": 4}
            chosen = EmbedderSettings(**{**usual, **settings})
            opened = open_pipeline(chosen, say_ready, give_up, Metrics(registry), COMMAND)
            return Bench(await stack.enter_async_context(opened), registry, said, held, gave_up)

        yield make
    control.close()
