"""The client's API key and TLS, against servers on loopback that write down what comes with each call."""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from likeness.gateway.v1 import gateway_pb2_grpc
from likeness.indexer.v1 import indexer_pb2_grpc

from chassis.keys import Scope, parse_file
from chassis.tls import ListenerTls
from likeness_client import Client, LikenessError, Picture, Security
from likeness_client.indexer import IndexerClient
from tests.certificates import Authority
from tests.unit.client.command import likeness
from tests.unit.client.fake_gateway import FakeGateway, status
from tests.unit.client.fake_indexer import FakeIndexer


class Recorder(grpc.ServerInterceptor):
    """What came as authorization, by method."""

    def __init__(self) -> None:
        self.seen: dict[str, object] = {}

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        metadata = dict(handler_call_details.invocation_metadata)
        self.seen[handler_call_details.method.rpartition("/")[2]] = metadata.get("authorization")
        return continuation(handler_call_details)


@contextmanager
def listening(gateway: FakeGateway, tls: ListenerTls | None = None) -> Iterator[tuple[str, dict[str, object]]]:
    """A gateway and an indexer on one port; yields the address, and what has come."""
    recorder = Recorder()
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[recorder])
    gateway_pb2_grpc.add_SearchServiceServicer_to_server(gateway, server)
    indexer_pb2_grpc.add_IndexerServiceServicer_to_server(FakeIndexer(), server)
    where = "127.0.0.1:0"
    port = server.add_insecure_port(where) if tls is None else server.add_secure_port(where, tls.grpc())
    server.start()
    try:
        yield f"127.0.0.1:{port}", recorder.seen
    finally:
        server.stop(None).wait()


def test_the_key_goes_with_calls_of_every_kind_to_the_gateway_and_to_no_indexer(gateway: FakeGateway) -> None:
    security = Security(api_key="secret")
    with listening(gateway) as (address, seen):
        with Client(address, security=security) as client:
            assert [outcome.id for outcome in client.index([Picture(b"a", id="a")])] == ["a"]
            list(client.find_duplicates())
        assert set(seen) == {"GetStatus", "IndexImages", "FindDuplicates"}
        assert set(seen.values()) == {"Bearer secret"}
        seen.clear()
        with IndexerClient(address, security=security) as indexer:
            indexer.status()
        assert seen == {"GetStatus": None}


def test_without_being_told_the_client_takes_the_key_of_the_environment(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIKENESS_API_KEY", " secret\n")
    with listening(gateway) as (address, seen), Client(address) as client:
        client.status()
        assert seen == {"GetStatus": "Bearer secret"}


def test_a_key_is_in_no_representation() -> None:
    assert "secret" not in repr(Security(api_key="secret"))


@pytest.mark.parametrize("key", ["two\nlines", "ключ", "a\x00b", "a\rb"])
def test_what_can_be_no_key_is_refused_without_repeating_it(key: str) -> None:
    with pytest.raises(ValueError, match="no key has") as caught:
        Security(api_key=key)
    assert key not in str(caught.value)


def test_the_client_speaks_tls_and_shows_its_certificate(gateway: FakeGateway, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.sign("client")
    shown = Security(api_key="secret", tls_ca=authority.ca, tls_cert=own.certificate, tls_key=own.key)
    with listening(gateway, authority.listener(mutual=True)) as (address, seen):
        with Client(address, security=shown) as client, IndexerClient(address, security=shown) as indexer:
            client.status()
            indexer.status()
        for security in (Security(), Security(tls=True), Security(tls_ca=authority.ca)):
            with Client(address, security=security) as client, pytest.raises(LikenessError, match="no gateway answers"):
                client.status()
    assert seen == {"GetStatus": None}  # the indexer's, who came last


def test_a_certificate_without_its_key_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="go together"):
        Security(tls_cert=tmp_path / "a")
    with pytest.raises(ValueError, match="cannot be read"):
        Client(security=Security(tls_ca=tmp_path / "none"))


def test_the_command_line_takes_key_and_tls_from_files(gateway: FakeGateway, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    key = tmp_path / "key"
    key.write_text("secret\n")
    with listening(gateway, authority.listener()) as (address, seen):
        result = likeness("--api-key-file", key, "--tls-ca", authority.ca, "status", "--format", "json", server=address)
        assert seen == {"GetStatus": "Bearer secret"}
    assert "secret" not in result.output


@pytest.mark.parametrize("option", ["--api-key-file", "--tls-ca", "--tls-cert"])
def test_a_file_that_is_not_there_is_wrong_usage(option: str, tmp_path: Path) -> None:
    result = likeness(option, tmp_path / "none", "status", server="127.0.0.1:1")
    assert result.exit_code == 2
    assert "cannot be used" in result.stderr


def test_a_file_that_holds_no_key_is_wrong_usage_and_not_shown(tmp_path: Path) -> None:
    for content in (b"\xff\x00", b"two\nsecrets"):
        (tmp_path / "key").write_bytes(content)
        result = likeness("--api-key-file", tmp_path / "key", "status", server="127.0.0.1:1")
        assert result.exit_code == 2
        assert "secrets" not in result.output


def test_a_refused_key_is_told_with_where_it_comes_from(address: str, gateway: FakeGateway) -> None:
    gateway.refusal = status(grpc.StatusCode.UNAUTHENTICATED, "KEY_MISSING", "an API key is needed")
    result = likeness("search", "--text", "a", server=address)
    assert result.exit_code == 1
    assert "--api-key-file" in result.stderr


def test_a_new_key_fits_the_entry_that_comes_with_it() -> None:
    made = json.loads(likeness("keys", "new", "loader", "--scope", "write", "--format", "json").stdout)
    (caller,) = parse_file(made["entry"].encode())
    assert (caller.name, caller.scope) == ("loader", Scope.WRITE)
    assert caller.digest == hashlib.sha256(made["key"].encode()).digest()
    assert len(made["key"]) > 43
    Security(api_key=made["key"])


def test_what_goes_to_standard_output_can_go_into_the_file_and_holds_no_key() -> None:
    first, second = (likeness("keys", "new", name) for name in ("web", "other"))
    callers = parse_file((first.stdout + second.stdout).encode())
    assert [(caller.name, caller.scope) for caller in callers] == [("web", Scope.READ), ("other", Scope.READ)]
    key = first.stderr.split()[-1]
    assert callers[0].digest == hashlib.sha256(key.encode()).digest()
    assert key not in first.stdout


def test_a_name_that_the_gateway_would_not_take_is_wrong_usage() -> None:
    assert likeness("keys", "new", 'a"b').exit_code == 2
