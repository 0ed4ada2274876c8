"""``likeness metadata …``: what is known of pictures."""

import json
import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from likeness_client import defaults, render
from likeness_client.commands.options import (
    INTERRUPTED,
    Collection,
    OutputFormat,
    Server,
    Timeout,
    Where,
    connected,
    wrong_usage,
)
from likeness_client.commands.which import All, Ids, Which, missing, which_items
from likeness_client.items import MetadataUpdated, MetadataValue
from likeness_client.progress import WorkProgress
from likeness_client.render import Format, plain

if TYPE_CHECKING:
    from likeness_client.client import Client

metadata_app = typer.Typer(no_args_is_help=True, help="Change what is known of stored pictures.")

_PAGE = 1000


@metadata_app.command("set")
def set_metadata(
    context: typer.Context,
    *,
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...",
            help='A number, true, false, a list such as ["a", "b"], or a text; between double quotes always a text.',
        ),
    ],
    item_id: Ids = None,
    where: Where = None,
    all_items: All = False,
    collection: Collection = defaults.COLLECTION,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Set metadata of pictures; keys that are not named stay."""
    change = dict(map(_pair, values))
    which = which_items(item_id, where, all_items, collection)
    with connected(context, server, timeout) as client:
        done = _update(client, which, change)
    _tell(done, which, output_format)


@metadata_app.command("remove")
def remove(
    context: typer.Context,
    *,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Metadata keys.")],
    item_id: Ids = None,
    where: Where = None,
    all_items: All = False,
    collection: Collection = defaults.COLLECTION,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Remove metadata of pictures; a key that a picture lacks is no error."""
    which = which_items(item_id, where, all_items, collection)
    with connected(context, server, timeout) as client:
        done = _update(client, which, dict.fromkeys(keys))
    _tell(done, which, output_format)


def _pair(told: str) -> tuple[str, MetadataValue]:
    key, equals, text = told.partition("=")
    if not (key and equals):
        wrong_usage(f"{told!r} is no KEY=VALUE.")
    return key, _value(text)


def _value(text: str) -> MetadataValue:
    """What a text says as JSON, if that is a value of metadata; else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    match value:
        case int() if abs(value) >= 2**63:
            return text
        case float() if not math.isfinite(value):
            return text
        case bool() | int() | float() | str():
            return value
        case list() if all(isinstance(each, str) for each in value):
            return value
    return text


def _update(client: "Client", which: Which, change: Mapping[str, MetadataValue | None]) -> MetadataUpdated:
    ids: Iterable[str] = which.ids or ()
    total = len(which.ids or ())
    if which.ids is None:
        total = client.count(where=which.where, collection=which.collection)
        ids = (item.id for item in client.items(where=which.where, collection=which.collection, page_size=_PAGE))
    updated = 0
    missing_ids: list[str] = []
    with WorkProgress("changing") as bar:
        try:
            remaining = iter(ids)
            while page := list(islice(remaining, _PAGE)):
                done = client.update_metadata(dict.fromkeys(page, change), collection=which.collection)
                updated += done.updated
                missing_ids.extend(done.missing_ids)
                bar.update("changing", updated + len(missing_ids), total)
        except KeyboardInterrupt:
            bar.say("Interrupted: some pictures are changed, others not. The same command again does the rest.")
            raise typer.Exit(INTERRUPTED) from None
    # What was listed a moment ago and is deleted by now was not asked for by its id.
    return MetadataUpdated(updated, () if which.ids is None else tuple(missing_ids))


def _tell(done: MetadataUpdated, which: Which, output_format: Format) -> None:
    """What was changed; exit code 1 if an id is not there."""
    if output_format is Format.JSON:
        render.show_json({"updated": done.updated, "missing_ids": list(done.missing_ids)})
    else:
        changed = render.counted(done.updated, "picture")
        render.out().print(f"Changed {changed} in collection {plain(which.collection)}.", soft_wrap=True)
    missing(done.missing_ids, which)
