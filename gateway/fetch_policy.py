"""What may be fetched: rules for the text of a uri, and for the addresses that its host turns out to have.

Nothing here opens a connection or asks DNS.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, invalid

Address = IPv4Address | IPv6Address

MAX_URI_BYTES = 4096
DEFAULT_PORTS = {"http": 80, "https": 443}

_VISIBLE_ASCII = re.compile(r"[!-~]+")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# What the C library would take for a number, and so for an address: "127.1", "0x7f000001", "017700000001".
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

# Nothing else of IPv6 is the internet's; NAT64 stands for an IPv4 address.
_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
# Special ones that older releases of Python hold for global.
_SPECIAL = [ip_network(each) for each in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20", "2001::/23", "2001:db8::/32")]


@dataclass(frozen=True)
class Target:
    """What a uri asks for.

    Attributes:
        scheme: "http" or "https".
        host: a name in lower case without a final dot, or an address without brackets.
        port: TCP port.
        path: path and query, at least "/".
    """

    scheme: str
    host: str
    port: int
    path: str


def is_public(address: Address) -> bool:
    """Whether an address is on the internet: not of this machine, its networks, or reserved.

    An IPv6 address that stands for an IPv4 one (mapped, NAT64, 6to4, Teredo) is public only if that one is, too.
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        inner = [address.sixtofour, *(address.teredo or ())]
        if address not in _UNICAST or not all(is_public(each) for each in inner if each is not None):
            return False
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved or address.is_private or address.is_unspecified)
        and not any(address in network for network in _SPECIAL)
    )


@dataclass(frozen=True)
class FetchPolicy:
    """Which uris may be asked for.

    Attributes:
        schemes: of "http" and "https".
        ports: TCP ports.
        hosts: names that may be asked, and ".example.org" for everything below it; empty: any.
        allows: which addresses may be connected to.
    """

    schemes: frozenset[str] = frozenset(("http", "https"))
    ports: frozenset[int] = frozenset((80, 443))
    hosts: tuple[str, ...] = ()
    allows: Callable[[Address], bool] = is_public

    def target(self, uri: str, field: str) -> Target:
        """What the uri asks for, if it may.

        Args:
            uri: as somebody sent it.
            field: where it stands in the request, for the error.

        Raises:
            LikenessError: FETCH_REFUSED.
        """
        if not 0 < len(uri.encode()) <= MAX_URI_BYTES:
            raise refused(field, f"{len(uri.encode())} bytes; expected 1 to {MAX_URI_BYTES:,}")
        if not _VISIBLE_ASCII.fullmatch(uri) or "\\" in uri:
            raise refused(field, "holds a blank, a backslash, or what is not ASCII; expected these percent-encoded")
        try:
            parts = urlsplit(uri)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise refused(field, "cannot be read as a uri") from None
        if parts.scheme not in self.schemes:
            raise refused(field, f"its scheme is not one of those that are fetched: {', '.join(sorted(self.schemes))}")
        if "[" in parts.netloc and ":" not in host:
            raise refused(field, "its host is no IPv6 address, although it stands in brackets")
        if "@" in parts.netloc:
            raise refused(field, "holds a user name or password; expected none")
        host = self._host(host, field)
        port = DEFAULT_PORTS[parts.scheme] if port is None else port
        if port not in self.ports:
            allowed = ", ".join(map(str, sorted(self.ports)))
            raise refused(field, f"its port, {port}, is not one of those that are fetched from: {allowed}")
        return Target(parts.scheme, host, port, f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}")

    def check_address(self, address: str, field: str) -> None:
        """Refuses an address, as DNS gave it, that is not to be connected to; the error does not tell it.

        Raises:
            LikenessError: FETCH_REFUSED.
        """
        try:
            allowed = self.allows(ip_address(address))
        except ValueError:
            allowed = False
        if not allowed:
            raise refused(field, "its host is not on the internet; pictures are not fetched from private addresses")

    def _host(self, host: str, field: str) -> str:
        if _is_address(host):
            self.check_address(host, field)
        else:
            host = host.removesuffix(".")
            labels = host.split(".")
            if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)) or _NUMBER.fullmatch(labels[-1]):
                raise refused(field, "its host is neither a name nor an address in the usual form")
        if self.hosts and not any(_is_under(host, allowed) for allowed in self.hosts):
            raise refused(field, "its host is not one of those that are fetched from (LIKENESS_FETCH_HOSTS)")
        return host


def refused(field: str, description: str) -> LikenessError:
    """The error for a uri that is not asked for."""
    return invalid(field, description, error_pb2.REASON_FETCH_REFUSED)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_under(host: str, allowed: str) -> bool:
    return host.endswith(allowed) if allowed.startswith(".") else host == allowed
