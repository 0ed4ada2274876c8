"""The bare forward pass, the bound of what a server can reach: ``python -m benchmarks.embedder.forward``.

The embedder's own backend in a process that does nothing else, pictures decoded and texts tokenized beforehand.
Which model, backend and precision, the LIKENESS_* settings say.
"""

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.desk import Answer, Desk, Request
from benchmarks.embedder.figures import rate
from benchmarks.embedder.inputs import TEXTS, is_text, pixels, text
from benchmarks.embedder.models import spec_told
from embedder.engine import Engine, load_engine
from embedder.settings import EmbedderSettings
from embedder.tokens import Tokenizer


class Forward:
    """A loaded model and rows to run through it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokenizer = Tokenizer(engine.spec.tokenizer)
        geometry = engine.spec.geometry
        self._pixels = np.stack([np.asarray(picture) for picture in pixels((geometry.width, geometry.height))])

    def measure(self, request: Request) -> Answer:
        """Runs batches of one kind and size for so many seconds."""
        kind, batch = request["kind"], request["batch"]
        rows = [self._rows(kind, batch, number) for number in range(4)]
        encode = self._engine.backend.encode_texts if is_text(kind) else self._engine.backend.encode_images
        for chosen in rows[:2]:
            encode(chosen)
        times: list[float] = []
        begun = time.perf_counter()
        number = 0
        # At least three batches: of large ones a short window holds too few to tell the speed.
        while (now := time.perf_counter() - begun) < request["seconds"] or number < 3:
            encode(rows[number % len(rows)])
            times += [time.perf_counter() - begun] * batch
            number += 1
        return {"per_s": rate(times, now), "items": len(times), "batch_s": now / number}

    def _rows(self, kind: str, batch: int, number: int) -> Any:
        if is_text(kind):
            return self._tokens(kind, batch, number)
        return self._pixels[np.arange(number * batch, (number + 1) * batch) % len(self._pixels)]

    def _tokens(self, kind: str, batch: int, number: int) -> npt.NDArray[np.int64]:
        spec = self._engine.spec
        rows = [self._tokenizer(text(TEXTS[kind], number * batch + row))[0] for row in range(batch)]
        length = max(len(row) for row in rows) if spec.texts_cut else spec.tokenizer.context_length
        tokens = np.full((batch, length), spec.tokenizer.pad_id, np.int64)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return tokens


def main() -> None:
    """Loads, then answers requests."""
    desk = Desk()
    engine = load_engine(EmbedderSettings.parse("python -m benchmarks.embedder.forward", []))
    desk.serve(spec_told(engine.spec), Forward(engine).measure)


if __name__ == "__main__":
    main()
