"""Keeps pages of other sites away from a gateway that asks for no key.

A browser on the same machine, or in the same network, sends requests for any page. Its Origin says whose page it is;
and a name that its owner makes stand for 127.0.0.1 (DNS rebinding) is seen in Host.
"""

from collections.abc import Collection
from http import HTTPStatus
from urllib.parse import urlsplit

from connectrpc.code import Code
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.errors import refusal


class Origins:
    """ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        allowed: Collection[str],
        hosts: Collection[str] | None,
        by_any_name: Collection[str],
        keyed: bool,
    ) -> None:
        """Takes what it lets pass.

        Args:
            app: what answers.
            allowed: other origins whose pages may ask.
            hosts: what Host may name, without the port; None: anything.
            by_any_name: paths that are answered whatever Host names.
            keyed: calls need a key, which no page of another site has: any origin may try.
        """
        self._app = app
        self._allowed = frozenset(allowed)
        self._hosts = hosts
        self._by_any_name = frozenset(by_any_name)
        self._keyed = keyed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses a request, or passes it on."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        named = self._hosts is None or _name(host) in self._hosts
        if not named and scope["path"] not in self._by_any_name:
            message = "the gateway does not answer to this name (Host); LIKENESS_HTTP_HOSTS lists its names"
            await refusal(HTTPStatus.FORBIDDEN, Code.PERMISSION_DENIED, message)(scope, receive, send)
            return
        if not self._keyed and origin is not None and not self._may_ask(origin, f"{scope['scheme']}://{host}"):
            message = "pages of this origin may not call the gateway; LIKENESS_CORS_ORIGINS lists those that may"
            await refusal(HTTPStatus.FORBIDDEN, Code.PERMISSION_DENIED, message)(scope, receive, send)
            return

        async def typed(message: Message) -> None:
            if message["type"] == "http.response.start":  # a browser must not guess that an answer is a page
                MutableHeaders(scope=message)["x-content-type-options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, typed)

    def _may_ask(self, origin: str, own: str) -> bool:
        return origin in self._allowed or origin.lower() == own.lower()


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets that hold no address
        return ""
