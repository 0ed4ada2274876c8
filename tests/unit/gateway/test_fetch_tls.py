"""Fetching by https: the connection goes to an address that was checked, and the certificate has to be the name's."""

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import fetch
from tests.certificates import Authority
from tests.unit.gateway.hostile import PNG, redirect, response
from tests.unit.gateway.test_fetch import place


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Authority]:
    """One that this machine believes."""
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.ca))
    fetch._tls.cache_clear()
    yield made
    fetch._tls.cache_clear()


def showing(authority: Authority, *hosts: str, expires_in_days: int = 1) -> ssl.SSLContext:
    """TLS of a server with a certificate for these names."""
    own = authority.sign("web", *hosts, expires=datetime.timedelta(days=expires_in_days))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate, own.key)
    return context


async def test_a_picture_is_fetched_from_the_host_that_the_certificate_names(authority: Authority) -> None:
    async with place(tls=showing(authority, "pictures.example")) as here:
        here.web.answers["/a"] = response(PNG)
        assert here.web.url("/a").startswith("https://pictures.example:")
        assert await here.get("/a") == PNG

        assert here.names.asked == ["pictures.example"]
        assert f"Host: pictures.example:{here.web.port}\r\n" in here.web.requests[0]
        assert here.counted("ok") == 1


@pytest.mark.parametrize("hosts", [["other.example"], ["127.0.0.1"], ["example"], ["*.pictures.example"], []])
async def test_a_certificate_of_another_name_or_of_the_address_alone_is_not_taken(
    authority: Authority, hosts: list[str]
) -> None:
    async with place(tls=showing(authority, *hosts)) as here:
        here.web.answers["/a"] = response(PNG)
        error = await here.failure("/a")

        assert error.reason_name == "FETCH_UNAVAILABLE"
        assert here.names.asked == ["pictures.example"]
        assert here.web.requests == []


async def test_a_certificate_that_has_expired_or_is_of_an_unknown_authority_is_not_taken(
    authority: Authority, tmp_path: Path
) -> None:
    expired = showing(authority, "pictures.example", expires_in_days=-1)
    unknown = showing(Authority(tmp_path, "unknown"), "pictures.example")
    for tls in (expired, unknown):
        async with place(tls=tls) as here:
            here.web.answers["/a"] = response(PNG)
            assert (await here.failure("/a")).reason_name == "FETCH_UNAVAILABLE"
            assert here.web.requests == []


async def test_a_redirect_to_another_name_wants_that_names_certificate(authority: Authority) -> None:
    async with place(tls=showing(authority, "pictures.example")) as here:
        here.web.answers |= {"/a": redirect(here.web.url("/b", "other.example")), "/b": response(PNG)}
        assert (await here.failure("/a")).reason_name == "FETCH_UNAVAILABLE"

        assert here.names.asked == ["pictures.example", "other.example"]
        assert [request.split(" ")[1] for request in here.web.requests] == ["/a"]
