"""How often each value of a metadata key occurs."""

from dataclasses import dataclass

from likeness_client.filters import Value


@dataclass(frozen=True)
class FacetValue:
    """A value of a metadata key, and how many items have it."""

    value: Value
    count: int


@dataclass(frozen=True)
class Facet:
    """The values of one key.

    Attributes:
        key: the metadata key.
        values: the most frequent first.
        distinct: different values there are, given or not.
        missing: items that lack the key.
    """

    key: str
    values: tuple[FacetValue, ...]
    distinct: int
    missing: int


@dataclass(frozen=True)
class Facets:
    """How many items were counted, and a facet for each key asked for."""

    count: int
    facets: tuple[Facet, ...]
