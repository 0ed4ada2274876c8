"""Who may call by HTTP: keys and scopes before anything is read, and without keys no other site's page."""

import asyncio
import hashlib
from typing import Any

from tests.unit.gateway.behind import Behind, vector
from tests.unit.gateway.http.serving import SERVICE, Gateway, serving

SCOPES = {"reader": "read", "writer": "write", "admin": "admin"}
DIGESTS = {name: hashlib.sha256(f"{name}-key".encode()).hexdigest() for name in SCOPES}
KEYS = ",".join(f"{name}:{DIGESTS[name]}:{scope}" for name, scope in SCOPES.items())


def library() -> Behind:
    services = Behind()  # type: ignore[abstract]  # only what the gateway calls
    services.put("a", vector(1))
    return services


def reason(answer: Any) -> str:
    return str(answer.json()["details"][0]["debug"]["reason"])


async def test_a_key_is_taken_from_either_header_and_its_absence_told() -> None:
    async with serving(library(), api_keys=KEYS) as gateway:
        without = await gateway.call("CountItems", {})
        wrong = await gateway.call("CountItems", {}, authorization="Bearer nobody-key")
        strange = await gateway.call("CountItems", {}, authorization="Basic cmVhZGVyOmtleQ==")
        bearer = await gateway.call("CountItems", {}, authorization="Bearer reader-key")
        header = await gateway.call("CountItems", {}, x_api_key="reader-key")

    assert [each.status_code for each in (without, wrong, strange, bearer, header)] == [401, 401, 401, 200, 200]
    assert [reason(each) for each in (without, wrong, strange)] == ["KEY_MISSING", "KEY_INVALID", "KEY_MISSING"]
    assert without.json()["code"] == "unauthenticated"
    assert without.headers["www-authenticate"] == "Bearer"


async def test_a_scope_that_the_key_lacks_is_denied() -> None:
    async with serving(library(), api_keys=KEYS) as gateway:
        denied = await gateway.call("DeleteCollection", {"name": "images"}, x_api_key="writer-key")
        counted = gateway.registry.get_sample_value("likeness_gateway_refused_total", {"reason": "SCOPE_MISSING"})

    assert denied.status_code == 403
    assert reason(denied) == "SCOPE_MISSING"
    assert counted == 1


async def test_without_a_key_not_a_byte_of_the_body_is_asked_for() -> None:
    head = (
        f"POST {SERVICE}/CountItems HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: 10000000\r\nExpect: 100-continue\r\nConnection: close\r\n"
    )
    async with serving(library(), api_keys=KEYS) as gateway:
        refused = await gateway.raw(f"{head}\r\n".encode())

    assert refused.startswith(b"HTTP/1.1 401")
    assert b"100 Continue" not in refused


async def test_figures_and_thumbnails_need_a_key_and_probes_do_not() -> None:
    async with serving(library(), api_keys=KEYS) as gateway:
        paths = ("/metrics", "/thumbnails/images/a", "/healthz", "/readyz", "/openapi.json")
        without = [(await gateway.http.get(path)).status_code for path in paths]
        with_key = [(await gateway.http.get(path, headers={"x-api-key": "reader-key"})).status_code for path in paths]

    assert without == [401, 401, 200, 200, 200]
    assert with_key == [200, 404, 200, 200, 200]  # there is no thumbnail


async def test_figures_that_are_asked_for_with_a_wrong_key_are_counted_as_refused() -> None:
    async with serving(library(), api_keys=KEYS) as gateway:
        for headers in ({}, {"x-api-key": "nobody-key"}, {"x-api-key": "reader-key"}):
            await gateway.http.get("/metrics", headers=headers)
        value = gateway.registry.get_sample_value
        refused = [value("likeness_gateway_refused_total", {"reason": why}) for why in ("KEY_MISSING", "KEY_INVALID")]
        labels = {"method": "metrics", "transport": "http", "code": "UNAUTHENTICATED"}
        calls = value("likeness_gateway_calls_total", labels)

    assert refused == [1, 1]
    assert calls == 2


