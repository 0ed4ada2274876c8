"""What the embedder can be told."""

from typing import Literal

from pydantic import Field

from chassis.pictures import PILLOW_PIXEL_LIMIT, PictureLimits
from chassis.settings import ServiceSettings
from embedder.cores import cores
from embedder.inputs import Limits


class EmbedderSettings(ServiceSettings):
    """The embedder turns pictures and texts into vectors."""

    port: int = Field(
        50051,
        ge=0,
        le=65535,
        validation_alias="LIKENESS_EMBEDDER_PORT",
        description="TCP port to listen on, 0 to 65535; 0: any free one, named in the log.",
    )
    model: str = Field(
        "starter",
        min_length=1,
        description="The model: starter (built in, needs no download), a name that open_clip knows such as ViT-B-32, "
        "hf-hub:<organisation>/<repository>, or local-dir:<folder with open_clip_config.json>.",
    )
    pretrained: str = Field(
        "",
        description="The weights of a model that open_clip knows by name: one of its tags such as laion2b_s34b_b79k "
        "(downloaded once), or the path of a checkpoint file. Not for starter, hf-hub: and local-dir:.",
    )
    preprocess_like: str = Field(
        "",
        description="For a checkpoint file of an open_clip model: the tag with whose preprocessing it was trained. "
        "Needed only where that model's tags differ in it; the start then says so.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="Where the model runs: auto (cuda, else mps, else cpu), cpu, cuda, cuda:<number>, mps.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Number format of the model's arithmetic: fp32, bf16, fp16 (not on cpu)."
    )
    max_batch: int = Field(16, ge=1, le=4096, description="Most inputs in one forward pass, 1 to 4096.")
    max_inputs: int = Field(256, ge=1, le=65_536, description="Most inputs in one call, 1 to 65536.")
    max_waiting_inputs: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        description="Most inputs of all calls together that are held at a time, 1 to 1000000; further calls are "
        "refused with RESOURCE_EXHAUSTED. A single call is always taken.",
    )
    max_encoded_mb: float = Field(
        32, gt=0, le=1024, description="Most bytes of one encoded picture, in MiB, above 0, up to 1024."
    )
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        le=PILLOW_PIXEL_LIMIT,
        description=f"Most pixels (width × height) of one picture, 1 to {PILLOW_PIXEL_LIMIT}. Also the most that are "
        "decoded at a time: it bounds memory, at 4 (upright JPEG) to 20 (JPEG 2000) bytes a pixel.",
    )
    max_text_bytes: int = Field(
        2048,
        ge=1,
        le=2**20,
        description="Most bytes of UTF-8 in one text, 1 to 1048576. A model reads a few hundred; a word of many "
        "thousand letters takes a tokenizer seconds.",
    )
    decode_threads: int = Field(
        0, ge=0, le=256, description="Threads that decode, resize and tokenize, 1 to 256; 0: one a core, at most 16."
    )
    torch_threads: int = Field(
        0, ge=0, le=1024, description="Threads of the model's arithmetic on the cpu, 1 to 1024; 0: one a core."
    )

    @property
    def limits(self) -> Limits:
        """What an input may be."""
        pictures = PictureLimits(int(self.max_encoded_mb * 2**20), self.max_pixels)
        return Limits(pictures, self.max_inputs, self.max_text_bytes)

    @property
    def decode_thread_count(self) -> int:
        """Threads that decode."""
        return self.decode_threads or min(16, cores())

    @property
    def torch_thread_count(self) -> int:
        """Threads of the model's arithmetic."""
        return self.torch_threads or cores()
