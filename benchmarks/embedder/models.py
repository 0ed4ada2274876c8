"""Models with random weights: speed needs no trained ones."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.embedder.scope import WORK
from embedder.spec import ModelSpec

STARTER = "starter"


def local(architecture: str) -> str:
    """The LIKENESS_MODEL of an architecture with random weights; makes the folder once.

    Args:
        architecture: "starter" (itself), or a name that open_clip has a configuration for, such as ViT-L-14.
    """
    if architecture == STARTER:
        return STARTER
    folder = WORK / "models" / architecture
    if not folder.is_dir():
        _save(architecture, folder)
    return f"local-dir:{folder}"


def spec_told(spec: ModelSpec) -> dict[str, Any]:
    """What the results say of a loaded model: all but the tokenizer's definition, a megabyte."""
    return asdict(replace(spec, tokenizer=replace(spec.tokenizer, definition="")))


def _save(architecture: str, folder: Path) -> None:
    # Here, since they take seconds to import.
    import open_clip  # noqa: PLC0415
    import torch  # noqa: PLC0415

    config = open_clip.get_model_config(architecture)
    if config is None:
        raise SystemExit(f"open_clip knows no model {architecture!r}")
    torch.manual_seed(0)
    network = open_clip.create_model(architecture)
    size = config["vision_cfg"]["image_size"]
    preprocess = {
        "size": size,
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    half_made = folder.with_name(f".{folder.name}")
    shutil.rmtree(half_made, ignore_errors=True)
    half_made.mkdir(parents=True)
    described = {"model_cfg": config, "preprocess_cfg": preprocess}
    (half_made / "open_clip_config.json").write_text(json.dumps(described))
    torch.save(network.state_dict(), half_made / "open_clip_pytorch_model.bin")
    half_made.rename(folder)
