"""Pictures given by a uri: asks for them over HTTP, within the limits of a ``FetchPolicy``.

1. the uri is checked, then a place among the fetches under way is waited for
2. the host's addresses are looked up, and all of them checked; the connection goes to one that was checked, so that
   a second answer of DNS has no say; TLS still wants the certificate of the host's name
3. status, type and length are checked, then the body is read up to the limit; a redirect begins again at 1

The time limit is that of all of it. No proxy, no cookie, no decompression, nothing of the caller is sent.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from urllib.parse import urljoin

import httpcore
from httpcore import AnyIOBackend, AsyncNetworkBackend, AsyncNetworkStream
from likeness.common.v1 import error_pb2

from chassis import __version__
from chassis.errors import LikenessError, in_request, incident, invalid
from gateway.fetch_policy import DEFAULT_PORTS, FetchPolicy, Target
from gateway.metrics import FetchOutcome, Metrics
from gateway.settings import GatewaySettings

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
# Addresses of one host that are tried, one after the other.
_ADDRESSES = 4
_IDLE_S = 10.0
_OUTCOMES: dict[int, FetchOutcome] = {
    error_pb2.REASON_FETCH_REFUSED: "refused",
    error_pb2.REASON_FETCH_FAILED: "failed",
    error_pb2.REASON_FETCH_UNAVAILABLE: "unavailable",
}


class Fetch:
    """Fetches pictures; off unless the settings say otherwise."""

    def __init__(
        self,
        settings: GatewaySettings,
        metrics: Metrics,
        policy: FetchPolicy | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            settings: whether, what and how much.
            metrics: count what came of it.
            policy: instead of that of the settings.
            resolve: gives a host's addresses instead of the system.
        """
        self.enabled = settings.fetch
        self._settings = settings
        self._metrics = metrics
        self._policy = policy or FetchPolicy(
            frozenset(settings.fetch_schemes), frozenset(settings.fetch_ports), settings.fetch_hosts
        )
        # Threads of its own: a slow name server must not hold up what other threads do.
        self._threads = ThreadPoolExecutor(settings.fetch_at_once, "resolve")
        self._places = asyncio.Semaphore(settings.fetch_at_once)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_tls(),
            max_connections=settings.fetch_at_once,
            max_keepalive_connections=settings.fetch_at_once,
            keepalive_expiry=_IDLE_S,
            network_backend=_CheckedNetwork(self._policy, resolve or self._resolve),
        )

    async def __call__(self, uri: str, field: str, timeout_s: float, max_bytes: int | None = None) -> bytes:
        """The bytes behind a uri.

        Args:
            uri: what to ask for.
            field: where it stands in the request, for the error.
            timeout_s: how long the caller waits; LIKENESS_FETCH_TIMEOUT_S if that is shorter.
            max_bytes: the most to take; LIKENESS_FETCH_MAX_MB if that is less.

        Raises:
            LikenessError: FETCH_DISABLED, FETCH_REFUSED, FETCH_FAILED, FETCH_UNAVAILABLE; DEADLINE_EXCEEDED: the
                caller's time was up first; INTERNAL: whatever else went wrong.
        """
        if not self.enabled:
            raise disabled(field)
        most = self._settings.fetch_max_mb * 2**20
        most = most if max_bytes is None else min(most, max_bytes)
        try:
            async with self._in_time(field, timeout_s):
                body = await self._follow(uri, field, most)
        except LikenessError as error:
            if error.reason in _OUTCOMES:
                self._metrics.fetched(_OUTCOMES[error.reason])
            raise
        except Exception as error:  # a host of somebody else's had a hand in it: it must not cost other pictures too
            self._metrics.fetched("failed")
            raise incident("unexpected error in a fetch", error) from error
        self._metrics.fetched("ok")
        return body

    async def close(self) -> None:
        """Closes the connections."""
        await self._pool.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def _in_time(self, field: str, timeout_s: float) -> AsyncIterator[None]:
        """A place among those that fetch, for as long as the time limits allow."""
        longest = self._settings.fetch_timeout_s
        try:
            async with asyncio.timeout(timeout_s), self._places:
                try:
                    async with asyncio.timeout(longest):
                        yield
                except TimeoutError:
                    raise _unavailable(field, f"did not come within {longest:g} s") from None
        except TimeoutError:
            message = f"{field}: the deadline passed before the picture was fetched"
            raise LikenessError(error_pb2.REASON_DEADLINE_EXCEEDED, message) from None

    async def _follow(self, uri: str, field: str, most: int) -> bytes:
        for _ in range(self._settings.fetch_redirects + 1):
            target = self._policy.target(uri, field)
            try:
                answer = await self._ask(target, field, most)
            except LikenessError as error:
                raise in_request(error, lambda _: field) from None
            except (httpcore.RemoteProtocolError, httpcore.LocalProtocolError) as error:
                if _was_cut(error):
                    raise _unavailable(field, "its host ended the connection too early") from error
                raise _failed(field, "its host's answer is no HTTP, or its headers are too large") from error
            except (httpcore.NetworkError, httpcore.TimeoutException, OSError) as error:
                raise _unavailable(field, "its host cannot be reached") from error
            if isinstance(answer, bytes):
                return answer
            try:
                uri = urljoin(uri, answer)
            except ValueError:
                raise _failed(field, "its host redirects to what cannot be read as a uri") from None
        raise _failed(field, f"more than {self._settings.fetch_redirects} redirects")

    async def _ask(self, target: Target, field: str, most: int) -> bytes | str:
        """One request; the body, or where it is redirected to."""
        host = f"[{target.host}]" if ":" in target.host else target.host
        named = host if target.port == DEFAULT_PORTS[target.scheme] else f"{host}:{target.port}"
        headers = [
            ("Host", named),
            ("User-Agent", f"likeness/{__version__}"),
            ("Accept", "image/*"),
            ("Accept-Encoding", "identity"),
        ]
        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        async with self._pool.stream("GET", url, headers=headers) as response:
            told = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in told:
                return told[b"location"]
            _check(response.status, told, field, most)
            body = bytearray()
            async for part in response.aiter_stream():
                body += part
                if len(body) > most:
                    raise _failed(field, f"is larger than the {most:,} bytes that are taken")
            return bytes(body)

    async def _resolve(self, host: str, port: int) -> Sequence[str]:
        def look_up() -> list[str]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return list(dict.fromkeys(str(address[4][0]) for address in found))

        return await asyncio.get_running_loop().run_in_executor(self._threads, look_up)


