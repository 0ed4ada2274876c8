"""The starter model: a small dual encoder that needs no model hub; the default until a real CLIP is chosen.

``towers`` finds, checks and joins the two frozen towers; ``heads`` are what this project trained to stand behind them;
``model`` is the whole, in the form open_clip gives any model.
"""

from embedder.starter.heads import HEADS_FILE
from embedder.starter.model import load_starter
from embedder.starter.towers import StarterModelError

__all__ = ["HEADS_FILE", "StarterModelError", "load_starter"]
