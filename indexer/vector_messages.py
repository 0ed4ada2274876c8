"""Vectors of a call, checked together: one pass over all of them costs a tenth of a pass over each."""

from collections.abc import Callable, Sequence

import numpy as np
from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import Vector

from chassis import vectors
from chassis.errors import LikenessError, invalid
from chassis.vectors import Array
from indexer.collections import Collection, Metric

# Squares of longer vectors overflow float32, in which Chroma computes; those of shorter ones vanish in it.
LONGEST, SHORTEST = 1e18, 1e-18

# Squared lengths, in float32, that are between the bounds whatever their rounding.
_SURELY_SHORT_ENOUGH, _SURELY_LONG_ENOUGH = 1e34, 1e-34


def read(
    messages: Sequence[Vector], collection: Collection, field: Callable[[int], str]
) -> list[Array | LikenessError]:
    """Vectors that a collection takes, or what is wrong with each.

    Args:
        messages: the vectors.
        collection: decides the dimension, and whether a vector needs a direction.
        field: where the vector at a place stands in the request, for its error.

    Returns:
        For each float32 [dimension], read-only, or VECTOR_INVALID.
    """
    size = 4 * collection.fingerprint.dimension
    encoded = [message.f32 for message in messages]
    if not encoded or any(len(numbers) != size for numbers in encoded):
        return [_read_one(message, collection, field(i)) for i, message in enumerate(messages)]
    together = np.frombuffer(b"".join(encoded), "<f4").astype(np.float32, copy=False).reshape(len(encoded), -1)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", together, together)
        good = (squares > _SURELY_LONG_ENOUGH) & (squares < _SURELY_SHORT_ENOUGH)  # NaN is neither
    return [
        vector if fine else _read_one(messages[i], collection, field(i))
        for i, (vector, fine) in enumerate(zip(together, good.tolist(), strict=True))
    ]


def _read_one(message: Vector, collection: Collection, field: str) -> Array | LikenessError:
    try:
        vector = vectors.from_proto(message, field, collection.fingerprint.dimension)
    except LikenessError as error:
        return error
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if collection.metric is Metric.COSINE and length < SHORTEST:
        return _refused(field, f"of length {length:g}, which has no direction; expected one longer than {SHORTEST:g}")
    if length > LONGEST:
        return _refused(field, f"of length {length:g}; expected one of at most {LONGEST:g}")
    return vector


def _refused(field: str, description: str) -> LikenessError:
    return invalid(field, f"a vector {description}", error_pb2.REASON_VECTOR_INVALID)
