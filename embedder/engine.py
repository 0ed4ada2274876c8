"""Settings → a model that runs. What it needs of torch is imported when it needs it: a converted model needs none.

1. choose the device, and with it what runs the model there
2. load the model and identify it
3. openvino: have its converted form, from the cache or made anew, by a process that takes torch away with it
4. choose the precision
"""

import os
import shutil
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import structlog

from chassis.errors import invalid
from embedder.backends import Backend, known
from embedder.backends.openvino_clip import (
    ConvertedModel,
    UnusableFolderError,
    alone,
    openvino_is_installed,
    read_folder,
)
from embedder.backends.openvino_formats import native_precisions, open_converted
from embedder.backends.preparation import LeftOutError, Prepared, cache_folder, prepare_elsewhere
from embedder.settings import EmbedderSettings
from embedder.spec import ModelSpec

log = structlog.get_logger()

FOLDER_PREFIX = "openvino:"

# Of NVIDIA's driver, its Jetsons, AMD's, and WSL's, on Linux.
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg")

# ViT-B-32, two cores, pictures/s at batch 1, 8, 16: openvino 15, 21, 19; torch 10, 17, 15. On cores with bf16 at 4, 8,
# 16, 32: openvino 79, 88, 90, 95. On a cpu half of it is a full batch where more would take long (``batcher``).
_BEST_BATCH = {"cpu": 16}
_BEST_BATCH_ELSEWHERE = 64


@dataclass(frozen=True)
class Engine:
    """A loaded model. To be used by the thread that loaded it.

    Attributes:
        spec: what the serving process needs to know of it.
        backend: runs it.
    """

    spec: ModelSpec
    backend: Backend


def load_engine(settings: EmbedderSettings) -> Engine:
    """Loads the model that the settings name.

    Raises:
        LikenessError: it cannot be loaded, or this machine lacks the device or the precision.
    """
    begun = time.perf_counter()
    if settings.model.startswith(FOLDER_PREFIX):
        engine = _from_folder(settings)
    elif find_spec("torch") is None or find_spec("open_clip") is None:
        raise invalid(
            "LIKENESS_MODEL",
            f"{settings.model} needs torch and open_clip, which are not installed here; set {FOLDER_PREFIX}<folder of "
            "a converted model>, or install likeness[embedder]",
        )
    else:
        engine = _from_open_clip(settings)
    spec = engine.spec
    log.info(
        "model loaded",
        model=spec.name,
        digest=spec.digest,
        dimension=spec.dimension,
        backend=spec.backend,
        device=spec.device,
        precision=spec.precision,
        texts_cut=spec.texts_cut,
        seconds=round(time.perf_counter() - begun, 2),
    )
    return engine


def choose_backend(
    settings: EmbedderSettings, device: str, installed: bool, native: Collection[str]
) -> tuple[Literal["torch", "openvino"], str]:
    """What runs the model on a device, and why.

    Args:
        settings: backend, precision and compile count.
        device: resolved.
        installed: whether OpenVINO can be imported.
        native: the precisions that this CPU has instructions for.

    Raises:
        LikenessError: the settings contradict each other or this machine.
    """
    only_openvino = settings.precision == "int8"
    if settings.backend == "torch" and not only_openvino:
        return "torch", "LIKENESS_BACKEND names it"
    against = None
    if settings.backend == "torch":
        against = "LIKENESS_BACKEND", "torch is asked for"
    elif device != "cpu":
        against = "LIKENESS_BACKEND", f"openvino runs on the cpu here, and the device is {device}"
    elif not installed:
        against = "LIKENESS_BACKEND", "openvino is not installed"
    elif settings.compile:
        against = "LIKENESS_COMPILE", "torch.compile is torch's, openvino always compiles"
    elif settings.precision not in ("auto", *native):
        against = "LIKENESS_PRECISION", f"this CPU is not known to have instructions for {settings.precision}"
    if against is None:
        return "openvino", "LIKENESS_BACKEND names it" if settings.backend == "openvino" else "the faster one on a cpu"
    if only_openvino:
        description = f"int8 is openvino's, which cannot be: {against[1]}; set auto, or what torch has, fp32 or bf16"
        raise invalid("LIKENESS_PRECISION", description)
    if settings.backend == "openvino":
        raise invalid(against[0], f"LIKENESS_BACKEND=openvino cannot be: {against[1]}")
    return "torch", against[1]


def _from_folder(settings: EmbedderSettings) -> Engine:
    if settings.pretrained:
        raise invalid("LIKENESS_PRETRAINED", f"is set, but {settings.model} brings its own weights; leave it empty")
    if settings.backend == "torch" or settings.compile or settings.device not in ("auto", "cpu"):
        description = (
            f"{settings.model} runs on openvino and the cpu, uncompiled; leave LIKENESS_BACKEND, _DEVICE, _COMPILE"
        )
        raise invalid("LIKENESS_MODEL", description)
    if not openvino_is_installed():
        raise invalid("LIKENESS_MODEL", f"{settings.model} needs openvino, which is not installed here")
    try:
        model = read_folder(Path(settings.model.removeprefix(FOLDER_PREFIX)).expanduser())
    except (UnusableFolderError, RuntimeError) as error:  # a user without a home
        raise invalid("LIKENESS_MODEL", str(error)) from error
    try:
        return _open(model, settings)
    except RuntimeError as error:  # OpenVINO's own
        raise invalid("LIKENESS_MODEL", f"{settings.model} does not run here: {error}"[:600]) from error


