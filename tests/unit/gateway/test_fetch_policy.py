"""Which uris may be asked for, and which addresses connected to."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import LikenessError
from gateway.fetch_policy import FetchPolicy, is_public

POLICY = FetchPolicy()


def refusal(uri: str, policy: FetchPolicy = POLICY) -> LikenessError:
    with pytest.raises(LikenessError) as caught:
        policy.target(uri, "image.uri")
    assert caught.value.reason_name == "FETCH_REFUSED"
    assert caught.value.violations[0].field == "image.uri"
    return caught.value


def test_a_uri_is_taken_apart_into_what_is_asked_for() -> None:
    target = POLICY.target("HTTPS://Example.ORG.:443/a%20b/../c?d=e#f", "uri")
    assert (target.scheme, target.host, target.port, target.path) == ("https", "example.org", 443, "/a%20b/../c?d=e")
    assert POLICY.target("http://example.org?x", "uri").path == "/?x"
    assert POLICY.target("http://[2001:4860:4860::8888]/", "uri").host == "2001:4860:4860::8888"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "x" * 4097,
        "picture.jpg",
        "file:///etc/passwd",
        "ftp://example.org/a",
        "gopher://example.org/_x",
        "http://",
        "http:///a",
        "http://user@example.org/a",
        "http://user:word@example.org/a",
        "http://example.org@127.0.0.1/",
        "http://example.org:22/a",
        "http://example.org:99999/a",
        "http://example.org:x/a",
        "http://exa mple.org/a",
        "http://example.org/a\r\nHost: other",
        "http://example.org\\@127.0.0.1/a",
        "http://exämple.org/a",
        "http://-a.org/",
        "http://a..org/",
        "http://127.1/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://127.0.0.1/",
        "http://127.0.0.1./",
        "http://10.0.0.1/",
        "http://172.16.5.5/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.64.0.1/",
        "http://0.0.0.0/",
        "http://255.255.255.255/",
        "http://224.0.0.1/",
        "http://[::1]/",
        "http://[::]/",
        "http://[fe80::1]/",
        "http://[fe80::1%25eth0]/",
        "http://[fd00::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[64:ff9b:1::1]/",
        "http://[2002:7f00:1::]/",
        "http://[2001:0:7f00:1::1]/",
        "http://[v1.x]/",
        "http://[::1",
    ],
)
def test_what_is_no_plain_public_uri_is_refused(uri: str) -> None:
    refusal(uri)


def test_only_the_schemes_ports_and_hosts_that_are_told_are_asked() -> None:
    policy = FetchPolicy(frozenset(("https",)), frozenset((8443,)), ("img.example.org", ".pictures.net"))
    assert policy.target("https://img.example.org:8443/", "uri").port == 8443
    assert policy.target("https://a.b.pictures.net:8443/", "uri").host == "a.b.pictures.net"
    for uri in (
        "http://img.example.org:8443/",
        "https://img.example.org/",
        "https://example.org:8443/",
        "https://pictures.net:8443/",
        "https://evilpictures.net:8443/",
        "https://8.8.8.8:8443/",
    ):
        refusal(uri, policy)


def test_an_error_never_tells_an_address() -> None:
    with pytest.raises(LikenessError) as caught:
        POLICY.check_address("10.1.2.3", "uri")
    assert "10.1.2.3" not in caught.value.message


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_is_judged_alike_in_every_form(number: int) -> None:
    plain = IPv4Address(number)
    expected = is_public(plain)
    assert is_public(IPv6Address(0xFFFF << 32 | number)) == expected
    assert is_public(IPv6Address((0x64FF9B << 96) | number)) == expected
    assert is_public(IPv6Address((0x2002 << 112) | (number << 80) | 1)) == expected
    assert not is_public(IPv6Address(number)), "compatible addresses are nobody's"
    if not plain.is_global:
        assert not expected


@given(st.integers(0, 2**128 - 1))
def test_outside_the_unicast_addresses_nothing_is_public(number: int) -> None:
    unicast, mapped, nat64 = number >> 125 == 1, number >> 32 == 0xFFFF, number >> 32 == 0x64FF9B << 64
    assert unicast or mapped or nat64 or not is_public(IPv6Address(number))


@given(st.sampled_from(["http://", "https://", "HTTP:", "//", ""]), st.text("ab019.:[]@/%?#-x\\ é\n", max_size=40))
def test_every_text_is_either_refused_or_a_target_within_the_rules(scheme: str, rest: str) -> None:
    try:
        target = POLICY.target(scheme + rest, "uri")
    except LikenessError as error:
        refused = error.reason_name
    else:
        refused = ""
        assert (target.scheme, target.port) in (("http", 80), ("https", 443), ("http", 443), ("https", 80))
        assert target.path.startswith("/")
        assert not set("@[]/ ") & set(target.host)
        last = target.host.rpartition(".")[2]
        assert is_public(ip_address(target.host)) if last.isdecimal() or ":" in last else last
    assert refused in ("", "FETCH_REFUSED")
