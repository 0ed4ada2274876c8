"""Which pictures a command is about: some by id, those for which a condition is true, or all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from likeness_client import render
from likeness_client.commands.options import condition, require_text, wrong_usage
from likeness_client.render import plain

if TYPE_CHECKING:
    from likeness_client.filters import Filter

Ids = Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="This picture; may be given often.")]
All = Annotated[bool, typer.Option("--all", help="All pictures of the collection.")]


@dataclass(frozen=True)
class Which:
    """The pictures: exactly one of ``ids``, ``where`` and ``all_items`` says which."""

    ids: Sequence[str] | None
    where: "Filter | None"
    all_items: bool
    collection: str


def which_items(ids: Sequence[str] | None, where: str | None, all_items: bool, collection: str) -> Which:
    """What the options say; anything but one of them is wrong usage."""
    if (ids is not None) + (where is not None) + all_items != 1:
        wrong_usage("Say of which pictures, in one way: --id ID, --where CONDITION or --all.")
    require_text(ids)
    return Which(None if ids is None else list(dict.fromkeys(ids)), condition(where), all_items, collection)


def tell_missing(ids: Sequence[str], which: Which) -> None:
    """Tells which ids are not there; then the exit code is 1."""
    for item_id in ids:
        render.err().print(f"No picture of id {plain(item_id)} in collection {plain(which.collection)}.")
    if ids:
        raise typer.Exit(1)
