"""open_clip models on torch: CPU, CUDA, MPS."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor

from chassis.errors import invalid
from embedder.backends.probes import CLOSE_ENOUGH, FAST_ENOUGH, Probes, least_cosine, speedup, vectors
from embedder.backends.towers import Towers
from embedder.inputs import Array, Pixels, Tokens

log = structlog.get_logger()

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Below this many pictures a batch is not worth two launches of every kernel.
_OVERLAP_FROM = 16


def resolve_device(wanted: str, worker_index: int = 0) -> tuple[str, str]:
    """The device that a setting names, "auto" being the fastest kind there is.

    Args:
        wanted: "auto", "cpu", "cuda", "cuda:<number>" or "mps".
        worker_index: which of several processes this is; "auto" and "cuda" give each a GPU of its own in turn.

    Returns:
        The device, and why.

    Raises:
        LikenessError: this machine has no such device.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    count = torch.cuda.device_count() if cuda else 0
    why = "LIKENESS_DEVICE names it"
    if wanted == "auto":
        wanted = "cuda" if cuda else "mps" if mps else "cpu"
        why = {"cuda": "torch finds CUDA", "mps": "torch finds an Apple GPU"}.get(wanted, "torch finds no GPU")
    if wanted == "cuda":
        if not count:
            raise invalid("LIKENESS_DEVICE", "cuda is asked for, but torch finds no CUDA device; set cpu or auto")
        return f"cuda:{worker_index % count}", f"{why}; process {worker_index} of those that share {count} GPUs"
    if wanted == "mps" and not mps:
        raise invalid("LIKENESS_DEVICE", "mps is asked for, but torch finds no Apple GPU; set cpu or auto")
    if wanted.startswith("cuda:") and int(wanted.removeprefix("cuda:")) >= count:
        raise invalid(
            "LIKENESS_DEVICE", f"{wanted} is asked for, but torch finds {count} CUDA devices; set cpu or auto"
        )
    return wanted, why


def has_native_bf16(device: str) -> bool:
    """Whether the device computes bfloat16 itself, rather than by way of float32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.get_device_capability(device) >= (8, 0))
    if device == "mps":
        return True  # macOS 14 and newer; older ones raise, which counts as not close enough
    cpu: Any = torch.cpu
    return any(getattr(cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


class TorchBackend:
    """Runs two towers. Takes them over: they are moved to the device and converted."""

    def __init__(self, towers: Towers, device: str, precision: str, threads: int, compiled: bool = False) -> None:
        """Moves the model to its device.

        Args:
            towers: in float32, on the CPU or the device.
            device: as ``resolve_device`` gives it.
            precision: "fp32", "bf16" or "fp16"; of the weights and of all arithmetic but the normalisation of pixels
                and of vectors.
            threads: of the arithmetic on the CPU, for the thread that calls this and then the methods.
            compiled: whether torch.compile makes kernels of its own, at the first batch and at each new kind of shape.

        Raises:
            LikenessError: the device does not compute in that precision.
        """
        if precision == "fp16" and device == "cpu":
            raise invalid("LIKENESS_PRECISION", "fp16 is no faster on a CPU; set bf16 or fp32")
        torch.set_num_threads(threads)
        # torch keeps the number by thread, but a thread that has not asked yet would take what was set last anywhere.
        if torch.get_num_threads() != threads:
            raise RuntimeError(f"torch runs {torch.get_num_threads()} threads instead of {threads}")
        self._device, self._precision = torch.device(device), precision
        self._towers = towers.to(self._device).in_precision(_DTYPES[precision])
        self._image: Callable[[Tensor], Tensor] = self._towers.image
        self._text: Callable[[Tensor], Tensor] = self._towers.text
        if self._device.type == "cuda" and precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # by default convolutions round to 10 bits, whatever was asked for
        if compiled:
            self._image, self._text = (torch.compile(tower, dynamic=True) for tower in (towers.image, towers.text))
        self._staging = _Staging(self._device) if self._device.type == "cuda" else None

    @property
    def device(self) -> str:
        """Where it runs."""
        return str(self._device)

    @property
    def precision(self) -> str:
        """The number format of its arithmetic."""
        return self._precision

    @property
    def dimension(self) -> int:
        """The length of its vectors."""
        return self._towers.dimension

    @torch.inference_mode()
    def encode_images(self, pixels: Pixels) -> Array:
        """Embeds pictures: uint8 [n, height, width, 3] → float32 [n, dimension], L2-normalised."""
        if self._staging is None:
            return self._image(torch.from_numpy(pixels).to(self._device)).cpu().numpy()
        parts = [self._image(part) for part in self._staging.parts(torch.from_numpy(pixels))]
        return torch.cat(parts).cpu().numpy()

    @torch.inference_mode()
    def encode_texts(self, tokens: Tokens) -> Array:
        """Embeds texts: int64 [n, length] → float32 [n, dimension], L2-normalised."""
        return self._text(torch.from_numpy(tokens).to(self._device)).cpu().numpy()


def halves(rows: int) -> list[slice]:
    """The parts in which a batch of that many pictures goes to a GPU."""
    middle = (rows + 1) // 2
    return [slice(0, middle), slice(middle, rows)] if rows >= _OVERLAP_FROM else [slice(0, rows)]


class _Staging:
    """Pinned memory on the way to a GPU.

    A copy from pinned memory runs beside the GPU's arithmetic: while the first half is computed, the second is brought
    into pinned memory and over. The buffer is free again when a batch's vectors have been read, which waits for all of
    it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pinned = torch.empty(0, dtype=torch.uint8, pin_memory=True)

    def parts(self, pixels: Tensor) -> "Parts":
        """The batch's parts on the device, in order; each is asked for once the one before is under way."""
        if self._pinned.numel() < pixels.numel():
            self._pinned = torch.empty(pixels.numel(), dtype=torch.uint8, pin_memory=True)
        staged = self._pinned[: pixels.numel()].view(pixels.shape)
        return Parts(pixels, staged, self._device, self._copies)


