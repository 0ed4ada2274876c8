"""TLS's handshake, as part of a connection that is counted from the moment it is accepted.

asyncio's own servers tell of a TLS connection only once its handshake is done: however many were silent before that,
no limit on connections would see them.
"""

import asyncio
import ssl
from collections.abc import Callable


class Handshake(asyncio.Protocol):
    """A connection by TLS: its place while it shakes hands; from then on what it decrypts is another protocol's."""

    def __init__(
        self,
        tls: ssl.SSLContext,
        seconds: float,
        enter: Callable[["Handshake"], bool],
        leave: Callable[["Handshake"], None],
        protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        """Not yet connected.

        Args:
            tls: the server's side.
            seconds: within which the handshake must be done.
            enter: takes a place; False: there is none, and the connection is closed.
            leave: gives the place back.
            protocol: makes the one that goes on, which takes a place of its own.
        """
        self._tls = tls
        self._seconds = seconds
        self._enter = enter
        self._leave = leave
        self._make = protocol
        self._protocol: asyncio.Protocol | None = None
        self._early = b""
        self._lost = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a place and begins."""
        self._raw = transport
        transport.pause_reading()  # until asyncio has put TLS between
        if self._enter(self):
            self._shaking = asyncio.create_task(self._shake_hands())
        else:
            transport.abort()

    def shutdown(self) -> None:
        """Gives up: the server stops."""
        self._raw.abort()

    def data_received(self, data: bytes) -> None:
        """Passes it on; what comes in the same moment as the handshake's end waits for it."""
        if self._protocol is None:
            self._early += data
        else:
            self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """Passes it on."""
        return None if self._protocol is None else self._protocol.eof_received()

    def pause_writing(self) -> None:
        """Passes it on."""
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Passes it on."""
        if self._protocol is not None:
            self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Passes it on."""
        self._lost = True
        if self._protocol is not None:
            self._protocol.connection_lost(exc)

    async def _shake_hands(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._raw.is_closing():
                return
            transport = await loop.start_tls(
                self._raw,
                self,
                self._tls,
                server_side=True,
                ssl_handshake_timeout=self._seconds,
                ssl_shutdown_timeout=self._seconds,  # a client that does not take leave keeps its place no longer
            )
        except OSError:  # no TLS, no certificate that we trust, too late, or gone: the connection is closed already
            return
        finally:
            self._leave(self)
        if transport is None or self._lost:
            return
        self._protocol = self._make()
        self._protocol.connection_made(transport)
        if self._early:
            self._protocol.data_received(self._early)
            self._early = b""
