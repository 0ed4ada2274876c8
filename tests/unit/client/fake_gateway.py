"""A gateway that records what it is asked and answers as told, on a free loopback port."""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from likeness.common.v1 import error_pb2
from likeness.gateway.v1 import gateway_pb2 as pb
from likeness.gateway.v1 import gateway_pb2_grpc

from tests.unit.client.fake_product import FakeProduct

BAD = b"no picture"


@dataclass(frozen=True)
class Break:
    """How a stream ends before its time.

    Attributes:
        after: items read before; every second of them is answered, all of them are stored.
        status: what it ends with.
    """

    after: int
    status: status_pb2.Status


class FakeGateway(FakeProduct):
    """Stores items by id, in all collections; refuses those whose picture is ``BAD``.

    Attributes:
        lacking: by collection the ids of items that it has not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.search_requests: list[pb.SearchRequest] = []
        self.get_requests: list[pb.GetItemsRequest] = []
        self.delete_requests: list[pb.DeleteItemsRequest] = []
        self.starts: list[pb.IndexStart] = []
        self.status = pb.GetStatusResponse(version="0.1.0")
        self.refusal: status_pb2.Status | None = None
        self.breaks: deque[Break] = deque()
        self.answer_after = 1
        self.silent = False
        self.backoff: tuple[int, float] | None = None
        self.arrived_at: list[float] = []
        self.backed_off_at = 0.0
        self.item_arrived = threading.Event()
        self.lacking: dict[str, set[str]] = {}

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchResponse:  # noqa: N802
        self._refuse_if_told(context)
        if self.silent:
            wait_for_the_end(context)
        self.search_requests.append(request)
        return self.found

    def GetItems(self, request: pb.GetItemsRequest, context: grpc.ServicerContext) -> pb.GetItemsResponse:  # noqa: N802
        self.get_requests.append(request)
        there = self.stored.keys() - self.lacking.get(request.collection, set())
        return pb.GetItemsResponse(
            items=[self._item(i) for i in request.ids if i in there],
            missing_ids=[i for i in request.ids if i not in there],
        )

    def DeleteItems(  # noqa: N802
        self, request: pb.DeleteItemsRequest, context: grpc.ServicerContext
    ) -> pb.DeleteItemsResponse:
        self.delete_requests.append(request)
        ids = self.matching(request) if request.HasField("filter") else request.ids
        return pb.DeleteItemsResponse(deleted=sum(self.stored.pop(i, None) is not None for i in ids))

    def GetStatus(self, request: pb.GetStatusRequest, context: grpc.ServicerContext) -> pb.GetStatusResponse:  # noqa: N802
        return self.status

    def IndexImages(  # noqa: N802
        self, request_iterator: Iterator[pb.IndexImagesRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.IndexImagesResponse]:
        start = next(request_iterator).start
        self.starts.append(start)
        self._refuse_if_told(context)
        yield pb.IndexImagesResponse(started=pb.IndexStarted(collection=start.collection))
        end = self.breaks.popleft() if self.breaks else None
        if end is not None and end.after == 0:
            abort(context, end.status)
        answers: list[pb.IndexImagesResponse] = []
        for count, request in enumerate(request_iterator, start=1):
            self.arrived_at.append(time.monotonic())
            answer = self._store(request.item)
            if self.backoff is not None and count == self.backoff[0]:
                told = pb.IndexBackoff()
                told.delay.FromMilliseconds(round(self.backoff[1] * 1000))
                self.backed_off_at = time.monotonic()
                yield pb.IndexImagesResponse(backoff=told)
            self.item_arrived.set()
            if self.silent:
                continue
            if end is None or count % 2:
                answers.append(answer)
            if len(answers) >= self.answer_after:
                yield from answers
                answers.clear()
            if end is not None and count == end.after:
                yield from answers
                token = f"token-{len(self.starts)}"
                yield pb.IndexImagesResponse(checkpoint=pb.IndexCheckpoint(items_done=1, resume_token=token))
                abort(context, end.status)
        if self.silent:  # not the end of the stream either, which would be opened again
            wait_for_the_end(context)
        yield from answers

    def IndexBatch(self, request: pb.IndexBatchRequest, context: grpc.ServicerContext) -> pb.IndexBatchResponse:  # noqa: N802
        self.requests.append(request)
        return pb.IndexBatchResponse(results=[self._store(item).result for item in request.items])

    def _store(self, item: pb.IndexItem) -> pb.IndexImagesResponse:
        item_id = item.id or hashlib.sha256(item.image.encoded).hexdigest()
        result = pb.IndexResult(sequence=item.sequence, id=item_id)
        if item_id in self.stored and self.starts and self.starts[-1].options.existing == pb.EXISTING_POLICY_SKIP:
            result.skipped.CopyFrom(pb.IndexSkipped(reason=pb.SKIP_REASON_EXISTS, existing_id=item_id))
        elif item.image.encoded == BAD:
            refused = status(grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_DAMAGED", "image: cannot be read")
            result.error.CopyFrom(error_pb2.ItemError(status=refused, reason=error_pb2.REASON_IMAGE_DAMAGED))
        else:
            self.stored[item_id] = item
            result.stored.SetInParent()
        return pb.IndexImagesResponse(result=result)

    def _refuse_if_told(self, context: grpc.ServicerContext) -> None:
        if self.refusal is not None:
            abort(context, self.refusal)


@contextmanager
def serving(servicer: FakeGateway | None, at: str = "") -> Iterator[str]:
    """Serves there, or on a free port; yields the address. Without a servicer, a gRPC server that knows no call."""
    server = grpc.server(
        ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 2**20)]
    )
    if servicer is not None:
        gateway_pb2_grpc.add_SearchServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(at or "127.0.0.1:0")
    server.start()
    try:
        yield at or f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def status(
    code: grpc.StatusCode,
    reason: str,
    message: str,
    field: str = "",
    retry_after_s: float | None = None,
) -> status_pb2.Status:
    """A status with the details that the contract promises."""
    told = status_pb2.Status(code=code.value[0], message=message)
    told.details.append(_packed(error_details_pb2.ErrorInfo(reason=reason, domain="likeness")))
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        told.details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(retry_after_s * 1000))
        told.details.append(_packed(retry))
    return told


def shutting_down() -> status_pb2.Status:
    """What a gateway that stops ends its streams with."""
    return status(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "the gateway is stopping")


def wait_for_the_end(context: grpc.ServicerContext) -> None:
    """Returns when the caller has gone."""
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait()


def abort(context: grpc.ServicerContext, told: status_pb2.Status) -> NoReturn:
    """Ends the call so."""
    context.abort_with_status(rpc_status.to_status(told))
    raise AssertionError("abort raises")


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
