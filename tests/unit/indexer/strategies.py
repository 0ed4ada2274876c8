"""Metadata and filters for property tests: few keys and values, so that they meet, and the awkward ones among them."""

from hypothesis import strategies as st

from chassis.metadata import Plain
from indexer.filters import AllOf, AnyOf, Comparison, Kind, Node, NoneOf, Op, Scalar

KEYS = ("a", "b", "c")

_strings = st.sampled_from(["", "1", "true", "red", "Red", "blue", "\x00", "red\x00", "é", "𝄞", "\uffff"]) | st.text(
    st.characters(codec="utf-8"), max_size=3
)
_numbers = st.sampled_from(
    [0, -0.0, 1, 1.0, -1, 0.5, 1e300, -1e300, 5e-324, 2**53 - 1, 2**53, 2**53 + 1, 2.0**53, 2**63 - 1, -(2**63), 0.1]
) | st.integers(-3, 3)
_bools = st.booleans()

scalars: st.SearchStrategy[Scalar] = _strings | _numbers | _bools
lists = st.lists(_strings.filter(bool), min_size=1, max_size=4)
plain: st.SearchStrategy[Plain] = scalars | lists
metadata: st.SearchStrategy[dict[str, Plain]] = st.dictionaries(st.sampled_from(KEYS), plain, max_size=len(KEYS))

_OF_KIND: dict[Kind, st.SearchStrategy[Scalar]] = {Kind.STRING: _strings, Kind.NUMBER: _numbers, Kind.BOOL: _bools}


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    key, op = draw(st.sampled_from((*KEYS, "absent"))), draw(st.sampled_from(Op))
    match op:
        case Op.EXISTS:
            return Comparison(key, op, Kind.NONE, ())
        case Op.CONTAINS:
            return Comparison(key, op, Kind.STRING, (draw(_strings),))
        case Op.LT | Op.LE | Op.GT | Op.GE:
            return Comparison(key, op, Kind.NUMBER, (draw(_numbers),))
    kind = draw(st.sampled_from(list(_OF_KIND)))
    most = 1 if op in (Op.EQ, Op.NE) else 5
    return Comparison(key, op, kind, tuple(draw(st.lists(_OF_KIND[kind], min_size=1, max_size=most))))


def _grouped(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    several = st.lists(children, min_size=1, max_size=3).map(tuple)
    return st.one_of(several.map(AllOf), several.map(AnyOf), several.map(NoneOf))


nodes: st.SearchStrategy[Node] = st.recursive(comparisons(), _grouped, max_leaves=8)
