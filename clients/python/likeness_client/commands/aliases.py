"""``likeness alias …``."""

from typing import Annotated

import typer

from likeness_client import render, render_indexer
from likeness_client.commands.options import (
    IndexerInstead,
    OutputFormat,
    Server,
    Timeout,
    connected_to_either,
    in_text,
)
from likeness_client.render import Format, plain

alias_app = typer.Typer(no_args_is_help=True, help="Other names of collections, which move at once for everybody.")

Name = Annotated[str, typer.Argument(metavar="ALIAS", help="The alias.", callback=in_text)]


@alias_app.command("set")
def set_alias(
    context: typer.Context,
    *,
    alias: Name,
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="What it is to stand for.", callback=in_text)],
    expected: Annotated[
        str | None,
        typer.Option(
            "--expected",
            metavar="COLLECTION",
            help="What it must stand for until now; '': nothing.",
            callback=in_text,
        ),
    ] = None,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    indexer: IndexerInstead = None,
    timeout: Timeout = None,
) -> None:
    """Make an alias, or move it to another collection, at once for everybody."""
    with connected_to_either(context, server, indexer, timeout) as client:
        previous = client.set_alias(alias, collection, expected=expected)
    if output_format is Format.JSON:
        render.show_json({"alias": alias, "collection": collection, "previous": previous})
        return
    before = f", no longer for {plain(previous)}" if previous not in ("", collection) else ""
    render.out().print(f"{plain(alias)} stands for {plain(collection)}{before}.")


@alias_app.command("delete")
def delete_alias(
    context: typer.Context,
    *,
    alias: Name,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    indexer: IndexerInstead = None,
    timeout: Timeout = None,
) -> None:
    """Delete an alias; its collection stays."""
    with connected_to_either(context, server, indexer, timeout) as client:
        collection = client.delete_alias(alias)
    if output_format is Format.JSON:
        render.show_json({"alias": alias, "collection": collection})
    else:
        render.out().print(f"Deleted alias {plain(alias)}, which stood for {plain(collection)}.")


@alias_app.command("list")
def list_aliases(
    context: typer.Context,
    *,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    indexer: IndexerInstead = None,
    timeout: Timeout = None,
) -> None:
    """List the aliases."""
    with connected_to_either(context, server, indexer, timeout) as client:
        found = client.aliases()
    if output_format is Format.JSON:
        render.show_json({"aliases": [{"name": alias.name, "collection": alias.collection} for alias in found]})
    else:
        render_indexer.show_aliases(found)
