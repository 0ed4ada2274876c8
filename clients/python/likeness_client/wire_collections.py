"""Between collections and the gateway's messages of them."""

from datetime import UTC

from likeness.common.v1 import types_pb2
from likeness.gateway.v1 import gateway_pb2

from likeness_client.indexer.types import Alias, Collection, Metric
from likeness_client.reembedding import ReembedFailure
from likeness_client.rpc_errors import from_item_error
from likeness_client.wire import fingerprint_from_proto

_METRICS = {metric: types_pb2.Metric.Value(f"METRIC_{metric.name}") for metric in Metric}
_METRIC_OF = {number: metric for metric, number in _METRICS.items()}


def metric_to_proto(metric: Metric) -> types_pb2.Metric.ValueType:
    """How likeness is measured."""
    return _METRICS[metric]


def collection_from_proto(message: gateway_pb2.Collection) -> Collection:
    """A collection; how its index is made, the gateway does not tell."""
    return Collection(
        name=message.name,
        uid=message.uid,
        fingerprint=fingerprint_from_proto(message.fingerprint),
        metric=_METRIC_OF.get(message.metric, Metric.COSINE),
        description=message.description,
        aliases=tuple(message.aliases),
        count=message.count,
        create_time=message.create_time.ToDatetime(tzinfo=UTC) if message.HasField("create_time") else None,
    )


def alias_from_proto(message: gateway_pb2.Alias) -> Alias:
    """An alias."""
    return Alias(message.name, message.collection)


def failure_from_proto(message: gateway_pb2.ReembedFailure) -> ReembedFailure:
    """An item that could not be embedded anew."""
    return ReembedFailure(message.id, from_item_error(message.error))
