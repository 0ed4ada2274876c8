"""A stream of a collection's items that is opened again where it broke."""

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self

import grpc
from likeness.indexer.v1 import indexer_pb2

from likeness_client.backoff import OnReconnect, backoff_s, may_go_on
from likeness_client.errors import RESUME_REFUSED, LikenessError
from likeness_client.indexer import wire
from likeness_client.indexer.types import Batch, Collection

Open = Callable[[indexer_pb2.ExportItemsRequest], "Stream"]
Explain = Callable[[grpc.RpcError], LikenessError]


class Stream(Protocol):
    """An open call, as grpc makes it."""

    def __iter__(self) -> Iterator[indexer_pb2.ExportItemsResponse]: ...

    def __next__(self) -> indexer_pb2.ExportItemsResponse: ...

    def cancel(self) -> object:
        """Ends the call."""


class Export:
    """The items of a collection in the order of their ids, batch by batch; iterate it once, within ``with``.

    A stream that breaks for a reason that may pass is opened again behind the last id that came, up to five times in a
    row; what follows then is the state of the collection at that time.

    Attributes:
        collection: what is exported, by its own name.
        total: items in the stream as it was opened first; 0: unknown.
        last_id: the last id that was given; empty before the first.
    """

    def __init__(
        self,
        open_stream: Open,
        request: indexer_pb2.ExportItemsRequest,
        *,
        explain: Explain,
        on_reconnect: OnReconnect | None = None,
    ) -> None:
        """Opens the stream and reads what it is of.

        Args:
            open_stream: makes the call.
            request: what to ask; ``after_id`` moves on with what has come.
            explain: what a failed call ended with.
            on_reconnect: called before the stream is opened again, with what broke it and the seconds until then.

        Raises:
            LikenessError: the indexer refused, or could not be reached.
        """
        self._open_stream = open_stream
        self._request = request
        self._explain = explain
        self._on_reconnect = on_reconnect
        self._closed = threading.Event()
        self.last_id = request.after_id
        first = self._open()
        self.collection: Collection = wire.collection_from_proto(first.collection)
        self.total: int = first.total
        # What was asked for by an alias goes on by name: the alias may move meanwhile.
        request.collection = self.collection.name or request.collection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream; what was not read of it is lost."""
        self._closed.set()
        self._call.cancel()

    def __iter__(self) -> Iterator[Batch]:
        """The batches.

        Raises:
            LikenessError: the stream broke for good, or (RESUME_REFUSED) the collection is another one by now.
        """
        failures = 0
        broken = False
        while True:
            try:
                if broken:
                    self._check(wire.collection_from_proto(self._open().collection))
                    broken = False
                message = self._next()
            except LikenessError as error:
                failures, broken = self._wait(error, failures), True
                continue
            if message is None:
                return
            if message.items:
                failures = 0
                batch = wire.batch_from_proto(message.items)
                self.last_id = batch.ids[-1]
                yield batch

    def _open(self) -> indexer_pb2.ExportItemsResponse:
        self._request.after_id = self.last_id
        self._call = self._open_stream(self._request)
        first = self._next()
        if first is None:
            message = "the export ended without its first message; is this a Likeness indexer of this release?"
            raise LikenessError("INTERNAL", "", message)
        return first

    def _next(self) -> indexer_pb2.ExportItemsResponse | None:
        try:
            return next(self._call, None)
        except grpc.RpcError as error:
            raise self._explain(error) from None

    def _check(self, found: Collection) -> None:
        if found.uid != self.collection.uid:
            raise another_collection(self.collection.name, self.collection.uid, found.uid)

    def _wait(self, error: LikenessError, failures: int) -> int:
        """Waits before the next attempt; returns how many have failed in a row, or raises what broke the stream."""
        wait_s = backoff_s(error, failures + 1, may_pass=may_go_on(error))
        if self._on_reconnect is not None:
            self._on_reconnect(error, wait_s)
        self._closed.wait(wait_s)
        return failures + 1


def another_collection(name: str, uid: str, found: str) -> LikenessError:
    """What an export that was begun of one collection cannot go on with."""
    return LikenessError(
        "FAILED_PRECONDITION",
        RESUME_REFUSED,
        f"collection {name} is another one than the export was begun of (uid {found}, expected {uid}): it was deleted "
        "and made anew, or the alias was moved; begin the export anew",
    )
