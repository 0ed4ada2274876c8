"""Calls to several replicas of a service, of which any will do: one that is slow holds up no more than its share.

gRPC's round robin hands a slow replica as many calls as a quick one, and they pile up there. So each address has
connections of its own here, and a call goes to the address where the fewest are under way.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

import grpc
import structlog

from chassis.channel import Connections
from chassis.tls import TlsError

log = structlog.get_logger()

Stub = TypeVar("Stub")
Answer = TypeVar("Answer")

# How long what DNS says is believed; gRPC asks as often, at most.
_LOOK_AGAIN_S = 5.0


class Replicas(Generic[Stub]):
    """Connections to each address of a service, and one to all of them for when none of those is ready.

    That one finds the addresses by itself and takes them in turn, tries again and waits, as gRPC is told to. A call
    that ended with UNAVAILABLE elsewhere goes there too: so only what may be repeated may be called.
    """

    def __init__(
        self,
        address: str,
        stub: Callable[[grpc.aio.Channel], Stub],
        whole: grpc.aio.Channel,
        single: Callable[[str, str | None], grpc.aio.Channel],
        each: int,
    ) -> None:
        """Looks for nothing yet.

        Args:
            address: as ``chassis.channel.connect`` takes it.
            stub: makes of a channel what has the service's methods.
            whole: a channel to all of them; ``close`` closes it.
            single: makes a channel, which is not to try again, to a gRPC target, and the authority to go by.
            each: connections to each address.
        """
        self._address, self._stub, self._single, self._each = address, stub, single, each
        self._whole = Connections([whole], stub)
        self._known: dict[str, Connections[Stub]] = {}
        self._leaving: set[Connections[Stub]] = set()
        self._turn = 0
        self._look_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def call(
        self,
        method: Callable[[Stub], Callable[..., Awaitable[Answer]]],
        request: Any,
        *,
        timeout: float,  # noqa: ASYNC109  (gRPC's)
        wait_for_ready: bool = False,
        metadata: Any = None,
    ) -> Answer:
        """Makes a call that may be repeated.

        Args:
            method: of a stub.
            request: what it takes.
            timeout: as gRPC takes it.
            wait_for_ready: likewise; where no address is ready.
            metadata: likewise.
        """
        until = time.monotonic() + timeout
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_AGAIN_S
            self._begin(self._look())
        if (chosen := self._chosen()) is not None:
            try:
                return await chosen.call(method, request, timeout=timeout, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
        left = until - time.monotonic()
        return await self._whole.call(method, request, timeout=left, wait_for_ready=wait_for_ready, metadata=metadata)

    async def close(self) -> None:
        """Closes the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connections in (self._whole, *self._known.values(), *self._leaving):
            await connections.close()

    def _chosen(self) -> Connections[Stub] | None:
        known = list(self._known.values())
        if not known:
            return None
        self._turn = (self._turn + 1) % len(known)
        in_turn = known[self._turn :] + known[: self._turn]
        return next((each for each in sorted(in_turn, key=Connections.under_way) if each.ready()), None)

    async def _look(self) -> None:
        try:
            found = await addresses(self._address)
        except OSError as error:  # what was there may still be, and gRPC says what is wrong with the address
            log.warning("an address cannot be looked up", address=self._address, error=str(error))
            return
        for target, authority in found.items():
            if target not in self._known:
                try:
                    channels = [self._single(target, authority) for _ in range(self._each)]
                except TlsError as error:
                    log.warning("a replica cannot be connected to", target=target, error=str(error))
                    return
                self._known[target] = Connections(channels, self._stub)
                self._known[target].ready()  # begins to connect
        for target in self._known.keys() - found.keys():
            self._leaving.add(gone := self._known.pop(target))
            self._begin(self._leave(gone))

    async def _leave(self, gone: Connections[Stub]) -> None:
        await gone.idle()
        await gone.close()
        self._leaving.discard(gone)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def addresses(address: str) -> dict[str, str | None]:
    """The gRPC targets that an address stands for, each with the authority (the name in its certificate) to go by.

    Args:
        address: ``host:port``, ``dns:///host:port``, or ``ipv4:`` and ``ipv6:`` with commas; any other target stands
            for itself.

    Raises:
        OSError: its name cannot be looked up.
    """
    scheme, colon, rest = address.partition(":")
    if colon and scheme in ("ipv4", "ipv6"):
        return {f"{scheme}:{each}": None for each in rest.split(",")}
    name = address.removeprefix("dns:///")
    host, _, port = name.rpartition(":")
    if "/" in name or not host or not port.isdecimal() or name.startswith(("unix:", "dns:")):
        return {address: None}
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    return {
        f"ipv6:[{where[0]}]:{port}" if family == socket.AF_INET6 else f"ipv4:{where[0]}:{port}": f"{host}:{port}"
        for family, *_, where in found
    }
