import asyncio
import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from chassis import server
from chassis.calls import Calls
from chassis.readiness import Readiness
from chassis.settings import ServiceSettings


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
