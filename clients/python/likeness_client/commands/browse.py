"""``likeness list``, ``count`` and ``facets``."""

from itertools import islice
from typing import Annotated

import typer

from likeness_client import defaults, render, render_indexer
from likeness_client.commands.options import (
    Collection,
    IndexerInstead,
    OutputFormat,
    Server,
    ShownIds,
    Timeout,
    Where,
    condition,
    connected_to_either,
    in_text,
    require_text,
)
from likeness_client.render import Format, Ids


def list_items(
    context: typer.Context,
    *,
    where: Where = None,
    order_by: Annotated[
        str, typer.Option("--order-by", metavar="KEY", help="By this metadata key; not named: by id.", callback=in_text)
    ] = "",
    descending: Annotated[bool, typer.Option("--descending", help="From the greatest to the least.")] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Most items.")] = 100,
    collection: Collection = defaults.COLLECTION,
    ids: ShownIds = Ids.SHORT,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    indexer: IndexerInstead = None,
    timeout: Timeout = None,
) -> None:
    """List items with what is known of them, in an order."""
    only = condition(where)
    with connected_to_either(context, server, indexer, timeout) as client:
        listed = client.items(
            collection=collection,
            where=only,
            order_by=order_by,
            descending=descending,
            page_size=min(limit + 1, 1000),
        )
        # One more than is shown tells whether there is more.
        found: list[render_indexer.AnyItem] = list(islice(listed, limit + 1))
    shown, more = found[:limit], len(found) > limit
    if output_format is Format.JSON:
        render.show_json(render_indexer.items_as_json(shown, more))
    else:
        render_indexer.show_items(shown, more, ids)


def count(
    context: typer.Context,
    *,
    where: Where = None,
    collection: Collection = defaults.COLLECTION,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    indexer: IndexerInstead = None,
    timeout: Timeout = None,
) -> None:
    """Count the items of a collection, or those that a condition leaves."""
    only = condition(where)
    with connected_to_either(context, server, indexer, timeout) as client:
        counted = client.count(collection=collection, where=only)
    if output_format is Format.JSON:
        render.show_json({"count": counted})
    else:
        render.out().print(str(counted))


def facets(
    context: typer.Context,
    *,
    keys: Annotated[list[str], typer.Argument(metavar="KEY", help="Metadata keys, 1 to 32.")],
    where: Where = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=1000, help="Most values of a key.")] = 10,
    collection: Collection = defaults.COLLECTION,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    indexer: IndexerInstead = None,
    timeout: Timeout = None,
) -> None:
    """Count items by the values of their metadata, the most frequent first."""
    require_text(keys)
    only = condition(where)
    with connected_to_either(context, server, indexer, timeout) as client:
        counted = client.facets(keys=keys, collection=collection, where=only, limit=limit)
    if output_format is Format.JSON:
        render.show_json(render_indexer.facets_as_json(counted))
    else:
        render_indexer.show_facets(counted)
