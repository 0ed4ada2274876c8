"""The embedder's pipeline without gRPC, called from its own event loop: ``python -m benchmarks.embedder.pipeline``.

The front process's work and the model process, no transport. Which model, backend and precision, the LIKENESS_*
settings say.
"""

import asyncio
import itertools
from collections.abc import Iterator

from benchmarks.desk import Answer, Desk, Request
from benchmarks.embedder.inputs import RGB, TEXTS, is_text, kinds, pictures, pixels, text, with_comment
from benchmarks.embedder.loops import RefusedError, Reply, closed
from benchmarks.embedder.models import spec_told
from chassis.errors import LikenessError
from embedder.allocator import share_one_arena
from embedder.assembly import open_pipeline
from embedder.inputs import EncodedPicture, Input, RgbPicture, Text
from embedder.metrics import Metrics
from embedder.pipeline import Pipeline
from embedder.settings import EmbedderSettings


class Inputs:
    """An endless row of inputs, no two alike."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._files: dict[str, list[bytes]] = {}

    def of(self, kind: str) -> Iterator[Input]:
        """Inputs of one kind."""
        for each in kinds(kind):
            number = next(self._numbers)
            if is_text(each):
                yield Text(text(TEXTS[each], number))
                continue
            if each not in self._files:
                raw = [picture.tobytes() for picture in pixels((224, 224))] if each == RGB else pictures(each)
                self._files[each] = raw
            content = self._files[each][number % len(self._files[each])]
            if each == RGB:
                yield RgbPicture(224, 224, number.to_bytes(8, "big") + content[8:], "inputs[0].image.rgb")
            else:
                yield EncodedPicture(with_comment(content, number), "inputs[0].image")


async def _embed(pipeline: Pipeline, wanted: Input) -> Reply:
    try:
        outcomes, timings = await pipeline.embed([wanted])
    except LikenessError as error:
        if error.retry_after_s is None:
            raise
        raise RefusedError(error.retry_after_s) from None
    if isinstance(outcomes[0].result, LikenessError):
        raise outcomes[0].result
    return Reply(timings.inference, timings.batch_size)


async def _note_health(up: bool, why: str) -> None:
    print(f"model up: {up} ({why})", flush=True)


async def _note_end(why: str) -> None:
    print(f"the pipeline cannot go on: {why}", flush=True)


async def _serve(desk: Desk) -> None:
    settings = EmbedderSettings.parse("python -m benchmarks.embedder.pipeline", [])
    inputs = Inputs()
    async with open_pipeline(settings, _note_health, _note_end, Metrics()) as pipeline:
        desk.say({**spec_told(pipeline.spec), "max_batch": pipeline.max_batch})
        while (request := await asyncio.to_thread(desk.read)) is not None:
            desk.say(await _measure(pipeline, inputs.of(request["kind"]), request))


async def _measure(pipeline: Pipeline, row: Iterator[Input], request: Request) -> Answer:
    try:
        return await closed(
            lambda: _embed(pipeline, next(row)), request["concurrency"], request["ramp_s"], request["seconds"]
        )
    except Exception as error:
        return {"fault": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Starts the pipeline, then answers requests."""
    share_one_arena()  # as the service does
    asyncio.run(_serve(Desk()))


if __name__ == "__main__":
    main()
