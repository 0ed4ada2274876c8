"""Reads the data sets: which pictures and texts there are, and which of them training may see."""

import csv
from dataclasses import dataclass
from pathlib import Path

CAPTIONS_A_PICTURE = 5
TEST_PICTURES = 1000
DEV_PICTURES = 500

# How a label becomes a text, in training and in measuring. The first is how the published figures ask.
TEMPLATES = (
    "a photo of a {}",
    "a photo of a {}.",
    "a photo of the {}",
    "a picture of a {}",
    "an image of a {}",
    "a close-up photo of a {}",
    "there is a {} in the picture",
    "{} outdoors",
    "a {}",
    "{}",
)


@dataclass(frozen=True)
class Captioned:
    """Pictures with five captions each: `captions[i]` describes `pictures[i]`."""

    pictures: list[Path]
    captions: list[list[str]]

    def __getitem__(self, part: slice) -> "Captioned":
        return Captioned(self.pictures[part], self.captions[part])

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True)
class Labelled:
    """Pictures with one label each: `names[labels[i]]` is the name of what `pictures[i]` shows."""

    pictures: list[Path]
    labels: list[int]
    names: list[str]

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True)
class FlickrSplit:
    """Flickr8k in file order: most for training, 500 to choose settings with, the last 1,000 to measure with."""

    train: Captioned
    dev: Captioned
    test: Captioned


def read_flickr8k(root: Path) -> FlickrSplit:
    """Reads `flickr8k-train`: images/*.jpg and captions.tsv (a header, then file and caption, five lines a file)."""
    captions: dict[str, list[str]] = {}
    for row in read_table(root / "flickr8k-train" / "captions.tsv"):
        captions.setdefault(row["file"], []).append(row["caption"])
    pictures = sorted((root / "flickr8k-train" / "images").glob("*.jpg"))
    uneven = [picture.name for picture in pictures if len(captions.get(picture.name, ())) != CAPTIONS_A_PICTURE]
    if uneven or len(pictures) <= TEST_PICTURES + DEV_PICTURES:
        raise ValueError(
            f"{root / 'flickr8k-train'} holds {len(pictures)} pictures, of which {len(uneven)} have not "
            f"{CAPTIONS_A_PICTURE} captions, as {uneven[:3]}. Expected: more than {TEST_PICTURES + DEV_PICTURES} "
            "pictures, each with that many. Point --data at the folder that holds the data sets."
        )
    everything = Captioned(pictures, [captions[picture.name] for picture in pictures])
    return FlickrSplit(
        train=everything[: -TEST_PICTURES - DEV_PICTURES],
        dev=everything[-TEST_PICTURES - DEV_PICTURES : -TEST_PICTURES],
        test=everything[-TEST_PICTURES:],
    )


def read_imagenet_names(root: Path) -> tuple[Labelled, list[list[str]]]:
    """Reads `imagenet-names`: one example picture of each of the 1,000 ImageNet classes, and every name a class has.

    Returns:
        The examples, in class order, and for each class its names: the curated one, ImageNet's, and WordNet's lemmas.
    """
    rows = read_table(root / "imagenet-names" / "classes.tsv")
    pictures = [root / "imagenet-names" / "images" / f"{row['wnid']}.jpg" for row in rows]
    names = [distinct([row["open_clip_name"], row["name"], *row["lemmas"].split(",")]) for row in rows]
    return Labelled(pictures, [int(row["index"]) for row in rows], [every[0] for every in names]), names


def read_imagen(root: Path) -> Labelled:
    """Reads `imagen-1k`: pictures named wnid_number_label.jpg, five of each of 200 ImageNet detection categories.

    One of them is an example of `imagenet-names`, compressed anew: n04154565_17948_screwdriver.jpg.
    """
    pictures = sorted((root / "imagen-1k" / "imagen").glob("*.jpg"))
    return by_label(pictures, [picture.stem.split("_", 2)[2].replace("_", " ") for picture in pictures])


def read_aio60(root: Path, part: str) -> Labelled:
    """Reads `aio60`, part "train" (the gallery) or "test" (the queries): the folder is the label. Never trained on."""
    pictures = sorted(path for path in (root / "aio60" / part).glob("*/*") if path.is_file())
    return by_label(pictures, [picture.parent.name.replace("_", " ") for picture in pictures])


def by_label(pictures: list[Path], labels: list[str]) -> Labelled:
    """Numbers the labels in alphabetical order."""
    names = sorted(set(labels))
    return Labelled(pictures, [names.index(label) for label in labels], names)


def distinct(names: list[str]) -> list[str]:
    """The names without the ones that differ in case or surrounding space alone; the first spelling wins."""
    spelling: dict[str, str] = {}
    for name in names:
        spelling.setdefault(name.strip().lower(), name.strip())
    return list(spelling.values())


def read_table(path: Path) -> list[dict[str, str]]:
    """Reads a table with tabs between its fields and a header line; quotation marks mean themselves."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
