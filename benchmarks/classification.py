"""Zero-shot classification through the whole system: ``python -m benchmarks.classification DIR``.

``DIR`` holds ``<class>/*``. Every picture is classified among the names of all classes. How often the first label is
right does not depend on the scale; how far its probability can be believed does, so that is printed for several:
cross-entropy (−log of the right label's probability, averaged; the smaller, the better the scale) and calibration error
(how far the first label's probability is from how often it is right, over ten bins of equal width).
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
from likeness.gateway.v1 import gateway_pb2, gateway_pb2_grpc

from benchmarks.retrieval import pictures
from deploy.local import running
from gateway.labelling import softmax

SCALES = (20, 34, 40, 50, 60, 80, 100)
_AT_ONCE = 32


@dataclass(frozen=True)
class Figures:
    """How well probabilities fit what is right.

    Attributes:
        accuracy: share of the pictures whose first label is right.
        confidence: mean probability of the first label.
        cross_entropy: mean of −log of the right label's probability.
        calibration_error: mean distance of probability and accuracy over ten bins, by pictures (ECE).
    """

    accuracy: float
    confidence: float
    cross_entropy: float
    calibration_error: float


def figures(similarities: npt.NDArray[np.float32], right: npt.NDArray[np.int64], scale: float) -> Figures:
    """The figures at one scale.

    Args:
        similarities: cosines of every picture and label, float32 [pictures, labels].
        right: the place of each picture's own label, int64 [pictures].
        scale: what cosines are multiplied by.
    """
    probabilities = softmax(similarities, scale)
    first = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == right
    bins = np.minimum((first * 10).astype(int), 9)
    error = sum(abs(first[bins == i].mean() - correct[bins == i].mean()) * (bins == i).mean() for i in np.unique(bins))
    own = probabilities[np.arange(len(right)), right]
    return Figures(float(correct.mean()), float(first.mean()), float(-np.log(own).mean()), float(error))


def similarities(
    stub: gateway_pb2_grpc.SearchServiceStub, paths: Sequence[Path], labels: Sequence[str], templates: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Cosines of every picture and label, float32 [pictures, labels]."""
    rows = np.zeros((len(paths), len(labels)), np.float32)
    for start in range(0, len(paths), _AT_ONCE):
        request = gateway_pb2.ClassifyRequest(
            labelling=gateway_pb2.Labelling(labels=labels, templates=templates), top_k=len(labels)
        )
        for path in paths[start : start + _AT_ONCE]:
            request.inputs.add().image.encoded = path.read_bytes()
        for i, result in enumerate(stub.Classify(request, timeout=300).results, start):
            if result.HasField("error"):
                raise RuntimeError(f"{paths[i]}: {result.error.status.message}")
            for found in result.labels:
                rows[i, labels.index(found.label)] = found.similarity
    return rows


@contextlib.contextmanager
def _server(address: str | None) -> Iterator[str]:
    if address is not None:
        yield address
        return
    with tempfile.TemporaryDirectory(prefix="likeness-classes-") as scratch, running(Path(scratch)) as services:
        yield services.addresses["gateway"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.classification", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DIR")
    parser.add_argument("--server", help="a running gateway's host:port")
    parser.add_argument(
        "--template", action="append", default=[], help='such as "a photo of a {}."; several may be given'
    )
    options = parser.parse_args()
    found = pictures(options.data)
    classes = sorted({label for label, _ in found})
    with _server(options.server) as address, grpc.insecure_channel(address) as channel:
        stub = gateway_pb2_grpc.SearchServiceStub(channel)
        names = [name.replace("_", " ") for name in classes]
        cosines = similarities(stub, [path for _, path in found], names, options.template)
    right = np.array([classes.index(label) for label, _ in found])
    print(f"{len(found)} pictures, {len(classes)} labels")
    print("| scale | accuracy | mean probability | cross-entropy | calibration error |\n|---|---|---|---|---|")
    for scale in SCALES:
        row = figures(cosines, right, scale)
        print(
            f"| {scale} | {row.accuracy:.3f} | {row.confidence:.3f} | {row.cross_entropy:.3f} "
            f"| {row.calibration_error:.3f} |"
        )


if __name__ == "__main__":
    main()
