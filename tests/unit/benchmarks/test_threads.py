"""Callers in threads."""

import threading

import numpy as np

from benchmarks.indexer import data
from benchmarks.indexer.threads import closed, measured


def test_as_many_callers_as_asked_for_are_under_way_at_once() -> None:
    callers, all_there = set(), threading.Event()

    def send() -> None:
        callers.add(threading.get_ident())
        if len(callers) == 4:
            all_there.set()
        assert all_there.wait(10)

    answer = closed(send, 4, 0, 0.2)
    assert len(callers) == 4
    assert not answer["failed"]
    assert answer["items"] > 0


def test_a_failure_is_counted_and_told() -> None:
    def fail() -> None:
        raise ValueError("no")

    answer = closed(fail, 2, 0, 0.05)
    assert answer["items"] == 0
    assert answer["failed"] >= 2
    assert answer["error"] == "ValueError: no"


def test_each_call_has_other_vectors_and_another_limit() -> None:
    asked: list[tuple[int, float]] = []

    def search(vectors: data.Array, where: data.Where | None) -> None:
        assert where is not None
        asked.append((int(vectors[0, 0]), where[1]))

    pool = np.arange(64, dtype=np.float32)[:, None]
    request = {"batch": 4, "where": ["n", 100.0], "concurrency": 1, "ramp_s": 0, "seconds": 0.02}
    answer = measured(search, pool, request)
    assert answer["per_s"] > 0
    assert [first for first, _ in asked[:3]] == [0, 4, 8]
    limits = [limit for _, limit in asked]
    assert len(set(limits)) == len(limits)
    assert max(limits) < 101
