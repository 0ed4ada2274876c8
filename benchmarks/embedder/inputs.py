"""Pictures and texts, each one different: the server computes what it has in hand once, and remembers texts.

A picture is one of a few dozen files with a comment of its own behind the JPEG's first marker: other bytes, same work.
"""

import io
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.embedder.scope import ROOT, WORK

SHARED = Path(os.environ.get("LIKENESS_SHARED", ROOT.parent / "shared")) / "data" / "aio60"
# Name → width, height, how many different ones, JPEG quality.
PICTURES = {"500x334": (500, 334, 64, 85), "224x224": (224, 224, 64, 85), "12mp": (4000, 3000, 8, 90)}
TEXTS = {"words_3": 3, "words_10": 10, "words_70": 70}
# Decoded by the caller: what remains is the server without its decoder.
RGB = "rgb_224"
KINDS = (*PICTURES, RGB, *TEXTS)
# What a service sees in a long run: every kind, large pictures seldom.
MIXED = "mixed"
_MIXTURE = ("500x334", "words_10", "500x334", "224x224", "words_3", "500x334", "words_70", "224x224")
_LARGE_EVERY = 64
_COMMENT = b"\xff\xfe\x00\x0a"  # marker, then the length: 2 bytes of its own and 8 of comment

# All different.
_WORDS = """
    red blue green black white small large old new young wooden plastic metal glass stone paper bright dark quiet
    busy dog cat horse bird fish cow sheep bear lion tiger car bus train boat plane bike truck road street bridge
    tower house church castle school market garden forest beach river lake sea hill rock snow rain sun moon star
    cloud man woman child boy girl team crowd hand face eye hat coat dress shoe chair table lamp bed door window
    wall floor cup plate fork knife bread fruit apple orange cake pizza soup salad coffee tea wine flower tree leaf
    grass running sitting standing sleeping jumping eating playing holding looking walking near under over behind
    between
""".split()  # noqa: SIM905 (a list of them fills a page)
_WORD_COUNT = len(_WORDS)
_SCATTER = 7_919


def is_text(kind: str) -> bool:
    """Whether the kind is one of texts."""
    return kind in TEXTS


def text(words: int, number: int) -> str:
    """The ``number``-th text of so many words, at least three; they differ for more than a million numbers.

    Every word is one token of CLIP's, or hardly more.
    """
    # The first three words are the digits of a number; a prime factor scatters neighbours.
    rest = number * _SCATTER % _WORD_COUNT**3
    chosen = []
    for _ in range(3):
        rest, digit = divmod(rest, _WORD_COUNT)
        chosen.append(_WORDS[digit])
    chosen += [_WORDS[(number + place * place) % _WORD_COUNT] for place in range(3, words)]
    return " ".join(chosen)


def with_comment(jpeg: bytes, number: int) -> bytes:
    """The same picture as other bytes."""
    return jpeg[:2] + _COMMENT + number.to_bytes(8, "big") + jpeg[2:]


def prepare() -> None:
    """Makes the pictures once, for all contenders alike."""
    for name, (width, height, count, quality) in PICTURES.items():
        folder = WORK / "inputs" / name
        if folder.is_dir():
            continue
        half_made = folder.with_name(f".{name}")
        shutil.rmtree(half_made, ignore_errors=True)
        half_made.mkdir(parents=True)
        for number, source in enumerate(itertools.islice(itertools.cycle(_photographs(count)), count)):
            (half_made / f"{number:02}.jpg").write_bytes(_made(source, (width, height), quality, number))
        half_made.rename(folder)


def pictures(name: str) -> list[bytes]:
    """The prepared JPEGs of one kind."""
    found = [path.read_bytes() for path in sorted((WORK / "inputs" / name).glob("*.jpg"))]
    if not found:
        raise FileNotFoundError(f"no pictures in {WORK / 'inputs' / name}; prepare() makes them")
    return found


def pixels(size: tuple[int, int]) -> list[Image.Image]:
    """Decoded photographs of a size, RGB."""
    return [ImageOps.fit(_opened(jpeg), size) for jpeg in pictures("500x334")]


def kinds(kind: str) -> Iterator[str]:
    """The kinds of an endless row of inputs: always the same, or the mixture."""
    if kind != MIXED:
        yield from itertools.repeat(kind)
    for number in itertools.count(1):
        yield "12mp" if number % _LARGE_EVERY == 0 else _MIXTURE[number % len(_MIXTURE)]


def _photographs(count: int) -> list[Path]:
    if SHARED.is_dir():
        return sorted(path for path in SHARED.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))[:: 655 // count]
    from deploy.demo import sample_pictures  # noqa: PLC0415 (only where the shared data is missing)

    folder = WORK / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    sample_pictures(folder)
    return sorted(folder.iterdir())


def _made(source: Path, size: tuple[int, int], quality: int, number: int) -> bytes:
    with Image.open(source) as opened:
        picture = ImageOps.fit(opened.convert("RGB"), size, Image.Resampling.BICUBIC)
    if size[0] * size[1] > 10**7:  # an enlarged picture is smooth; a camera's is not
        noise = np.random.default_rng(number).normal(0, 3, (size[1], size[0], 1)).astype(np.float32)
        picture = Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _opened(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg)).convert("RGB")
