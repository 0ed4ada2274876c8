"""What the serving process knows of a model that another process runs. Plain values, so that it travels as JSON."""

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True)
class Geometry:
    """What of open_clip's preprocessing decides which pixels the model sees.

    Attributes:
        width: of the model's input, in pixels.
        height: of the model's input, in pixels.
        resize_mode: "shortest", "longest" or "squash".
        interpolation: "bicubic" or "bilinear".
        fill: the R, G, B of what "longest" leaves empty, 0 to 255 each.
    """

    width: int
    height: int
    resize_mode: str
    interpolation: str
    fill: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer as the ``tokenizers`` library runs it.

    Attributes:
        definition: the library's JSON; truncation and padding are off in it.
        context_length: tokens that the model reads of one text, special ones included.
        cleaning: what is done to a text before, a name in ``tokens.CLEANING``.
        pad_id: the id that fills a row.
        options: whatever else ``tokens`` needs to know of this kind of tokenizer.
    """

    definition: str
    context_length: int
    cleaning: str
    pad_id: int
    options: dict[str, Any]


@dataclass(frozen=True)
class ModelSpec:
    """A loaded model.

    Attributes:
        name: for people, such as "starter".
        digest: its fingerprint.
        dimension: the length of its vectors.
        backend: what runs it: "torch" or "openvino".
        device: where: "cpu", "cuda:0", "mps".
        precision: of its arithmetic: "fp32", "bf16", "fp16", "int8"; on openvino texts may be in fp32 all the same.
        best_batch: rows in one forward pass that suit the device.
        geometry: of its pictures.
        tokenizer: of its texts.
        texts_cut: whether a batch of texts may be cut to its longest text; checked on this very model.
        again: a value of LIKENESS_MODEL that loads it again with less work than the first time; empty if there is none.
    """

    name: str
    digest: str
    dimension: int
    backend: str
    device: str
    precision: str
    best_batch: int
    geometry: Geometry
    tokenizer: TokenizerSpec
    texts_cut: bool
    again: str = ""

    def to_json(self) -> str:
        """Writes it."""
        return _SPEC.dump_json(self).decode()

    @staticmethod
    def from_json(text: str | bytes) -> "ModelSpec":
        """Reads what ``to_json`` wrote; raises ValueError for anything else."""
        return _SPEC.validate_json(text)


_SPEC = TypeAdapter(ModelSpec)
