"""The three services as real processes with mTLS on every listener and between them all."""

from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local import running
from likeness_client import Client, Picture, Security, Term
from tests.certificates import Authority
from tests.pictures import samples
from tests.processes import environment

CALL_S = 30.0


def health(channel: grpc.Channel) -> int:
    """What a health check says."""
    with channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=CALL_S).status)


def refusal(channel: grpc.Channel) -> grpc.StatusCode:
    """What it fails with."""
    with pytest.raises(grpc.RpcError) as caught:
        health(channel)
    assert isinstance(caught.value, grpc.Call)
    code: grpc.StatusCode = caught.value.code()
    return code


def test_pictures_go_in_and_are_found_with_mtls_on_every_hop_and_nobody_gets_in_without(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    own, me = authority.sign("service", "localhost", "127.0.0.1"), authority.sign("client")
    settings = {
        "LIKENESS_TLS_CERT": str(own.certificate),
        "LIKENESS_TLS_KEY": str(own.key),
        "LIKENESS_TLS_CLIENT_CA": str(authority.ca),
        "LIKENESS_UPSTREAM_TLS_CA": str(authority.ca),
        "LIKENESS_UPSTREAM_TLS_CERT": str(own.certificate),
        "LIKENESS_UPSTREAM_TLS_KEY": str(own.key),
    }
    trusted = authority.channel(me)
    pictures = samples(tmp_path / "pictures")
    with running(tmp_path / "services", environment(settings)) as services:
        security = Security(tls_ca=authority.ca, tls_cert=me.certificate, tls_key=me.key)
        with Client(services.addresses["gateway"], timeout=60, security=security) as client:
            few = [Picture(pictures[name], id=name) for name in ("cat", "grass", "rocket-launch")]
            assert all(outcome.stored for outcome in client.index(few))
            found = client.search(Term.text("a photograph of a cat"), Term.image(pictures["cat"])).hits
            assert [found[0].item.id, len(found)] == ["cat", 3]

        for address in services.addresses.values():
            assert health(grpc.secure_channel(address, trusted.grpc())) == health_pb2.HealthCheckResponse.SERVING
            unwanted = [
                grpc.insecure_channel(address),
                grpc.secure_channel(address, authority.channel().grpc()),
                grpc.secure_channel(address, authority.channel(stranger.sign("client")).grpc()),
            ]
            assert [refusal(each) for each in unwanted] == [grpc.StatusCode.UNAVAILABLE] * 3

        url = f"https://{services.http}/healthz"
        assert httpx.get(url, verify=trusted.context(), trust_env=False, timeout=CALL_S).status_code == 200
        for nobody in (authority.channel(), authority.channel(stranger.sign("client"))):
            with pytest.raises(httpx.TransportError):
                httpx.get(url, verify=nobody.context(), trust_env=False, timeout=CALL_S)
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http"), trust_env=False, timeout=CALL_S)
