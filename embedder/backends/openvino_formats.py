"""The number format that a converted model runs in: what is asked for, or the fastest that keeps its vectors close."""

import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import structlog

from chassis.errors import invalid
from embedder.backends import eight_bit
from embedder.backends.openvino_clip import ConvertedModel, OpenVinoBackend, import_openvino
from embedder.backends.probes import CLOSE_ENOUGH, FAST_ENOUGH, least_cosine, speedup, vectors

log = structlog.get_logger()

_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}  # INT8 it says of every CPU
_CPUINFO = Path("/proc/cpuinfo")
_UNKNOWN = "this CPU is not known to have instructions for it"
_INT8_INSTRUCTIONS = {"avx512_vnni", "avx_vnni"}


def native_precisions() -> set[str]:
    """The number formats that this CPU computes in by itself, as OpenVINO and, of int8, Linux see it."""
    capabilities = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    found = {precision for precision, capability in _CAPABILITIES.items() if capability in capabilities}
    flags = set(_CPUINFO.read_text().split()) if sys.platform == "linux" else set()
    return found | ({"int8"} if flags & _INT8_INSTRUCTIONS else set())


def open_converted(model: ConvertedModel, precision: str, threads: int) -> OpenVinoBackend:
    """Makes a backend; "auto" precision becomes the fastest here of those whose vectors stay close to fp32's.

    Where only pictures' vectors do, texts' are computed in fp32, of a precision that is named too.

    Raises:
        LikenessError: the CPU does not compute in a precision that was asked for by name, or the model does not.
        RuntimeError: OpenVINO cannot run the model in fp32, or in the precision that was asked for.
    """
    native = native_precisions()
    if precision not in ("auto", *native):
        raise invalid(
            "LIKENESS_PRECISION",
            f"{precision} is asked for, but {_UNKNOWN}; set auto, or one of {', '.join(sorted(native))}",
        )
    exact = OpenVinoBackend(model.folder, model.spec.dimension, "fp32", threads)
    if precision == "fp32":
        return exact
    trial = _Trial(model, exact, threads)
    if precision == "auto":
        return _fastest(trial, native)
    backend, of_pictures, reason = trial.open(precision)
    if np.isnan(of_pictures):
        raise invalid("LIKENESS_PRECISION", f"{precision} cannot be used with this model ({reason}); set fp32 or auto")
    # Named by LIKENESS_PRECISION, or by the process that starts the model again as it was.
    level = log.info if of_pictures >= CLOSE_ENOUGH[precision] else log.warning
    level("precision chosen", precision=precision, reason=f"it is named; {reason}")
    return backend


class _Trial:
    """A model in shorter number formats, compared with fp32."""

    def __init__(self, model: ConvertedModel, exact: OpenVinoBackend, threads: int) -> None:
        self.model, self.exact, self._threads = model, exact, threads
        self._expected = vectors(exact, model.probes)

    def open(self, short: str) -> tuple[OpenVinoBackend, float, str]:
        """A backend in that format, pictures' least cosine, and what to say of it.

        Texts stay in fp32 if only their vectors are too far off.

        Raises:
            RuntimeError: it does not run.
        """
        backend = OpenVinoBackend(self.model.folder, self.model.spec.dimension, short, self._threads)
        of_pictures, of_texts = (
            least_cosine([ours], [theirs])
            for ours, theirs in zip(self._expected, vectors(backend, self.model.probes), strict=True)
        )
        reason = f"the least cosine to fp32's vectors is {of_pictures:.5f} of pictures, {of_texts:.5f} of texts"
        if not of_texts >= CLOSE_ENOUGH[short]:
            reason += " (which fp32 embeds then)"
            backend.take_texts_from(self.exact)
        return backend, of_pictures, reason


def _fastest(trial: _Trial, native: Collection[str]) -> OpenVinoBackend:
    best, reasons = trial.exact, []
    for short in ("bf16", "int8"):
        if short not in native:
            reasons.append(f"{short}: {_UNKNOWN}")
        elif short == "int8" and not _int8_is_worth_trying(trial.model.folder):
            reasons.append("int8: too few of its pictures' tower's weights are in matrix products to gain by it")
        else:
            best, reason = _better(trial, short, best)
            reasons.append(f"{short}: {reason}")
    log.info("precision chosen", precision=best.precision, reason=" / ".join(reasons))
    return best


def _better(trial: _Trial, short: str, best: OpenVinoBackend) -> tuple[OpenVinoBackend, str]:
    """That format's backend if it is close to fp32 and faster than the best so far, else that one; and why."""
    try:
        backend, of_pictures, reason = trial.open(short)
        if not of_pictures >= CLOSE_ENOUGH[short]:
            return best, reason
        faster = speedup(backend, best, trial.model.probes)
    except (RuntimeError, MemoryError) as error:  # OpenVINO's own is a plain RuntimeError
        return best, f"fails here: {error}"[:300]
    return backend if faster >= FAST_ENOUGH else best, f"{reason}; {faster:.2f} times as fast as {best.precision}"


def _int8_is_worth_trying(folder: Path) -> bool:
    file = folder / "image.xml"
    return eight_bit.is_worth_trying(import_openvino().Core().read_model(file), file.with_suffix(".bin"))
