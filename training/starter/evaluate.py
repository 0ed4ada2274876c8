"""Measures a dual encoder: captions against pictures, labels against pictures, pictures against pictures.

All rankings are by cosine. Recall@k is the share of queries that find what belongs to them among the first k;
precision@k is the mean share of the first k that carry the query's label.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from training.starter.data import CAPTIONS_A_PICTURE, TEMPLATES, Captioned, Labelled

ImageEncoder = Callable[[list[Path]], Tensor]
TextEncoder = Callable[[list[str]], Tensor]
RANKS = (1, 5, 10)


def caption_recall(images: Tensor, captions: Tensor) -> dict[str, float]:
    """Recall of pictures by caption and of captions by picture.

    Args:
        images: [n, dim].
        captions: [n, 5, dim]; a picture's query for a caption is answered by any of its five.

    Returns:
        `text_to_image_recall@k` and `image_to_text_recall@k` for k = 1, 5, 10.
    """
    similarity = cosine(captions.flatten(0, 1), images)  # [5 n, n]
    own_image = torch.arange(len(images)).repeat_interleave(CAPTIONS_A_PICTURE)
    own = similarity.gather(1, own_image[:, None])  # [5 n, 1]
    better_images = (similarity > own).sum(dim=1)
    best_own = own.view(-1, CAPTIONS_A_PICTURE).amax(dim=1)
    better_captions = (similarity > best_own).sum(dim=0)
    return {
        f"{name}_recall@{rank}": share(better < rank)
        for name, better in (("text_to_image", better_images), ("image_to_text", better_captions))
        for rank in RANKS
    }


def label_precision(
    queries: Tensor, query_labels: Sequence[int], gallery: Tensor, labels: Sequence[int]
) -> dict[str, float]:
    """Precision@5 and top-1 of queries [q, dim] over a gallery [g, dim] in which every picture has a label."""
    nearest = cosine(queries, gallery).topk(5, dim=1).indices
    right = torch.tensor(labels)[nearest] == torch.tensor(query_labels)[:, None]
    return {"precision@5": share(right), "top-1": share(right[:, 0])}


def measure_captions(encode_images: ImageEncoder, encode_texts: TextEncoder, pairs: Captioned) -> dict[str, float]:
    """Caption recall over pictures that each come with five captions."""
    captions = encode_texts([caption for five in pairs.captions for caption in five])
    return caption_recall(encode_images(pairs.pictures), captions.view(len(pairs), CAPTIONS_A_PICTURE, -1))


def measure_labels(encode_images: ImageEncoder, encode_texts: TextEncoder, gallery: Labelled) -> dict[str, float]:
    """How well "a photo of a <name>" finds the pictures of that name, and how well a picture finds its name."""
    images, names = encode_images(gallery.pictures), encode_texts([TEMPLATES[0].format(name) for name in gallery.names])
    found = label_precision(names, range(len(gallery.names)), images, gallery.labels)
    named = cosine(images, names).argmax(dim=1) == torch.tensor(gallery.labels)
    return {
        "text_to_image_precision@5": found["precision@5"],
        "text_to_image_top-1": found["top-1"],
        "zero_shot_accuracy": share(named),
    }


def measure_likeness(encode_images: ImageEncoder, queries: Labelled, gallery: Labelled) -> dict[str, float]:
    """How well pictures find pictures of their own label in a gallery they are not in."""
    if queries.names != gallery.names:
        raise ValueError("the queries and the gallery have different labels: a precision over them would mean nothing")
    images = encode_images(gallery.pictures)
    found = label_precision(encode_images(queries.pictures), queries.labels, images, gallery.labels)
    return {f"image_to_image_{name}": value for name, value in found.items()}


def raw_pixels(pictures: list[Path]) -> Tensor:
    """The baseline without any model: a picture squashed to 224 x 224 is the vector, float32 [n, 150528]."""
    vectors = []
    for path in pictures:
        with Image.open(path) as file:
            vectors.append(np.asarray(file.convert("RGB").resize((224, 224)), dtype=np.float32).ravel())
    return torch.from_numpy(np.stack(vectors))


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosines [n, m] of [n, dim] and [m, dim]."""
    return functional.normalize(first, dim=-1) @ functional.normalize(second, dim=-1).T


def share(hits: Tensor) -> float:
    """The share of hits, to four digits."""
    return round(hits.double().mean().item(), 4)
