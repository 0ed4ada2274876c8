"""``likeness get`` and ``likeness delete``."""

from typing import Annotated

import typer

from likeness_client import defaults, render
from likeness_client.commands.options import Collection, OutputFormat, Server, Timeout, connected
from likeness_client.render import Format

Ids = Annotated[list[str], typer.Argument(metavar="ID", help="Ids of stored pictures.")]


def get(
    context: typer.Context,
    *,
    ids: Ids,
    collection: Collection = defaults.COLLECTION,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Show what is known of stored pictures."""
    with connected(context, server, timeout) as client:
        result = client.get(ids, collection=collection)
    if output_format is Format.JSON:
        render.show_json(render.items_as_json(result))
    else:
        render.show_items(result)
    for missing in result.missing_ids:
        render.err().print(f"No picture of id {render.plain(missing)} in collection {render.plain(collection)}.")
    if result.missing_ids:
        raise typer.Exit(1)


def delete(
    context: typer.Context,
    *,
    ids: Ids,
    collection: Collection = defaults.COLLECTION,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Delete stored pictures. Unknown ids are no error."""
    wanted = list(dict.fromkeys(ids))
    with connected(context, server, timeout) as client:
        deleted = client.delete(wanted, collection=collection)
    if output_format is Format.JSON:
        render.show_json({"deleted": deleted, "unknown": len(wanted) - deleted})
        return
    unknown = f"; {len(wanted) - deleted} of the ids were not there" if deleted < len(wanted) else ""
    render.out().print(f"Deleted {deleted} from collection {render.plain(collection)}{unknown}.")
