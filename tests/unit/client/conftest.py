"""A gateway to ask, and the place where no gateway is."""

import socket
from collections.abc import Iterator

import pytest

from tests.unit.client.fake_gateway import FakeGateway, serving


@pytest.fixture
def gateway() -> FakeGateway:
    """What the server at ``address`` answers with, and what it was asked."""
    return FakeGateway()


@pytest.fixture
def address(gateway: FakeGateway) -> Iterator[str]:
    """Where ``gateway`` is served."""
    with serving(gateway) as where:
        yield where


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nothing listens: bound, so that nobody else takes it, and never listened on."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{reserved.getsockname()[1]}"
