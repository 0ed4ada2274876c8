"""What the default number format costs in cosine against fp32: ``python -m benchmarks.embedder.precision``.

A start tries eight pictures and a dozen texts before it takes a shorter format unasked (``embedder.backends.probes``).
This embeds many pictures in what the start took and in fp32, on the same backend where it can, and compares them
one by one. Speed needs no trained weights, but this does: with random ones (an architecture by its bare name) the
figures say little of the trained model.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.embedder.inputs import SHARED
from benchmarks.embedder.models import local
from chassis.errors import LikenessError
from embedder.decode import open_picture, upright_rgb
from embedder.engine import Engine, load_engine
from embedder.inputs import Array, EncodedPicture, Pixels
from embedder.preprocess import Preprocess
from embedder.settings import EmbedderSettings
from embedder.spec import Geometry

LEAST = 0.999  # the default may cost no more than 0.001
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_BATCH = 16


@dataclass(frozen=True)
class Costs:
    """What a format does to vectors.

    Attributes:
        least: the least cosine between the two vectors of a picture; NaN if one of them is no vector.
        mean: the mean of them, likewise.
        worst: the place of the picture with the least.
        below: how many are below ``LEAST``, those that are no vectors included.
    """

    least: float
    mean: float
    worst: int
    below: int


def costs(exact: Array, short: Array) -> Costs:
    """Compares vectors of any length, row by row: float32 [n, dimension] each, n at least 1."""
    ones, others = (vectors.astype(np.float64) for vectors in (exact, short))
    lengths = np.linalg.norm(ones, axis=1) * np.linalg.norm(others, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.einsum("nd,nd->n", ones, others) / lengths
    worst = int(np.argmin(cosines))  # a NaN if there is one
    return Costs(float(cosines[worst]), float(cosines.mean()), worst, int((~(cosines >= LEAST)).sum()))


def spread(folder: Path, count: int) -> list[Path]:
    """So many pictures under a folder, evenly spread; all for 0."""
    every = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not 0 < count < len(every):
        return every
    return [every[place * len(every) // count] for place in range(count)]


def readable(paths: Sequence[Path], geometry: Geometry) -> Iterator[tuple[Path, Pixels]]:
    """The pictures that a service would take, as the model sees them: uint8 [height, width, 3]."""
    limits, preprocess = EmbedderSettings().limits.pictures, Preprocess(geometry)
    for path in paths:
        try:
            opened = open_picture(EncodedPicture(path.read_bytes(), path.name), limits)
            yield path, preprocess(upright_rgb(opened, limits, path.name, geometry))
        except LikenessError as error:
            print(f"  left out: {error}"[:160], file=sys.stderr)


def vectors(engine: Engine, pixels: Pixels) -> Array:
    """float32 [n, dimension] of uint8 [n, height, width, 3]."""
    starts = range(0, len(pixels), _BATCH)
    return np.concatenate([engine.backend.encode_images(pixels[start : start + _BATCH]) for start in starts])


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares and prints; returns 1 if a picture's cosine is below what the default may cost."""
    options = _options(arguments)
    chosen = {"device": options.device, "backend": options.backend}
    model = options.model if options.pretrained or ":" in options.model else local(options.model)
    settings = EmbedderSettings(model=model, pretrained=options.pretrained, precision=options.precision, **chosen)
    short = load_engine(settings)
    spec = short.spec
    named = "the default" if options.precision == "auto" else "what was asked for"
    where = f"of {options.model} on {spec.backend}, {spec.device}"
    if spec.precision == "fp32":
        print(f"{named} {where} is fp32 here: it costs nothing, and there is nothing to compare")
        return 0
    exact = load_engine(settings.model_copy(update={"precision": "fp32", "backend": spec.backend}))
    found = list(readable(spread(options.pictures, options.count), spec.geometry))
    if not found:
        print(f"no picture under {options.pictures}", file=sys.stderr)
        return 2
    pixels = np.stack([row for _, row in found])
    cost = costs(vectors(exact, pixels), vectors(short, pixels))
    print(
        f"{named} {where} is {spec.precision}; to fp32's, over {len(found)} pictures of {options.pictures}:\n"
        f"least cosine {cost.least:.6f} ({found[cost.worst][0].name}), mean {cost.mean:.6f}; "
        f"{cost.below} below {LEAST}"
    )
    return int(cost.below > 0)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about = "starter, an architecture of open_clip's (random weights), or as LIKENESS_MODEL (%(default)s)"
    parser.add_argument("--model", default="starter", help=about)
    parser.add_argument("--pretrained", default="", help="as LIKENESS_PRETRAINED, with an architecture's name")
    parser.add_argument("--precision", default="auto", help="another than the default, as LIKENESS_PRECISION")
    parser.add_argument("--backend", default="auto", help="as LIKENESS_BACKEND")
    parser.add_argument("--device", default="auto", help="as LIKENESS_DEVICE")
    parser.add_argument("--pictures", type=Path, default=SHARED.parent, help="a folder (%(default)s)")
    parser.add_argument("--count", type=int, default=500, help="of them, evenly spread; 0: all (%(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
