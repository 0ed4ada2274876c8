"""Resume tokens are opaque and checked; checkpoints count only what is answered without a gap."""

import base64
import binascii
import json

import pytest
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from gateway import checkpoints
from gateway.checkpoints import Checkpoint, Progress


def forged(content: object) -> str:
    plain = json.dumps(content).encode()
    return base64.urlsafe_b64encode(binascii.crc32(plain).to_bytes(4, "big") + plain).decode()


def test_a_token_is_read_back_by_any_gateway() -> None:
    checkpoint = Checkpoint("0af3-uid", 123_456_789)

    assert Checkpoint.read(checkpoint.token(), "f") == checkpoint
    assert len(checkpoint.token()) < 100


@pytest.mark.parametrize(
    "token",
    [
        "nonsense",
        "ü",
        "A",
        "\0" * 8,
        "x" * 1025,
        Checkpoint("uid", 5).token()[:-2],
        "B" + Checkpoint("uid", 5).token()[1:],
        Checkpoint("uid", 5).token() + "AAAA",
        forged([2, "uid", 5]),
        forged([1, "uid", -1]),
        forged([1, "uid", 2**63]),
        forged([1, "uid", 1.5]),
        forged([1, "uid", True]),
        forged([1, 7, 5]),
        forged([1, "uid"]),
        forged({"uid": 5}),
        forged("uid"),
        base64.urlsafe_b64encode(binascii.crc32(b"[" * 700).to_bytes(4, "big") + b"[" * 700).decode(),
    ],
)
def test_what_no_gateway_has_given_is_refused_by_its_field(token: str) -> None:
    with pytest.raises(LikenessError) as caught:
        Checkpoint.read(token, "start.resume_token")

    assert caught.value.reason == error_pb2.REASON_FIELD_INVALID
    assert caught.value.violations[0].field == "start.resume_token"


def test_only_items_without_a_gap_count() -> None:
    progress = Progress("uid", 10)
    for place in (12, 11, 14):
        progress.answered(place)
    assert progress.due_in() is None

    progress.answered(10)

    assert progress.take() == Checkpoint("uid", 13)
    assert progress.due_in() is None
    progress.answered(13)
    assert progress.take() == Checkpoint("uid", 15)


def test_a_checkpoint_is_due_within_a_second_and_at_once_after_256_items() -> None:
    progress = Progress("uid", 0)
    for place in range(checkpoints.EVERY_ITEMS - 1):
        progress.answered(place)
    assert 0 < (progress.due_in() or 0) <= checkpoints.EVERY_S

    progress.answered(checkpoints.EVERY_ITEMS - 1)

    assert progress.due_in() == 0
