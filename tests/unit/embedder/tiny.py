"""A CLIP model of a few megabytes with random weights, as open_clip stores one."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch

NAME = "likeness-test-tiny"
MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
PREPROCESS_CONFIG: dict[str, Any] = {
    "size": 64,
    "mean": [0.48, 0.46, 0.41],
    "std": [0.27, 0.26, 0.28],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def register(folder: Path) -> str:
    """Teaches open_clip the model's name; returns it."""
    path = folder / f"{NAME}.json"
    path.write_text(json.dumps(MODEL_CONFIG))
    open_clip.add_model_config(path)
    return NAME


def save_checkpoint(path: Path, seed: int = 0) -> Path:
    """Writes random weights for the registered name."""
    torch.manual_seed(seed)
    torch.save(open_clip.create_model(NAME).state_dict(), path)
    return path


def save_folder(folder: Path, seed: int = 0) -> str:
    """Writes configuration and random weights; returns the ``local-dir:`` name."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    network = open_clip.model.CLIP(**MODEL_CONFIG)
    torch.save(network.state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"
