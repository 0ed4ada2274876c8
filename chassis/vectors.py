"""Vectors between the contract (little-endian float32 bytes) and numpy."""

import numpy as np
import numpy.typing as npt
from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import Vector

from chassis.errors import LikenessError, invalid

Array = npt.NDArray[np.float32]


def to_proto(vector: Array) -> Vector:
    """A float32 array [dimension] as a message."""
    return Vector(f32=vector.astype("<f4", copy=False).tobytes())


def from_proto(vector: Vector, field: str, dimension: int | None = None) -> Array:
    """A message as a float32 array [dimension]; read-only where the machine is little-endian: no copy is made.

    Args:
        vector: the message.
        field: where it stands in the request, for the error.
        dimension: the length it must have; None: any.

    Raises:
        LikenessError: VECTOR_INVALID, naming the field: empty, cut, of another dimension, NaN or infinite.
    """
    size = len(vector.f32)
    if size == 0 or size % 4:
        raise _refused(field, f"{size} bytes; expected 4 bytes of little-endian float32 for each number, at least one")
    array = np.frombuffer(vector.f32, "<f4").astype(np.float32, copy=False)
    if dimension is not None and array.size != dimension:
        raise _refused(field, f"{array.size} numbers; expected {dimension}, the collection's dimension")
    if not np.isfinite(array).all():
        raise _refused(field, f"holds NaN or an infinity at position {int(np.argmin(np.isfinite(array)))}")
    return array


def _refused(field: str, description: str) -> LikenessError:
    return invalid(field, description, error_pb2.REASON_VECTOR_INVALID)
