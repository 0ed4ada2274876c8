"""Runs pictures and texts through an encoder, and keeps what the frozen towers make of them.

The towers never change, so training needs the features of each picture in a few views and of each text once. They cost
far more than training does, and are kept in a folder outside the repository under a digest of all they depend on.
"""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from torch import Tensor

from embedder.starter.towers import IMAGE_PACKAGE, PICTURE_SIZE, PREPROCESS, TEXT_PACKAGE, Towers

CENTRE = "centre"
FLIP = "flip"
# Random crops are numbered, so that a picture can have several. Half of them are mirrored too.
CROP_AREA = (0.35, 0.9)
CROP_ASPECT = (3 / 4, 4 / 3)
PICTURES_A_BATCH = 32
TEXTS_A_BATCH = 64


def image_features(towers: Towers, pictures: list[Path], view: str, cache: Path) -> Tensor:
    """Features of pictures in one view.

    Args:
        towers: the frozen towers.
        pictures: picture files.
        view: CENTRE for what serving sees, FLIP for its mirror image, or "crop-<number>".
        cache: the folder in which features are kept.

    Returns:
        float32 [n, IMAGE_FEATURE_DIM].
    """
    files = [f"{path.parent.name}/{path.name}:{path.stat().st_size}" for path in pictures]
    key = ["image", IMAGE_PACKAGE, PREPROCESS, CROP_AREA, CROP_ASPECT, view, files]
    return cached(cache, key, lambda: encode_pictures(towers.model.encode_image, towers.preprocess, pictures, view))


def text_features(towers: Towers, texts: list[str], cache: Path) -> Tensor:
    """Features of texts: float32 [n, TEXT_FEATURE_DIM], mean-pooled, not normalised; kept in the cache folder."""
    key = ["text", TEXT_PACKAGE, texts]
    return cached(cache, key, lambda: encode_texts(towers.model.encode_text, towers.tokenizer, texts))


@torch.inference_mode()
def encode_pictures(
    encoder: Callable[[Tensor], Tensor],
    preprocess: Callable[[Image.Image], Tensor],
    pictures: list[Path],
    view: str = CENTRE,
) -> Tensor:
    """What the encoder makes of pictures: [n, dim], from pixels float32 [batch, 3, 224, 224]."""
    encoded = []
    for start in range(0, len(pictures), PICTURES_A_BATCH):
        batch = [preprocess(read_view(path, view)) for path in pictures[start : start + PICTURES_A_BATCH]]
        encoded.append(encoder(torch.stack(batch).to(memory_format=torch.channels_last)))
    return torch.cat(encoded)


@torch.inference_mode()
def encode_texts(encoder: Callable[[Tensor], Tensor], tokenizer: HFTokenizer, texts: list[str]) -> Tensor:
    """What the encoder makes of texts: [n, dim], in batches of like length.

    Padding changes no vector, so a batch is cut to its longest text: most captions take 10 to 20 tokens of the 77.
    """
    tokens = tokenizer(texts)
    lengths = (tokens != 0).sum(dim=1)
    batches = lengths.argsort().split(TEXTS_A_BATCH)
    encoded = torch.cat([encoder(tokens[batch, : int(lengths[batch].max())]) for batch in batches])
    return encoded[torch.cat(batches).argsort()]


def read_view(path: Path, view: str) -> Image.Image:
    """Reads a picture and changes it as the view asks; the preprocess that follows is the one that serves."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    if view == CENTRE:
        return picture
    if view == FLIP:
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return random_crop(picture, random.Random(f"{view} {path.name}"))  # noqa: S311 (no secret)


def random_crop(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Cuts a box out and stretches it to the tower's size, as Inception's training did (Szegedy et al. 2015)."""
    area = rng.uniform(*CROP_AREA) * picture.width * picture.height
    aspect = float(np.exp(rng.uniform(*np.log(CROP_ASPECT))))
    width = min(picture.width, round((area * aspect) ** 0.5))
    height = min(picture.height, round((area / aspect) ** 0.5))
    left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
    crop = picture.resize(PICTURE_SIZE, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def cached(cache: Path, key: list[object], compute: Callable[[], Tensor]) -> Tensor:
    """The tensor that is kept under the key, computed now if there is none.

    A file is complete or absent: it takes its name when all of it is written.
    """
    path = cache / f"{key[0]}-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.npy"
    if not path.exists():
        print(f"computing {path.name}", flush=True)
        features = compute()
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, features.numpy())
        partial.rename(path)
    return torch.from_numpy(np.load(path))
