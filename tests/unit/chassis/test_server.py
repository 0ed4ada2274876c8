import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from chassis import server
from chassis.calls import Calls
from chassis.readiness import Readiness
from chassis.settings import ServiceSettings
from tests.certificates import Authority
from tests.processes import ROOT


class Idle:
    """A service without an rpc."""

    name = "likeness.test.v1.IdleService"

    def __init__(self) -> None:
        self.started = self.stopped = False
        self.loaded: list[list[int]] = []

    def calls(self, readiness: Readiness) -> Calls:
        return Calls(readiness)

    def register(self, server: grpc.aio.Server) -> None:
        assert not self.started

    async def start(self, readiness: Readiness) -> None:
        self.started = not readiness.serving
        self.loaded = [[]]

    async def stop(self) -> None:
        self.stopped = True


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_it_serves_until_told_to_stop_and_only_what_was_imported_is_kept_from_the_collector() -> None:
    service, frozen = Idle(), list[int]()

    def ready() -> None:
        frozen.append(gc.get_freeze_count())
        assert any(each is service.loaded for each in gc.get_objects())
        os.kill(os.getpid(), signal.SIGTERM)

    role = server.Role(ready=ready)
    code = asyncio.run(server._serve(ServiceSettings(port=0), service, role))
    assert (code, service.started, service.stopped) == (0, True, True)
    assert frozen[0] > 10_000


@pytest.mark.parametrize(
    "told",
    [
        {"max_connection_age_s": 2_592_000},
        {"max_connection_age_s": 31_536_000},
        {"max_concurrent_calls": 1_000_000},
        {"max_message_mb": 1024},
    ],
)
def test_it_serves_with_the_largest_settings(told: dict[str, Any]) -> None:
    service = Idle()

    role = server.Role(ready=lambda: os.kill(os.getpid(), signal.SIGTERM))
    code = asyncio.run(server._serve(ServiceSettings(port=0, **told), service, role))
    assert (code, service.stopped) == (0, True)


@pytest.mark.parametrize("told", [{"max_connection_age_s": 31_536_001}, {"max_concurrent_calls": 3_000_000_000}])
def test_settings_beyond_what_grpc_takes_are_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="less than or equal to"):
        ServiceSettings(port=0, **told)


@pytest.mark.usefixtures("own_logs")
def test_a_misspelled_setting_is_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIKENESS_DRIAN_S", "1")
    role = server.Role(ready=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        server.run(ServiceSettings(port=0, log_style="json"), Idle(), role)
    assert ended.value.code == 0
    told = [line for line in "".join(capfd.readouterr()).splitlines() if "no such setting" in line]
    assert len(told) == 1
    assert "LIKENESS_DRIAN_S" in told[0]
    assert "LIKENESS_DRAIN_S" in told[0]


@pytest.mark.parametrize(
    ("host", "keyless", "mutual", "warnings"),
    [
        ("0.0.0.0", True, None, 1),
        ("0.0.0.0", True, False, 1),
        ("0.0.0.0", True, True, 0),
        ("127.0.0.1", True, None, 0),
        ("0.0.0.0", False, None, 0),
    ],
)
@pytest.mark.usefixtures("own_logs")
def test_a_service_that_asks_for_no_key_warns_where_anybody_may_reach_it(
    host: str,
    keyless: bool,
    mutual: bool | None,
    warnings: int,
    *,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tls = None if mutual is None else Authority(tmp_path).listener(mutual=mutual)
    files = {} if tls is None else {"tls_cert": tls.certificate, "tls_key": tls.key, "tls_client_ca": tls.client_ca}
    role = server.Role(ready=lambda: os.kill(os.getpid(), signal.SIGTERM), keyless=keyless)
    with pytest.raises(SystemExit) as ended:
        server.run(ServiceSettings(host=host, port=0, log_style="json", **files), Idle(), role)  # type: ignore[arg-type]
    assert ended.value.code == 0
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    told = [line for line in lines if line["level"] == "warning"]
    assert [(line["host"], "LIKENESS_TLS_CLIENT_CA" in line["what_now"]) for line in told] == [(host, True)] * warnings


# A service's own command line, up to where it would serve.
STARTED = """
import runpy, sys
from chassis import server
server.run = lambda _settings, _service, role=server.Role(): print(role.keyless)
service, sys.argv = sys.argv[1], ["service"]
runpy.run_module(service, run_name="__main__")
"""


@pytest.mark.parametrize(("service", "keyless"), [("embedder", True), ("gateway", False), ("indexer", True)])
def test_embedder_and_indexer_ask_for_no_key(service: str, keyless: bool) -> None:
    command = [sys.executable, "-c", STARTED, service]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == f"{keyless}\n", done.stderr
