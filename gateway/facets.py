"""Counts by metadata value: between what clients see and what the indexer tells."""

from collections.abc import Sequence

from likeness.gateway.v1 import gateway_pb2
from likeness.indexer.v1 import indexer_pb2


def wanted(facets: Sequence[gateway_pb2.FacetRequest]) -> list[indexer_pb2.FacetRequest]:
    """What the indexer is asked; it checks keys and limits, under the same field names."""
    return [indexer_pb2.FacetRequest(key=facet.key, limit=facet.limit) for facet in facets]


def shown(facets: Sequence[indexer_pb2.Facet]) -> list[gateway_pb2.Facet]:
    """What the client gets."""
    return [
        gateway_pb2.Facet(
            key=facet.key,
            values=[gateway_pb2.FacetValue(value=each.value, count=each.count) for each in facet.values],
            distinct=facet.distinct,
            missing=facet.missing,
        )
        for facet in facets
    ]
