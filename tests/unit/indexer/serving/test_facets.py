import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chassis.metadata import Plain
from indexer.reads import Facet
from indexer.serving.columns import Columns
from indexer.serving.facets import facets
from tests.unit.indexer import model, strategies

items = st.lists(st.tuples(strategies.metadata, st.booleans()), max_size=40)


def counted(metadata: list[dict[str, Plain]], alive: list[bool], wanted: dict[str, int]) -> list[Facet]:
    columns = Columns()
    columns.extend(0, metadata)
    columns.extend(len(metadata), [{"a": "not in the view"}])
    return facets(columns, np.array(alive, np.bool_), wanted)


@given(items, st.dictionaries(st.sampled_from((*strategies.KEYS, "absent")), st.integers(1, 6), min_size=1))
def test_values_are_counted_as_the_contract_says(
    rows: list[tuple[dict[str, Plain], bool]], wanted: dict[str, int]
) -> None:
    found = counted([metadata for metadata, _ in rows], [alive for _, alive in rows], wanted)
    assert [repr(facet) for facet in found] == [
        repr(facet) for facet in model.facets([metadata for metadata, alive in rows if alive], wanted)
    ]


def test_a_text_of_a_list_counts_as_a_string_and_once_for_an_item() -> None:
    metadata: list[dict[str, Plain]] = [{"a": ["x", "y", "x"]}, {"a": "x"}, {"a": ["y"]}, {"a": 1}, {}, {"a": True}]
    (facet,) = counted(metadata, [True] * 6, {"a": 10})
    assert repr(facet) == repr(Facet("a", [("x", 2), ("y", 2), (1, 1), (True, 1)], 4, 1))


def test_whole_numbers_come_back_as_such_below_two_to_the_53rd() -> None:
    (facet,) = counted([{"a": n} for n in (1.0, 2**53, 2**53 - 1, -0.0, 0.5)], [True] * 5, {"a": 5})
    assert repr([value for value, _ in facet.values]) == repr([0, 0.5, 1, 2**53 - 1, float(2**53)])


def test_of_very_many_values_the_first_are_given() -> None:
    metadata: list[dict[str, Plain]] = [{"a": f"{(i * 7919) % 50_000:05}"} for i in range(50_000)]
    metadata += [{"a": "twice"}, {"a": "twice"}]
    (facet,) = counted(metadata, [True] * 50_002, {"a": 4})
    assert facet == Facet("a", [("twice", 2), ("00000", 1), ("00001", 1), ("00002", 1)], 50_001, 0)
