"""What is behind the gateway fails in every way, under load, and so do its clients' networks: typed answers, nothing
lost, nothing stuck, memory flat.

``make chaos ARGS="--only gateway"`` has more rounds.
"""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.chaos.gateway import expected, rig, suffer
from tests.chaos.gateway_rig import Harm, Rig

SEED, LONGEST_S = 6, 1.0
HARMS = [
    Harm("kill", "embedder"),
    Harm("refuse", "indexer"),
    Harm("silence", "embedder"),
    Harm("delay", "all"),
    Harm("tear", "all"),
    Harm("tear", "client"),
    Harm("silence", "client"),
    Harm("kill", "chroma"),
    Harm("kill", "indexer"),
]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("faults")
    with rig(folder, folder / "logs") as started:
        yield started


def test_whatever_fails_around_the_gateway_is_told_and_what_it_acknowledged_stays_so(started: Rig) -> None:
    written, done = 0, Counter[str]()
    for harm, outcome in zip(HARMS, suffer(started, HARMS, SEED, LONGEST_S), strict=True):
        assert not outcome.violations, (outcome.name, outcome.note, outcome.violations[:5])
        assert outcome.hits > 0, f"{harm} hit nothing"
        assert outcome.touched > 0, f"no call was there to suffer from {harm}"
        if certain := expected(harm):
            assert certain & set(outcome.failures), f"{harm}: callers who wait for less saw {outcome.failures}"
        written += outcome.written
        done += outcome.done
    assert written > 100
    for what in ("search", "web search", "web index batch", "ingest", "batch", "classify", "duplicates"):
        assert done[what] > 0, f"no {what} was answered in any round"
    for what in ("look at edits", "delete", "look for deleted"):
        assert done[what] > 0, f"no {what} was answered in any round"
