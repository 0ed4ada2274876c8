"""open_clip models on torch: CPU, CUDA, MPS."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional

from chassis.errors import invalid
from embedder.inputs import Array, Tokens
from embedder.models import LoadedModel

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(wanted: str) -> str:
    """The device that a setting names, "auto" being the fastest kind there is.

    Raises:
        LikenessError: this machine has no such device.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        wanted = "cuda" if cuda else "mps" if mps else "cpu"
    if wanted == "cuda":
        wanted = "cuda:0"
    if wanted == "mps" and not mps:
        raise invalid("LIKENESS_DEVICE", "mps is asked for, but torch finds no Apple GPU; set cpu or auto")
    if wanted.startswith("cuda:"):
        count = torch.cuda.device_count() if cuda else 0
        if int(wanted.removeprefix("cuda:")) >= count:
            raise invalid(
                "LIKENESS_DEVICE", f"{wanted} is asked for, but torch finds {count} CUDA devices; set cpu or auto"
            )
    return wanted


class TorchBackend:
    """Runs an open_clip model's two towers. Takes the model over: it is moved to the device."""

    def __init__(self, loaded: LoadedModel, device: str, precision: str, threads: int) -> None:
        """Moves the model to its device.

        Args:
            loaded: in float32, on the CPU.
            device: as ``resolve_device`` gives it.
            precision: "fp32", "bf16" or "fp16".
            threads: of the arithmetic on the CPU, for the thread that calls this and then the methods.
        """
        if precision == "fp16" and device == "cpu":
            raise invalid("LIKENESS_PRECISION", "fp16 is no faster on a CPU; set bf16 or fp32")
        torch.set_num_threads(threads)
        self._device, self._precision = device, precision
        self._network: Any = loaded.network.to(device)
        visual: Any = self._network.visual
        # Starter on two busy cores, batch 16: 48 → 29 ms of CPU a picture. A transformer has one convolution only.
        convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in visual.modules())
        self._format = torch.channels_last if convolutions > 1 else torch.contiguous_format
        visual.to(memory_format=self._format)
        context_length: int = loaded.tokenizer.context_length
        self._dimension: int = self.encode_texts(loaded.tokenizer(["a"], context_length).numpy()).shape[1]

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._device

    @property
    def precision(self) -> str:
        """The number format of its arithmetic."""
        return self._precision

    @property
    def dimension(self) -> int:
        """The length of its vectors."""
        return self._dimension

    def encode_images(self, pixels: Array) -> Array:
        """Embeds pictures: float32 [n, 3, height, width] → float32 [n, dimension], L2-normalised."""
        with torch.inference_mode(), self._arithmetic():
            batch = torch.from_numpy(pixels).to(self._device, memory_format=self._format)
            return _normalised(self._network.encode_image(batch))

    def encode_texts(self, tokens: Tokens) -> Array:
        """Embeds texts: int64 [n, context_length] → float32 [n, dimension], L2-normalised."""
        with torch.inference_mode(), self._arithmetic():
            return _normalised(self._network.encode_text(torch.from_numpy(tokens).to(self._device)))

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Weights stay in float32; autocast keeps what needs it (softmax, layer norm) there too."""
        dtype = _DTYPES.get(self._precision)
        return torch.autocast(self._device.split(":")[0], dtype) if dtype else nullcontext()


def _normalised(features: torch.Tensor) -> Array:
    # Not open_clip's normalize=True, which would divide in the reduced precision.
    return functional.normalize(features.float(), dim=-1).cpu().numpy()
