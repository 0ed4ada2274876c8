"""Settings: from the environment, checked before anything starts, shown by --help."""

import re
from pathlib import Path

import pytest
from annotated_types import Le

from chassis.misspelled import ELSEWHERE, PREFIX
from chassis.settings import ServiceSettings
from embedder.settings import EmbedderSettings
from gateway.settings import GatewaySettings
from indexer.settings import IndexerSettings


class Locked(ServiceSettings):
    """Settings of which three are secrets."""

    port: int = 0
    store_token: int = 0
    key_of_store: int = 0
    store_password: int = 0


def refused(settings: type[ServiceSettings], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of settings that are not usable."""
    with pytest.raises(SystemExit) as caught:
        settings.parse("python -m service", [])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_a_setting_comes_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKENESS_GATEWAY_PORT", "6000")
    monkeypatch.setenv("LIKENESS_INGEST_BATCH_ITEMS", "7")

    settings = GatewaySettings.parse("python -m gateway", [])

    assert (settings.port, settings.ingest_batch_items, settings.address) == (6000, 7, "127.0.0.1:6000")


def test_an_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKENESS_GATEWAY_PORT", "")

    assert GatewaySettings.parse("python -m gateway", []).port == 50050


def test_every_bad_setting_is_named_with_its_value_and_the_exit_code_is_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIKENESS_GATEWAY_PORT", "99999")
    monkeypatch.setenv("LIKENESS_LOG_LEVEL", "LOUD")

    with pytest.raises(SystemExit) as caught:
        GatewaySettings.parse("python -m gateway", [])

    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert "LIKENESS_GATEWAY_PORT='99999'" in said
    assert "LIKENESS_LOG_LEVEL='LOUD'" in said


@pytest.mark.parametrize("variable", ["LIKENESS_STORE_TOKEN", "LIKENESS_KEY_OF_STORE", "LIKENESS_STORE_PASSWORD"])
def test_a_bad_setting_that_is_a_secret_is_named_without_its_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    monkeypatch.setenv(variable, "hunter2secret")

    said = refused(Locked, capsys)

    assert "hunter2" not in said
    assert f"{variable}=(not shown): Input should be a valid integer" in said


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://admin:hunter2secret@chroma:8000", "expected no name and password in it; see LIKENESS_CHROMA_TOKEN"),
        ("admin:hunter2secret@chroma:8000", "expected http://HOST:PORT or https://HOST:PORT"),
        ("http://admin:hunter2secret#@chroma:8000", "Port could not be cast to integer value as …"),
    ],
)
def test_a_user_and_a_password_in_a_bad_url_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, why: str
) -> None:
    monkeypatch.setenv("LIKENESS_CHROMA_URL", url)

    said = refused(IndexerSettings, capsys)

    assert "hunter2" not in said
    assert "admin" not in said
    assert f"LIKENESS_CHROMA_URL=(not shown): Value error, {why}" in said


def test_a_bad_url_without_a_password_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIKENESS_CHROMA_URL", "http://chroma:8000/api")

    assert "LIKENESS_CHROMA_URL='http://chroma:8000/api'" in refused(IndexerSettings, capsys)


def test_help_shows_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        GatewaySettings.parse("python -m gateway", ["--help"])

    said = capsys.readouterr().out
    assert caught.value.code == 0
    assert "LIKENESS_GATEWAY_PORT  (default: 50050)" in said
    for name in ("EMBEDDER_ADDRESS", "MAX_MESSAGE_MB", "DRAIN_S", "INGEST_WINDOW_MB"):
        assert f"LIKENESS_{name}" in said


def test_an_unknown_argument_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        GatewaySettings.parse("python -m gateway", ["--port", "1"])

    assert caught.value.code == 2
    assert "--port" in capsys.readouterr().err


@pytest.mark.parametrize("field", ServiceSettings.model_fields)
def test_every_common_setting_is_described(field: str) -> None:
    assert field == "port" or ServiceSettings.model_fields[field].description


@pytest.mark.parametrize("name", [n for n, f in ServiceSettings.model_fields.items() if f.annotation is int])
def test_every_common_whole_number_has_a_range_which_its_description_says(name: str) -> None:
    field = ServiceSettings.model_fields[name]

    (most,) = [limit.le for limit in field.metadata if isinstance(limit, Le)]
    assert name == "port" or f" to {most:,}" in (field.description or "")


def test_an_ipv6_host_is_put_in_brackets() -> None:
    assert GatewaySettings(host="::1", port=1).address == "[::1]:1"


SERVICES: tuple[type[ServiceSettings], ...] = (EmbedderSettings, IndexerSettings, GatewaySettings)
# Those of the client, of compose.yaml, tests and benchmarks, and what an embedder tells the processes that it starts.
OTHERS = {"API_KEY", "API_KEY_FILE", "CLIENT_TLS_CA", "CLIENT_TLS_CERT", "CLIENT_TLS_KEY", "GATEWAY", "INDEXER"}
OTHERS |= {"GATEWAY_HOST", "VERSION", "SHARED", "COPIES"}
OTHERS |= {"WORKER_INDEX", "WORKER_LATE", "WORKER_PARENT", "WORKER_READY"}
COMMON = {PREFIX + name.upper() for name in ServiceSettings.model_fields}


def settings_of(service: type[ServiceSettings]) -> set[str]:
    return {service._variable(name) for name in service.model_fields}


def test_what_the_programs_are_told_is_known_to_all_of_them() -> None:
    theirs = set().union(*map(settings_of, SERVICES)) - COMMON
    assert {PREFIX + name for name in ELSEWHERE} == theirs | {PREFIX + name for name in OTHERS}


@pytest.mark.parametrize("service", SERVICES)
def test_a_name_that_nobody_knows_is_told_with_what_it_resembles(
    service: type[ServiceSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in sorted(set().union(*map(settings_of, SERVICES))):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LIKENESS_MAX_MESAGE_MB", "1")
    monkeypatch.setenv("LIKENESS_COLOUR", "1")
    monkeypatch.setenv("MAX_MESAGE_MB", "1")
    assert service.misspelled() == {"LIKENESS_COLOUR": None, "LIKENESS_MAX_MESAGE_MB": "LIKENESS_MAX_MESSAGE_MB"}


@pytest.mark.parametrize("service", SERVICES)
def test_a_port_has_one_variable_and_the_name_of_its_field_is_told_to_be_none(
    service: type[ServiceSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {PREFIX + name.upper(): name for name in service.model_fields}
    others = {variable: name for variable, name in named.items() if service._variable(name) != variable}
    assert "LIKENESS_PORT" in others
    for variable in others:
        monkeypatch.setenv(variable, "1234")
    given = service.parse("", []).model_dump()
    assert 1234 not in [given[name] for name in others.values()]
    assert service.misspelled() == {variable: service._variable(name) for variable, name in others.items()}


def test_what_kubernetes_says_of_its_services_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", "_GATEWAY", "_EMBEDDER", "_EMBEDDER_METRICS", "_HTTP"):
        monkeypatch.setenv(f"LIKENESS{name}_PORT", "tcp://10.0.0.1:50051")
        monkeypatch.setenv(f"LIKENESS{name}_PORT_50051_TCP", "tcp://10.0.0.1:50051")
        monkeypatch.setenv(f"LIKENESS{name}_PORT_50051_TCP_ADDR", "10.0.0.1")
        monkeypatch.setenv(f"LIKENESS{name}_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv(f"LIKENESS{name}_SERVICE_PORT_GRPC", "50051")
    gateway, embedder = GatewaySettings.parse("", []), EmbedderSettings.parse("", [])
    assert (gateway.port, gateway.http_port) == (50050, 8080)
    assert (embedder.port, embedder.metrics_port) == (50051, EmbedderSettings.model_fields["metrics_port"].default)
    assert GatewaySettings.misspelled() == EmbedderSettings.misspelled() == {}


def test_what_the_documents_name_is_known() -> None:
    root = Path(__file__).parents[3]
    known = COMMON | {PREFIX + name for name in ELSEWHERE}
    for path in [
        root / "README.md",
        *root.glob("docs/*.md"),
        *root.glob("deploy/*"),
        *root.glob("clients/*/README.md"),
    ]:
        if path.is_file():
            named = set(re.findall(r"LIKENESS_[A-Z0-9_]*[A-Z0-9](?![*A-Z0-9_])", path.read_text()))
            assert named <= known, path
