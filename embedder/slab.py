"""Rows of pixels in memory that the serving process and the model process share.

Decoding writes them here, and the model process gathers each batch from here: a copy within memory. None are sent.
"""

import mmap
import os
import tempfile
from collections import deque
from dataclasses import dataclass

import numpy as np

from embedder.inputs import Pixels


@dataclass(frozen=True)
class SlabShape:
    """What both sides have to know of it.

    Attributes:
        slots: how many pictures it holds.
        height: of a picture, in pixels.
        width: of a picture, in pixels.
    """

    slots: int
    height: int
    width: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.slots * self.height * self.width * 3


def shared_file() -> int:
    """A file in memory without a name, of no size yet; returns its descriptor, to be closed by the caller."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("likeness-pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def mapped(descriptor: int, shape: SlabShape) -> Pixels:
    """The rows in a shared file: uint8 [slots, height, width, 3]."""
    memory = mmap.mmap(descriptor, shape.nbytes)
    return np.frombuffer(memory, np.uint8).reshape(shape.slots, shape.height, shape.width, 3)


class Slab:
    """The serving process's end: which rows are free.

    Attributes:
        rows: uint8 [slots, height, width, 3].
        shape: of ``rows``.
    """

    def __init__(self, descriptor: int, shape: SlabShape) -> None:
        os.ftruncate(descriptor, shape.nbytes)
        self.shape = shape
        self.rows = mapped(descriptor, shape)
        self._free = deque(range(shape.slots))

    @property
    def free(self) -> int:
        """How many rows are free."""
        return len(self._free)

    def take(self) -> int:
        """The number of a row that is free until it is taken."""
        return self._free.popleft()

    def give_back(self, slot: int) -> None:
        """Frees a row."""
        self._free.append(slot)
