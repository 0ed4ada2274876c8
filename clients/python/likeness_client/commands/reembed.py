"""``likeness reembed``."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from likeness_client import render
from likeness_client.commands.options import INTERRUPTED, OutputFormat, Server, Timeout, confirm, connected, in_text
from likeness_client.errors import LikenessError
from likeness_client.progress import WorkProgress
from likeness_client.reembedding import Reembedded
from likeness_client.render import Format, plain

if TYPE_CHECKING:
    from likeness_client.client import Client

# Items of the target that are looked for in the source before anything is done.
_LOOKED_AT = 1000


def reembed(
    context: typer.Context,
    *,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The collection, or an alias of it.", callback=in_text)
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="The collection to fill; made if there is none. What it has and SOURCE lacks is deleted from it.",
            callback=in_text,
        ),
    ],
    alias: Annotated[
        str, typer.Option("--alias", metavar="NAME", help="Move this alias to TARGET at the end.", callback=in_text)
    ] = "",
    switch_despite_failures: Annotated[
        bool, typer.Option("--switch-despite-failures", help="Move it although some pictures could not be embedded.")
    ] = False,
    keep_originals: Annotated[
        bool, typer.Option("--keep-originals", help="Keep the originals for TARGET too.")
    ] = False,
    keep_extra_items: Annotated[
        bool, typer.Option("--keep-extra-items", help="Leave what TARGET has and SOURCE lacks.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before that is deleted.")] = False,
    fetch_uris: Annotated[
        bool, typer.Option("--fetch-uris", help="Fetch pictures whose original was not kept from their address.")
    ] = False,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Embed a collection's pictures with the gateway's present model, into another collection.

    Ids, labels and metadata stay. What TARGET has already is not embedded
    again: the same command goes on after an interruption. What TARGET has and
    SOURCE lacks is deleted from TARGET in the end, thumbnails and originals
    included, unless --keep-extra-items says otherwise. Exit code 1 if some
    pictures could not be embedded; then --alias is not moved unless
    --switch-despite-failures says so.
    """
    with connected(context, server, timeout) as client:
        if not keep_extra_items and not yes:
            _confirm_deletion(client, source, target)
        with WorkProgress("embedding") as bar:
            try:
                done = client.reembed(
                    source,
                    target,
                    alias=alias,
                    switch_despite_failures=switch_despite_failures,
                    keep_originals=keep_originals,
                    keep_extra_items=keep_extra_items,
                    fetch_uris=fetch_uris,
                    on_progress=lambda done, total: bar.update("embedding", done, total),
                    on_reconnect=lambda error, wait_s: bar.say(f"{error}\nGoing on in {wait_s:g} s."),
                )
            except KeyboardInterrupt:
                bar.say("Interrupted. The same command again does the rest.")
                raise typer.Exit(INTERRUPTED) from None
    if output_format is Format.JSON:
        render.show_json(_as_json(done))
    else:
        _show(done, plain(target), plain(alias))
    if done.failed:
        raise typer.Exit(1)


def _confirm_deletion(client: "Client", source: str, target: str) -> None:
    """Asks, if the first items of the target are not all of the source: it may be meant for something else."""
    try:
        ids = [item.id for item in islice(client.items(collection=target, page_size=_LOOKED_AT), _LOOKED_AT)]
    except LikenessError as error:
        if error.reason != "COLLECTION_NOT_FOUND":
            raise
        return
    extra = client.get(ids, collection=source).missing_ids if ids else ()
    if extra:
        count, first = render.counted(len(extra), "picture"), render.counted(len(ids), "picture")
        confirm(
            f"Of the first {first} of collection {plain(target)}, {plain(source)} lacks {count}, such as "
            f"{plain(extra[0])}. Delete all that it lacks from {plain(target)}?"
        )


def _as_json(done: Reembedded) -> dict[str, object]:
    return {
        "total": done.total,
        "embedded": done.embedded,
        "unchanged": done.unchanged,
        "failed": done.failed,
        "removed": done.removed,
        "switched": done.switched,
        "failures": [
            {"id": each.id, "reason": each.error.reason, "message": each.error.message} for each in done.failures
        ],
    }


def _show(done: Reembedded, target: str, alias: str) -> None:
    for each in done.failures:
        render.err().print(f"{plain(each.id)}: {plain(str(each.error))}")
    counts = [f"embedded {render.counted(done.embedded, 'picture')}", f"{done.unchanged:,} were there already"]
    if done.failed:
        counts.append(f"{done.failed:,} could not be embedded")
    if done.removed:
        counts.append(f"{done.removed:,} that the source lacks are deleted")
    text = f"Collection {target}: {'; '.join(counts)}."
    if alias:
        text += f" {alias} stands for it now." if done.switched else f" {alias} was not moved."
    render.out().print(text, soft_wrap=True)
