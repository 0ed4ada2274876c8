"""Converted models on OpenVINO: CPU. Needs neither torch nor open_clip.

A converted model is a folder that ``convert`` writes: ``image.xml``, ``image.bin``, ``text.xml``, ``text.bin`` and
``model.json``, which says what they are and what their content must be.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chassis.cores import cores
from embedder.backends import eight_bit
from embedder.backends.probes import Probes, probe_pixels
from embedder.decode import DECODE_RULES
from embedder.inputs import Array, Pixels, Tokens
from embedder.spec import ModelSpec

# Raised when the folder's files mean something else.
FORMAT = 1
FILES = ("image.xml", "image.bin", "text.xml", "text.bin")
DESCRIPTION = "model.json"

# OpenVINO prepares for every new shape of its input and keeps what it prepared, 5,000 records of each kind of work, and
# oneDNN below it keeps 1,024 of all: with ViT-B-32 0.28 MB for a shape of texts, of which there are thousands (any
# number of 3 to 77 tokens). What is dropped takes some 3 ms to prepare again. Pictures have one shape for each size
# of a batch, and what a convolutional tower needs for all of them has room in OpenVINO's own limit. Only together do
# the two limits hold: what one has dropped, the other may keep.
_KEPT_FOR_TEXTS = 200
_KEPT_BY_ONEDNN = 64

# Bytes of weights from which on a tower's work is done in small parts, of which a thread takes one when it is done with
# another. With an equal part for each thread, all wait for the one that has to give way to decoding, to gRPC or to
# another process. What smaller towers have to do is too little to be parted: starter's texts then take 4 % longer.
_LARGE = 128 * 2**20

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


class UnusableFolderError(ValueError):
    """A folder that holds no converted model, or not the one it should be."""


@dataclass(frozen=True)
class ConvertedModel:
    """A folder whose content was checked.

    Attributes:
        folder: where it is.
        spec: of the model; its device, precision and batch are those it was converted with.
        probes: the texts' ids come from the folder, for want of a tokenizer here.
    """

    folder: Path
    spec: ModelSpec
    probes: Probes


def openvino_is_installed() -> bool:
    """Whether it can be imported; does not import it."""
    return importlib.util.find_spec("openvino") is not None


def import_openvino() -> Any:
    """Imports OpenVINO without its telemetry, which reports every import to its maker where that package is there."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # import then fails, which it expects
    import openvino  # noqa: PLC0415 (in most processes nobody needs it)

    return openvino


def read_folder(folder: Path) -> ConvertedModel:
    """Checks a folder's description and the SHA-256 of each of its files.

    Raises:
        UnusableFolderError: something is missing, damaged or of another format.
    """
    description = read_description(folder)
    try:
        with ThreadPoolExecutor(min(len(FILES), cores())) as threads:
            found = dict(zip(FILES, threads.map(lambda name: sha256_of(folder / name), FILES), strict=True))
        wrong = [name for name in FILES if found[name] != description["files"][name]]
        if wrong:
            raise UnusableFolderError(f"{folder / wrong[0]} is damaged: its SHA-256 is not the one of {DESCRIPTION}")
        spec = ModelSpec.from_json(json.dumps(description["spec"]))
        tokens = np.asarray(description["probe_tokens"], np.int64)
    except OSError as error:
        raise UnusableFolderError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UnusableFolderError):
            raise
        raise UnusableFolderError(f"{folder / DESCRIPTION} describes no converted model: {error!r}"[:500]) from error
    return ConvertedModel(folder, spec, Probes(probe_pixels(spec.geometry.height, spec.geometry.width), tokens))


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder's name, which ends with the process, whatever ends it; the folder need not exist."""
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_description(folder: Path) -> dict[str, Any]:
    """Reads what a folder says of itself.

    Raises:
        UnusableFolderError: it says nothing, or nothing that this version goes by.
    """
    try:
        description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_bytes())
        form, rules = description["format"], description["decode_rules"]
    except OSError as error:
        raise UnusableFolderError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableFolderError(f"{folder / DESCRIPTION} describes no converted model: {error!r}"[:500]) from error
    if form != FORMAT:
        raise UnusableFolderError(f"{folder} is of format {form}; this version reads {FORMAT}")
    if rules != DECODE_RULES:
        raise UnusableFolderError(
            f"{folder} was converted for decoding rules {rules}; this version decodes by rules {DECODE_RULES}, which "
            "gives other vectors. Convert the model again"
        )
    return description


def sha256_of(path: Path) -> str:
    """The digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class OpenVinoBackend:
    """Runs a converted model on the CPU."""

    def __init__(self, folder: Path, dimension: int, precision: str, threads: int) -> None:
        """Compiles both towers for this CPU.

        Args:
            folder: of a converted model.
            dimension: of its vectors.
            precision: "fp32", "bf16", "fp16" or "int8" (``eight_bit``); of the arithmetic. Must be among
                ``openvino_formats.native_precisions``: a CPU that lacks bf16 or fp16 emulates it, minutes for one
                picture.
            threads: of the arithmetic.
        """
        openvino = import_openvino()
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            # Two processes of two threads each would be pinned to the same two cores.
            "ENABLE_CPU_PINNING": "NO",
        }
        # Read by oneDNN before the first forward pass of the process.
        if not {"ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"} & os.environ.keys():
            os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(_KEPT_BY_ONEDNN)
        core = openvino.Core()
        self._precision, self._dimension = precision, dimension
        self._image, self._text = (
            _compiled(
                core, file, precision, options | _of_tower(file.with_suffix(".bin"), threads)
            ).create_infer_request()
            for file in (folder / "image.xml", folder / "text.xml")
        )

    @property
    def device(self) -> str:
        """Where it runs."""
        return "cpu"

    @property
    def precision(self) -> str:
        """The number format of its arithmetic, of pictures at least."""
        return self._precision

    @property
    def dimension(self) -> int:
        """The length of its vectors."""
        return self._dimension

    def encode_images(self, pixels: Pixels) -> Array:
        """Embeds pictures: uint8 [n, height, width, 3] → float32 [n, dimension], L2-normalised."""
        return _infer(self._image, np.ascontiguousarray(pixels))

    def encode_texts(self, tokens: Tokens) -> Array:
        """Embeds texts: int64 [n, length] → float32 [n, dimension], L2-normalised."""
        return _infer(self._text, np.ascontiguousarray(tokens))

    def take_texts_from(self, other: "OpenVinoBackend") -> None:
        """Embeds texts as another backend of the same model does."""
        self._text = other._text


def _compiled(core: Any, file: Path, precision: str, options: dict[str, str]) -> Any:
    """A tower, compiled for this CPU."""
    if precision != "int8":
        return core.compile_model(file, "CPU", options)
    group = eight_bit.GROUP[file.stem]
    model = core.read_model(file)
    eight_bit.quantise(model, group)
    return core.compile_model(model, "CPU", options | {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group)})


def _of_tower(weights: Path, threads: int) -> dict[str, str]:
    """The options of one tower."""
    options = {}
    if weights.stem == "text":
        # OpenVINO does not list this property; a version without it would refuse it.
        options["CPU_RUNTIME_CACHE_CAPACITY"] = str(_KEPT_FOR_TEXTS)
    if threads > 1 and weights.stat().st_size >= _LARGE:
        options["TBB_PARTITIONER"] = "AUTO"
    return options


def _infer(request: Any, batch: Pixels | Tokens) -> Array:
    # The input is read where it lies; the output is copied, since the next batch is written over it.
    vectors: Array = request.infer([batch], share_inputs=True, share_outputs=False)[0]
    return vectors