class Parts:
    """An iterator over a batch's parts on the device."""

    def __init__(self, pixels: Tensor, staged: Tensor, device: torch.device, copies: Any) -> None:
        self._pixels, self._staged, self._device, self._copies = pixels, staged, device, copies
        self._left = halves(len(pixels))

    def __iter__(self) -> "Parts":
        return self

    def __next__(self) -> Tensor:
        if not self._left:
            raise StopIteration
        part = self._left.pop(0)
        self._staged[part].copy_(self._pixels[part])
        with torch.cuda.stream(self._copies):
            arrived = self._staged[part].to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._copies)
        # Without this, its memory could be given to the next copy while the arithmetic still reads it.
        arrived.record_stream(current)
        return arrived


def with_checked_precision(
    towers: Towers, device: str, precision: str, probes: Probes, *, threads: int, compiled: bool
) -> TorchBackend:
    """Makes a backend; "auto" precision becomes bf16 where the device has it and its vectors stay close to fp32's.

    On a CPU it has to be faster too: that some have it and compute in it at half the speed is known only by trying.

    Raises:
        LikenessError: the device does not compute in a precision that was asked for by name, or torch cannot compile.
    """
    chosen, precision = _choose_precision(towers, device, precision, threads, probes)
    backend = TorchBackend(chosen, device, precision, threads, compiled)
    if compiled:
        try:
            # A batch of one and shorter texts are shapes of their own to the compiler.
            for batch in (probes, Probes(probes.pixels[:1], probes.tokens[:1])):
                vectors(backend, batch)
            if towers.texts_cut:
                backend.encode_texts(probes.tokens[:, : probes.tokens.shape[1] // 2])
        except Exception as error:  # a compiler that is not there, or any of inductor's own
            raise invalid("LIKENESS_COMPILE", f"torch.compile fails here: {str(error)[:600]}") from error
    return backend


def _choose_precision(towers: Towers, device: str, precision: str, threads: int, probes: Probes) -> tuple[Towers, str]:
    short = "bf16" if precision == "auto" else precision
    if precision == "auto" and not has_native_bf16(device):
        log.info("precision chosen", precision="fp32", reason=f"{device} has no bfloat16 of its own")
        short = "fp32"
    if short == "fp32" and device == "cpu":
        return towers, "fp32"
    shortened = copy.deepcopy(towers) if short != "fp32" else towers
    # On the CPU: a device may have room for the short form alone, and its arithmetic is compared with this too.
    full = TorchBackend(towers, "cpu", "fp32", threads)
    exact = vectors(full, probes)
    if short == "fp32":
        return _as_on_the_cpu(towers, device, threads, probes, exact), "fp32"
    try:
        half = TorchBackend(shortened, device, short, threads)
        cosine = least_cosine(exact, vectors(half, probes))
        good, reason = cosine >= CLOSE_ENOUGH[short], f"its vectors' least cosine to fp32's is {cosine:.5f}"
        if good and precision == "auto" and device == "cpu":
            faster = speedup(half, full, probes)
            good, reason = faster >= FAST_ENOUGH, f"{reason}, and it is {faster:.2f} times as fast"
    except (RuntimeError, TypeError) as error:
        good, cosine, reason = False, float("nan"), f"{short} fails here: {error}"[:300]
    if good or (precision != "auto" and not np.isnan(cosine)):
        level = log.info if good else log.warning
        level("precision chosen", precision=short, reason=reason)
        return shortened, short
    if precision != "auto":
        raise invalid("LIKENESS_PRECISION", f"{short} cannot be used with this model ({reason}); set fp32 or auto")
    log.info("precision chosen", precision="fp32", reason=f"not {short}: {reason}")
    return _as_on_the_cpu(towers, device, threads, probes, exact), "fp32"


def _as_on_the_cpu(towers: Towers, device: str, threads: int, probes: Probes, exact: list[Array]) -> Towers:
    """The towers, on a device on which their vectors in fp32 are those of the CPU."""
    if device != "cpu":
        cosine = least_cosine(exact, vectors(TorchBackend(towers, device, "fp32", threads), probes))
        if not cosine >= CLOSE_ENOUGH["bf16"]:
            description = f"{device} computes other vectors than the CPU (least cosine {cosine:.5f}); set cpu"
            raise invalid("LIKENESS_DEVICE", description)
    return towers
