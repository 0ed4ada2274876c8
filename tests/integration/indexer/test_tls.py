"""A Chroma behind TLS, with an authority of its own and a token."""

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.indexer.calls import PORT, Start, Stub, connect, count, create, item, upsert
from tests.processes import START_S, launch, start_chroma
from tests.proxy import Proxy

if shutil.which("openssl") is None:
    pytest.skip("openssl, which makes the certificates, is not installed", allow_module_level=True)


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture
def tls_url(tmp_path: Path) -> Iterator[str]:
    """Chroma's address behind TLS; ``tmp_path/ca.pem`` has signed the certificate."""
    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    _openssl(tmp_path, *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
    leaf = ("-addext", "basicConstraints=critical,CA:FALSE", "-addext", "authorityKeyIdentifier=keyid")
    _openssl(tmp_path, *new, *signed, *leaf, "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=chroma")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    process, url = start_chroma(tmp_path / "chroma")
    port = urlsplit(url).port
    assert port is not None
    with Proxy(port, context) as proxy:
        yield proxy.url
    process.kill()
    process.wait(10)


def test_an_authority_of_ones_own_is_believed_if_it_is_named(start: Start, tls_url: str, tmp_path: Path) -> None:
    service = start(
        LIKENESS_CHROMA_URL=tls_url,
        LIKENESS_CHROMA_CA_FILE=str(tmp_path / "ca.pem"),
        LIKENESS_CHROMA_TOKEN="secret",
        LIKENESS_READS="chroma",
    )
    with connect(service) as channel:
        create(Stub(channel), "safe")
        assert upsert(Stub(channel), "safe", item(1)) == 1
        assert count(Stub(channel), "safe") == 1
    assert service.stop() == 0


def test_a_certificate_of_an_unknown_authority_is_refused(tls_url: str, tmp_path: Path) -> None:
    env = {
        "LIKENESS_DATA_DIR": str(tmp_path / "data"),
        "LIKENESS_CHROMA_URL": tls_url,
        "LIKENESS_CHROMA_START_S": "2",
    }
    service = launch("indexer", env, PORT, tmp_path)
    try:
        assert service.process.wait(START_S) == 1
    finally:
        service.kill()
    assert "CERTIFICATE_VERIFY_FAILED" in service.log
