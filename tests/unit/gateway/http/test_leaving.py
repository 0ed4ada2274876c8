"""A gateway that is about to stop: it says so, and answers."""

from typing import Any

import httpx
import pytest
from likeness.gateway.v1 import gateway_pb2 as pb

from tests.unit.gateway.behind import Behind, vector
from tests.unit.gateway.http.serving import Gateway, serving


async def anew(gateway: Gateway, path: str) -> httpx.Response:
    """Asks over a connection of its own."""
    async with httpx.AsyncClient(base_url=gateway.http.base_url, trust_env=False, timeout=30, verify=False) as http:
        return await http.get(path)


async def test_it_is_not_ready_and_answers_calls_over_new_connections_until_it_stops() -> None:
    services = Behind()  # type: ignore[abstract]  # only what the gateway calls
    services.put("a", vector(1))
    async with serving(services) as gateway:
        await gateway.readiness.leave()

        ready = await anew(gateway, "/readyz")
        assert (ready.status_code, ready.text) == (503, "not ready: stopping\n")
        assert (await anew(gateway, "/healthz")).status_code == 200
        counted: Any = await gateway.call("CountItems", {})
        assert (counted.status_code, counted.json()) == (200, {"count": "1"})
        assert (await gateway.grpc.CountItems(pb.CountItemsRequest(), timeout=30)).count == 1

        await gateway.readiness.stop()
        with pytest.raises(httpx.TransportError):
            while True:  # uvicorn looks every tenth of a second whether it is to end
                await anew(gateway, "/healthz")
