import pytest

from indexer import stamps
from indexer.stamps import Stamps


def test_stamps_grow_and_follow_the_time() -> None:
    before = stamps.now()
    given = Stamps(None)
    found = [given.next() for _ in range(1000)]
    assert found == sorted(set(found))
    assert before <= found[0]
    assert given.last == found[-1]
    assert found[0] <= stamps.now()


def test_stamps_go_on_from_the_greatest_where_the_clock_was_set_back() -> None:
    tomorrow = stamps.now() + 86_400_000_000
    given = Stamps(tomorrow)
    assert given.last == tomorrow
    assert [given.next(), given.next()] == [tomorrow + 1, tomorrow + 2]


def test_stamps_grow_while_the_clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "now", lambda: 1000)
    given = Stamps(None)
    assert [given.next() for _ in range(3)] == [1000, 1001, 1002]
