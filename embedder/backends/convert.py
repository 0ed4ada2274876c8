"""open_clip → OpenVINO, once a model: the towers are traced, compared with torch's vectors, and kept in a folder."""

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch

from embedder.backends.openvino_clip import (
    DESCRIPTION,
    FILES,
    FORMAT,
    OpenVinoBackend,
    UnusableFolderError,
    alone,
    import_openvino,
    read_description,
    sha256_of,
)
from embedder.backends.probes import Probes, least_cosine, vectors
from embedder.backends.torch_clip import TorchBackend
from embedder.backends.towers import Towers
from embedder.decode import DECODE_RULES
from embedder.spec import ModelSpec

log = structlog.get_logger()

# What has a part in how a model is converted, besides the model: libraries, and modules of this package.
_LIBRARIES = ("openvino", "torch", "open_clip_torch", "timm", "transformers", "tokenizers")
_MODULES = ("backends/towers.py", "backends/convert.py", "backends/probes.py", "tokenizer_export.py", "tokens.py")

# Both compute in float32; what differs is rounding.
_LEAST_COSINE = 0.9999


class ConversionError(RuntimeError):
    """A model that OpenVINO cannot take over, or whose vectors it would change."""


def cached(cache: Path, digest: str) -> Path | None:
    """The folder of the model of that digest as an earlier start converted it, or None.

    One that cannot be read is as good as none: it will be replaced. Who reads it checks the SHA-256 of its files.

    Raises:
        OSError: the cache cannot be looked into.
    """
    folder = _folder(cache, digest)
    if not folder.exists():
        return None
    try:
        description = read_description(folder)
        if description["spec"]["digest"] != digest:
            raise UnusableFolderError(f"{folder} holds another model")
    except (UnusableFolderError, KeyError, TypeError) as error:
        log.warning("converted model not used", reason=str(error))
        return None
    log.info("converted model found", folder=str(folder))
    return folder


def converted(cache: Path, towers: Towers, spec: ModelSpec, probes: Probes, threads: int) -> Path:
    """Converts a model and keeps it under its digest. Of several processes that ask at a time, one converts.

    Args:
        cache: the folder of all converted models; is made if missing.
        towers: in float32, on the CPU.
        spec: what the folder will say the model is.
        probes: to compare both with.
        threads: of the comparison's arithmetic.

    Returns:
        The folder.

    Raises:
        ConversionError: OpenVINO cannot take the model over, or would change its vectors.
        OSError: the folder cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    folder = _folder(cache, spec.digest)
    with alone(folder):
        if cached(cache, spec.digest) is not None:
            return folder
        begun, prefix = time.perf_counter(), f".converting-{folder.name}-"
        for left in cache.glob(f"{prefix}*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=prefix) as work:
            made = Path(work) / "made"
            made.mkdir()
            _convert(towers, spec, probes, made)
            cosine = _compare(towers, spec, probes, made, threads)
            _describe(spec, probes, made)
            if folder.exists():
                folder.rename(Path(work) / "spoilt")
            made.rename(folder)
        seconds = round(time.perf_counter() - begun, 1)
        log.info("model converted", folder=str(folder), seconds=seconds, least_cosine_to_torch=round(cosine, 7))
        return folder


def _convert(towers: Towers, spec: ModelSpec, probes: Probes, folder: Path) -> None:
    openvino = import_openvino()
    height, width = spec.geometry.height, spec.geometry.width
    length = -1 if towers.texts_cut else spec.tokenizer.context_length
    cases: list[tuple[str, Any, Any, Any]] = [
        ("image", towers.image, torch.from_numpy(probes.pixels[:2]), (openvino.Type.u8, [-1, height, width, 3])),
        ("text", towers.text, torch.from_numpy(probes.tokens[:2]), (openvino.Type.i64, [-1, length])),
    ]
    for name, tower, example, (kind, shape) in cases:
        try:
            with _quietly(), torch.no_grad():
                model = openvino.convert_model(
                    tower, example_input=example, input=[(openvino.PartialShape(shape), kind)], verbose=False
                )
        except Exception as error:  # torch's tracer and OpenVINO have no error class in common
            raise ConversionError(f"OpenVINO cannot take over the {name} tower: {str(error)[:600]}") from error
        try:
            # Not in float16, which would cost precision that this file is to keep.
            openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
        except RuntimeError as error:  # on a full disk "basic_ios::clear" is all that OpenVINO says
            raise OSError(f"{name}.xml and {name}.bin cannot be written to {folder}: {str(error)[:600]}") from error


def _compare(towers: Towers, spec: ModelSpec, probes: Probes, folder: Path, threads: int) -> float:
    """The least cosine to torch's vectors, in batches of several shapes."""
    theirs = TorchBackend(towers, "cpu", "fp32", threads)
    batches = [probes, Probes(probes.pixels[:1], probes.tokens[-1:])]
    if towers.texts_cut:
        used = int((probes.tokens[:-1] != spec.tokenizer.pad_id).sum(axis=1).max())
        batches.append(Probes(probes.pixels[1:], probes.tokens[:-1, :used]))
    try:
        ours = OpenVinoBackend(folder, spec.dimension, "fp32", threads)
        cosine = float(np.min([least_cosine(vectors(theirs, batch), vectors(ours, batch)) for batch in batches]))
    except RuntimeError as error:
        raise ConversionError(f"the converted model does not run: {str(error)[:600]}") from error
    if not cosine >= _LEAST_COSINE:
        raise ConversionError(
            f"the converted model's vectors have a cosine of {cosine:.6f} to torch's; expected: {_LEAST_COSINE} or more"
        )
    return cosine


def _describe(spec: ModelSpec, probes: Probes, folder: Path) -> None:
    description = {
        "format": FORMAT,
        "decode_rules": DECODE_RULES,
        "versions": {name: version(name) for name in _LIBRARIES},
        "files": {name: sha256_of(folder / name) for name in FILES},
        "spec": json.loads(spec.to_json()),
        "probe_tokens": probes.tokens.tolist(),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))


def _folder(cache: Path, digest: str) -> Path:
    """Where a model is kept: by its digest, and by what converts it, so that no release serves another's conversion."""
    converter = hashlib.sha256(" ".join(f"{name} {version(name)}" for name in _LIBRARIES).encode())
    for module in _MODULES:
        converter.update((Path(__file__).parent.parent / module).read_bytes())
    return cache / f"{digest}-{converter.hexdigest()[:12]}"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Mutes the tracer, whose warnings are about what the comparison then tests; and keeps torch's attention traceable.

    torch's shortcut through a fused encoder layer is one operation that OpenVINO would have to take apart again.
    """
    fast, tracer = torch.backends.mha.get_fastpath_enabled(), logging.getLogger("torch")
    level = tracer.level
    torch.backends.mha.set_fastpath_enabled(False)
    tracer.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        tracer.setLevel(level)
