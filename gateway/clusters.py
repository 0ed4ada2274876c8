"""Groups of near duplicates, grown pair by pair."""

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError


class Clusters:
    """Joins ids into groups (union-find, with path halving and union by size).

    Only ids that are in a pair take memory: an id and three numbers each, about 200 bytes with ids of 36 characters.
    """

    def __init__(self, most: int) -> None:
        """Starts empty; takes at most ``most`` ids."""
        self._most = most
        self._places: dict[str, int] = {}
        self._parents: list[int] = []
        self._sizes: list[int] = []
        self._scores: list[float] = []

    def join(self, first: str, second: str, score: float) -> None:
        """Puts both into one group.

        Raises:
            LikenessError: BATCH_TOO_LARGE: there are too many ids.
        """
        a, b = self._place(first, score), self._place(second, score)
        a, b = self._root(a), self._root(b)
        if a == b:
            return
        if self._sizes[a] < self._sizes[b]:
            a, b = b, a
        self._parents[b] = a
        self._sizes[a] += self._sizes[b]

    def groups(self) -> list[list[tuple[str, float]]]:
        """The groups in the order of their first ids; of each its (id, best score of a pair), ordered by id."""
        members: dict[int, list[tuple[str, float]]] = {}
        for item_id, place in self._places.items():
            members.setdefault(self._root(place), []).append((item_id, self._scores[place]))
        return sorted(sorted(group) for group in members.values())

    def _place(self, item_id: str, score: float) -> int:
        place = self._places.get(item_id)
        if place is not None:
            self._scores[place] = max(self._scores[place], score)
            return place
        if len(self._places) == self._most:
            message = (
                f"more than {self._most:,} items have near duplicates; raise min_score, or narrow the filter and make "
                "several calls"
            )
            raise LikenessError(error_pb2.REASON_BATCH_TOO_LARGE, message)
        place = len(self._places)
        self._places[item_id] = place
        self._parents.append(place)
        self._sizes.append(1)
        self._scores.append(score)
        return place

    def _root(self, place: int) -> int:
        parents = self._parents
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place
