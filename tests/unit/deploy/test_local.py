"""``make up``: which ports it takes."""

import socket
from collections.abc import Iterator
from pathlib import Path

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
