"""Items: read, listed, counted, deleted, and compared with one another."""

from collections.abc import Iterator, Sequence

from likeness.common.v1 import types_pb2
from likeness.gateway.v1 import gateway_pb2

from likeness_client import wire, wire_labels, wire_search
from likeness_client.connection import Connection, OnProgress
from likeness_client.duplicates import DuplicateGroup
from likeness_client.facets import Facets
from likeness_client.filters import Filter
from likeness_client.items import GetResult, Item
from likeness_client.lists import MAX_IDS, batches, listed

PAGE = 1000


class ItemCalls(Connection):
    """The part of ``Client`` that reads and deletes items."""

    def get(self, ids: Sequence[str], *, collection: str = "", include_vectors: bool = False) -> GetResult:
        """Reads items by id, in calls of at most 1,024."""
        fields = types_pb2.ItemFields(metadata=True, vector=include_vectors)
        return wire.get_from_proto(
            self._call(self._stub.GetItems, gateway_pb2.GetItemsRequest(collection=collection, ids=some, fields=fields))
            for some in batches(listed(ids, "ids"), MAX_IDS)
        )

    def items(
        self,
        *,
        where: str | Filter | None = None,
        collection: str = "",
        order_by: str = "",
        descending: bool = False,
        include_vectors: bool = False,
        page_size: int = PAGE,
    ) -> Iterator[Item]:
        """Lists items, page by page as they are read, in the order of a metadata key or (empty) of the ids."""
        request = gateway_pb2.ListItemsRequest(
            collection=collection,
            filter=wire.condition_to_proto(where),
            order_by=order_by,
            descending=descending,
            page_size=page_size,
            fields=types_pb2.ItemFields(metadata=True, vector=include_vectors),
        )
        return self._pages(request)

    def _pages(self, request: gateway_pb2.ListItemsRequest) -> Iterator[Item]:
        while True:
            page = self._call(self._stub.ListItems, request)
            yield from map(wire.item_from_proto, page.items)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def count(self, *, where: str | Filter | None = None, collection: str = "") -> int:
        """How many items there are, or how many a condition leaves."""
        request = gateway_pb2.CountItemsRequest(collection=collection, filter=wire.condition_to_proto(where))
        return self._call(self._stub.CountItems, request).count

    def facets(
        self, keys: Sequence[str], *, where: str | Filter | None = None, collection: str = "", limit: int = 0
    ) -> Facets:
        """Counts items by the values of 1 to 32 metadata keys, up to ``limit`` values of each (0: 10)."""
        request = gateway_pb2.GetFacetsRequest(
            collection=collection,
            filter=wire.condition_to_proto(where),
            facets=wire_search.facets_to_proto(keys, limit),
        )
        answer = self._call(self._stub.GetFacets, request)
        return Facets(answer.count, wire_search.facets_from_proto(answer.facets))

    def delete(
        self, ids: Sequence[str] | None = None, *, where: str | Filter | None = None, collection: str = ""
    ) -> int:
        """Deletes items by id (in calls of at most 1,024; unknown ids are no error) or by condition, not both.

        Returns:
            How many items there were. If a call fails, some are deleted: repeat it.
        """
        listed(ids, "ids")
        if where is None and ids is not None:
            return sum(
                self._call(
                    self._stub.DeleteItems, gateway_pb2.DeleteItemsRequest(collection=collection, ids=some)
                ).deleted
                for some in batches(ids, MAX_IDS)
            )
        # Both, or neither: the gateway says what is wrong.
        request = gateway_pb2.DeleteItemsRequest(
            collection=collection, ids=ids or (), filter=wire.condition_to_proto(where)
        )
        return self._call(self._stub.DeleteItems, request).deleted

    def find_duplicates(
        self,
        *,
        min_score: float | None = None,
        neighbors: int = 0,
        where: str | Filter | None = None,
        collection: str = "",
        include_vectors: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Iterator[DuplicateGroup]:
        """Finds groups of items that are the same picture, or nearly. Nothing is written.

        Args:
            min_score: near duplicates: items at least as alike are joined, such as 0.97. None: exact duplicates, which
                have the same ``sha256``.
            neighbors: near duplicates: how many of the nearest of each item are looked at, 1 to 100; 0: 10.
            where: only among items for which it is true.
            collection: its name; empty: the gateway's default, ``images``.
            include_vectors: whether the items carry their vectors.
            on_progress: told how far it is.

        Returns:
            The groups: exact ones as they are found, near ones at the end. Whoever stops reading ends the work.
        """
        request = gateway_pb2.FindDuplicatesRequest(
            collection=collection,
            filter=wire.condition_to_proto(where),
            min_score=min_score,
            neighbors=neighbors,
            fields=types_pb2.ItemFields(metadata=True, vector=include_vectors),
        )
        return self._groups(request, on_progress)

    def _groups(
        self, request: gateway_pb2.FindDuplicatesRequest, on_progress: OnProgress | None
    ) -> Iterator[DuplicateGroup]:
        for message in self._follow(self._stub.FindDuplicates, request):
            if on_progress is not None:
                on_progress(message.done, message.total)
            yield from map(wire_labels.group_from_proto, message.groups)
