"""``likeness metadata …``: what is known of pictures."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, TypeGuard

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
    is_text,
    require_text,
    wrong_usage,
)
from likeness_client.commands.which import All, Ids, Which, tell_missing, which_items
from likeness_client.items import MetadataUpdated, MetadataValue
from likeness_client.lists import MAX_IDS, batches
from likeness_client.progress import WorkProgress
from likeness_client.render import Format, plain

if TYPE_CHECKING:
    from likeness_client.client import Client

metadata_app = typer.Typer(no_args_is_help=True, help="Change what is known of stored pictures.")

_URI = "uri"


@metadata_app.command("set")
def set_metadata(
    context: typer.Context,
    *,
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...",
            help="A number, true, false, a list or a text: 'year=2020', 'tags=[\"a\", \"b\"]', 'title=A cat'; "
            "'code=\"2020\"' is a text. The key uri says where a picture came from.",
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
    change: dict[str, MetadataValue | None] = {}
    for key, value in map(_pair, values):
        if key in change:
            wrong_usage(f"{plain(key)} is set twice.")
        change[key] = value
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
    require_text(keys)
    which = which_items(item_id, where, all_items, collection)
    with connected(context, server, timeout) as client:
        done = _update(client, which, dict.fromkeys(keys))
    _tell(done, which, output_format)


def _pair(told: str) -> tuple[str, MetadataValue]:
    key, equals, text = told.partition("=")
    if not (key and equals):
        wrong_usage(f"{told!r} is no KEY=VALUE.")
    require_text([told])
    value = _value(text)
    return key, text if key == _URI and not isinstance(value, str) else value


def _value(text: str) -> MetadataValue:
    """What a text says as JSON, if that is a value of metadata; else the text itself."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if _is_value(value) else text


def _is_value(value: object) -> TypeGuard[MetadataValue]:
    match value:
        case bool():
            return True
        case int():
            return abs(value) < 2**63
        case float():
            return math.isfinite(value)
        case str():
            return is_text(value)
        case list():
            return all(isinstance(each, str) and is_text(each) for each in value)
    return False


def _update(client: "Client", which: Which, change: Mapping[str, MetadataValue | None]) -> MetadataUpdated:
    if which.ids is not None:
        ids: Iterable[str] = which.ids
        total = len(which.ids)
    else:
        ids = (item.id for item in client.items(where=which.where, collection=which.collection))
        total = client.count(where=which.where, collection=which.collection)
    own = {key: value for key, value in change.items() if key != _URI}
    uri = str(change[_URI] or "") if _URI in change else None
    updated = 0
    missing: list[str] = []
    with WorkProgress("changing") as bar:
        try:
            for page in batches(ids, MAX_IDS):
                uris = None if uri is None else dict.fromkeys(page, uri)
                done = client.update_metadata(dict.fromkeys(page, own), uris=uris, collection=which.collection)
                updated += done.updated
                missing.extend(done.missing_ids)
                bar.update("changing", updated + len(missing), total)
        except KeyboardInterrupt:
            bar.say("Interrupted: some pictures are changed, others not. The same command again does the rest.")
            raise typer.Exit(INTERRUPTED) from None
    # What was listed a moment ago and is deleted by now was not asked for by its id.
    return MetadataUpdated(updated, () if which.ids is None else tuple(missing))


def _tell(done: MetadataUpdated, which: Which, output_format: Format) -> None:
    """What was changed; exit code 1 if an id is not there."""
    if output_format is Format.JSON:
        render.show_json({"updated": done.updated, "missing_ids": list(done.missing_ids)})
    else:
        changed = render.counted(done.updated, "picture")
        render.out().print(f"Changed {changed} in collection {plain(which.collection)}.", soft_wrap=True)
    tell_missing(done.missing_ids, which)
