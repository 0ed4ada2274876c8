"""What is left of a request that failed: nothing, before Python looks for circles of objects too."""

import gc
import gzip
from collections.abc import Iterator

import pytest

from gateway.http.messages import Received
from tests.unit.gateway.behind import Behind
from tests.unit.gateway.http.serving import serving

UNKNOWN = b'{"terms": [{"id": "nobody"}]}'
NO_NAME = b'\0\0\0\0\x13{"collection": "x"}'


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Circles of objects stay."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    ("rpc", "kind", "body", "packed", "said"),
    [
        ("Search", "json", b" " * 2**21, True, "larger than"),
        ("Search", "json", b"[" + b" " * 2**19 + b"]", False, "expected an object"),
        ("Search", "proto", b"\xff" * 2**19, False, "cannot be read"),
        ("Search", "json", UNKNOWN, False, "nobody"),
        ("FindDuplicates", "connect+json", b"\0\0\0\0\x02[]", False, "expected an object"),
        ("FindDuplicates", "connect+json", NO_NAME, False, "no collection name"),
    ],
)
async def test_nothing_is_kept_of_a_request_that_failed(
    rpc: str, kind: str, body: bytes, packed: bool, said: str
) -> None:
    services = Behind()  # type: ignore[abstract]  # only what the gateway calls
    sent = gzip.compress(body) if packed else body
    async with serving(services, max_message_mb=1) as gateway:
        more = {"content_encoding": "gzip"} if packed else {}
        answer = await gateway.call(rpc, sent, content_type=f"application/{kind}", **more)
        # A good one of the same kind, on the same connection: the first has ended.
        await gateway.call("CountItems", {})
        kept = [each for each in gc.get_objects() if isinstance(each, Received)]

    assert said in answer.text
    assert kept == []
