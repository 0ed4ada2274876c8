"""``likeness keys``."""

import hashlib
import re
import secrets
from enum import StrEnum
from typing import Annotated

import typer

from likeness_client import render
from likeness_client.commands.options import OutputFormat, wrong_usage
from likeness_client.render import Format

keys_app = typer.Typer(no_args_is_help=True, help="Make API keys for a gateway.")

# As the gateway's file takes it.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Scope(StrEnum):
    """What a key may do; each includes those before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@keys_app.callback()
def keys() -> None:
    """Make API keys for a gateway."""


@keys_app.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is: for the gateway's log and metrics.")],
    *,
    scope: Annotated[
        Scope, typer.Option("--scope", help="What it may do: read; write: pictures and labels too; admin: all.")
    ] = Scope.READ,
    output_format: OutputFormat = Format.TABLE,
) -> None:
    """Make a random key, and the entry for the gateway's file of keys, which holds no more than its hash.

    The entry goes to standard output, as in `likeness keys new web >> keys.toml`, the key to standard error. Nothing is
    sent or kept: put the key where its client reads LIKENESS_API_KEY or --api-key-file. The gateway reads the file that
    LIKENESS_API_KEYS_FILE names again by itself.
    """
    if not _NAME.fullmatch(name):
        wrong_usage("A key's name has 1 to 64 letters, digits, dots, underscores and hyphens, a letter or digit first.")
    key = f"lk_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    entry = f'[[key]]\nname = "{name}"\nsha256 = "{digest}"\nscopes = ["{scope.value}"]'
    if output_format is Format.JSON:
        render.show_json({"name": name, "key": key, "sha256": digest, "scopes": [scope.value], "entry": entry})
        return
    typer.echo(f"The key, shown this once: {key}", err=True)
    typer.echo(entry)
