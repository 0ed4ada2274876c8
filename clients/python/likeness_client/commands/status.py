"""``likeness status``."""

import typer

from likeness_client import render
from likeness_client.commands.options import OutputFormat, Server, Timeout, connected
from likeness_client.render import Format


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
