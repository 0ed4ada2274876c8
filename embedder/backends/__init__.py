"""What runs a model: one protocol, one module each."""

from typing import Protocol

from embedder.inputs import Array, Tokens


class Backend(Protocol):
    """A model on a device. Called from one thread at a time."""

    @property
    def device(self) -> str:
        """Where it runs: "cpu", "cuda:0", "mps"."""

    @property
    def precision(self) -> str:
        """The number format of its arithmetic: "fp32", "bf16", "fp16"."""

    @property
    def dimension(self) -> int:
        """The length of its vectors."""

    def encode_images(self, pixels: Array) -> Array:
        """Embeds pictures.

        Args:
            pixels: float32 [n, 3, height, width], as ``Preprocess`` gives them.

        Returns:
            float32 [n, dimension], L2-normalised.
        """

    def encode_texts(self, tokens: Tokens) -> Array:
        """Embeds texts.

        Args:
            tokens: int64 [n, context_length].

        Returns:
            float32 [n, dimension], L2-normalised.
        """
