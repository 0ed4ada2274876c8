"""How long work waits for Chroma: as long as Chroma is away, and not for ever for what fails while it is there."""

from collections.abc import Iterator

import pytest
from likeness.common.v1 import error_pb2
from structlog.testing import capture_logs

from chassis.errors import LikenessError
from indexer import patience
from indexer.patience import patiently

# More than any number of failures that is given up after.
MANY = 30


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(patience, "_TRY_AGAIN_S", 0.0)
    with capture_logs():
        yield


class Work:
    """Fails so often, then is done; ``connected`` tells, failure by failure, whether Chroma was there."""

    def __init__(self, failures: list[bool], reason: error_pb2.Reason.ValueType) -> None:
        self.failures = failures
        self.reason = reason
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls > len(self.failures):
            return "done"
        raise LikenessError(self.reason, f"failure {self.calls}")

    def connected(self) -> bool:
        return self.failures[self.calls - 1]


UNAVAILABLE, FULL = error_pb2.REASON_STORE_UNAVAILABLE, error_pb2.REASON_STORE_FULL


@pytest.mark.parametrize("reason", [UNAVAILABLE, FULL])
async def test_as_long_as_chroma_is_away_it_is_waited_for(reason: error_pb2.Reason.ValueType) -> None:
    work = Work([False] * MANY, reason)
    assert await patiently(work, work.connected) == "done"


@pytest.mark.parametrize("reason", [UNAVAILABLE, FULL])
async def test_what_fails_again_and_again_while_chroma_is_there_is_given_up(
    reason: error_pb2.Reason.ValueType,
) -> None:
    work = Work([True] * MANY, reason)
    with pytest.raises(LikenessError, match="failure 5"):
        await patiently(work, work.connected)
    assert work.calls == 5


async def test_failures_before_and_after_chroma_was_away_do_not_count_together() -> None:
    work = Work([True] * 4 + [False] + [True] * 4, UNAVAILABLE)
    assert await patiently(work, work.connected) == "done"


async def test_without_knowing_whether_chroma_is_there_nothing_is_given_up() -> None:
    assert await patiently(Work([True] * MANY, UNAVAILABLE)) == "done"


async def test_what_no_waiting_helps_against_is_no_reason_to_wait() -> None:
    work = Work([False] * MANY, error_pb2.REASON_COLLECTION_NOT_FOUND)
    with pytest.raises(LikenessError, match="failure 1"):
        await patiently(work, work.connected)
