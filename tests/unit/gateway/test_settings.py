"""Where the gateway listens, and when it refuses to start."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from structlog.testing import capture_logs

from chassis.readiness import Readiness
from gateway.service import GatewayService
from gateway.settings import GatewaySettings
from tests.certificates import Authority

DIGEST = hashlib.sha256(b"secret").hexdigest()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gateway.example"])
def test_without_keys_it_listens_on_loopback_only_unless_that_is_meant(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIKENESS_HOST", host)
    assert GatewaySettings().address == "127.0.0.1:50050"
    monkeypatch.setenv("LIKENESS_ANONYMOUS", "true")
    assert GatewaySettings().listen_host == host
    monkeypatch.setenv("LIKENESS_ANONYMOUS", "false")
    monkeypatch.setenv("LIKENESS_API_KEYS", f"web:{DIGEST}:read")
    assert GatewaySettings().listen_host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_loopback_is_left_as_it_is(host: str) -> None:
    assert GatewaySettings(host=host).listen_host == host


@pytest.mark.parametrize(
    ("told", "warned"),
    [
        ({"host": "0.0.0.0", "anonymous": True}, "everybody who reaches this address may do everything"),
        ({"host": "0.0.0.0"}, "listening on loopback only"),
        ({"host": "127.0.0.1", "anonymous": True}, None),
    ],
)
def test_the_log_warns_of_what_is_open_to_everybody(told: dict[str, Any], warned: str | None) -> None:
    assert warnings(**told) == ([] if warned is None else [warned])


def warnings(**told: Any) -> list[str]:
    """What the log of a gateway with these settings warns of."""
    service = GatewayService(GatewaySettings(**told), CollectorRegistry())
    with capture_logs() as lines:
        service.calls(Readiness(service.name))
    return [line["event"] for line in lines if line["log_level"] == "warning"]


def test_the_log_warns_of_keys_that_would_come_unencrypted_from_a_network(tmp_path: Path) -> None:
    made = Authority(tmp_path).sign("gateway", "localhost")
    keys = {"api_keys": f"web:{DIGEST}:read"}
    (warned,) = warnings(host="0.0.0.0", **keys)
    assert "unencrypted" in warned
    assert "LIKENESS_TLS_CERT" in warned
    assert warnings(host="0.0.0.0", tls_cert=made.certificate, tls_key=made.key, **keys) == []
    assert warnings(host="127.0.0.1", **keys) == []


def test_a_file_without_usable_keys_is_refused_at_start_and_never_taken_for_no_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    for text in ("", "[[key]]"):
        file.write_text(text)
        with pytest.raises(ValidationError, match="LIKENESS_API_KEYS"):
            GatewaySettings(api_keys_file=file)
    with pytest.raises(ValidationError, match="cannot be read"):
        GatewaySettings(api_keys_file=tmp_path / "none.toml")


def test_a_key_that_stands_in_the_list_by_mistake_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIKENESS_API_KEYS", "web:very-secret:read")
    with pytest.raises(SystemExit) as caught:
        GatewaySettings.parse("gateway", [])
    told = capsys.readouterr().err
    assert caught.value.code == 2
    assert "LIKENESS_API_KEYS" in told
    assert "very-secret" not in told


def test_half_of_tls_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    made = authority.sign("gateway", "localhost")
    GatewaySettings(tls_cert=made.certificate, tls_key=made.key, tls_client_ca=authority.ca)
    GatewaySettings(upstream_tls_ca=authority.ca, upstream_tls_cert=made.certificate, upstream_tls_key=made.key)
    halves: list[dict[str, Any]] = [
        {"tls_cert": made.certificate},
        {"tls_key": made.key},
        {"tls_client_ca": authority.ca},
        {"tls_cert": made.key, "tls_key": made.key},
        {"upstream_tls_cert": made.certificate, "upstream_tls_key": made.key},
        {"upstream_tls_ca": authority.ca, "upstream_tls_cert": made.certificate},
        {"upstream_tls_ca": made.key},
    ]
    for half in halves:
        with pytest.raises(ValidationError):
            GatewaySettings(**half)


def test_names_to_answer_to_are_taken_as_host_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKENESS_HTTP_HOSTS", "Search.Example.org, [::1],127.0.0.1,FE80::1,my_host")
    assert GatewaySettings().http_hosts == ("search.example.org", "::1", "127.0.0.1", "fe80::1", "my_host")


@pytest.mark.parametrize(
    "name",
    ["example.org:8080", "127.0.0.1:8080", "[::1]:8080", "https://example.org", "*.example.org", "bücher.example"],
)
def test_a_name_that_host_can_never_have_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=r"is no name as Host has it.*without a port"):
        GatewaySettings(http_hosts=(name,))
