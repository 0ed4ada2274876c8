"""What can be asked of a search, and what becomes of one among many."""

from dataclasses import dataclass
from enum import StrEnum

from likeness_client import defaults
from likeness_client.errors import LikenessError
from likeness_client.filters import Filter
from likeness_client.items import Fingerprint, SearchResult, Term


class RescoreMetric(StrEnum):
    """By what found items can be scored; ``likeness.common.v1.Metric`` has the formulas."""

    COSINE = "cosine"
    L2 = "l2"
    INNER_PRODUCT = "inner_product"
    L1 = "l1"
    CORRELATION = "correlation"


@dataclass(frozen=True)
class Rescore:
    """Exact scoring of the nearest items, by another metric or by the same.

    Attributes:
        metric: by which; None: the collection's own, which with more candidates finds what a plain search may miss.
        candidates: how many of the nearest are scored, up to 10,000; 0: ten times those asked for, at least 100.
    """

    metric: RescoreMetric | None = None
    candidates: int = 0


@dataclass(frozen=True)
class Search:
    """A search: the arguments of ``Client.search``, for ``Client.batch_search``.

    Attributes:
        terms: 1 to 64 of ``Term.image``, ``Term.text``, ``Term.id`` and ``Term.vector``.
        where: only items for which it is true; a text such as ``label = "cat" and width >= 300``, or a filter.
        collection: its name; empty: the gateway's default, ``images``.
        top_k: most hits, 1 to 1,000.
        offset: best hits to leave out, for the pages after the first; with top_k at most 10,000.
        min_score: only hits with at least this score.
        rescore: how to score what has been found; None: as it was found.
        exact: compare with every item, in time that grows with the collection.
        facets: up to 32 keys to count the values of, among all items that ``where`` leaves, hits or not.
        facet_limit: most values of a key, 1 to 1,000; 0: 10.
        explain: whether each hit tells how alike it is to each term.
        include_vectors: whether the hits carry their vectors.
        expected_fingerprint: the model that the vectors among the terms come from; None: not checked.
    """

    terms: tuple[Term, ...]
    where: str | Filter | None = None
    collection: str = ""
    top_k: int = defaults.TOP_K
    offset: int = 0
    min_score: float | None = None
    rescore: Rescore | None = None
    exact: bool = False
    facets: tuple[str, ...] = ()
    facet_limit: int = 0
    explain: bool = False
    include_vectors: bool = False
    expected_fingerprint: Fingerprint | None = None


@dataclass(frozen=True)
class SearchOutcome:
    """What became of one search of a batch: exactly one of these is set.

    Attributes:
        result: what was found; its timings are those of the whole batch.
        error: why there is no answer.
    """

    result: SearchResult | None
    error: LikenessError | None
