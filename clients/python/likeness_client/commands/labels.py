"""``likeness label …``: what pictures are called."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from likeness_client import defaults, render, render_labels
from likeness_client.commands.options import (
    INTERRUPTED,
    Collection,
    OutputFormat,
    Scale,
    Server,
    ShownIds,
    Templates,
    Timeout,
    Where,
    condition,
    connected,
    require_text,
    wrong_usage,
)
from likeness_client.commands.which import All, Ids, Which, tell_missing, which_items
from likeness_client.labelling import LabelsUpdated
from likeness_client.progress import WorkProgress
from likeness_client.render import Format, plain

if TYPE_CHECKING:
    from likeness_client.client import Client

label_app = typer.Typer(no_args_is_help=True, help="Change what stored pictures are called, or have it suggested.")

LabelNames = Annotated[list[str], typer.Argument(metavar="LABEL", help="Labels.")]


@label_app.command("add")
def add(
    context: typer.Context,
    *,
    labels: LabelNames,
    item_id: Ids = None,
    where: Where = None,
    all_items: All = False,
    collection: Collection = defaults.COLLECTION,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Give pictures labels, beside those that they have."""
    require_text(labels)
    which = which_items(item_id, where, all_items, collection)
    with connected(context, server, timeout) as client:
        done = _update(client, which, add=labels)
    _tell(done, which, output_format)


@label_app.command("remove")
def remove(
    context: typer.Context,
    *,
    labels: LabelNames,
    item_id: Ids = None,
    where: Where = None,
    all_items: All = False,
    collection: Collection = defaults.COLLECTION,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Take labels from pictures; one that a picture lacks is no error."""
    require_text(labels)
    which = which_items(item_id, where, all_items, collection)
    with connected(context, server, timeout) as client:
        done = _update(client, which, remove=labels)
    _tell(done, which, output_format)


@label_app.command("rename")
def rename(
    context: typer.Context,
    *,
    old: Annotated[str, typer.Argument(metavar="OLD", help="As it is called now.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="As it shall be called.")],
    item_id: Ids = None,
    where: Where = None,
    all_items: All = False,
    collection: Collection = defaults.COLLECTION,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Call a label something else."""
    require_text([old, new])
    which = which_items(item_id, where, all_items, collection)
    with connected(context, server, timeout) as client:
        done = _update(client, which, rename={old: new})
    _tell(done, which, output_format)


@label_app.command("set")
def set_labels(
    context: typer.Context,
    *,
    labels: Annotated[list[str] | None, typer.Argument(metavar="LABEL", help="The only labels.")] = None,
    none: Annotated[bool, typer.Option("--none", help="No labels at all.")] = False,
    item_id: Ids = None,
    where: Where = None,
    all_items: All = False,
    collection: Collection = defaults.COLLECTION,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Give pictures these labels instead of those that they have."""
    if bool(labels) == none:
        wrong_usage("Say which labels: LABEL..., or --none for no labels at all.")
    require_text(labels)
    which = which_items(item_id, where, all_items, collection)
    with connected(context, server, timeout) as client:
        done = _update(client, which, only=labels or ())
    _tell(done, which, output_format)


@label_app.command("suggest")
def suggest(
    context: typer.Context,
    *,
    labels: Annotated[list[str], typer.Argument(metavar="LABEL", help="Labels to choose from.")],
    where: Where = None,
    template: Templates = None,
    scale: Scale = None,
    min_probability: Annotated[
        float | None,
        typer.Option("--min-probability", metavar="P", min=0, max=1, help="Only labels at least as probable."),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", metavar="N", min=1, max=1000, help="Most labels of a picture.")] = 1,
    collection: Collection = defaults.COLLECTION,
    ids: ShownIds = render.Ids.SHORT,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Say which of given labels fit the stored pictures best, all of them or those of --where.

    Probabilities are shares of the labels given, as `likeness classify` tells
    them; pictures without a label of --min-probability are left out.

    Nothing is changed: `likeness label add` does that.
    """
    require_text(labels, template)
    only = condition(where)
    with connected(context, server, timeout) as client, WorkProgress("classifying") as bar:
        try:
            suggested = list(
                client.suggest_labels(
                    labels,
                    templates=template or (),
                    scale=scale,
                    min_probability=min_probability,
                    top_k=top_k,
                    where=only,
                    collection=collection,
                    on_progress=lambda done, total: bar.update("classifying", done, total),
                    on_reconnect=lambda error, wait_s: bar.say(f"{error}\nGoing on in {wait_s:g} s."),
                )
            )
        except KeyboardInterrupt:
            bar.say("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
    if output_format is Format.JSON:
        render.show_json(render_labels.suggestions_as_json(suggested))
    else:
        render_labels.show_suggestions(suggested, ids)


def _update(
    client: "Client",
    which: Which,
    *,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
    only: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
) -> LabelsUpdated:
    with WorkProgress("labelling") as bar:
        try:
            return client.update_labels(
                which.ids,
                where=which.where,
                all_items=which.all_items,
                add=add,
                remove=remove,
                only=only,
                rename=rename,
                collection=which.collection,
                on_progress=lambda looked_at, total: bar.update("labelling", looked_at, total),
            )
        except KeyboardInterrupt:
            bar.say("Interrupted: some pictures are changed, others not. The same command again does the rest.")
            raise typer.Exit(INTERRUPTED) from None


def _tell(done: LabelsUpdated, which: Which, output_format: Format) -> None:
    """What was changed; exit code 1 if an id is not there."""
    collection = plain(which.collection)
    if output_format is Format.JSON:
        told = {"updated": done.updated, "unchanged": done.unchanged, "missing_ids": list(done.missing_ids)}
        render.show_json(told)
    else:
        already = f"; {done.unchanged:,} had them so already" if done.unchanged else ""
        text = f"Changed the labels of {render.counted(done.updated, 'picture')} in collection {collection}{already}."
        render.out().print(text, soft_wrap=True)
    tell_missing(done.missing_ids, which)
