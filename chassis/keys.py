"""API keys: who may call, and how much. A key itself is nowhere kept, only its SHA-256.

They come from a file (TOML), one table a key, and from a list for one line of environment::

    [[key]]
    name = "web"                 # for logs and metrics: letters, digits, ".", "_" and "-"
    sha256 = "64 hexadecimal digits"
    scopes = ["read"]            # read, write, admin; each includes the one before
    rate_per_s = 50              # optional: items a second; a search is one item, so is each picture of a batch
    burst = 200                  # optional: items at once after a pause; default: a second's
    concurrent = 20              # optional: calls and streams under way at once

    web:SHA256:read,loader:SHA256:read+write

The file is read again when it changes. A change that cannot be used, an emptied file among them, changes nothing: the
keys of before stay, and the log says so.
"""

import hashlib
import hmac
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger()

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = frozenset({"name", "sha256", "scopes", "rate_per_s", "burst", "concurrent"})
_MOST_BYTES = 2**20


class KeysError(ValueError):
    """The keys cannot be used; the message says why, without any key."""


class Scope(IntEnum):
    """What a key may do; each includes those before it."""

    READ = 1
    WRITE = 2
    ADMIN = 3


@dataclass(frozen=True)
class Limits:
    """How much a key may do. None: as much as the service can.

    Attributes:
        rate_per_s: items a second, over time.
        burst: items at once after a pause.
        concurrent: calls and streams under way at once.
    """

    rate_per_s: float | None = None
    burst: float = 1.0
    concurrent: int | None = None


@dataclass(frozen=True)
class Caller:
    """Whose key it is.

    Attributes:
        name: for logs and metrics.
        scope: the widest that it has.
        digest: SHA-256 of the key.
        limits: how much it may do.
    """

    name: str
    scope: Scope
    digest: bytes = field(repr=False)
    limits: Limits = Limits()


class KeyRing:
    """The keys of one moment."""

    def __init__(self, callers: Sequence[Caller]) -> None:
        self._callers = tuple(callers)
        for what, values in (("name", [c.name for c in callers]), ("sha256", [c.digest.hex() for c in callers])):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise KeysError(f"two keys have the {what} {twice[0]!r}")

    def __len__(self) -> int:
        return len(self._callers)

    def find(self, key: str) -> Caller | None:
        """Whose key it is; None: nobody's. Takes as long for one as for the other."""
        return self._of(hashlib.sha256(key.encode(errors="replace")).digest())

    def now(self, caller: Caller) -> Caller | None:
        """The same key as it stands in this ring; None: it is no longer there."""
        return self._of(caller.digest)

    def _of(self, digest: bytes) -> Caller | None:
        found = None
        for caller in self._callers:
            if hmac.compare_digest(caller.digest, digest):
                found = caller
        return found


class Keys:
    """The present ring, from a file and a list."""

    def __init__(self, file: Path | None, listed: str) -> None:
        """Reads both.

        Args:
            file: TOML, as the module says; None: none.
            listed: ``name:sha256:scope+scope`` with commas between; empty: none.

        Raises:
            KeysError: they cannot be used, or there is no key at all.
        """
        self._file = file
        self._listed = parse_list(listed)
        self._text = b"" if file is None else _read(file)
        self.ring = self._ring(self._text)

    def refresh(self) -> bool:
        """Looks at the file again; True if the ring has changed. What cannot be used is logged, once."""
        if self._file is None:
            return False
        try:
            text = _read(self._file)
        except KeysError as error:
            return self._keep(str(error).encode(), error)
        if text == self._text:
            return False
        try:
            self.ring = self._ring(text)
        except KeysError as error:
            return self._keep(text, error)
        self._text = text
        log.info("API keys read again", file=str(self._file), keys=len(self.ring))
        return True

    def _keep(self, seen: bytes, error: KeysError) -> bool:
        if seen != self._text:
            log.error("API keys cannot be used; those of before stay", file=str(self._file), why=str(error))
        self._text = seen
        return False

    def _ring(self, text: bytes) -> KeyRing:
        callers = [*self._listed, *([] if self._file is None else parse_file(text))]
        if not callers:
            raise KeysError("there is no key")
        return KeyRing(callers)


def parse_list(listed: str) -> list[Caller]:
    """The keys of ``name:sha256:scope+scope,…``.

    Raises:
        KeysError: an entry is none, by its number: it may hold a key by mistake.
    """
    callers = []
    for number, entry in enumerate(filter(None, (part.strip() for part in listed.split(","))), 1):
        parts = entry.split(":")
        if len(parts) != 3:
            raise KeysError(f"entry {number} of the list of keys is not name:sha256:scope")
        callers.append(_caller(f"entry {number}", parts[0], parts[1], parts[2].split("+"), Limits()))
    return callers


def parse_file(text: bytes) -> list[Caller]:
    """The keys of a file; at least one.

    Raises:
        KeysError: it is no TOML, a table is no key, or there is none.
    """
    try:
        content = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or a million brackets
        raise KeysError("the file is no TOML in UTF-8") from error
    tables = content.pop("key", [])
    if content:
        raise KeysError("the file has something besides [[key]] tables")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise KeysError("key is no array of tables; begin each with [[key]]")
    if not tables:
        raise KeysError("the file has no [[key]]")
    return [_of_table(f"key {number}", table) for number, table in enumerate(tables, 1)]


def _of_table(where: str, table: dict[str, Any]) -> Caller:
    if table.keys() - _FIELDS:
        raise KeysError(f"{where} has a field besides {', '.join(sorted(_FIELDS))}")
    rate = _number(where, table, "rate_per_s")
    burst = _number(where, table, "burst")
    concurrent = _number(where, table, "concurrent")
    if burst is not None and rate is None:
        raise KeysError(f"{where} has a burst, but no rate_per_s")
    if concurrent is not None and concurrent != int(concurrent):
        raise KeysError(f"{where}: concurrent is no whole number")
    limits = Limits(rate, max(1.0, burst or rate or 1.0), None if concurrent is None else int(concurrent))
    return _caller(where, table.get("name"), table.get("sha256"), table.get("scopes"), limits)


def _caller(where: str, name: object, digest: object, scopes: object, limits: Limits) -> Caller:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise KeysError(f"{where} has no name of 1 to 64 letters, digits, dots, underscores and hyphens")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise KeysError(f"{where} has no sha256 of 64 lower-case hexadecimal digits")
    if not isinstance(scopes, list) or not scopes:
        raise KeysError(f"{where} has no scopes, such as read")
    return Caller(name, max(_scopes(where, scopes)), bytes.fromhex(digest), limits)


def _scopes(where: str, names: Iterable[object]) -> list[Scope]:
    known = {scope.name.lower(): scope for scope in Scope}
    found = [known.get(name) if isinstance(name, str) else None for name in names]
    if None in found:
        raise KeysError(f"{where} has a scope besides {', '.join(known)}")
    return [scope for scope in found if scope is not None]


def _number(where: str, table: dict[str, Any], name: str) -> float | None:
    value = table.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.001 <= value <= 1e9:
        raise KeysError(f"{where}: {name} is no number of at least 0.001")
    return float(value)


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            text = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise KeysError(f"the file cannot be read: {error.strerror}") from error
    if len(text) > _MOST_BYTES:
        raise KeysError("the file has more than 1 MiB")
    return text
