"""How the items of an ingest are taken: the caller's options, checked."""

import math
from dataclasses import dataclass

from likeness.common.v1.types_pb2 import METRIC_COSINE, Metric
from likeness.gateway.v1 import gateway_pb2

from chassis.errors import invalid


@dataclass(frozen=True)
class Options:
    """How items are taken.

    Attributes:
        skip_existing: an item whose id is there is skipped.
        skip_exact: an item is skipped whose picture, by its SHA-256, is there under another id.
        near: an item is skipped to which another one has at least this score; None: not compared.
        keep_originals: the bytes of encoded pictures are kept.
        thumbnails: thumbnails are made.
    """

    skip_existing: bool = False
    skip_exact: bool = False
    near: float | None = None
    keep_originals: bool = False
    thumbnails: bool = True


def read_options(
    message: gateway_pb2.IngestOptions, metric: Metric.ValueType, field: str, *, thumbnails: bool
) -> Options:
    """The options that a request brings.

    Args:
        message: them; unset: the empty message.
        metric: the collection's, which says what a score can be.
        field: where they stand in the request.
        thumbnails: whether this gateway makes any.

    Raises:
        LikenessError: FIELD_INVALID.
    """
    if message.existing not in gateway_pb2.ExistingPolicy.values():
        raise invalid(f"{field}.existing", f"{message.existing}; expected a value of ExistingPolicy")
    near = message.skip_near_duplicates if message.HasField("skip_near_duplicates") else None
    if near is not None:
        if not math.isfinite(near):
            raise invalid(f"{field}.skip_near_duplicates", f"{near}; expected a number")
        if metric == METRIC_COSINE and not -1 <= near <= 1:
            raise invalid(f"{field}.skip_near_duplicates", f"{near:g}; expected a cosine, −1 to 1, such as 0.97")
    return Options(
        skip_existing=message.existing == gateway_pb2.EXISTING_POLICY_SKIP,
        skip_exact=message.skip_exact_duplicates,
        near=near,
        keep_originals=message.keep_originals,
        thumbnails=thumbnails and not message.no_thumbnails,
    )
