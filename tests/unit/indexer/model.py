"""What the contract says of filters, facets and orders, in plain Python: slow, and easily seen to be right."""

from collections import Counter
from collections.abc import Iterable, Mapping

from chassis.metadata import Plain
from indexer.filters import AllOf, AnyOf, Comparison, Kind, Node, NoneOf, Op, Scalar
from indexer.reads import After, Facet, Listing

Metadata = Mapping[str, Plain]

_KIND_ORDER = (Kind.NUMBER, Kind.STRING, Kind.BOOL)


def kind_of(value: Plain | None) -> Kind:
    """NONE for what equals nothing: an absent key, a list."""
    if isinstance(value, bool):
        return Kind.BOOL
    if isinstance(value, str):
        return Kind.STRING
    return Kind.NUMBER if isinstance(value, int | float) else Kind.NONE


def true_for(node: Node | None, metadata: Metadata) -> bool:
    match node:
        case None:
            return True
        case AllOf(children):
            return all(true_for(child, metadata) for child in children)
        case AnyOf(children):
            return any(true_for(child, metadata) for child in children)
        case NoneOf(children):
            return not any(true_for(child, metadata) for child in children)
        case Comparison():
            return _compared(node, metadata.get(node.key))


def facets(items: Iterable[Metadata], wanted: Mapping[str, int]) -> list[Facet]:
    counted = list(items)
    return [_facet(counted, key, limit) for key, limit in wanted.items()]


def ordered(items: Mapping[str, Metadata], order_by: str = "", descending: bool = False) -> list[str]:
    """The ids of items by id → metadata, in the order of a listing."""
    ids = sorted(items)
    if not order_by:
        return ids[::-1] if descending else ids
    found: list[str] = []
    for kind in _KIND_ORDER:
        of_kind = [item_id for item_id in ids if kind_of(items[item_id].get(order_by)) is kind]
        found += sorted(of_kind, key=lambda item_id: _comparable(items[item_id][order_by]), reverse=descending)
    return found + [item_id for item_id in ids if kind_of(items[item_id].get(order_by)) is Kind.NONE]


def page(items: Mapping[str, Metadata], listing: Listing) -> tuple[list[str], After | None]:
    """A page of the items for which the filter is true, where the page before ended at an item that is still there."""
    there = {item_id: metadata for item_id, metadata in items.items() if true_for(listing.where, metadata)}
    ids = ordered(there, listing.order_by, listing.descending)
    begin = 0 if listing.after is None else ids.index(listing.after.id) + 1
    found = ids[begin : begin + listing.size]
    if begin + listing.size >= len(ids):
        return found, None
    value = there[found[-1]].get(listing.order_by)
    return found, After(found[-1], None if value is None or isinstance(value, list) else _comparable(value))


def _compared(node: Comparison, value: Plain | None) -> bool:
    match node.op:
        case Op.EXISTS:
            return value is not None and value != []
        case Op.CONTAINS:
            return isinstance(value, list) and node.values[0] in value
        case Op.EQ | Op.IN:
            return any(_equal(node.kind, value, wanted) for wanted in node.values)
        case Op.NE | Op.NOT_IN:
            return not any(_equal(node.kind, value, wanted) for wanted in node.values)
        case _:
            return kind_of(value) is Kind.NUMBER and _in_range(node.op, float(value), float(node.values[0]))  # type: ignore[arg-type]


def _equal(kind: Kind, value: Plain | None, wanted: Scalar) -> bool:
    return value is not None and kind_of(value) is kind and _comparable(value) == _comparable(wanted)


def _in_range(op: Op, value: float, limit: float) -> bool:
    return {Op.LT: value < limit, Op.LE: value <= limit, Op.GT: value > limit, Op.GE: value >= limit}[op]


def _comparable(value: Plain) -> str | float | bool:
    """Numbers as float: the contract tells them apart up to 2^53."""
    assert not isinstance(value, list)
    return float(value) if kind_of(value) is Kind.NUMBER else value


def _facet(items: list[Metadata], key: str, limit: int) -> Facet:
    counts: Counter[tuple[int, str | float | bool]] = Counter()
    missing = 0
    for metadata in items:
        value = metadata.get(key)
        if value is None or value == []:
            missing += 1
        elif isinstance(value, list):
            counts.update({(_KIND_ORDER.index(Kind.STRING), text) for text in value})
        else:
            counts[_KIND_ORDER.index(kind_of(value)), _comparable(value)] += 1
    frequent = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return Facet(key, [(_given(value), count) for (_, value), count in frequent[:limit]], len(counts), missing)


def _given(value: Scalar) -> Scalar:
    """A number as the contract gives it back: int_value where it is whole and below 2^53."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
