"""Collections and aliases through the gateway, and moving a collection to another model."""

import time

from likeness.gateway.v1 import gateway_pb2

from likeness_client import wire, wire_collections
from likeness_client.backoff import OnReconnect, backoff_s, may_go_on
from likeness_client.connection import Connection, OnProgress
from likeness_client.errors import LikenessError
from likeness_client.indexer.types import Alias, Collection, Metric
from likeness_client.items import Fingerprint
from likeness_client.reembed_counts import Counts
from likeness_client.reembedding import Reembedded, ReembedFailure

PAGE = 1000


class CollectionCalls(Connection):
    """The part of ``Client`` that makes, describes and deletes collections, and embeds them anew."""

    def create_collection(
        self,
        name: str = "",
        *,
        metric: Metric = Metric.COSINE,
        description: str = "",
        expected_fingerprint: Fingerprint | None = None,
    ) -> Collection:
        """Makes an empty collection for the embedder's model.

        Args:
            name: its name; empty: the gateway's default, ``images``.
            metric: how likeness is measured.
            description: what it is for.
            expected_fingerprint: the model expected; None: not checked.
        """
        request = gateway_pb2.CreateCollectionRequest(
            name=name,
            metric=wire_collections.metric_to_proto(metric),
            description=description,
            expected_fingerprint=wire.fingerprint_to_proto(expected_fingerprint),
        )
        return wire_collections.collection_from_proto(self._call(self._stub.CreateCollection, request).collection)

    def collection(self, name: str = "") -> Collection:
        """Describes a collection by its name or an alias; empty: ``images``."""
        request = gateway_pb2.GetCollectionRequest(name=name)
        return wire_collections.collection_from_proto(self._call(self._stub.GetCollection, request).collection)

    def collections(self) -> list[Collection]:
        """Every collection, ordered by name."""
        request, found = gateway_pb2.ListCollectionsRequest(page_size=PAGE), list[Collection]()
        while True:
            page = self._call(self._stub.ListCollections, request)
            found += map(wire_collections.collection_from_proto, page.collections)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def update_collection(self, name: str = "", *, description: str) -> Collection:
        """Changes what a collection is for."""
        request = gateway_pb2.UpdateCollectionRequest(name=name, description=description)
        return wire_collections.collection_from_proto(self._call(self._stub.UpdateCollection, request).collection)

    def delete_collection(self, name: str) -> None:
        """Deletes a collection and everything in it; an alias is refused, and so is a collection that has aliases."""
        self._call(self._stub.DeleteCollection, gateway_pb2.DeleteCollectionRequest(name=name))

    def set_alias(self, alias: str, collection: str, *, expected: str | None = None) -> str:
        """Makes an alias, or moves it at once for everybody.

        Args:
            alias: its name.
            collection: the collection that it is to stand for.
            expected: what it must stand for until now; empty: nothing; None: not checked.

        Returns:
            The collection that it stood for before; empty if it is new.
        """
        request = gateway_pb2.SetAliasRequest(alias=alias, collection=collection, expected_collection=expected)
        return self._call(self._stub.SetAlias, request).previous_collection

    def delete_alias(self, alias: str) -> str:
        """Deletes an alias; returns the collection that it stood for, which stays."""
        return self._call(self._stub.DeleteAlias, gateway_pb2.DeleteAliasRequest(alias=alias)).collection

    def aliases(self) -> list[Alias]:
        """Every alias, ordered by name."""
        answer = self._call(self._stub.ListAliases, gateway_pb2.ListAliasesRequest())
        return list(map(wire_collections.alias_from_proto, answer.aliases))

    def reembed(
        self,
        collection: str,
        target: str,
        *,
        alias: str = "",
        switch_despite_failures: bool = False,
        keep_originals: bool = False,
        keep_extra_items: bool = False,
        fetch_uris: bool = False,
        expected_fingerprint: Fingerprint | None = None,
        on_progress: OnProgress | None = None,
        on_reconnect: OnReconnect | None = None,
    ) -> Reembedded:
        """Fills another collection with the pictures of one, embedded by the gateway's present model.

        A stream that breaks for a reason that may pass is opened again behind the last page, up to five times in a
        row without anything done between. The whole may be repeated: what the target has already is not embedded again.

        Args:
            collection: where the pictures are: a name, or an alias.
            target: the collection to fill; made if there is none of that name.
            alias: an alias to move to the target when all items are in it; empty: none.
            switch_despite_failures: whether it is moved although some items could not be embedded.
            keep_originals: whether the originals are kept for the target too.
            keep_extra_items: whether items of the target that the source does not have stay. If not, they are deleted,
                thumbnails and originals included.
            fetch_uris: whether pictures whose original was not kept are fetched from their uri.
            expected_fingerprint: the model expected; None: not checked.
            on_progress: told how far it is.
            on_reconnect: called before a stream is opened again, with what broke the one before and the seconds until
                then.
        """
        request = gateway_pb2.ReembedCollectionRequest(
            collection=collection,
            target=target,
            alias=alias,
            switch_despite_failures=switch_despite_failures,
            keep_originals=keep_originals,
            keep_extra_items=keep_extra_items,
            fetch_uris=fetch_uris,
            expected_fingerprint=wire.fingerprint_to_proto(expected_fingerprint),
        )
        counts, failures, broken = Counts(), dict[str, ReembedFailure](), 0
        switched, ever_broken = False, False
        while True:
            try:
                for told in self._follow(self._stub.ReembedCollection, request):
                    if counts.tell(told):  # one message in a while tells no more than that the stream lives
                        broken = 0
                    request.page_token = told.next_page_token
                    failures |= {each.id: wire_collections.failure_from_proto(each) for each in told.failures}
                    if on_progress is not None:
                        on_progress(counts.done, max(counts.total, counts.done))
                break
            except LikenessError as error:
                if counts.last.finished:
                    break  # nothing is missing but the stream's end
                if ever_broken and error.reason == "ALIAS_MOVED" and Alias(alias, target) in self.aliases():
                    switched = True  # by the stream that broke before it could say so
                    break
                broken, ever_broken = broken + 1, True
                counts.broke()
                wait_s = backoff_s(error, broken, may_pass=may_go_on(error))
                if on_reconnect is not None:
                    on_reconnect(error, wait_s)
                time.sleep(wait_s)
        return Reembedded(
            total=counts.total,
            embedded=counts.embedded,
            unchanged=counts.unchanged,
            failed=counts.last.failed,
            removed=counts.removed,
            switched=switched or counts.last.switched,
            failures=tuple(failures.values()),
        )
