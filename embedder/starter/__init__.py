"""The starter model: a small dual encoder that needs no model hub, the embedder's default until a real CLIP is chosen."""

from embedder.starter.model import (
    HEADS_FILE,
    ImageHead,
    StarterModelError,
    TextHead,
    Towers,
    load_starter,
    load_towers,
)

__all__ = ["HEADS_FILE", "ImageHead", "StarterModelError", "TextHead", "Towers", "load_starter", "load_towers"]
