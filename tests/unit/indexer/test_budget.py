"""When collections in memory may stay, and when clearing dead rows away would be of no lasting use."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from indexer.budget import Budget


@pytest.mark.parametrize(
    ("live", "dead", "more", "room"),
    [
        (1000, 0, 0, True),  # full, and nothing has to be cleared away: a start, a reader
        (990, 0, 10, True),
        (990, 0, 11, False),
        (930, 100, 0, True),
        (930, 100, 8, True),
        (930, 100, 9, False),  # less than a sixteenth would be free: there would be the next one at once
        (1001, 0, 0, False),
    ],
)
def test_dead_rows_are_cleared_away_where_that_leaves_room(live: int, dead: int, more: int, room: bool) -> None:
    served = SimpleNamespace(nbytes=live + dead, live_nbytes=live, maintenance=None, serving=object())
    assert Budget(1000, cast(Any, {"uid": served})).make_room(more) is room
