"""Settings: from the environment, checked before anything starts, shown by --help."""

import pytest

from chassis.settings import ServiceSettings
from gateway.settings import GatewaySettings


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


def test_an_ipv6_host_is_put_in_brackets() -> None:
    assert GatewaySettings(host="::1", port=1).address == "[::1]:1"
