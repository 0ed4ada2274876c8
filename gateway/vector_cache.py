"""Vectors of the texts and pictures used last, so that the same one is not embedded again.

A vector is known by the model that made it and by the SHA-256 of what it was made from: vectors of two models are never
taken for one another. Equal ones that are being made just now are waited for instead of being made twice.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from likeness.common.v1.types_pb2 import ModelFingerprint

from gateway.metrics import Metrics

Kind = Literal["text", "picture"]


@dataclass(frozen=True)
class Content:
    """What a vector is made from.

    Attributes:
        kind: a text or a picture.
        identity: SHA-256 of it, in hexadecimal; of a picture after the form that it came in.
    """

    kind: Kind
    identity: str


@dataclass(frozen=True)
class Made:
    """A vector, and who made it.

    Bytes, since a part of a protobuf message keeps all of the message in memory.

    Attributes:
        f32: as ``Vector.f32``.
        fingerprint: the model.
    """

    f32: bytes
    fingerprint: ModelFingerprint


class VectorCache:
    """Remembers ``size`` vectors of texts and as many of pictures: those used last."""

    def __init__(self, size: int, metrics: Metrics) -> None:
        self._size = size
        self._metrics = metrics
        self._known: dict[Kind, OrderedDict[tuple[str, str], Made]] = {"text": OrderedDict(), "picture": OrderedDict()}
        self._coming: dict[Content, asyncio.Future[Made | None]] = {}

    def recall(self, digest: str, content: Content) -> Made | None:
        """The vector that the model of this digest made; None: not known. Counted."""
        known, key = self._known[content.kind], (digest, content.identity)
        made = known.get(key)
        if made is None:
            self._metrics.cache_missed(content.kind)
            return None
        known.move_to_end(key)
        self._metrics.cache_hit(content.kind)
        return made

    def coming(self, content: Content) -> "asyncio.Future[Made | None] | None":
        """What another call is making from the same; None: nobody is. It gives None if that call fails."""
        return self._coming.get(content)

    @contextmanager
    def making(self, contents: Sequence[Content]) -> Iterator[None]:
        """Others who want the same wait until the block remembers it, or ends without."""
        loop = asyncio.get_running_loop()
        mine = {content: loop.create_future() for content in contents if content not in self._coming}
        self._coming |= mine
        try:
            yield
        finally:
            for content, future in mine.items():
                del self._coming[content]
                if not future.done():
                    future.set_result(None)

    def remember(self, content: Content, made: Made) -> None:
        """Keeps a vector, and gives it to those who wait for it."""
        coming = self._coming.get(content)
        if coming is not None and not coming.done():
            coming.set_result(made)
        known, key = self._known[content.kind], (made.fingerprint.digest, content.identity)
        known[key] = made
        known.move_to_end(key)
        while len(known) > self._size:
            known.popitem(last=False)
        self._metrics.cache_size(content.kind, len(known))
