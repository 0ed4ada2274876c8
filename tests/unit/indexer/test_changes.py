"""What of a chunk has to be written."""

import numpy as np
import pytest

from chassis.metadata import Plain
from chassis.vectors import Array
from indexer.changes import compare
from indexer.collections import Metric
from indexer.reads import Item

VECTOR = np.array([1e6, 0.5, 0.0], np.float32)


@pytest.mark.parametrize("metric", Metric)
def test_a_small_number_beside_a_large_one_is_written_when_it_changes(metric: Metric) -> None:
    moved = np.array([1e6, 1.0, 0.0], np.float32)
    changes = compare([Item("a", moved)], {"a": (VECTOR, {})}, metric)
    assert [move.item.id for move in changes.moved] == ["a"]


@pytest.mark.parametrize("metric", Metric)
def test_what_is_stored_already_is_not_written_again(metric: Metric) -> None:
    assert not compare([Item("a", VECTOR, {"n": 1})], {"a": (VECTOR, {"n": 1})}, metric).items


def test_the_last_digit_counts_except_for_the_cosine() -> None:
    rounded = np.nextafter(VECTOR, np.float32(0), dtype=np.float32)
    stored: dict[str, tuple[Array, dict[str, Plain]]] = {"a": (rounded, {})}
    assert not compare([Item("a", VECTOR)], stored, Metric.COSINE).items
    assert len(compare([Item("a", VECTOR)], stored, Metric.L2).moved) == 1


def test_other_metadata_alone_leaves_the_vector() -> None:
    changes = compare([Item("a", VECTOR, {"n": 1.0})], {"a": (VECTOR, {"n": 1})}, Metric.L2)
    assert ([item.id for item in changes.relabelled], changes.moved) == (["a"], [])
