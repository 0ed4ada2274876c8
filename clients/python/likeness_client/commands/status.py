"""``likeness status`` and ``likeness collections``."""

import typer

from likeness_client import render
from likeness_client.commands.options import OutputFormat, Server, Timeout, connected
from likeness_client.render import Format
from likeness_client.status import Status


def status(
    context: typer.Context,
    *,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Show the services, the model and the collections. Exit code 1 if a service is down."""
    with connected(context, server, timeout) as client:
        state, address = client.status(), client.address
    if output_format is Format.JSON:
        render.show_json(render.status_as_json(state))
    else:
        render.show_status(state, address)
    if not state.serving:
        raise typer.Exit(1)


def collections(
    context: typer.Context,
    *,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """List the collections."""
    with connected(context, server, timeout) as client:
        state = client.status()
    unknown = _indexer_is_down(state)
    if unknown:
        render.err().print(f"The collections are unknown: the indexer is down ({render.plain(unknown)}).")
        raise typer.Exit(1)
    if output_format is Format.JSON:
        render.show_json(render.collections_as_json(state))
    else:
        render.show_collections(state)


def _indexer_is_down(state: Status) -> str:
    """Why, or nothing if it is up."""
    down = [service for service in state.services if service.name == "indexer" and not service.serving]
    return str(down[0].error or "it does not answer") if down else ""
