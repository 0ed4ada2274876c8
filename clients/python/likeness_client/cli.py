"""The command line ``likeness``. Exit codes: 0 found or done, 1 refused or failed, 2 wrong usage."""

from typing import Annotated

import typer

from likeness_client import defaults
from likeness_client.commands.index import index
from likeness_client.commands.items import delete, get
from likeness_client.commands.options import Connection
from likeness_client.commands.search import search
from likeness_client.commands.status import collections, status

app = typer.Typer(
    name="likeness",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415  # 60 ms that no other use needs

        typer.echo(f"likeness {version('likeness')}")
        raise typer.Exit


@app.callback()
def likeness(
    context: typer.Context,
    *,
    server: Annotated[
        str,
        typer.Option("--server", metavar="ADDRESS", envvar=defaults.ADDRESS_VARIABLE, help="The gateway's host:port."),
    ] = defaults.ADDRESS,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Longest wait for one answer.")
    ] = defaults.TIMEOUT_S,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the release and exit.")
    ] = False,
) -> None:
    """Find pictures by likeness: take them in with index, find them with search."""
    context.obj = Connection(server, timeout)


for command in (index, search, get, delete, collections, status):
    app.command()(command)


def main() -> None:
    """Runs the command line."""
    app()
