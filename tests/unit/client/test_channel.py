"""What the channel sends again by itself, and what it leaves alone."""

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.rpc import status_pb2
from grpc_status import rpc_status
from likeness.gateway.v1 import gateway_pb2 as pb

from likeness_client import Client, LikenessError, Term
from tests.unit.client.fake_gateway import FakeGateway, serving, shutting_down, status

NO_SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
"""What an HTTP/2 server says first."""


@dataclass
class _Told(grpc.Status):
    """A status with its trailers."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


class Refusing(FakeGateway):
    """Ends every search so.

    Attributes:
        attempts: how many searches have come.
        heal_after: how many of them it ends so; the others are answered.
    """

    def __init__(self, end: status_pb2.Status, *trailers: tuple[str, str]) -> None:
        super().__init__()
        told = rpc_status.to_status(end)
        self._end = _Told(told.code, told.details, (*told.trailing_metadata, *trailers))
        self.attempts = 0
        self.heal_after = 100

    def Search(self, request: pb.SearchRequest, context: grpc.ServicerContext) -> pb.SearchResponse:  # noqa: N802
        self.attempts += 1
        if self.attempts <= self.heal_after:
            context.abort_with_status(self._end)
        return self.found


def search(gateway: FakeGateway) -> None:
    with serving(gateway) as address, Client(address) as client:
        client.search(Term.text("a"))


def test_what_the_gateway_has_waited_for_itself_is_not_sent_again() -> None:
    down = status(grpc.StatusCode.UNAVAILABLE, "EMBEDDER_UNAVAILABLE", "no embedder answers")
    gateway = Refusing(down, ("grpc-retry-pushback-ms", "-1"))
    with pytest.raises(LikenessError) as caught:
        search(gateway)
    assert (gateway.attempts, caught.value.reason) == (1, "EMBEDDER_UNAVAILABLE")


def test_a_gateway_that_stops_is_asked_again() -> None:
    gateway = Refusing(shutting_down())
    gateway.heal_after = 2
    search(gateway)
    assert gateway.attempts == 3


def test_a_call_whose_connection_is_cut_is_sent_again(tmp_path: Path) -> None:
    path, gateway = tmp_path / "gateway", FakeGateway()
    with (
        socket.socket(socket.AF_UNIX) as listener,
        ThreadPoolExecutor(1) as others,
        Client(f"unix:{path}") as client,
    ):
        listener.bind(str(path))
        listener.listen()
        found = others.submit(client.search, Term.text("a cat on a sofa"))
        connection, _ = listener.accept()
        path.unlink()
        with connection, serving(gateway, f"unix:{path}"):
            connection.sendall(NO_SETTINGS)
            came = b""
            while b"a cat on a sofa" not in came:
                came += connection.recv(4096)
            connection.close()
            found.result(60)
    assert len(gateway.search_requests) == 1
