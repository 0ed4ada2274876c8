"""What the embedder can be told."""

from typing import Literal

from pydantic import Field

from chassis.cores import cores
from chassis.pictures import PILLOW_PIXEL_LIMIT, PictureLimits
from chassis.settings import ServiceSettings
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
        "hf-hub:<organisation>/<repository>, local-dir:<folder with open_clip_config.json>, or openvino:<folder of a "
        "converted model>, which needs no torch.",
    )
    pretrained: str = Field(
        "",
        description="The weights of a model that open_clip knows by name: one of its tags such as laion2b_s34b_b79k "
        "(downloaded once), or the path of a checkpoint file. Not for starter, hf-hub: and local-dir:.",
    )
    preprocess_like: str = Field(
        "",
        description="For a checkpoint file of an open_clip model: the tag with whose preprocessing and activation "
        "function it was trained. Needed where that model's tags differ in either, as those of ViT-B-32 do; the start "
        "says so, and lists them.",
    )
    backend: Literal["auto", "torch", "openvino"] = Field(
        "auto",
        description="What runs the model: torch, openvino (cpu only), or auto: openvino on a cpu where it is "
        "installed, else torch.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="Where the model runs: auto (cuda, else mps, else cpu), cpu, cuda, cuda:<number>, mps.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto",
        description="Number format of the model's arithmetic: fp32, bf16, fp16 (few CPUs), int8 (openvino: matrix "
        "products of 8-bit integers, the rest in fp32), or auto: fp32, or what is faster (on a cpu: tried at the "
        "start) and keeps the vectors of some inputs within a cosine of 0.999 of fp32's, int8 of 0.9995: bf16 where "
        "the device has it; int8 with openvino, of large transformers, on a CPU with VNNI. With openvino texts stay in "
        "fp32 where only theirs do not keep it.",
    )
    compile: bool = Field(
        False, description="Whether torch compiles the model (torch.compile): a slow start, often faster batches."
    )
    cache_dir: str = Field(
        "",
        description="Where converted models are kept; empty: likeness/ under XDG_CACHE_HOME or ~/.cache. May be "
        "deleted at any time.",
    )
    max_batch: int = Field(
        0,
        ge=0,
        le=4096,
        description="Most pictures in one forward pass, 1 to 4096; texts up to as many tokens as that many full texts "
        "hold. 0: what suits the device: 64, or on a cpu 8, and up to 16 while a pass takes no longer than 0.25 s, or "
        "0.1 s for bulk if an interactive call has come in the last 5 s.",
    )
    batch_wait_ms: float = Field(
        0, ge=0, le=1000, description="Longest wait for a batch to fill while the model is idle, in ms, 0 to 1000."
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Processes that serve the port side by side, each with a model of its own, 1 to 256; for machines "
        "where one Python interpreter is the limit. With cuda, one a GPU.",
    )
    stuck_s: float = Field(
        30,
        gt=0,
        le=3600,
        description="Seconds after which a forward pass without an answer counts as stuck; the model is then started "
        "anew. Above 0, up to 3600.",
    )
    metrics_port: int = Field(
        0,
        ge=-1,
        le=65535,
        validation_alias="LIKENESS_EMBEDDER_METRICS_PORT",
        description="TCP port of /metrics (Prometheus), 0 to 65535; 0: any free one, named in the log; -1: none.",
    )
    text_cache: int = Field(
        10_000,
        ge=0,
        le=10_000_000,
        description="Texts whose vectors are remembered, 0 to 10000000; each takes 4 bytes a dimension, and its own "
        "size.",
    )
    stream_window: int = Field(
        0,
        ge=0,
        le=65_536,
        description="Most unanswered inputs of one EmbedStream, 1 to 65536. 0: eight times LIKENESS_MAX_BATCH, or, if "
        "that is 0, 64 on a cpu and 512 elsewhere.",
    )
    max_inputs: int = Field(256, ge=1, le=65_536, description="Most inputs in one call, 1 to 65536.")
    max_waiting_inputs: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Most inputs of all calls together that are held at a time, 1 to 1000000; further calls are "
        "refused with RESOURCE_EXHAUSTED. Bulk may take three quarters, and has an eighth to itself. A single call, of "
        "all or of all bulk ones, is always taken.",
    )
    max_waiting_mb: float = Field(
        512, gt=0, le=2**20, description="Most encoded bytes held at a time, in MiB, likewise, above 0."
    )
    max_waiting_pixels: int = Field(
        2_000_000_000,
        ge=1,
        le=10**12,
        description="Most pixels that wait to be decoded at a time, likewise and for each lane, 1 to 1000000000000.",
    )
    max_queue_s: float = Field(
        1.0,
        gt=0,
        le=3600,
        description="Interactive calls are refused likewise while the interactive inputs before them would take "
        "longer than this, in seconds, above 0, up to 3600; where that is less than two and a half batches, as many as "
        "that in up to twice the time.",
    )
    max_bulk_queue_s: float = Field(
        20,
        gt=0,
        le=3600,
        description="Bulk calls are refused likewise while all inputs before them would take longer than this, in "
        "seconds, above 0, up to 3600; below LIKENESS_DRAIN_S, so that a stop leaves time to answer them.",
    )
    max_encoded_mb: float = Field(
        32, gt=0, le=1024, description="Most bytes of one encoded picture, in MiB, above 0, up to 1024."
    )
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        le=PILLOW_PIXEL_LIMIT,
        description=f"Most pixels (width × height) of one picture, 1 to {PILLOW_PIXEL_LIMIT}. Also the most that each "
        "lane decodes at a time: it bounds memory, at 4 (upright JPEG) to 20 (JPEG 2000) bytes a pixel.",
    )
    max_text_bytes: int = Field(
        2048,
        ge=1,
        le=2**20,
        description="Most bytes of UTF-8 in one text, 1 to 1048576. A model reads a few hundred; a word of many "
        "thousand letters takes a tokenizer seconds.",
    )
    decode_threads: int = Field(
        0,
        ge=0,
        le=256,
        description="Threads that decode, resize and tokenize, 1 to 256; 0: one for each core that the process may "
        "use, at most 16. With LIKENESS_WORKERS each process takes its share of the cores.",
    )
    model_threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="Threads of the model's arithmetic on the cpu, 1 to 1024; 0: one for each core that the process "
        "may use. With LIKENESS_WORKERS each process takes its share of the cores.",
    )

    @property
    def limits(self) -> Limits:
        """What an input may be."""
        pictures = PictureLimits(int(self.max_encoded_mb * 2**20), self.max_pixels)
        return Limits(pictures, self.max_inputs, self.max_text_bytes)

    @property
    def decode_thread_count(self) -> int:
        """Threads that decode."""
        return self.decode_threads or min(16, max(1, cores() // self.workers))

    @property
    def model_thread_count(self) -> int:
        """Threads of the model's arithmetic."""
        return self.model_threads or max(1, cores() // self.workers)
