"""Category retrieval through the whole system: ``python -m benchmarks.retrieval DIR``.

``DIR`` holds ``train/<class>/*`` and ``test/<class>/*``. The training pictures are indexed under their class; then each
test picture, and the text "a photo of a <class>" for every class, is searched for. Beside it stands the first method of
any course: the cosine of raw pixels, 224 × 224. The services are started on free ports, or taken from ``--server``.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from deploy.local import running
from likeness_client import Client, Picture, Term

TOP_K = 5


@dataclass(frozen=True)
class Figures:
    """How well queries found pictures of their own label.

    Attributes:
        method: what searched.
        precision: the mean share of the first five hits that have the query's label (precision@5).
        top_1: the share of queries whose first hit has it.
        queries: how many there were.
    """

    method: str
    precision: float
    top_1: float
    queries: int


def pictures(directory: Path) -> list[tuple[str, Path]]:
    """The (label, path) of every file in ``directory/<label>/``, sorted."""
    return [(path.parent.name, path) for path in sorted(directory.glob("*/*"))]


def measure(
    method: str, queries: Sequence[tuple[str, Path | str]], labels: Callable[[Path | str], list[str]]
) -> Figures:
    """Asks every query for the labels of its first hits, best first, and compares them with the query's own."""
    found = [(label, labels(query)) for label, query in queries]
    precision = float(np.mean([np.mean([hit == label for hit in hits[:TOP_K]]) for label, hits in found]))
    return Figures(method, precision, float(np.mean([hits[0] == label for label, hits in found])), len(found))


def through_the_gateway(client: Client, collection: str, data: Path) -> list[Figures]:
    """Indexes the training pictures and searches by test picture and by text."""
    train = pictures(data / "train")
    outcomes = client.index(
        (Picture(path, labels=(label,)) for label, path in train), collection=collection, create_collection=True
    )
    stored = sum(outcome.error is None for outcome in outcomes)
    print(f"{stored} of {len(train)} pictures indexed")

    def labels(query: Path | str) -> list[str]:
        term = Term.image(query) if isinstance(query, Path) else Term.text(query)
        return [hit.item.labels[0] for hit in client.search(term, collection=collection, top_k=TOP_K).hits]

    texts: list[tuple[str, Path | str]] = [
        (label, f"a photo of a {label.replace('_', ' ')}") for label in sorted({label for label, _ in train})
    ]
    return [
        measure("Likeness, by picture", list(pictures(data / "test")), labels),
        measure("Likeness, by text", texts, labels),
    ]


def by_raw_pixels(data: Path) -> Figures:
    """The simplest method: each picture is its 224 × 224 pixels, compared by cosine."""
    train = pictures(data / "train")
    gallery = np.stack([_pixels(path) for _, path in train])

    def labels(query: Path | str) -> list[str]:
        order = np.argsort(-(gallery @ _pixels(Path(query))))
        return [train[i][0] for i in order[:TOP_K]]

    return measure("raw pixels, cosine", list(pictures(data / "test")), labels)


def _pixels(path: Path) -> npt.NDArray[np.float32]:
    with Image.open(path) as opened:
        flat = np.asarray(opened.convert("RGB").resize((224, 224)), np.float32).ravel()
    return flat / np.linalg.norm(flat)


@contextlib.contextmanager
def _server(address: str | None) -> Iterator[str]:
    if address is not None:
        yield address
        return
    with tempfile.TemporaryDirectory(prefix="likeness-retrieval-") as scratch, running(Path(scratch)) as services:
        yield services.addresses["gateway"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DIR")
    parser.add_argument("--server", help="a running gateway's host:port")
    parser.add_argument("--collection", default="retrieval-benchmark")
    options = parser.parse_args()
    with _server(options.server) as address, Client(address) as client:
        rows = [by_raw_pixels(options.data), *through_the_gateway(client, options.collection, options.data)]
    print("| method | precision@5 | top-1 | queries |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.method} | {row.precision:.3f} | {row.top_1:.3f} | {row.queries} |")


if __name__ == "__main__":
    main()
