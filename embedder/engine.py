"""Everything that knows the model's libraries, put together: load, identify, move to the device.

Imported late, by the thread that loads: torch takes seconds to import.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import torch
from PIL import Image

from embedder.backends import Backend
from embedder.backends.torch_clip import TorchBackend, resolve_device
from embedder.fingerprint import fingerprint
from embedder.inputs import Array, Tokens
from embedder.models import load
from embedder.preprocess import Geometry, Preprocess
from embedder.settings import EmbedderSettings
from embedder.tokens import Tokenizer

log = structlog.get_logger()


@dataclass(frozen=True)
class Engine:
    """A loaded model and what turns inputs into its food.

    Attributes:
        name: the model's, for people.
        digest: its identity.
        context_length: tokens that it reads of one text.
        backend: runs it.
        preprocess: upright RGB picture → float32 [3, height, width].
        tokenize: text → int64 [context_length], and whether it was cut.
        torch_threads: threads of the model's arithmetic on the CPU.
    """

    name: str
    digest: str
    context_length: int
    backend: Backend
    preprocess: Callable[[Image.Image], Array]
    tokenize: Callable[[str], tuple[Tokens, bool]]
    torch_threads: int

    def set_up_inference_thread(self) -> None:
        """To be called once in the thread that runs ``backend``, before ``set_up_decode_thread`` in any other."""
        torch.set_num_threads(self.torch_threads)
        # torch keeps the number by thread, but a thread that has not asked yet would take what was set last anywhere.
        if torch.get_num_threads() != self.torch_threads:
            raise RuntimeError(f"torch runs {torch.get_num_threads()} threads instead of {self.torch_threads}")

    def set_up_decode_thread(self) -> None:
        """To be called once in each decode thread.

        The transform's last steps are torch's; each decode thread would get a team of as many threads as there are
        cores, all in the way of the model's.
        """
        torch.set_num_threads(1)


def load_engine(settings: EmbedderSettings) -> Engine:
    """Loads the model that the settings name.

    Raises:
        LikenessError: it cannot be loaded, or this machine lacks the device.
    """
    device = resolve_device(settings.device)
    begun = time.perf_counter()
    loaded = load(settings.model, settings.pretrained, settings.preprocess_like)
    loaded_at = time.perf_counter()
    tokenizer = Tokenizer(loaded.tokenizer)
    digest = fingerprint(loaded.network, loaded.tokenizer, loaded.preprocess, loaded.architecture)
    identified_at = time.perf_counter()
    backend = TorchBackend(loaded, device, settings.precision, settings.torch_thread_count)
    log.info(
        "model loaded",
        model=loaded.name,
        digest=digest,
        dimension=backend.dimension,
        device=device,
        precision=settings.precision,
        load_s=round(loaded_at - begun, 2),
        fingerprint_s=round(identified_at - loaded_at, 2),
    )
    return Engine(
        name=loaded.name,
        digest=digest,
        context_length=tokenizer.context_length,
        backend=backend,
        preprocess=Preprocess(loaded.transform, Geometry.of(loaded.preprocess)),
        tokenize=tokenizer,
        torch_threads=settings.torch_thread_count,
    )
