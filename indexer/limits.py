"""The most that a request may ask for, as ``GetStatus`` publishes it; each limit is where it is checked."""

from likeness.indexer.v1 import indexer_pb2

from chassis import metadata, names
from indexer import filters, item_messages, messages, query_messages

MESSAGE_BYTES = 64 * 2**20


def limits(message_bytes: int) -> indexer_pb2.Limits:
    """All of them; ``message_bytes``: of a message, LIKENESS_MAX_MESSAGE_MB."""
    return indexer_pb2.Limits(
        dimension=messages.MAX_DIMENSION,
        message_bytes=message_bytes,
        batch=item_messages.MAX_ITEMS,
        id_bytes=names.MAX_ID_BYTES,
        metadata_keys=metadata.MAX_KEYS,
        metadata_key_bytes=metadata.MAX_KEY_BYTES,
        metadata_bytes=metadata.MAX_BYTES,
        queries=query_messages.MAX_QUERIES,
        examples=query_messages.MAX_EXAMPLES,
        top_k=query_messages.MAX_TOP_K,
        hits=query_messages.MAX_HITS,
        candidates=query_messages.MAX_CANDIDATES,
        filter_depth=filters.MAX_DEPTH,
        filter_nodes=filters.MAX_NODES,
        filter_values=filters.MAX_VALUES,
        facets=messages.MAX_FACETS,
        page_size=messages.MAX_PAGE,
    )
