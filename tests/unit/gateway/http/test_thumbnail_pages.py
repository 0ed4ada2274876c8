"""Thumbnails by HTTP: of items that are there, whatever their ids hold, and of nothing else."""

from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
from likeness.common.v1 import types_pb2

from gateway.media import PictureMedia
from gateway.picture_facts import content_hash
from tests.pictures import noise
from tests.unit.gateway.behind import Behind, vector
from tests.unit.gateway.http.serving import Gateway, serving

IMAGE = types_pb2.Image(encoded=noise(1))
SHA256 = content_hash(IMAGE)
IDS = ("cat", "a/b/c.jpg", "../../etc/passwd", "/absolute", "file:///x?y#z", "ü 1%2e", "..", 'a"b\rset-cookie: x=1')
# No path holds a line's end, but a parameter does.
BROKEN = "a\r\nset-cookie: x=1"


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """One with an item of each id, all of the same picture, and one item without a thumbnail."""
    services = Behind()  # type: ignore[abstract]  # only what the gateway calls
    async with serving(services, media_url="memory://thumbnails") as gateway:
        for item_id in (*IDS, BROKEN):
            services.put(item_id, vector(1), sha256=SHA256)
            async with gateway.media.replacing(
                "uid-images", [PictureMedia(item_id, SHA256, IMAGE)], thumbnails=True, originals=True
            ):
                pass
        services.put("bare", vector(1), sha256="00" * 32)
        services.put("odd", vector(1), sha256="../../secret")
        yield gateway


async def test_an_item_of_any_id_shows_its_thumbnail_by_path_and_by_parameter(gateway: Gateway) -> None:
    for item_id in IDS:
        # As raw bytes: clients resolve ".." before they ask.
        for target in (f"/thumbnails/images/{quote(item_id, safe='')}", f"/thumbnails/images?id={quote(item_id)}"):
            answer = await gateway.raw(
                f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
            )
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), (item_id, head)
            assert body[8:12] == b"WEBP"
            assert b"set-cookie" not in head.lower()


async def test_a_lines_end_in_an_id_adds_no_header_to_the_answer(gateway: Gateway) -> None:
    whole = quote(BROKEN, safe="")
    twice = quote(whole, safe="")
    for target, status in (
        (f"/thumbnails/images?id={whole}", 200),
        (f"/thumbnails/images/{whole}", 404),
        (f"/thumbnails/images?id={twice}", 404),
        (f"/thumbnails/{whole}?id=cat", 400),
        (f"/nowhere/{whole}", 404),
        (f"/thumbnails/images?id={BROKEN}", 400),  # as it is, the request's own line ends there
    ):
        answer = await gateway.raw(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode()), (target, head)
        names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
        assert b"set-cookie" not in names, target
        assert b"\n" not in head.replace(b"\r\n", b""), target
        assert answer.count(b"HTTP/1.1 ") == 1, target
        assert (body[8:12] == b"WEBP") == (status == 200)


async def test_a_thumbnail_is_kept_by_its_viewer_alone_and_asked_for_by_its_tag(gateway: Gateway) -> None:
    first = await gateway.http.get("/thumbnails/images/cat")
    again = await gateway.http.get("/thumbnails/images/cat", headers={"if-none-match": first.headers["etag"]})
    head = await gateway.http.head("/thumbnails/images/cat")

    assert first.headers["content-type"] == "image/webp"
    assert first.headers["cache-control"] == "private, no-cache"
    assert first.headers["x-content-type-options"] == "nosniff"
    assert first.headers["cross-origin-resource-policy"] == "same-origin"
    assert (again.status_code, again.content) == (304, b"")
    assert (head.status_code, head.content) == (200, b"")


async def test_what_is_not_there_or_no_longer_is_not_found(gateway: Gateway) -> None:
    for target in (
        "/thumbnails/images/dog",
        "/thumbnails/images/bare",
        "/thumbnails/images/odd",
        "/thumbnails/nowhere/cat",
        f"/thumbnails/images/{'x' * 20_000}",
        "/thumbnails/images/..%2f..%2f..%2fetc%2fpasswd%00",
    ):
        answer = await gateway.http.get(target)
        assert answer.status_code == 404, target
        assert answer.json()["code"] == "not_found"


async def test_a_collection_that_cannot_be_one_is_refused(gateway: Gateway) -> None:
    for collection in ("%2e%2e", "..%2f..%2fetc", "A", "a%00b", "x" * 500, "%0d%0aset-cookie:%20x", "%ff"):
        answer = await gateway.http.get(f"/thumbnails/{collection}?id=cat")
        assert answer.status_code in (400, 404), collection
        assert "set-cookie" not in answer.headers
    missing = await gateway.http.get("/thumbnails/images")
    assert missing.status_code == 400


async def test_other_origins_may_show_thumbnails_only_where_they_are_listed() -> None:
    services = Behind()  # type: ignore[abstract]  # only what the gateway calls
    services.put("cat", vector(1), sha256=SHA256)
    async with serving(services, media_url="memory://shown", cors_origins="https://example.org") as gateway:
        async with gateway.media.replacing(
            "uid-images", [PictureMedia("cat", SHA256, IMAGE)], thumbnails=True, originals=False
        ):
            pass
        listed = await gateway.http.get("/thumbnails/images/cat", headers={"origin": "https://example.org"})
        other = await gateway.http.get("/thumbnails/images/cat", headers={"origin": "https://example.com"})

    assert listed.headers["cross-origin-resource-policy"] == "cross-origin"
    assert listed.headers["access-control-allow-origin"] == "https://example.org"
    assert other.status_code == 403
