"""A network that counts what was done to those who used it, so that a round knows whether its harm hit anything."""

import asyncio

from tests.proxy import Proxy


class Network(Proxy):
    """Passes bytes on, and can be harmed, as ``Proxy`` says.

    Attributes:
        broken: connections that were reset by a cut, or refused while it lasted.
        lost: blocks of bytes that came while nothing arrived any more.
        late: blocks of bytes that were held up.
    """

    def __init__(self, to_port: int) -> None:
        super().__init__(to_port)
        self.broken = self.lost = self.late = 0

    def hits(self, how: str) -> int:
        """How often it has done so until now.

        Args:
            how: refuse, silence, delay or tear.
        """
        return {"refuse": self.broken, "silence": self.lost, "delay": self.late, "tear": self.cuts}[how]

    def passing(self) -> None:
        """A block has come, and goes on as long as nothing is done to it."""
        self.lost += self._silent
        self.late += self._delay_s > 0

    def _reset(self) -> None:
        if self._refusing:
            self.broken += len(self._links)
        super()._reset()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.broken += self._refusing
        await super()._connected(reader, writer)

    async def _read(self, reader: asyncio.StreamReader, on_the_way: "asyncio.Queue[tuple[float, bytes]]") -> None:
        await super()._read(_Counted(reader, self), on_the_way)


class _Counted(asyncio.StreamReader):
    """A reader that tells the network of each block."""

    def __init__(self, reader: asyncio.StreamReader, network: Network) -> None:
        super().__init__()
        self._reader, self._network = reader, network

    async def read(self, n: int = -1) -> bytes:
        """The next block; empty: there is none."""
        block = await self._reader.read(n)
        if block:
            self._network.passing()
        return block
