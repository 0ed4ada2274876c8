"""Scores and distances of vectors, by the formulas of the contract's Metric.

Whatever found the candidates, their scores are computed here, row by row, so that equal vectors have equal scores.
"""

from enum import Enum

import numpy as np
import numpy.typing as npt

from chassis.vectors import Array
from indexer.collections import Metric


class Scoring(Enum):
    """What a score is; the value is the contract's name without its prefix."""

    COSINE = "COSINE"
    L2 = "L2"
    INNER_PRODUCT = "INNER_PRODUCT"
    L1 = "L1"
    CORRELATION = "CORRELATION"


OF_METRIC = {
    Metric.COSINE: Scoring.COSINE,
    Metric.L2: Scoring.L2,
    Metric.INNER_PRODUCT: Scoring.INNER_PRODUCT,
}


def scores(scoring: Scoring, query: Array, vectors: Array) -> npt.NDArray[np.float64]:
    """How alike each vector is to the query; higher is more alike.

    Args:
        scoring: which formula.
        query: float32 [dimension].
        vectors: float32 [n, dimension].

    Returns:
        float64 [n], rounded to float32 as they are sent: what looks equal to a client is ordered as equal.
    """
    return _exact(scoring, query, vectors).astype(np.float32).astype(np.float64)


def _exact(scoring: Scoring, query: Array, vectors: Array) -> npt.NDArray[np.float64]:
    q, v = query.astype(np.float64), vectors.astype(np.float64)
    match scoring:
        case Scoring.INNER_PRODUCT:
            return _dots(q, v)
        case Scoring.L2:
            return -np.sqrt(_squares(v - q))
        case Scoring.L1:
            found: npt.NDArray[np.float64] = -np.abs(v - q).sum(axis=1)
            return found
        case Scoring.COSINE:
            return _cosines(q, v)
        case Scoring.CORRELATION:
            return _cosines(_centred(q[None])[0], _centred(v))


def distances(scoring: Scoring, of_scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The distances that scores stand for; lower is more alike. float64, of the shape given."""
    return 1 - of_scores if scoring in (Scoring.COSINE, Scoring.CORRELATION) else -of_scores


def distance(scoring: Scoring, score: float) -> float:
    """The one of a score, as ``distances`` of many."""
    return 1 - score if scoring in (Scoring.COSINE, Scoring.CORRELATION) else -score


def _centred(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    centred: npt.NDArray[np.float64] = v - v.mean(axis=1, keepdims=True)
    # Equal numbers leave the rounding of their mean behind, which would have a direction.
    centred[np.ptp(v, axis=1) == 0] = 0
    return centred


def _cosines(q: npt.NDArray[np.float64], v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths = np.sqrt(_squares(v)) * np.sqrt(q @ q)
    lengths[lengths == 0] = np.inf  # their cosine is 0
    cosines: npt.NDArray[np.float64] = _dots(q, v) / lengths
    return np.minimum(np.maximum(cosines, -1, out=cosines), 1, out=cosines)


# Row by row, so that equal rows have equal sums: a matrix product sums a row in another order in another place. (On
# processors older than 2008 BLAS sums rows of odd dimension in two orders, which rounding to float32 hides nearly
# always.)
def _dots(q: npt.NDArray[np.float64], v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.vecdot(v, q)
    return found


def _squares(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.vecdot(v, v)
    return found
