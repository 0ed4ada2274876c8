"""One Chroma, two places for a writer, two readers: each with a network of its own to Chroma, each started again."""

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from tests.chaos.base import copied
from tests.chaos.client import Client
from tests.chaos.indexer import DownError
from tests.chaos.supervised import Supervised
from tests.processes import Process, free_port, launch, start_chroma
from tests.proxy import Proxy

LEASE_S, STORE_TIMEOUT_S = 4.0, 20.0
_PORT = "LIKENESS_INDEXER_PORT"


class Member:
    """An indexer, its network, and a connection to it.

    Attributes:
        name: of its place.
        client: speaks to it.
        proxy: between it and Chroma.
    """

    def __init__(self, name: str, role: str, base: Path, chroma_port: int, logs: Path) -> None:
        self.name = name
        self.proxy = Proxy(chroma_port)
        directory = base.with_name(f"{base.name}-{name}")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        shutil.copytree(base / "serving", directory / "serving")
        self._settings = {
            "LIKENESS_DATA_DIR": str(directory),
            "LIKENESS_ROLE": role,
            "LIKENESS_CHROMA_URL": self.proxy.url,
            "LIKENESS_LEASE_S": str(LEASE_S),
            "LIKENESS_STORE_TIMEOUT_S": str(STORE_TIMEOUT_S),
            _PORT: str(free_port()),
        }
        self._logs = logs
        self.client = Client(f"127.0.0.1:{self._settings[_PORT]}")
        self.supervised = Supervised(name, self._launch)
        self._left: list[Supervised] = []

    def __enter__(self) -> Self:
        self.proxy.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (self.supervised, *self._left):
            each.end()
        self.client.close()
        self.proxy.__exit__(kind, error, trace)

    def start(self) -> None:
        """Starts it, and again whenever it ends."""
        self.supervised.__enter__()

    def leave(self) -> Supervised:
        """Nobody starts it again: another is the writer. Returns what looked after it."""
        before = self.supervised
        self._left.append(before)
        self.supervised = Supervised(self.name, self._launch)
        return before

    def _launch(self) -> Process:
        return launch("indexer", self._settings, _PORT, self._logs).process


class Fleet:
    """All of them.

    Attributes:
        writer: the one that writes.
        standby: another place where a writer may be started.
        readers: those that follow.
    """

    def __init__(self, base: int, folder: Path, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._folder = copied(base, folder)
        self._port = free_port()
        self.chroma = Supervised("Chroma", lambda: start_chroma(self._folder / "chroma", self._port)[0])
        self.writer, self.standby = (Member(n, "writer", folder, self._port, logs) for n in ("writer-a", "writer-b"))
        self.readers = [Member(n, "reader", folder, self._port, logs) for n in ("reader-1", "reader-2")]
        self._open = contextlib.ExitStack()

    @property
    def members(self) -> list[Member]:
        """Those that run."""
        return [self.writer, *self.readers]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            opened.enter_context(self.chroma)
            for member in (self.writer, self.standby, *self.readers):
                opened.enter_context(member)
            for member in self.members:
                member.start()
            self.wait("answer of all", lambda: all(answers(member.client) for member in self.members), 120.0)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def wait(self, what: str, holds: Callable[[], bool], limit_s: float) -> float:
        """Returns as soon as something holds, after how many seconds.

        Raises:
            DownError: it does not within the limit.
        """
        began = time.monotonic()
        while not holds():
            if time.monotonic() - began > limit_s:
                raise DownError(f"no {what} within {limit_s:.0f} s")
            time.sleep(0.05)
        return time.monotonic() - began


def answers(client: Client) -> bool:
    """Whether it answers a query."""
    try:
        return client.count() >= 0 and bool(client.query([np.ones(512, np.float32)], None, 1))
    except grpc.RpcError:
        return False
