"""The vectors, what is known of them, and what the right answers are. From a seed; a small set begins a large one."""

from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Metric = Literal["cosine", "euclidean", "product"]
# A filter: the number under a key is less than a limit. As JSON carries it.
Where = tuple[str, float]

DIMENSION = 512
_SEED, _BLOCK, _CLUSTERS, _SPREAD = 4, 10_000, 1_000, 0.8
# How much the lengths of vectors differ where the metric sees it.
_LENGTHS = 0.2


def item_id(row: int) -> str:
    """The id of a row."""
    return f"{row:08d}"


def rows_of(ids: list[str]) -> list[int]:
    """The rows of ids."""
    return [int(each) for each in ids]


def vectors(n: int, metric: Metric = "cosine") -> Array:
    """float32 [n, DIMENSION]: clustered, with variances that fall as those of embeddings do; cosine: of length 1."""
    return np.concatenate([_block(number, metric)[: n - number * _BLOCK] for number in range(-(-n // _BLOCK))])


def more_vectors(n: int, seed: int) -> Array:
    """float32 [n, DIMENSION]: others from the same clusters, of length 1."""
    return _unit(_clustered(np.random.default_rng((_SEED, 1_000_000, seed)), n))


def queries(n: int, seed: int = 0) -> Array:
    """float32 [n, DIMENSION], of length 1: near the clusters, none of them stored."""
    return more_vectors(n, 1_000_000 + seed)


def numbers(n: int) -> npt.NDArray[np.float64]:
    """float64 [n], 0 to 1,000, evenly; nothing to do with the vectors."""
    return np.random.default_rng((_SEED, 1)).uniform(0, 1000, n)


def clusters(n: int) -> npt.NDArray[np.int64]:
    """int64 [n]: the cluster of each vector, 0 to 999."""
    return np.concatenate([_which(number)[: n - number * _BLOCK] for number in range(-(-n // _BLOCK))])


def mask(n: int, where: Where | None) -> npt.NDArray[np.bool_]:
    """Bool [n]: the rows for which the filter is true."""
    if where is None:
        return np.ones(n, np.bool_)
    key, limit = where
    found: npt.NDArray[np.bool_] = {"n": numbers, "c": clusters}[key](n) < limit
    return found


def nearest(stored: Array, asked: Array, metric: Metric, members: npt.NDArray[np.bool_], k: int) -> list[set[int]]:
    """The rows of the k nearest members of each query, by numpy, all compared with all.

    Args:
        stored: float32 [n, DIMENSION].
        asked: float32 [q, DIMENSION].
        metric: cosine and product: the dot product; euclidean: the distance.
        members: bool [n].
        k: how many.
    """
    rows = np.flatnonzero(members)
    lengths = np.einsum("nd,nd->n", stored, stored)[rows] if metric == "euclidean" else None
    found: list[set[int]] = []
    for begin in range(0, len(asked), 64):
        scores = asked[begin : begin + 64] @ stored.T
        scores = scores[:, rows] if len(rows) < len(stored) else scores
        if lengths is not None:
            scores = 2 * scores - lengths
        best = np.argpartition(-scores, min(k, len(rows)) - 1, axis=1)[:, :k] if len(rows) > k else None
        found += [set(rows.tolist())] * len(scores) if best is None else [set(rows[each].tolist()) for each in best]
    return found


def recall(found: list[list[int]], right: list[set[int]]) -> float:
    """The share of the right answers that was found."""
    wanted = sum(map(len, right))
    return sum(len(each & set(rows)) for rows, each in zip(found, right, strict=True)) / wanted if wanted else 1.0


def _block(number: int, metric: Metric) -> Array:
    rng = np.random.default_rng((_SEED, 2, number))
    unit = _unit(_clustered(rng, _BLOCK, _which(number)))
    if metric == "cosine":
        return unit
    lengths = rng.lognormal(0, _LENGTHS, _BLOCK).astype(np.float32)
    return unit * lengths[:, None]


def _which(number: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((_SEED, 3, number)).integers(0, _CLUSTERS, _BLOCK)


def _clustered(rng: np.random.Generator, n: int, which: npt.NDArray[np.int64] | None = None) -> Array:
    spread = ((1 + np.arange(DIMENSION) / 16) ** -0.5).astype(np.float32)
    centres = np.random.default_rng((_SEED, 4)).standard_normal((_CLUSTERS, DIMENSION), dtype=np.float32) * spread
    chosen = rng.integers(0, _CLUSTERS, n) if which is None else which
    noise = rng.standard_normal((n, DIMENSION), dtype=np.float32) * spread
    found: Array = centres[chosen] + np.float32(_SPREAD) * noise
    return found


def _unit(found: Array) -> Array:
    unit: Array = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit
