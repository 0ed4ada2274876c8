"""``make up``: which ports it takes, and who can reach what it starts."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy import local


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which something listens."""
    with socket.create_server((local.LOOPBACK, 0)) as listening:
        yield listening.getsockname()[1]


def test_http_is_at_its_usual_port_while_that_is_free(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    with socket.create_server((local.LOOPBACK, 0)) as probe:
        free = probe.getsockname()[1]
    monkeypatch.setattr(local, "HTTP_PORT", free)

    assert local.with_http_port({"LIKENESS_HOST": "127.0.0.1"}) == {"LIKENESS_HOST": "127.0.0.1"}


def test_where_the_usual_port_is_taken_http_is_at_another_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], taken: int
) -> None:
    monkeypatch.setattr(local, "HTTP_PORT", taken)

    port = local.with_http_port({})["LIKENESS_HTTP_PORT"]

    assert int(port) != taken
    said = capsys.readouterr().out
    assert str(taken) in said
    assert port in said


def test_a_port_that_was_asked_for_is_kept_and_refused_where_it_is_taken(
    monkeypatch: pytest.MonkeyPatch, taken: int, tmp_path: Path
) -> None:
    monkeypatch.setattr(local, "HTTP_PORT", taken)
    asked = {**local.free_ports(), "LIKENESS_HTTP_PORT": str(taken)}

    assert local.with_http_port(asked) == asked
    with pytest.raises(local.StartError, match="LIKENESS_HTTP_PORT"):
        local.Services(asked, tmp_path).start()


class Process:
    """What is started, which is nothing."""

    pid = os.getpid()

    def poll(self) -> None:
        """It runs."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str | None]:
    """LIKENESS_HOST of each service that is started, as the process has it."""
    hosts: dict[str, str | None] = {}

    def start(command: list[str], *, env: dict[str, str], **_told: Any) -> Process:
        hosts[command[-1]] = env.get("LIKENESS_HOST")
        return Process()

    monkeypatch.setattr(psutil, "Popen", start)
    monkeypatch.setattr(local, "wait_until_serving", lambda *_told: None)
    monkeypatch.setattr(local, "STATE", tmp_path)
    monkeypatch.setattr(local, "PIDS", tmp_path / "pids.json")
    for name in [name for name in os.environ if name.startswith("LIKENESS_")]:
        monkeypatch.delenv(name)
    for name, value in local.free_ports().items():
        monkeypatch.setenv(name, value)
    return hosts


@pytest.mark.parametrize(
    ("told", "gateway", "others"),
    [
        ({}, None, "127.0.0.1"),
        ({"LIKENESS_HOST": "127.0.0.2"}, "127.0.0.2", "127.0.0.2"),
        ({"LIKENESS_HOST": "0.0.0.0"}, "0.0.0.0", "127.0.0.1"),
        ({"LIKENESS_HOST": "0.0.0.0", "LIKENESS_API_KEYS": "web:00:read"}, "0.0.0.0", "127.0.0.1"),
        ({"LIKENESS_HOST": "::", "LIKENESS_ANONYMOUS": "true"}, "::", "127.0.0.1"),
        ({"LIKENESS_HOST": "0.0.0.0", "LIKENESS_TLS_CERT": "c", "LIKENESS_TLS_KEY": "k"}, "0.0.0.0", "127.0.0.1"),
        (
            {
                "LIKENESS_HOST": "0.0.0.0",
                "LIKENESS_TLS_CERT": "c",
                "LIKENESS_TLS_KEY": "k",
                "LIKENESS_TLS_CLIENT_CA": "a",
            },
            "0.0.0.0",
            "0.0.0.0",
        ),
    ],
)
def test_embedder_and_indexer_which_know_no_keys_stay_on_this_machine_without_mtls(
    started: dict[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, str],
    gateway: str | None,
    others: str,
) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)

    assert local.up() == 0

    assert started == {"gateway": gateway, "embedder": others, "indexer": others}


@pytest.mark.parametrize(("keys", "said"), [("web:00:read", True), ("", False)])
def test_what_listens_on_every_interface_is_said(
    started: dict[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    keys: str,
    said: bool,
) -> None:
    monkeypatch.setenv("LIKENESS_HOST", "0.0.0.0")
    monkeypatch.setenv("LIKENESS_API_KEYS", keys)

    local.up()

    lines = [line for line in capsys.readouterr().out.splitlines() if "every interface" in line]
    assert [line.split()[0] for line in lines] == (["gateway"] if said else [])


def test_an_address_of_this_machine_is_the_gateways_alone(tmp_path: Path) -> None:
    told = {"LIKENESS_HOST": "192.0.2.1", "LIKENESS_API_KEYS": "web:00:read"}

    services = local.Services(told, tmp_path)

    assert services.addresses["gateway"] == "192.0.2.1:50050"
    assert services.http == "192.0.2.1:8080"
    assert services.environment["LIKENESS_INDEXER_ADDRESS"] == services.addresses["indexer"] == "127.0.0.1:50052"
