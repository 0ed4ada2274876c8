"""What the tests of the whole engine stand on: a pipeline over a model process that follows orders."""

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil
from PIL import Image
from prometheus_client import CollectorRegistry

from chassis.errors import LikenessError
from embedder.inputs import Array, EncodedPicture, Input, Outcome, Text, Timings
from embedder.pipeline import Pipeline
from tests.unit.embedder import fake_worker as fake

WAIT_S = 60.0  # bounds what fails, and nothing else
COMMAND = (sys.executable, "-m", "tests.unit.embedder.fake_worker")

_T = TypeVar("_T")


@dataclass
class Held:
    """A batch that runs until it is released."""

    levels: list[int]
    writer: asyncio.StreamWriter = field(repr=False)

    def release(self) -> None:
        self.writer.write(b"!")


@dataclass
class Bench:
    """A pipeline over a fake model process."""

    pipeline: Pipeline
    registry: CollectorRegistry
    said: list[tuple[bool, str]]
    held: "asyncio.Queue[Held]"
    gave_up: list[str] = field(default_factory=list)
    started: list["asyncio.Task[Any]"] = field(default_factory=list)

    def embed(self, *inputs: Input, **options: Any) -> Coroutine[Any, Any, Any]:
        return self.pipeline.embed(inputs, **options)

    async def outcomes(self, *inputs: Input, **options: Any) -> list[Outcome]:
        found, _ = await self.pipeline.embed(inputs, **options)
        return found

    def start(self, call: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        """Runs a call beside the test; if it fails, so does ``until``."""
        task = asyncio.create_task(call)
        self.started.append(task)
        return task

    async def until(self, condition: Callable[[], bool]) -> None:
        """Lets everything else go on until a condition holds."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                for task in self.started:
                    if task.done() and not task.cancelled():
                        task.result()
                await asyncio.sleep(0.001)

    async def next_held(self) -> Held:
        """The next batch that runs until it is released, once it does."""
        await self.until(lambda: not self.held.empty())
        return self.held.get_nowait()

    async def hold(self) -> tuple["asyncio.Task[Any]", Held]:
        """A call whose batch runs until it is released."""
        return self.start(self.embed(grey(fake.HOLD))), await self.next_held()

    async def together(self, *inputs: Input) -> tuple[list[Outcome], Timings]:
        """Embeds inputs that all wait for the model before it takes the first."""
        first, held = await self.hold()
        call = self.start(self.pipeline.embed(inputs))
        await self.until(lambda: self.pipeline.waiting_for_model >= len(inputs))
        held.release()
        await first
        return await call

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"likeness_embedder_{name}", labels) or 0.0

    @property
    def model_pid(self) -> int:
        """The one model process there is."""
        (only,) = model_processes()
        return only.pid


Build = Callable[..., Awaitable[Bench]]


async def ignore(*said: object) -> None:
    """Hears what a pipeline says, and does nothing."""


def model_processes() -> list[psutil.Process]:
    """Those of this test: the session's services may be children of this process as well."""
    return [child for child in psutil.Process().children() if _runs_a_model(child)]


def _runs_a_model(process: psutil.Process) -> bool:
    try:
        return COMMAND[-1] in process.cmdline()
    except psutil.NoSuchProcess:  # it has ended meanwhile, or nobody has asked for its exit code yet
        return False


def grey(level: int, size: int = 8, name: str = "inputs[0].image") -> EncodedPicture:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (level,) * 3).save(out, "PNG")
    return EncodedPicture(out.getvalue(), name)


def words(count: int, word: str = "x") -> Text:
    return Text(" ".join([word] * count))


def vectors(outcomes: list[Outcome]) -> list[Array]:
    assert not [o for o in outcomes if isinstance(o.result, LikenessError)]
    return [o.result for o in outcomes if not isinstance(o.result, LikenessError)]


def reason(outcome: Outcome) -> str:
    assert isinstance(outcome.result, LikenessError)
    return outcome.result.reason_name
