"""A model process without a model: it follows orders that the tests put into pictures and texts.

A picture's grey level, or a text's count of words, is its vector's direction; some levels do more (see below).
"""

import os
import signal
import socket
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from chassis.errors import invalid
from embedder.inputs import Array, Pixels, Tokens
from embedder.settings import EmbedderSettings
from embedder.spec import Geometry, ModelSpec, TokenizerSpec
from embedder.worker import main

GPU = "FAKE_WORKER_GPU"  # set where this machine has one
NAME = "FAKE_WORKER_NAME"  # the model's, if not "fake"
CONTROL = "FAKE_WORKER_CONTROL"  # a Unix socket's path; there a held batch is told of, and released
RAISE, NOT_A_NUMBER, NO_MEMORY, DIE, HANG, HOLD, BREAK = 13, 14, 15, 16, 17, 18, 19
UNFORESEEN = "unforeseen"  # a model that fails to load in a way that nobody foresaw
BLIND = 250  # everything after it has no vector
MOST_IN_MEMORY = 2  # rows, of a batch with NO_MEMORY in it
SIDE, CONTEXT = 8, 64


def angle(level: float) -> Array:
    """The vector of a level."""
    return np.array([np.cos(level / 100), np.sin(level / 100)], np.float32)


def spec(device: str = "cpu") -> ModelSpec:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return ModelSpec(
        name=os.environ.get(NAME, "fake"),
        digest="f" * 64,
        dimension=2,
        backend="torch",
        device=device,
        precision="fp32",
        best_batch=4,
        geometry=Geometry(SIDE, SIDE, "shortest", "bicubic"),
        tokenizer=TokenizerSpec(
            tokenizer.to_str(), CONTEXT, "whitespace", 0, {"kind": "fast", "side": "right", "replace": None}
        ),
        texts_cut=True,
    )


@dataclass
class FakeBackend:
    """Follows orders."""

    device: str = "cpu"
    precision: str = "fp32"
    dimension: int = 2
    is_broken: bool = False
    is_blind: bool = False

    def encode_images(self, pixels: Pixels) -> Array:
        return self._encode([int(p[0, 0, 0]) for p in pixels])

    def encode_texts(self, tokens: Tokens) -> Array:
        return self._encode([int(np.count_nonzero(t)) for t in tokens])

    def _encode(self, levels: list[int]) -> Array:
        if self.is_broken:
            raise RuntimeError("an illegal memory access was encountered")
        self.is_broken = BREAK in levels
        if DIE in levels:
            os._exit(1)
        if HANG in levels:
            signal.pause()
        if NO_MEMORY in levels and len(levels) > MOST_IN_MEMORY:
            raise MemoryError(f"{len(levels)} rows")
        if RAISE in levels:
            raise RuntimeError("no thirteens")
        if HOLD in levels:
            hold(levels)
        vectors = np.stack([angle(level) for level in levels])
        vectors[[level == NOT_A_NUMBER or self.is_blind for level in levels]] = np.nan
        self.is_blind = self.is_blind or BLIND in levels
        return vectors


def hold(levels: list[int]) -> None:
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(os.environ[CONTROL])
        control.sendall(bytes(levels))
        control.recv(1)


@dataclass
class Engine:
    spec: ModelSpec
    backend: FakeBackend


def load(settings: EmbedderSettings) -> Any:
    if settings.model == UNFORESEEN:
        raise PermissionError("nobody foresaw this")
    device = settings.device
    if device == "auto":
        device = "cuda:0" if GPU in os.environ else "cpu"
    if device != "cpu" and GPU not in os.environ:
        raise invalid("LIKENESS_DEVICE", f"{device} is asked for, but there is none")
    return Engine(spec(device), FakeBackend())


if __name__ == "__main__":
    main(load)
