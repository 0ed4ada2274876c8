"""The command line ``likeness``. Exit codes: 0 found or done, 1 refused or failed, 2 wrong usage, 130 interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from likeness_client import defaults
from likeness_client.commands.aliases import alias_app
from likeness_client.commands.browse import count, facets, list_items
from likeness_client.commands.classify import classify, duplicates
from likeness_client.commands.collections import collections_app
from likeness_client.commands.index import index
from likeness_client.commands.items import delete, get
from likeness_client.commands.keys import keys_app
from likeness_client.commands.labels import label_app
from likeness_client.commands.metadata import metadata_app
from likeness_client.commands.options import Connection, Trust
from likeness_client.commands.reembed import reembed
from likeness_client.commands.search import search
from likeness_client.commands.status import status
from likeness_client.commands.transfer import export, import_items
from likeness_client.commands.upkeep import erase, rebuild, restore, snapshot_app

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
    indexer: Annotated[
        str,
        typer.Option("--indexer", metavar="ADDRESS", envvar=defaults.INDEXER_VARIABLE, help="The indexer's host:port."),
    ] = defaults.INDEXER_ADDRESS,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Longest wait for one answer.")
    ] = defaults.TIMEOUT_S,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            envvar="LIKENESS_API_KEY_FILE",
            help="File with the API key for the gateway, instead of $LIKENESS_API_KEY.",
        ),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Speak TLS, and believe the usual authorities.")] = False,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            "--tls-ca", metavar="FILE", envvar="LIKENESS_CLIENT_TLS_CA", help="Speak TLS, and believe these (PEM)."
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            "--tls-cert",
            metavar="FILE",
            envvar="LIKENESS_CLIENT_TLS_CERT",
            help="A certificate (PEM) to show, where clients have to have one.",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option("--tls-key", metavar="FILE", envvar="LIKENESS_CLIENT_TLS_KEY", help="The key (PEM) to it."),
    ] = None,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the release and exit.")
    ] = False,
) -> None:
    """Find pictures by likeness: take them in with index, find them with search."""
    context.obj = Connection(server, timeout, indexer, Trust(api_key_file, tls, tls_ca, tls_cert, tls_key))


PICTURES = "Pictures, through the gateway"
COLLECTIONS = "Collections, through the gateway (or, with --indexer, at the indexer)"
UPKEEP = "Files, backups and upkeep, at the indexer"


def _add(panel: str, *commands: Callable[..., None], name: str | None = None) -> None:
    for command in commands:
        app.command(name, rich_help_panel=panel)(command)


_add(PICTURES, index, search, get, delete, classify, duplicates, reembed, status)
app.add_typer(label_app, name="label", rich_help_panel=PICTURES)
app.add_typer(metadata_app, name="metadata", rich_help_panel=PICTURES)
app.add_typer(keys_app, name="keys", rich_help_panel=PICTURES)
_add(COLLECTIONS, list_items, name="list")
_add(COLLECTIONS, count, facets)
app.add_typer(collections_app, name="collections", rich_help_panel=COLLECTIONS)
app.add_typer(alias_app, name="alias", rich_help_panel=COLLECTIONS)
_add(UPKEEP, import_items, name="import")
_add(UPKEEP, export, restore, rebuild, erase)
app.add_typer(snapshot_app, name="snapshot", rich_help_panel=UPKEEP)
