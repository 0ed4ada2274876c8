"""Chroma's answers as the indexer's values."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.chroma_where import from_stored
from indexer.collections import Metric
from indexer.reads import Fields, StoredItem
from indexer.writes import pack


def include(fields: Fields) -> Any:
    """What to ask for besides the ids."""
    return [name for name, wanted in (("metadatas", fields.metadata), ("embeddings", fields.vector)) if wanted]


def items(ids: Sequence[str], metadatas: Any, embeddings: Any, fields: Fields) -> list[StoredItem]:
    """Items of an answer; what was not asked for is None in it."""
    vectors = np.asarray(embeddings, np.float32) if fields.vector and len(ids) else None
    return [
        StoredItem(
            item_id,
            None if vectors is None else vectors[i],
            pack(from_stored(metadatas[i])) if fields.metadata else None,
        )
        for i, item_id in enumerate(ids)
    ]


def scores(of_chroma: Any, metric: Metric) -> npt.NDArray[np.float64]:
    """Chroma's distances [k] as scores: it gives 1 − cos, the squared Euclidean distance, and 1 − a·b, as float32.

    Rounded like those that are computed from vectors (``indexer.scoring``): what looks equal to a client is ordered as
    equal.
    """
    given = np.asarray(of_chroma, np.float64)
    match metric:
        case Metric.COSINE:
            found = np.clip(1 - given, -1, 1)
        case Metric.L2:
            found = -np.sqrt(np.maximum(given, 0))
        case Metric.INNER_PRODUCT:
            found = 1 - given
    return found.astype(np.float32).astype(np.float64)
