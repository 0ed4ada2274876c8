"""How far an ingest stream is without a gap, and the token with which another one goes on from there."""

import base64
import binascii
import json
import time
from dataclasses import dataclass
from typing import Self

from chassis.errors import invalid

MAX_TOKEN_BYTES = 1024

# A checkpoint comes after so many more items without a gap, or so many seconds.
EVERY_ITEMS, EVERY_S = 256, 1.0

_VERSION = 1
_MOST_ITEMS = 2**63


@dataclass(frozen=True)
class Checkpoint:
    """A place in the items that a client sends.

    Attributes:
        uid: the collection's.
        items_done: how many items, in the order sent, are answered.
    """

    uid: str
    items_done: int

    def token(self) -> str:
        """As clients hold it. It binds nobody: any gateway reads it, after a restart too."""
        plain = json.dumps([_VERSION, self.uid, self.items_done], separators=(",", ":")).encode()
        checked = binascii.crc32(plain).to_bytes(4, "big") + plain
        return base64.urlsafe_b64encode(checked).decode().rstrip("=")

    @classmethod
    def read(cls, token: str, field: str) -> Self:
        """What a token stands for.

        Args:
            token: non-empty.
            field: where it stands in the request.

        Raises:
            LikenessError: FIELD_INVALID: it is none that a gateway has given.
        """
        if len(token.encode()) > MAX_TOKEN_BYTES:
            raise invalid(field, f"{len(token.encode())} bytes; at most {MAX_TOKEN_BYTES} are taken")
        try:
            checked = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            plain = checked[4:]
            if int.from_bytes(checked[:4], "big") != binascii.crc32(plain):
                raise ValueError("altered")
            version, uid, items_done = json.loads(plain)
            if version != _VERSION or type(uid) is not str or type(items_done) is not int:
                raise ValueError("of another release")
            if not 0 <= items_done < _MOST_ITEMS:
                raise ValueError("out of range")
        except (ValueError, TypeError, RecursionError) as error:  # no base64 and no JSON are ValueErrors too
            raise invalid(field, "is none that a gateway has given; send the last one unchanged, or none") from error
        return cls(uid, items_done)


class Progress:
    """Which items of a stream are answered, and whether a checkpoint is due."""

    def __init__(self, uid: str, items_done: int) -> None:
        """Starts behind ``items_done`` items of an earlier stream, the first of this one having that place."""
        self._uid = uid
        self._done = self._told = items_done
        self._beyond: set[int] = set()  # answered behind a gap: bounded by the window
        self._since: float | None = None

    def answered(self, place: int) -> None:
        """An item's result has been written.

        Args:
            place: how many items were sent before it, those of earlier streams included.
        """
        self._beyond.add(place)
        while self._done in self._beyond:
            self._beyond.remove(self._done)
            self._done += 1
        if self._since is None and self._done > self._told:
            self._since = time.monotonic()

    def due_in(self) -> float | None:
        """Seconds until the next checkpoint; 0: now; None: nothing has happened since the last."""
        if self._since is None:
            return None
        if self._done - self._told >= EVERY_ITEMS:
            return 0.0
        return max(0.0, self._since + EVERY_S - time.monotonic())

    def take(self) -> Checkpoint:
        """The checkpoint to tell now."""
        self._told, self._since = self._done, None
        return Checkpoint(self._uid, self._done)