class _CheckedNetwork(AsyncNetworkBackend):
    """Connects only to addresses that the policy allows, and to no other than those it checked."""

    def __init__(self, policy: FetchPolicy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve
        self._network = AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (httpcore's)
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> AsyncNetworkStream:
        try:
            addresses = await self._resolve(host, port)
        except OSError as error:
            raise httpcore.ConnectError("no such host") from error
        for address in addresses:  # all of them: one private address among public ones is a trap
            self._policy.check_address(address, "uri")
        failure: Exception = httpcore.ConnectError("no address")
        for address in addresses[:_ADDRESSES]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


@cache
def _tls() -> ssl.SSLContext:
    """Trusts what certifi and this machine trust; takes a while to read."""
    context = httpcore.default_ssl_context()
    context.load_default_certs()
    return context


def disabled(field: str) -> LikenessError:
    """The error for a uri where none is fetched."""
    description = "this gateway fetches no pictures (LIKENESS_FETCH); send the picture's bytes"
    return invalid(field, description, error_pb2.REASON_FETCH_DISABLED)


def _check(status: int, told: dict[bytes, str], field: str, most: int) -> None:
    """Refuses an answer by its status and headers."""
    if status >= 500:
        raise _unavailable(field, f"its host answered with status {status}")
    if status != 200:
        raise _failed(field, f"its host answered with status {status}; expected 200")
    if told.get(b"content-encoding", "identity").strip().lower() != "identity":
        raise _failed(field, "came compressed, although that was not asked for")
    kind = told.get(b"content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if not (kind.startswith("image/") or kind == "application/octet-stream"):
        raise _failed(field, "is no picture by its Content-Type; expected image/*")
    length = told.get(b"content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise _failed(field, f"is larger than the {most:,} bytes that are taken")


def _was_cut(error: httpcore.ProtocolError) -> bool:
    """Whether the host only went away. httpcore says so in words alone; h11's, of a body, are "peer closed…"."""
    return str(error).startswith(("Server disconnected", "peer closed"))


def _failed(field: str, description: str) -> LikenessError:
    return invalid(field, description, error_pb2.REASON_FETCH_FAILED)


def _unavailable(field: str, description: str) -> LikenessError:
    return LikenessError(error_pb2.REASON_FETCH_UNAVAILABLE, f"{field}: {description}; try again", retry_after_s=5.0)
