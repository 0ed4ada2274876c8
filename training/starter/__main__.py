"""The command: trains the heads, writes them, measures the file that was written, and writes the figures."""

import argparse
import hashlib
import json
import platform
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import transformers
from torch import Tensor

from embedder.starter.heads import read_heads, save_heads
from embedder.starter.model import load_starter
from embedder.starter.towers import TEXT_FEATURE_DIM, TOP_FEATURE_DIM, Towers, load_towers
from training.starter import data, evaluate
from training.starter.batches import Features, Settings
from training.starter.data import TEMPLATES, Captioned
from training.starter.features import CENTRE, encode_pictures, encode_texts, image_features, text_features
from training.starter.train import Heads, train

FIGURES_FILE = Path(__file__).with_name("figures.json")
THREADS = 2


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(prog="python -m training.starter", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds the data sets")
    parser.add_argument("--cache", type=Path, required=True, help="a folder for features, outside the repository")
    parser.add_argument("--out", type=Path, required=True, help="the heads file to write")
    parser.add_argument("--dev", action="store_true", help="measure on the development pictures; write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.dev:
        print(json.dumps(develop(arguments.data, arguments.cache), indent=2))
        return
    figures = publish(arguments.data, arguments.cache, arguments.out)
    FIGURES_FILE.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def develop(root: Path, cache: Path) -> dict[str, Any]:
    """Trains without the development pictures, and measures on them and on labels never trained on."""
    towers, flickr8k, imagen = load_towers(), data.read_flickr8k(root), data.read_imagen(root)
    settings = Settings()
    heads, _ = fit(towers, [flickr8k.train], root, cache, settings)

    @torch.inference_mode()
    def images(pictures: list[Path]) -> Tensor:
        vectors: Tensor = heads.image(image_features(towers, pictures, CENTRE, cache))
        return vectors

    @torch.inference_mode()
    def texts(strings: list[str]) -> Tensor:
        vectors: Tensor = heads.text(text_features(towers, strings, cache))
        return vectors

    return {
        "settings": asdict(settings),
        "flickr8k_dev": evaluate.measure_captions(images, texts, flickr8k.dev),
        "imagen": evaluate.measure_labels(images, texts, imagen),
    }


def publish(root: Path, cache: Path, out: Path) -> dict[str, Any]:
    """Trains on all but the test pictures, writes the heads, and measures them as they will be loaded."""
    started = time.perf_counter()
    towers, flickr8k, imagen = load_towers(), data.read_flickr8k(root), data.read_imagen(root)
    gallery, queries = data.read_aio60(root, "train"), data.read_aio60(root, "test")
    settings, seen = Settings(), [flickr8k.train, flickr8k.dev]
    heads, training_seconds = fit(towers, seen, root, cache, settings)
    save_heads(out, heads.kept())

    model, preprocess, tokenizer = load_starter(out)

    def top_features(pictures: list[Path]) -> Tensor:
        return encode_pictures(model.visual.trunk, preprocess, pictures)[:, :TOP_FEATURE_DIM]

    def images(pictures: list[Path]) -> Tensor:
        return encode_pictures(model.encode_image, preprocess, pictures)

    def texts(strings: list[str]) -> Tensor:
        return encode_texts(model.encode_text, tokenizer, strings)

    return {
        "flickr8k_test": evaluate.measure_captions(images, texts, flickr8k.test),
        "imagen": evaluate.measure_labels(images, texts, imagen),
        "aio60": evaluate.measure_likeness(images, queries, gallery) | evaluate.measure_labels(images, texts, gallery),
        "baselines_on_aio60": {
            "raw_pixels_224": evaluate.measure_likeness(evaluate.raw_pixels, queries, gallery),
            "efficientnet_lite0_features": evaluate.measure_likeness(top_features, queries, gallery),
        },
        "data": {
            "flickr8k_pictures_trained_on": sum(len(part) for part in seen),
            "flickr8k_pictures_measured_on": len(flickr8k.test),
            "captions_a_picture": data.CAPTIONS_A_PICTURE,
            "imagenet_example_pictures_trained_on": 1000,
            "imagen_pictures_measured_on": len(imagen),
            "aio60_gallery_pictures": len(gallery),
            "aio60_query_pictures": len(queries),
        },
        "heads": {
            "bytes": out.stat().st_size,
            "parameters": sum(tensor.numel() for tensor in read_heads(out).values()),
            "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        },
        "settings": asdict(settings),
        "run": {
            "command": shlex.join(["python", "-m", "training.starter", *sys.argv[1:]]),
            "machine": machine(),
            "versions": {
                "python": platform.python_version(),
                **{module.__name__: module.__version__ for module in (open_clip, timm, torch, transformers)},
            },
            "threads": THREADS,
            "training_seconds": round(training_seconds),
            "seconds": round(time.perf_counter() - started),
        },
    }


def fit(towers: Towers, seen: list[Captioned], root: Path, cache: Path, settings: Settings) -> tuple[Heads, float]:
    """Trains on captioned pictures and on ImageNet's names; gives the heads and the seconds that training took.

    Features are kept a part of the data set at a time, so that both kinds of run share them.
    """
    examples, names = data.read_imagenet_names(root)
    named = [[template.format(name) for name in every for template in TEMPLATES] for every in names]
    class_texts = text_features(towers, [text for texts in named for text in texts], cache)
    captions = [text_features(towers, [text for five in part.captions for text in five], cache) for part in seen]
    features = Features(
        pictures=[
            torch.cat([image_features(towers, part.pictures, view, cache) for part in seen]) for view in settings.views
        ],
        captions=torch.cat(captions).view(-1, data.CAPTIONS_A_PICTURE, TEXT_FEATURE_DIM),
        examples=[image_features(towers, examples.pictures, view, cache) for view in settings.views],
        class_texts=list(torch.split(class_texts, [len(texts) for texts in named])),
        classifier=towers.classifier,
    )
    started = time.perf_counter()
    heads = train(features, settings, report=lambda line: print(line, file=sys.stderr, flush=True))
    return heads, time.perf_counter() - started


def machine() -> str:
    """The processor, as the system names it, and how many cores of it there are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}"


if __name__ == "__main__":
    main()
