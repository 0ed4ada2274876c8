"""An HTTP/1.1 server in the gateway's own event loop: uvicorn, with limits on slow and on many clients.

uvicorn limits neither how long a request's headers may take, nor how long an answer may lie unread. Here a connection
is closed whose headers are not whole in time, that goes on sending after it was answered, or whose answer nobody reads;
and one above the most allowed is closed at once. How long a body may take is for ``gateway.http.bodies``, how long a
large answer for ``gateway.http.answers``.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import h11
import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from gateway.http import answers
from gateway.http.handshake import Handshake

log = structlog.get_logger()

# What a client still sends after it was refused is read and thrown away for so long, in seconds: closing at once would
# lose it the answer.
LINGER_S = 5.0
# A connection without a request is kept so long, in seconds.
IDLE_S = 15
# All headers of a request, in bytes.
MOST_HEADER_BYTES = 32 * 1024


@dataclass(frozen=True)
class Limits:
    """What clients may take.

    Attributes:
        connections: most of them at once.
        headers_s: until a request's headers, or TLS's handshake, must be whole, in seconds.
        drain_s: longest wait for requests under way when stopping, in seconds.
    """

    connections: int = 512
    headers_s: float = 10.0
    drain_s: float = 30.0


class _Timer:
    """Something to do when a time is over, unless that is ended before."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, then: Callable[[], None]) -> None:
        """Runs, if it does not yet."""
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(seconds, then)

    def end(self) -> None:
        """Does not run."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None


class _Protocol(H11Protocol):
    """One connection."""

    def __init__(
        self, config: uvicorn.Config, state: ServerState, limits: Limits, connections: Callable[[int, bool], None]
    ) -> None:
        super().__init__(config, state, {answers.ABORT: self._abort})
        self._limits = limits
        self._count = connections
        self._reading, self._writing = _Timer(), _Timer()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts it, and closes it if there are too many."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1)  # to be told of anything that the client has not taken
        full = len(self.connections) > self._limits.connections
        self._count(len(self.connections), full)
        if full:
            self._abort()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the watching."""
        super().connection_lost(exc)
        self._reading.end()
        self._writing.end()
        self._count(len(self.connections), False)

    def data_received(self, data: bytes) -> None:
        """Reads, and closes what broke the protocol behind an answer that had begun."""
        try:
            super().data_received(data)
        except h11.LocalProtocolError:
            self._abort()
        self._watch()

    def on_response_complete(self) -> None:
        """The answer is written, if perhaps not sent."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        self._writing.start(answers.UNREAD_S, self._abort)

    def resume_writing(self) -> None:
        """It has taken what there was."""
        super().resume_writing()
        self._writing.end()

    def _watch(self) -> None:
        """Starts or ends the time within which the client must get to the end of what it sends."""
        asked = self.cycle is not None
        answered = asked and self.cycle.response_complete
        state = self.conn.their_state
        if state is h11.IDLE and (not asked or (answered and self.conn.trailing_data[0])):
            limit = self._limits.headers_s
        elif state is h11.SEND_BODY and answered:
            limit = LINGER_S
        else:
            self._reading.end()
            return
        self._reading.start(limit, self._abort)

    def _abort(self) -> None:
        self.transport.abort()


class _Uvicorn(uvicorn.Server):
    """Listens for us: signals are the chassis's, and failing to listen is an OSError."""

    def __init__(self, config: uvicorn.Config, limits: Limits, connections: Callable[[int, bool], None]) -> None:
        super().__init__(config)
        self._limits = limits
        self._connections = connections

    async def listen(self, host: str, port: int) -> int:
        """Takes connections from now on; returns the port."""

        def protocol() -> _Protocol:
            return _Protocol(self.config, self.server_state, self._limits, self._connections)

        def shaking() -> Handshake:
            assert tls is not None
            return Handshake(tls, self._limits.headers_s, self._enter, self._leave, protocol)

        tls = self.config.ssl
        loop = asyncio.get_running_loop()
        server = await loop.create_server(protocol if tls is None else shaking, host, port, backlog=self.config.backlog)
        self.servers = [server]
        return int(server.sockets[0].getsockname()[1])

    # uvicorn calls ``shutdown`` on each of its connections when it stops, and waits until they have left.

    def _enter(self, handshake: Handshake) -> bool:
        connections: set[Any] = self.server_state.connections
        connections.add(handshake)
        full = len(connections) > self._limits.connections
        self._connections(len(connections), full)
        if full:
            self._leave(handshake)
        return not full

    def _leave(self, handshake: Handshake) -> None:
        connections: set[Any] = self.server_state.connections
        connections.discard(handshake)
        self._connections(len(connections), False)

    async def startup(self, sockets: Any = None) -> None:  # noqa: ARG002
        """``listen`` has done it."""
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves them alone."""
        yield


def _uncounted(_open: int, _refused: bool) -> None:
    pass


class HttpServer:
    """Serves an ASGI application."""

    def __init__(
        self,
        app: Any,
        limits: Limits = Limits(),
        tls: ssl.SSLContext | None = None,
        connections: Callable[[int, bool], None] = _uncounted,
    ) -> None:
        """Does not listen yet.

        Args:
            app: the application.
            limits: what clients may take.
            tls: for HTTPS; None: plain HTTP.
            connections: told how many are open whenever that changes, and whether one was refused.
        """
        config = uvicorn.Config(
            answers.InParts(app),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=max(1, round(limits.drain_s)),
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
            ssl_context_factory=None if tls is None else lambda _config, _default: tls,
        )
        config.load()
        self._server = _Uvicorn(config, limits, connections)
        self._serving: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port.

        Args:
            host: the address.
            port: TCP port; 0: any free one.

        Raises:
            OSError: it cannot listen there.
        """
        port = await self._server.listen(host, port)
        self._serving = asyncio.create_task(self._server.serve())
        scheme = "http" if self._server.config.ssl is None else "https"
        log.info("listening", url=f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
        return port

    def begin_stop(self) -> None:
        """Takes no connection any more, and closes each after the answer under way."""
        self._server.should_exit = True

    async def stop(self) -> None:
        """Returns when all requests are answered, or the time for it is over."""
        if self._serving is not None:
            self.begin_stop()
            await self._serving
