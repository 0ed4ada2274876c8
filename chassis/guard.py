"""Who may call what: API keys, the scopes that rpcs need, and what is left to each caller."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from chassis.keys import Caller, Keys, Scope
from chassis.quota import Allowance, Quota

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Rpc:
    """What an rpc asks of its caller.

    Attributes:
        scope: what the key needs.
        items: how many items a request counts as, against the key's rate.
    """

    scope: Scope
    items: Callable[[Any], int] = lambda _request: 1


class Guard:
    """Who may call what."""

    def __init__(self, keys: Keys, rpcs: Mapping[str, Rpc]) -> None:
        """Takes both.

        Args:
            keys: the API keys.
            rpcs: every rpc by its full method name; any other is refused.
        """
        self.keys = keys
        self._rpcs = rpcs
        self._quota = Quota()

    def caller(self, metadata: Metadata) -> Caller:
        """Whose key a call brings.

        Raises:
            LikenessError: KEY_MISSING, KEY_INVALID.
        """
        key = _key(metadata)
        if key is None:
            message = "an API key is needed: send it as metadata `authorization: Bearer KEY` or `x-api-key: KEY`"
            raise LikenessError(error_pb2.REASON_KEY_MISSING, message)
        caller = self.keys.ring.find(key)
        if caller is None:
            raise LikenessError(error_pb2.REASON_KEY_INVALID, "the API key is none of those that are known here")
        return caller

    def check_scope(self, caller: Caller, method: str) -> None:
        """Raises SCOPE_MISSING if the caller may not call the method."""
        rpc = self._rpcs.get(method)
        if rpc is None or caller.scope < rpc.scope:
            needed = "no scope" if rpc is None else f"the scope {rpc.scope.name.lower()}"
            message = f"{method.rpartition('/')[2]} is open to {needed}; the API key has {caller.scope.name.lower()}"
            raise LikenessError(error_pb2.REASON_SCOPE_MISSING, message)

    def allowance(self, caller: Caller) -> Allowance:
        """What is left to the caller."""
        return self._quota.of(caller)

    def items(self, method: str, request: Any) -> int:
        """How many items a request counts as; at least one."""
        return max(1, self._rpcs[method].items(request))


def _key(metadata: Metadata) -> str | None:
    found: dict[str, str] = {}
    for name, value in metadata:
        if name in ("authorization", "x-api-key"):
            found.setdefault(name, value if isinstance(value, str) else value.decode(errors="replace"))
    scheme, _, token = found.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return found.get("x-api-key", "").strip() or None
