"""What runs a model: one protocol, one module each. Nothing here imports a model's libraries."""

import sys
from typing import Protocol

from embedder.inputs import Array, Pixels, Tokens

# How torch's CPU allocator and OpenVINO say it; both raise a plain RuntimeError.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "alloc_failed",
)


class Backend(Protocol):
    """A model on a device. Called by the thread that made it, and by no other."""

    @property
    def device(self) -> str:
        """Where it runs: "cpu", "cuda:0", "mps"."""

    @property
    def precision(self) -> str:
        """The number format of its arithmetic: "fp32", "bf16", "fp16", "int8"."""

    @property
    def dimension(self) -> int:
        """The length of its vectors."""

    def encode_images(self, pixels: Pixels) -> Array:
        """Embeds pictures.

        Args:
            pixels: uint8 [n, height, width, 3], R, G, B, as ``Preprocess`` gives them. The model's mean and standard
                deviation are applied here, on the device.

        Returns:
            float32 [n, dimension], L2-normalised.
        """

    def encode_texts(self, tokens: Tokens) -> Array:
        """Embeds texts.

        Args:
            tokens: int64 [n, length], padded. The length is the context length or, where ``ModelSpec.texts_cut`` says
                so, anything from the longest text's up to it.

        Returns:
            float32 [n, dimension], L2-normalised.
        """


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a backend failed for want of memory, its own or the device's: a smaller batch may pass."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    raised_by_torch = getattr(torch, "OutOfMemoryError", None)
    if raised_by_torch is not None and isinstance(error, raised_by_torch):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in message for sign in _OUT_OF_MEMORY)
