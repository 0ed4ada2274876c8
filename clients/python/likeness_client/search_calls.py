"""Searches, one or many at once."""

from collections.abc import Sequence

from likeness.gateway.v1 import gateway_pb2

from likeness_client import defaults, wire_search
from likeness_client.connection import Connection
from likeness_client.filters import Filter
from likeness_client.items import Fingerprint, SearchResult, Term
from likeness_client.lists import listed
from likeness_client.searches import Rescore, Search, SearchOutcome


class SearchCalls(Connection):
    """The part of ``Client`` that searches."""

    def search(
        self,
        *terms: Term,
        where: str | Filter | None = None,
        collection: str = "",
        top_k: int = defaults.TOP_K,
        offset: int = 0,
        min_score: float | None = None,
        rescore: Rescore | None = None,
        exact: bool = False,
        facets: Sequence[str] = (),
        facet_limit: int = 0,
        explain: bool = False,
        include_vectors: bool = False,
        expected_fingerprint: Fingerprint | None = None,
    ) -> SearchResult:
        """Finds the pictures most like a weighted mix of terms.

        Args:
            terms: 1 to 64 of ``Term.image``, ``Term.text``, ``Term.id`` and ``Term.vector``.
            where: only items for which it is true; a text such as ``label = "cat" and width >= 300``, or a filter.
            collection: its name; empty: the gateway's default, ``images``.
            top_k: most hits, 1 to 1,000.
            offset: best hits to leave out, for the pages after the first; with top_k at most 10,000.
            min_score: only hits with at least this score.
            rescore: how to score what has been found; None: as it was found.
            exact: compare with every item instead of looking near the query first, in time that grows with the
                collection.
            facets: up to 32 keys to count the values of, among all items that ``where`` leaves, hits or not.
            facet_limit: most values of a key, 1 to 1,000; 0: 10.
            explain: whether each hit tells how alike it is to each term.
            include_vectors: whether the hits carry their vectors.
            expected_fingerprint: the model that the vectors among the terms come from; None: not checked.

        Raises:
            WhereError: ``where`` is no condition; the message shows the place.
            LikenessError: the gateway refused, or could not be reached.
        """
        asked = Search(
            terms,
            where=where,
            collection=collection,
            top_k=top_k,
            offset=offset,
            min_score=min_score,
            rescore=rescore,
            exact=exact,
            facets=tuple(listed(facets, "keys")),
            facet_limit=facet_limit,
            explain=explain,
            include_vectors=include_vectors,
            expected_fingerprint=expected_fingerprint,
        )
        return wire_search.search_from_proto(self._call(self._stub.Search, wire_search.search_to_proto(asked)), asked)

    def batch_search(self, searches: Sequence[Search]) -> list[SearchOutcome]:
        """Answers 1 to 128 searches in one call: embedded together, looked up together, each failing alone.

        Returns:
            One outcome for each search, in their order.

        Raises:
            WhereError: a condition is none.
            LikenessError: the gateway refused the batch, or could not be reached.
        """
        request = gateway_pb2.BatchSearchRequest(searches=map(wire_search.search_to_proto, searches))
        answer = self._call(self._stub.BatchSearch, request)
        return [
            wire_search.outcome_from_proto(result, search, answer.timings)
            for search, result in zip(searches, answer.results, strict=True)
        ]
