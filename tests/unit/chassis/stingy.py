"""A client that speaks HTTP/2 by hand and lets the server send nothing, unless it says how much."""

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

DATA, HEADERS, SETTINGS, WINDOW_UPDATE = 0, 1, 4, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4


@dataclass(frozen=True)
class Frame:
    """What the server has sent, of one stream or (0) of the connection."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def ends(self) -> bool:
        """Whether nothing follows in its stream."""
        return self.kind in (DATA, HEADERS) and bool(self.flags & END_STREAM)


class Stingy:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._opened = 0

    async def call(self, path: str, message: bytes = b"", metadata: Sequence[tuple[str, str]] = ()) -> int:
        """Sends a whole request; returns its stream."""
        stream = 2 * self._opened + 1
        self._opened += 1
        head = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *metadata,
        ]
        self._send(
            HEADERS, END_HEADERS, stream, b"".join(b"\0" + _literal(name) + _literal(value) for name, value in head)
        )
        self._send(DATA, END_STREAM, stream, b"\0" + struct.pack(">I", len(message)) + message)
        await self._writer.drain()
        return stream

    async def give(self, stream: int, size: int) -> None:
        """Lets the server send so many bytes of messages."""
        self._send(WINDOW_UPDATE, 0, stream, struct.pack(">I", size))
        await self._writer.drain()

    async def received(self, kind: int) -> Frame:
        """The next frame of this kind."""
        while True:
            if (frame := await self._frame()).kind == kind:
                return frame

    async def rest(self, stream: int) -> list[bytes]:
        """The messages of a stream, until the server ends it."""
        sent = b""
        while True:
            frame = await self._frame()
            if frame.stream == stream:
                sent += frame.payload if frame.kind == DATA else b""
                if frame.ends:
                    return _messages(sent)

    def _send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self._writer.write(struct.pack(">I", len(payload))[1:] + bytes([kind, flags]))
        self._writer.write(struct.pack(">I", stream) + payload)

    async def _frame(self) -> Frame:
        head = await self._reader.readexactly(9)
        payload = await self._reader.readexactly(int.from_bytes(head[:3]))
        return Frame(head[3], head[4], int.from_bytes(head[5:]), payload)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Stingy]:
    """A connection; left, it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = Stingy(reader, writer)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    client._send(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
    client._send(SETTINGS, ACK, 0, b"")
    try:
        async with asyncio.timeout(60):
            yield client
    finally:
        writer.close()


def _literal(text: str) -> bytes:
    """Of HPACK: a header's name, or its value, as it is; shorter than 127 bytes."""
    return bytes([len(text)]) + text.encode()


def _messages(sent: bytes) -> list[bytes]:
    found = []
    while sent:
        size = int.from_bytes(sent[1:5])
        found.append(sent[5 : 5 + size])
        sent = sent[5 + size :]
    return found
