"""The course's way, and the first improvement that comes to mind: ``python -m benchmarks.embedder.course MODEL``.

``one``: Chroma's own OpenCLIPEmbeddingFunction, fp32, which takes one input at a time. ``loop``: the same model and the
same preprocessing of open_clip's in batches of 16, decoding and forward passes one after another.
"""

import io
import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from chromadb.utils.embedding_functions import OpenCLIPEmbeddingFunction
from PIL import Image

from benchmarks.desk import Answer, Desk, Request
from benchmarks.embedder.figures import rate
from benchmarks.embedder.inputs import TEXTS, is_text, pictures, text, with_comment
from benchmarks.embedder.models import local

LOOP_BATCH = 16


class Course:
    """A loaded model."""

    def __init__(self, architecture: str, device: str) -> None:
        self.function = OpenCLIPEmbeddingFunction(local(architecture), "", device)
        self._number = 0
        self._training = self.function._model.training  # as Chroma leaves it

    def measure(self, request: Request) -> Answer:
        """Embeds inputs of one kind for so many seconds."""
        kind, method = request["kind"], request["method"]
        batch = 1 if method == "one" else LOOP_BATCH
        encode = self._one if method == "one" else self._batch
        self.function._model.train(self._training if method == "one" else False)
        inputs = self._inputs(kind)
        encode(kind, list(itertools.islice(inputs, batch)))
        times: list[float] = []
        begun = time.perf_counter()
        while (now := time.perf_counter() - begun) < request["seconds"]:
            encode(kind, list(itertools.islice(inputs, batch)))
            times += [time.perf_counter() - begun] * batch
        return {"per_s": rate(times, now), "items": len(times)}

    def _inputs(self, kind: str) -> Iterator[Any]:
        files = [] if is_text(kind) else pictures(kind)
        while True:
            self._number += 1
            if is_text(kind):
                yield text(TEXTS[kind], self._number)
            else:
                yield with_comment(files[self._number % len(files)], self._number)

    def _one(self, kind: str, inputs: list[Any]) -> None:
        if is_text(kind):
            self.function(inputs)
        else:  # as Chroma's ImageLoader reads a file
            self.function([np.array(Image.open(io.BytesIO(inputs[0])))])

    def _batch(self, kind: str, inputs: list[Any]) -> None:
        own = self.function
        with torch.no_grad():
            if is_text(kind):
                features = own._model.encode_text(own._tokenizer(inputs).to(own.device))
            else:
                rows = [own._preprocess(Image.open(io.BytesIO(jpeg))) for jpeg in inputs]
                features = own._model.encode_image(torch.stack(rows).to(own.device))
            features /= features.norm(dim=-1, keepdim=True)
            features.cpu().numpy()


def main() -> None:
    """Loads, then answers requests."""
    desk = Desk()
    architecture, device = sys.argv[1:]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    course = Course(architecture, device)
    desk.serve(
        {
            "backend": "torch",
            "precision": "fp32",
            "device": device,
            "torch": torch.__version__,
            "torch_threads": torch.get_num_threads(),
        },
        course.measure,
    )


if __name__ == "__main__":
    main()