async def test_a_key_above_its_rate_gets_429_and_when_to_come_again(tmp_path: Any) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[[key]]\nname = "slow"\nsha256 = "{DIGESTS["reader"]}"\nscopes = ["read"]\nrate_per_s = 0.01\n')
    async with serving(library(), api_keys_file=file) as gateway:
        first = await gateway.call("CountItems", {}, x_api_key="reader-key")
        second = await gateway.call("CountItems", {}, x_api_key="reader-key")
        stream = await gateway.call(
            "FindDuplicates", b"", x_api_key="reader-key", content_type="application/connect+json"
        )

    assert (first.status_code, second.status_code) == (200, 429)
    assert second.json()["code"] == "resource_exhausted"
    assert reason(second) == "RATE_LIMITED"
    assert 30 <= int(second.headers["retry-after"]) <= 100
    assert b'"resource_exhausted"' in stream.content


class Held(Behind):
    """Counts items when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_for, self.may_answer = asyncio.Event(), asyncio.Event()

    async def CountItems(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked_for.set()
        await self.may_answer.wait()
        return await super().CountItems(request, context)


async def test_a_key_with_as_many_calls_at_once_as_it_may_have_gets_429_until_one_has_ended(tmp_path: Any) -> None:
    services, file = Held(), tmp_path / "keys.toml"  # type: ignore[abstract]  # as above
    key = '[[key]]\nname = "{0}"\nsha256 = "{1}"\nscopes = ["read"]\n'
    limited, unlimited = (key.format(name, DIGESTS[name]) for name in ("reader", "admin"))
    file.write_text(f"{limited}concurrent = 1\n{unlimited}")
    async with serving(services, api_keys_file=file) as gateway:
        first = asyncio.create_task(gateway.call("CountItems", {}, x_api_key="reader-key"))
        async with asyncio.timeout(30):
            await services.asked_for.wait()
        second = await gateway.call("GetStatus", {}, x_api_key="reader-key")
        thumbnail = await gateway.http.get("/thumbnails/images/a", headers={"x-api-key": "reader-key"})
        stream = await gateway.call(
            "FindDuplicates", b"", x_api_key="reader-key", content_type="application/connect+json"
        )
        another = await gateway.call("GetStatus", {}, x_api_key="admin-key")
        services.may_answer.set()
        ended = await first
        again = await gateway.call("CountItems", {}, x_api_key="reader-key")

    for answer in (second, thumbnail):
        assert answer.status_code == 429
        assert reason(answer) == "RATE_LIMITED"
        assert "one call at once" in answer.json()["message"]
        assert answer.headers["retry-after"] == "1"
    assert b'"resource_exhausted"' in stream.content
    assert [each.status_code for each in (another, ended, again)] == [200, 200, 200]


async def _statuses(gateway: Gateway, **headers: str) -> list[int]:
    return [
        (await gateway.http.get("/openapi.json", headers=headers)).status_code,
        (await gateway.call("CountItems", {}, **headers)).status_code,
    ]


async def test_without_keys_only_this_machines_names_are_answered() -> None:
    async with serving(library()) as gateway:
        for host in (f"localhost:{gateway.port}", "LOCALHOST", "127.0.0.1", "[::1]:8080"):
            assert await _statuses(gateway, host=host) == [200, 200], host
        for host in (
            "likeness.example.org",
            "127.0.0.1.example.org",
            "localhost.",
            "[::1",
            "10.0.0.1:8080",
            "@localhost@x",
        ):
            assert await _statuses(gateway, host=host) == [403, 403], host


async def test_with_keys_or_where_anybody_may_come_any_name_is_answered() -> None:
    for told in ({"api_keys": KEYS}, {"anonymous": True}):
        async with serving(library(), **told) as gateway:
            assert (await gateway.http.get("/openapi.json", headers={"host": "example.org"})).status_code == 200


async def test_listed_names_are_the_only_ones_that_are_answered() -> None:
    for told in ({"api_keys": KEYS}, {"anonymous": True}, {}):
        async with serving(library(), http_hosts="search.example.org,localhost", **told) as gateway:
            found = [
                (await gateway.http.get("/openapi.json", headers={"host": host})).status_code
                for host in ("Search.Example.org:443", "localhost", "127.0.0.1", "example.org")
            ]
        assert found == [200, 200, 403, 403]


async def _by_address(gateway: Gateway, **headers: str) -> dict[str, int]:
    """As Kubernetes and Prometheus ask: by the address of a container."""
    paths = ("/healthz", "/readyz", "/metrics", "/openapi.json", "/healthz/", "/thumbnails/images/a")
    asked = {"host": "10.0.0.7:8080", **headers}
    return {path: (await gateway.http.get(path, headers=asked)).status_code for path in paths}


async def test_probes_are_answered_by_any_name_and_nothing_else_is() -> None:
    settings: list[dict[str, Any]] = [{"anonymous": True, "http_hosts": "search.example.org"}, {}]
    for told in settings:
        async with serving(library(), **told) as gateway:
            found = await _by_address(gateway)
            posted = await gateway.http.post("/healthz", headers={"host": "10.0.0.7:8080"})
        assert {path for path, status in found.items() if status != 403} == {"/healthz", "/readyz"}
        assert (found["/healthz"], found["/readyz"], posted.status_code) == (200, 200, 405)


async def test_figures_are_shown_by_any_name_where_a_key_is_asked_for() -> None:
    async with serving(library(), http_hosts="search.example.org", api_keys=KEYS) as gateway:
        without, with_key = await _by_address(gateway), await _by_address(gateway, authorization="Bearer reader-key")
    assert {path for path, status in without.items() if status != 403} == {"/healthz", "/readyz", "/metrics"}
    assert (without["/metrics"], with_key["/metrics"], with_key["/openapi.json"]) == (401, 200, 403)


async def test_probes_of_pages_of_other_origins_are_refused_all_the_same() -> None:
    async with serving(library()) as gateway:
        found = await _by_address(gateway, origin="http://10.0.0.8")
    assert set(found.values()) == {403}


async def test_without_keys_pages_of_other_origins_are_refused_unless_listed() -> None:
    async with serving(library(), cors_origins="https://shop.example.org") as gateway:
        own = f"http://127.0.0.1:{gateway.port}"
        assert await _statuses(gateway, origin=own) == [200, 200]
        assert await _statuses(gateway, origin="https://shop.example.org") == [200, 200]
        for origin in ("https://example.org", "http://shop.example.org", "null", "http://localhost:3000"):
            assert await _statuses(gateway, origin=origin) == [403, 403], origin


async def test_cors_is_off_unless_origins_are_listed() -> None:
    asked = {
        "origin": "https://shop.example.org",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,traceparent,x-api-key",
    }
    path = f"{SERVICE}/Search"
    async with serving(library(), api_keys=KEYS) as gateway:
        off = await gateway.http.options(path, headers=asked)
    async with serving(library(), api_keys=KEYS, cors_origins="https://shop.example.org") as gateway:
        on = await gateway.http.options(path, headers=asked)
        other = await gateway.http.options(path, headers={**asked, "origin": "https://example.com"})
        told = await gateway.call("CountItems", {}, origin="https://shop.example.org", x_api_key="reader-key")

    assert "access-control-allow-origin" not in off.headers
    assert on.status_code == 200
    assert on.headers["access-control-allow-origin"] == "https://shop.example.org"
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-credentials" not in on.headers
    assert told.status_code == 200
    assert "likeness-trace-id" in told.headers["access-control-expose-headers"]
    assert "retry-after" in told.headers["access-control-expose-headers"]
