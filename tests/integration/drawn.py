"""What hypothesis draws for an indexer: ids, vectors, metadata, filters."""

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from likeness.common.v1 import metadata_pb2

from chassis import metadata
from chassis.metadata import Plain

DIMENSION = 6
IDS = [f"item-{n}" for n in range(30)]
KEYS = ["size", "name", "mixed", "tags"]
METRICS = ["COSINE", "L2", "INNER_PRODUCT"]


@dataclass(frozen=True)
class Asked:
    """A query.

    Attributes:
        examples: vectors or ids, with their weights; None: none is given.
        where: its filter.
        top_k: most hits.
        offset: hits to leave out.
        rescore: metric; empty: none.
        min_score: least score.
        exact: whether every item is to be compared, where that is allowed.
    """

    examples: list[tuple[list[int] | str, float | None]]
    where: metadata_pb2.Filter | None
    top_k: int
    offset: int
    rescore: str
    min_score: float | None
    exact: bool


words = st.sampled_from(["", "a", "b", "ä", "🐈", "a long one"])
numbers = st.one_of(
    st.integers(-3, 3), st.sampled_from([-0.5, 0.5, 1.0, 1.5, 1e300]), st.sampled_from([2**53, -(10**15)])
)
plain_values: st.SearchStrategy[Plain] = st.one_of(
    words, numbers, st.booleans(), st.lists(words.filter(bool), min_size=1, max_size=3)
)
metadatas = st.fixed_dictionaries(
    {},
    optional={
        "size": numbers,
        "name": words,
        "mixed": plain_values,
        "tags": st.lists(words.filter(bool), min_size=1, max_size=4),
    },
)
vectors = st.lists(st.integers(-8, 8), min_size=DIMENSION, max_size=DIMENSION).filter(any)
ids = st.sampled_from(IDS)


@st.composite
def comparisons(draw: st.DrawFn) -> metadata_pb2.Filter:
    found = metadata_pb2.Filter()
    c = found.comparison
    c.key = draw(st.sampled_from([*KEYS, "absent"]))
    name = draw(st.sampled_from(["EQ", "NE", "LT", "LE", "GT", "GE", "IN", "NOT_IN", "EXISTS", "CONTAINS"]))
    c.op = metadata_pb2.Operator.Value(f"OPERATOR_{name}")
    if name in ("LT", "LE", "GT", "GE"):
        given: list[Any] = [draw(numbers)]
    elif name == "CONTAINS":
        given = [draw(words)]
    elif name == "EXISTS":
        given = []
    else:
        of_one_kind = draw(st.sampled_from([words, numbers, st.booleans()]))
        given = draw(st.lists(of_one_kind, min_size=1, max_size=3 if "IN" in name else 1))
    for each in given:
        c.values.append(metadata.to_proto({"v": each}).fields["v"])
    return found


def _group(children: list[metadata_pb2.Filter], name: str) -> metadata_pb2.Filter:
    found = metadata_pb2.Filter()
    getattr(found, name).filters.extend(children)
    return found


trees = st.recursive(
    comparisons(),
    lambda inner: st.builds(
        _group, st.lists(inner, min_size=1, max_size=3), st.sampled_from(["all_of", "any_of", "none_of"])
    ),
    max_leaves=5,
)
wheres = st.none() | trees

_weights = st.sampled_from([None, 1.0, 2.0, -0.5, -1.0])
_alone: st.SearchStrategy[list[tuple[Any, Any]]] = st.tuples(vectors, st.none()).map(lambda example: [example])
_several: st.SearchStrategy[list[tuple[Any, Any]]] = st.lists(
    st.tuples(vectors | ids, _weights), min_size=1, max_size=3
)
asked = st.builds(
    Asked,
    examples=_alone | _several,
    where=wheres,
    top_k=st.integers(1, 12),
    offset=st.integers(0, 4),
    rescore=st.just("") | st.just("") | st.sampled_from([*METRICS, "L1", "CORRELATION"]),
    min_score=st.none() | st.sampled_from([-4.5, 0.15]),
    exact=st.sampled_from([False, False, False, True]),
)
