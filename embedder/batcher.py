"""The one inference thread, and what it runs together.

This is the seat of batching: one call's rows come in, their vectors go out. At present each call's rows are a batch of
their own. Whoever batches across calls replaces the inside of ``Batcher``; nobody outside sees more than ``encode``.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import structlog

from chassis.errors import LikenessError, incident
from embedder.backends import Backend
from embedder.call import Call
from embedder.inputs import Array, Tokens

log = structlog.get_logger()

Kind = Literal["image", "text"]
Row = Array | Tokens


class Batcher:
    """Runs rows through the model, at most ``max_batch`` in one forward pass."""

    def __init__(self, backend: Backend, inference: ThreadPoolExecutor, max_batch: int) -> None:
        """Takes the model.

        Args:
            backend: the model.
            inference: its one thread.
            max_batch: most rows in one forward pass.
        """
        self._backend = backend
        self._inference = inference
        self.max_batch = max_batch

    async def encode(self, kind: Kind, rows: Sequence[Row], call: Call) -> list[Array | LikenessError]:
        """Embeds rows of one kind.

        Args:
            kind: which tower.
            rows: at most ``max_batch``: float32 [3, height, width] each, or int64 [context_length] each.
            call: whom it is for; told the time it took.

        Returns:
            For each row its vector, float32 [dimension], or why there is none.

        Raises:
            CallerGoneError: nobody waits for it any more.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._inference, self._run, kind, rows, call)

    def _run(self, kind: Kind, rows: Sequence[Row], call: Call) -> list[Array | LikenessError]:
        """One forward pass; if it fails, two halves, until the culprit is alone and fails alone."""
        call.check()
        try:
            with call.working("inference", len(rows)):
                vectors = self._forward(kind, rows)
        except Exception as error:
            if len(rows) == 1:
                return [incident("a forward pass failed", error)]
            log.warning("a forward pass failed; halving the batch", kind=kind, batch_size=len(rows), error=repr(error))
            half = len(rows) // 2
            return [*self._run(kind, rows[:half], call), *self._run(kind, rows[half:], call)]
        return [self._checked(vector) for vector in vectors]

    def _forward(self, kind: Kind, rows: Sequence[Row]) -> Array:
        if kind == "image":
            return self._backend.encode_images(np.stack(rows).astype(np.float32, copy=False))
        return self._backend.encode_texts(np.stack(rows).astype(np.int64, copy=False))

    @staticmethod
    def _checked(vector: Array) -> Array | LikenessError:
        norm = float(np.linalg.norm(vector))
        if abs(norm - 1) < 1e-3:  # false for NaN
            return vector
        return incident("the model gave no unit vector", ValueError(f"a vector of length {norm}"))
