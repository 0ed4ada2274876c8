"""Items and queries from a seed: clustered vectors, and metadata to filter by."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from chassis.metadata import Plain
from chassis.vectors import Array
from tests.chaos.ledger import Content

DIMENSION = 512
_CLUSTERS, _SPREAD = 400, 0.8
TAGS = ("red", "green", "blue", "yellow", "grey")


@dataclass
class Source:
    """An endless supply; the same seed gives the same."""

    seed: Sequence[int]
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(list(self.seed))
        # Variances that fall as those of embeddings do, and the same centres for every seed.
        self._spread = ((1 + np.arange(DIMENSION) / 16) ** -0.5).astype(np.float32)
        centres = np.random.default_rng(0).standard_normal((_CLUSTERS, DIMENSION), dtype=np.float32)
        self._centres = centres * self._spread

    def vectors(self, n: int) -> Array:
        """float32 [n, DIMENSION], of length 1."""
        noise = self._rng.standard_normal((n, DIMENSION), dtype=np.float32) * self._spread
        found = self._centres[self._rng.integers(0, _CLUSTERS, n)] + _SPREAD * noise
        unit: Array = found / np.linalg.norm(found, axis=1, keepdims=True)
        return unit

    def metadata(self) -> dict[str, Plain]:
        """A number from 0 to 1,000, a tag, a list of tags."""
        labels = [str(tag) for tag in self._rng.choice(TAGS, 2, replace=False)]
        return {"n": float(self._rng.uniform(0, 1000)), "tag": str(self._rng.choice(TAGS)), "labels": labels}

    def contents(self, n: int) -> list[Content]:
        """New items' contents."""
        return [Content(vector, self.metadata()) for vector in self.vectors(n)]
