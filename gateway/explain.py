"""How alike a hit is to each term of its search."""

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]


def cosines(items: Matrix, others: Matrix) -> Matrix:
    """The cosine of every item and every other vector; 0 where one has length 0.

    Args:
        items: float32 [n, dimension], of any lengths.
        others: float32 [m, dimension], of any lengths.

    Returns:
        float32 [n, m], −1 to 1.
    """
    found: Matrix = np.clip(_directions(items) @ _directions(others).T, -1, 1)
    return found


def _directions(vectors: Matrix) -> Matrix:
    # In float64: the square of a vector of length 1e-18 or 1e18, which collections may hold, is no float32.
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    narrow: Matrix = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0).astype(np.float32)
    return narrow
