"""What gRPC does by itself on channels: it sends again what the contract lets it, and nothing twice at once."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from likeness.embedder.v1 import embedder_pb2
from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2

from gateway.backends import Embedder, Indexer, Readers
from gateway.settings import GatewaySettings
from likeness_client.channel import options as client_options

SERVICES = {
    service.full_name: service
    for service in (
        embedder_pb2.DESCRIPTOR.services_by_name["EmbedderService"],
        indexer_pb2.DESCRIPTOR.services_by_name["IndexerService"],
        gateway_pb2.DESCRIPTOR.services_by_name["SearchService"],
    )
}


@pytest.fixture
async def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The service configs of all channels that a gateway opens."""
    seen: list[dict[str, Any]] = []
    made = grpc.aio.insecure_channel

    def noted(target: str, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
        seen.append(json.loads(dict(options)["grpc.service_config"]))
        return made(target, options=options)

    monkeypatch.setattr(grpc.aio, "insecure_channel", noted)
    settings = GatewaySettings(indexer_read_address="127.0.0.1:1", embedder_connections=2)
    for kind in (Embedder, Indexer, Readers):
        await kind(settings).close()
    return seen


def clients() -> list[dict[str, Any]]:
    """Those of the clients in Python."""
    return [json.loads(str(dict(client_options(service))["grpc.service_config"])) for service in SERVICES.values()]


def policies(config: dict[str, Any]) -> Iterator[tuple[str, ServiceDescriptor, str]]:
    """Of each method that has one: the kind of its policy, its service and its name."""
    for part in config["methodConfig"]:
        for name in part["name"]:
            for kind in part.keys() - {"name"}:
                yield kind, SERVICES[name["service"]], name["method"]


def may_be_repeated(service: ServiceDescriptor, method: str) -> bool:
    """What the contract says."""
    level = service.methods_by_name[method].GetOptions().idempotency_level
    return level != MethodOptions.IDEMPOTENCY_UNKNOWN


def test_no_call_is_hedged(opened: list[dict[str, Any]]) -> None:
    assert len(opened) >= 5
    for config in [*opened, *clients()]:
        assert "hedging" not in json.dumps(config).lower()
        assert {kind for kind, _, _ in policies(config)} == {"retryPolicy"}


def test_only_what_the_contract_calls_repeatable_is_sent_again(opened: list[dict[str, Any]]) -> None:
    retried: set[str] = set()
    for config in [*opened, *clients()]:
        for _, service, method in policies(config):
            assert may_be_repeated(service, method), f"{service.full_name}/{method}"
            retried.add(method)
    assert {"Embed", "Query", "UpsertItems", "Search"} <= retried
    assert not retried & {"CreateCollection", "DeleteCollection", "SetAlias", "DeleteAlias", "IndexImages"}
