"""``likeness get`` and ``likeness delete``."""

from typing import Annotated

import typer

from likeness_client import defaults, render
from likeness_client.commands.options import (
    Collection,
    OutputFormat,
    Server,
    Timeout,
    condition,
    confirm,
    connected,
    require_text,
    wrong_usage,
)
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
    require_text(ids)
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
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of stored pictures.")] = None,
    where: Annotated[
        str | None,
        typer.Option(
            "--where", metavar="CONDITION", help="All for which it is true, instead; see `likeness search --help`."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before --where deletes.")] = False,
    collection: Collection = defaults.COLLECTION,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Delete stored pictures, by id or (asking first) by a condition. Unknown ids are no error."""
    if bool(ids) == (where is not None):
        wrong_usage("Say what to delete, in one way: ID... or --where CONDITION.")
    require_text(ids)
    wanted, only = list(dict.fromkeys(ids or [])), condition(where)
    with connected(context, server, timeout) as client:
        if only is not None:
            if not yes:
                count = client.count(where=only, collection=collection)
                question = f"Delete {render.counted(count, 'picture')} from collection {render.plain(collection)}?"
                confirm(question)
            deleted = client.delete(where=only, collection=collection)
        else:
            deleted = client.delete(wanted, collection=collection)
    unknown = 0 if only is not None else len(wanted) - deleted
    if output_format is Format.JSON:
        render.show_json({"deleted": deleted, "unknown": unknown})
        return
    rest = f"; {unknown} of the ids were not there" if unknown else ""
    render.out().print(f"Deleted {deleted} from collection {render.plain(collection)}{rest}.")
