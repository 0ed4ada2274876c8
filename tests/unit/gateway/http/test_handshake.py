"""TLS's handshake by HTTP: what comes in one piece with its end is not lost."""

import asyncio
import ssl
from pathlib import Path

from tests.certificates import Authority
from tests.unit.gateway.behind import Behind
from tests.unit.gateway.http.serving import serving

ASKED = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def test_a_request_that_comes_in_one_piece_with_the_handshakes_end_is_answered(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = authority.listener()
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.channel().context().wrap_bio(received, sent, server_hostname="127.0.0.1")
    services = Behind()  # type: ignore[abstract]  # only what the gateway calls
    async with serving(services, tls_cert=tls.certificate, tls_key=tls.key) as gateway, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(sent.read())
                received.write(await reader.read(2**16))
        client.write(ASKED)
        writer.write(sent.read())
        answer = b""
        while not answer:
            try:
                answer = client.read()
            except ssl.SSLWantReadError:
                received.write(await reader.read(2**16))
        writer.close()

    assert client.version() == "TLSv1.3"  # in which the client's part of the handshake comes last
    assert answer.startswith(b"HTTP/1.1 200")
