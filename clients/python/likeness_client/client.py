"""The client: one method for each thing that a gateway does."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import grpc
from likeness.gateway.v1 import gateway_pb2

from likeness_client import wire
from likeness_client.channel import MAX_MESSAGE_BYTES
from likeness_client.collection_calls import CollectionCalls
from likeness_client.errors import LikenessError
from likeness_client.ingest import Ingest, IngestLimits, OnBackoff, OnReconnect
from likeness_client.item_calls import ItemCalls
from likeness_client.items import Fingerprint, IndexOutcome, IngestOptions, Picture
from likeness_client.label_calls import LabelCalls
from likeness_client.lists import listed
from likeness_client.metadata_calls import MetadataCalls
from likeness_client.rpc_errors import from_rpc_error
from likeness_client.search_calls import SearchCalls
from likeness_client.status import Status


class Client(SearchCalls, ItemCalls, LabelCalls, MetadataCalls, CollectionCalls):
    """A gateway's client. Threads may share one. Connects on first use; close it, or use it as a context manager.

    Every method raises ``LikenessError`` for what the gateway refuses, and for a gateway that cannot be reached; and
    ``WhereError`` for a ``where`` that is no condition.
    """

    def index(
        self,
        pictures: Iterable[Picture],
        *,
        collection: str = "",
        create_collection: bool = True,
        expected_fingerprint: Fingerprint | None = None,
        options: IngestOptions | None = None,
        limits: IngestLimits | None = None,
        on_reconnect: OnReconnect | None = None,
        on_backoff: OnBackoff | None = None,
    ) -> Iterator[IndexOutcome]:
        """Takes pictures in, and yields what became of each, in any order, while it goes on.

        Nothing is sent before the outcomes are read, so read them all. A picture that is refused raises nothing: its
        outcome has the ``error``.

        Memory stays flat however many there are: files are read as the stream takes them, and few pictures wait for an
        answer at a time. Both the iterable and the files are read in the thread that reads the outcomes. A stream that
        breaks for a reason that may pass is opened again, and what has no answer is sent again. Nothing is sent while
        the gateway asks for a pause.

        Args:
            pictures: what to take in.
            collection: its name; empty: the gateway's default, ``images``.
            create_collection: whether to make it if there is none of that name.
            expected_fingerprint: the model that should embed the pictures; None: not checked.
            options: what is left out, and what is kept; None: nothing is left out, thumbnails are made.
            limits: the bounds of a stream. The embedder's own limits on a picture's size hold in any case.
            on_reconnect: called before a stream is opened again, with what broke it, the number of pictures without an
                answer, and the seconds until then.
            on_backoff: called with the seconds for which the gateway asks for a pause.

        Raises:
            IndexInterruptedError: the stream broke for good; it names the pictures without an outcome.
            LikenessError: no gateway answers.
        """
        listed(pictures, "pictures", such_as="Picture({!r})")
        bounds = limits or IngestLimits()
        model = self.status().model
        if model is not None:
            bounds = replace(
                bounds,
                max_encoded_bytes=min(bounds.max_encoded_bytes, model.limits.max_encoded_bytes or MAX_MESSAGE_BYTES),
                max_message_bytes=min(bounds.max_message_bytes, model.limits.max_message_bytes or MAX_MESSAGE_BYTES),
            )
        start = gateway_pb2.IndexStart(
            collection=collection,
            create_collection=create_collection,
            expected_fingerprint=wire.fingerprint_to_proto(expected_fingerprint),
            options=wire.options_to_proto(options or IngestOptions()),
        )

        def explain(error: grpc.RpcError) -> LikenessError:
            return from_rpc_error(error, self.address, None)

        yield from Ingest(
            self._stub,
            start=start,
            pictures=iter(pictures),
            limits=bounds,
            explain=explain,
            on_reconnect=on_reconnect,
            on_backoff=on_backoff,
        ).run()

    def status(self) -> Status:
        """The state of the services, the model and the collections; answers also when one of the services is down."""
        return wire.status_from_proto(self._call(self._stub.GetStatus, gateway_pb2.GetStatusRequest()))
