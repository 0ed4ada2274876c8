"""The starter model as the rest of the embedder sees it: what open_clip returns for any other model."""

from collections.abc import Callable
from pathlib import Path

import open_clip
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from torch import Tensor

from embedder.starter.heads import HEADS_FILE, ImageHead, TextHead, read_heads
from embedder.starter.towers import load_towers


def load_starter(
    heads: Path | None = None,
) -> tuple[open_clip.CustomTextCLIP, Callable[[Image.Image], Tensor], HFTokenizer]:
    """Loads the starter model from installed packages; nothing is downloaded.

    Args:
        heads: the trained heads (safetensors); None means the file beside this module.

    Returns:
        What open_clip returns for any model: the model (evaluation mode, float32, CPU), its validation preprocess, its
        tokenizer. ``encode_image`` takes float32 [n, 3, 224, 224], ``encode_text`` int64 [n, 77]; both give float32
        [n, 512], L2-normalised whether asked to or not.

    Raises:
        StarterModelError: a package or a file is missing, or its content is not what it should be.
    """
    towers = load_towers()
    model = towers.model
    model.visual.head, model.text.proj = ImageHead(), TextHead()
    model.visual.head.classifier.load_state_dict(towers.classifier)
    # The keys and shapes of the heads are checked in read_heads; strict would ask for the towers' parameters again.
    model.load_state_dict(read_heads(heads or HEADS_FILE), strict=False)
    return model.eval(), towers.preprocess, towers.tokenizer
