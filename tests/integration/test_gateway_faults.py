"""What is behind the gateway fails in every way, under load: typed answers, nothing lost, nothing stuck, memory flat.

``make chaos ARGS="--only gateway"`` has more rounds.
"""

from collections.abc import Iterator

import pytest

from tests.chaos.gateway import Harm, rig, suffer
from tests.chaos.gateway_rig import Rig

SEED, LONGEST_S = 6, 1.5
HARMS = [
    Harm("kill", "embedder"),
    Harm("refuse", "indexer"),
    Harm("silence", "embedder"),
    Harm("delay", "all"),
    Harm("tear", "all"),
    Harm("kill", "chroma"),
    Harm("kill", "indexer"),
]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("faults")
    with rig(folder, folder / "logs") as started:
        yield started


@pytest.mark.timeout(400)
def test_whatever_fails_behind_the_gateway_is_told_and_nothing_acknowledged_is_lost(started: Rig) -> None:
    written = 0
    for outcome in suffer(started, HARMS, SEED, LONGEST_S):
        assert not outcome.violations, (outcome.name, outcome.note, outcome.violations[:5])
        written += outcome.written
    assert written > 100
