"""Frames between the serving process and the model process: a head of plain values, and raw bytes.

Both sides are the same release on the same machine, so there is neither a version nor a byte order to agree on.
"""

import asyncio
import json
import socket
import struct
from typing import Any

_SIZES = struct.Struct("=II")

Head = dict[str, Any]


def pack(head: Head, body: bytes = b"") -> bytes:
    """One frame."""
    encoded = json.dumps(head).encode()
    return b"".join((_SIZES.pack(len(encoded), len(body)), encoded, body))


async def read(stream: asyncio.StreamReader) -> tuple[Head, bytes]:
    """Reads a frame; raises asyncio.IncompleteReadError at the other side's end."""
    head_size, body_size = _SIZES.unpack(await stream.readexactly(_SIZES.size))
    head: Head = json.loads(await stream.readexactly(head_size))
    return head, await stream.readexactly(body_size) if body_size else b""


def receive(connection: socket.socket) -> tuple[Head, bytearray]:
    """Reads a frame; raises EOFError at the other side's end."""
    head_size, body_size = _SIZES.unpack(_exactly(connection, _SIZES.size))
    head: Head = json.loads(_exactly(connection, head_size))
    return head, _exactly(connection, body_size)


def _exactly(connection: socket.socket, size: int) -> bytearray:
    content = bytearray(size)
    left = memoryview(content)
    while left:
        count = connection.recv_into(left)
        if count == 0:
            raise EOFError
        left = left[count:]
    return content