def _open(model: ConvertedModel, settings: EmbedderSettings) -> Engine:
    backend = open_converted(model, settings.precision, settings.model_thread_count)
    spec = replace(model.spec, again=f"{FOLDER_PREFIX}{model.folder.resolve()}")
    return Engine(_described(spec, "openvino", backend), backend)


def _from_open_clip(settings: EmbedderSettings) -> Engine:
    device, why = _choose_device(settings)
    log.info("device chosen", device=device, reason=why)
    installed = openvino_is_installed()
    asked = installed and device == "cpu" and settings.backend != "torch"
    chosen, why = choose_backend(settings, device, installed, native_precisions() if asked else ())
    log.info("backend chosen", backend=chosen, reason=why)
    if chosen == "openvino":
        required = settings.backend == "openvino" or settings.precision == "int8"
        try:
            return _open(_read_prepared(settings), settings)
        except RuntimeError as error:  # OpenVINO's own
            left_out = LeftOutError("LIKENESS_BACKEND", f"the converted model does not run here: {error}"[:600])
            if required:
                raise invalid(left_out.field, left_out.cause) from error
            log.warning("openvino left out, torch taken", field=left_out.field, reason=left_out.cause)
        except LeftOutError as error:
            if required:
                raise invalid(error.field, error.cause) from error
            log.warning("openvino left out, torch taken", field=error.field, reason=error.cause)
    return _on_torch(settings, device)


def _choose_device(settings: EmbedderSettings) -> tuple[str, str]:
    if settings.device == "cpu":
        return "cpu", "LIKENESS_DEVICE names it"
    if settings.device == "auto" and sys.platform == "linux" and not any(Path(path).exists() for path in _GPU_FILES):
        return "cpu", "there is no GPU's device file"  # and no need of torch, which takes seconds to say the same
    from embedder.backends.torch_clip import resolve_device  # noqa: PLC0415 (torch)

    return resolve_device(settings.device, int(os.environ.get("LIKENESS_WORKER_INDEX", "0")))


def _read_prepared(settings: EmbedderSettings) -> ConvertedModel:
    prepared = known.find(cache_folder(settings), settings) or _prepared(settings)
    folder = prepared.folder
    try:
        return _read(prepared)
    except UnusableFolderError as error:
        log.warning("converted model not used", reason=str(error))
    try:
        with alone(folder):
            try:
                return _read(prepared)  # another process may just have replaced it
            except UnusableFolderError:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:  # it is somebody else's, cannot be written, or is gone
        raise LeftOutError("LIKENESS_CACHE_DIR", f"{folder.parent} cannot be used: {error}") from error
    try:
        return _read(_prepared(settings))
    except UnusableFolderError as error:
        raise LeftOutError("LIKENESS_CACHE_DIR", str(error)) from error


def _read(prepared: Prepared) -> ConvertedModel:
    model = read_folder(prepared.folder)
    return replace(model, spec=replace(model.spec, name=prepared.name))


def _prepared(settings: EmbedderSettings) -> Prepared:
    before = known.state(settings)
    prepared = prepare_elsewhere(settings)
    if before is not None and known.state(settings) == before:  # nobody replaced a file meanwhile
        known.remember(before, prepared)
    return prepared


def _on_torch(settings: EmbedderSettings, device: str) -> Engine:
    from embedder.backends.identify import identify  # noqa: PLC0415 (torch, open_clip)
    from embedder.backends.torch_clip import with_checked_precision  # noqa: PLC0415
    from embedder.backends.towers import build_towers  # noqa: PLC0415
    from embedder.models import load  # noqa: PLC0415

    loaded = load(settings.model, settings.pretrained, settings.preprocess_like)
    spec, probes = identify(loaded)
    towers = build_towers(loaded, probes.tokens, spec.tokenizer.pad_id)
    spec = replace(spec, dimension=towers.dimension, texts_cut=towers.texts_cut)
    backend = with_checked_precision(
        towers, device, settings.precision, probes, threads=settings.model_thread_count, compiled=settings.compile
    )
    return Engine(_described(spec, "torch", backend), backend)


def _described(spec: ModelSpec, name: str, backend: Backend) -> ModelSpec:
    """The spec of a model on the backend that came of it."""
    best = _BEST_BATCH.get(backend.device, _BEST_BATCH_ELSEWHERE)
    return replace(spec, backend=name, device=backend.device, precision=backend.precision, best_batch=best)
