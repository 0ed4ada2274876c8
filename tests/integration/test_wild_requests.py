"""Whatever is sent, the answer is one or names the caller's mistake: never a fault of ours, and the next call works.

More of it: ``WILD_EXAMPLES=1000 make test ARGS="-k wild --timeout 3600"``, other requests each time; those that fail
are printed so that they can be had again.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from likeness.common.v1 import error_pb2
from likeness.gateway.v1 import gateway_pb2

from chassis.errors import LikenessError, from_status
from deploy.local import Services
from tests import wild
from tests.integration.conftest import Stub, connect, index, item, read
from tests.pictures import noise
from tests.transports import ByHttp

SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["SearchService"]
UNARY = [method for method in SERVICE.methods if not method.client_streaming]
CALL_S = 30.0
# What a caller can do wrong, and (RESOURCE_EXHAUSTED) ask too much of at once.
THEIRS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}

_EXAMPLES = os.environ.get("WILD_EXAMPLES")
CHOSEN = settings(
    max_examples=int(_EXAMPLES or 30),
    derandomize=_EXAMPLES is None,
    print_blob=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.large_base_example],
)


@pytest.fixture
def channel(services: Services) -> Iterator[grpc.Channel]:
    """The gateway, with a small collection that the requests may know of; what they make is gone afterwards."""
    with connect(services) as channel:
        stub = Stub(channel)
        before = {each.name for each in collections(stub)}
        pictures = (item(i, noise(i), item_id, "noise") for i, item_id in enumerate(wild.IDS))
        index(stub, pictures, wild.COLLECTION)
        yield channel
        for made in collections(stub):
            if made.name not in before:
                for alias in made.aliases:
                    stub.DeleteAlias(gateway_pb2.DeleteAliasRequest(alias=alias), timeout=CALL_S)
                stub.DeleteCollection(gateway_pb2.DeleteCollectionRequest(name=made.name), timeout=CALL_S)


def collections(stub: Stub) -> Sequence[gateway_pb2.Collection]:
    return stub.ListCollections(gateway_pb2.ListCollectionsRequest(page_size=1_000), timeout=CALL_S).collections


def check(told: LikenessError) -> None:
    """The failure is the caller's, and says what it is."""
    assert told.code in THEIRS, told
    assert told.message


def alive(channel: grpc.Channel) -> None:
    """A good call is answered, and both services behind are there."""
    status = Stub(channel).GetStatus(gateway_pb2.GetStatusRequest(), timeout=CALL_S)
    assert all(service.serving for service in status.services), status.services


def call(channel: grpc.Channel, method: MethodDescriptor, request: bytes) -> None:
    """One call with a request of whatever bytes; a stream is read to its end."""
    path = f"/{SERVICE.full_name}/{method.name}"
    make: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    read_answer = GetMessageClass(method.output_type).FromString
    try:
        answer = make(path, response_deserializer=read_answer)(request, timeout=CALL_S)
        for message in answer if method.server_streaming else [answer]:
            check_items(message)
    except grpc.RpcError as error:
        check(read(error))


def post(gateway: ByHttp, method: MethodDescriptor, body: bytes, *, binary: bool = False, bare: bool = False) -> None:
    """The same by HTTP, with JSON or whatever else as the body; a stream's is in an envelope, unless it is ``bare``."""
    try:
        if method.server_streaming:
            answers = gateway.stream_with(method.name, body, binary=binary, bare=bare)
        else:
            answers = [gateway.call_with(method.name, body, binary=binary)]
        for message in answers:
            check_items(message)
    except LikenessError as error:
        check(error)


def check_items(answer: Message) -> None:
    """What the answer says of items that failed is typed, and the caller's, too."""
    if isinstance(answer, error_pb2.ItemError):
        told = from_status(answer.status)
        assert told.code in THEIRS, told
        return
    for field, value in answer.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for each in value if field.is_repeated else [value]:
                check_items(each)


@pytest.mark.parametrize("method", UNARY, ids=lambda method: str(method.name))
def test_no_wild_request_is_answered_with_a_fault(channel: grpc.Channel, method: MethodDescriptor) -> None:
    @CHOSEN
    @given(wild.messages(method.input_type))
    def send(request: Message) -> None:
        call(channel, method, request.SerializeToString())

    send()
    alive(channel)


@CHOSEN
@given(st.sampled_from(UNARY).flatmap(lambda method: st.tuples(st.just(method), wild.encoded(method.input_type))))
def test_no_wild_bytes_are_answered_with_a_fault(channel: grpc.Channel, sent: tuple[MethodDescriptor, bytes]) -> None:
    call(channel, *sent)
    alive(channel)


@CHOSEN
@given(st.lists(wild.messages(gateway_pb2.IndexImagesRequest.DESCRIPTOR), max_size=6), st.booleans())
def test_no_wild_ingest_stream_is_answered_with_a_fault(
    channel: grpc.Channel, requests: list[gateway_pb2.IndexImagesRequest], begun_well: bool
) -> None:
    if begun_well:
        start = gateway_pb2.IndexStart(collection=wild.COLLECTION)
        requests = [gateway_pb2.IndexImagesRequest(start=start), *requests]
    try:
        for answer in Stub(channel).IndexImages(iter(requests), timeout=CALL_S):
            check_items(answer)
    except grpc.RpcError as error:
        check(read(error))
    alive(channel)


@pytest.fixture(scope="module")
def gateway(services: Services) -> Iterator[ByHttp]:
    """The gateway by HTTP."""
    assert services.http is not None
    by_http = ByHttp(services.http)
    yield by_http
    by_http.close()


def as_json(method: MethodDescriptor) -> st.SearchStrategy[bytes]:
    """A wild message as JSON."""
    return wild.messages(method.input_type).map(lambda message: MessageToJson(message, indent=None).encode())


BODIES = st.sampled_from(UNARY).flatmap(lambda m: st.tuples(st.just(m), st.one_of(as_json(m), wild.bodies(as_json(m)))))


@settings(CHOSEN, max_examples=4 * CHOSEN.max_examples)
@given(BODIES)
def test_no_wild_body_is_answered_with_a_fault(
    channel: grpc.Channel, gateway: ByHttp, sent: tuple[MethodDescriptor, bytes]
) -> None:
    post(gateway, *sent)
    alive(channel)


def as_binary(method: MethodDescriptor) -> st.SearchStrategy[bytes]:
    """A wild message, or what may stand for one."""
    whole = wild.messages(method.input_type).map(lambda message: message.SerializeToString())
    return st.one_of(whole, wild.encoded(method.input_type))


BINARY = st.sampled_from(UNARY).flatmap(lambda m: st.tuples(st.just(m), as_binary(m), st.booleans()))


@CHOSEN
@given(BINARY)
def test_no_wild_binary_body_is_answered_with_a_fault(
    channel: grpc.Channel, gateway: ByHttp, sent: tuple[MethodDescriptor, bytes, bool]
) -> None:
    method, body, bare = sent
    post(gateway, method, body, binary=True, bare=bare)
    alive(channel)
