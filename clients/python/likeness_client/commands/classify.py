"""``likeness classify`` and ``likeness duplicates``."""

from pathlib import Path
from typing import Annotated

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
from likeness_client.items import Term
from likeness_client.progress import WorkProgress
from likeness_client.render import Format, Ids, plain


def classify(
    context: typer.Context,
    *,
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PICTURE", exists=True, dir_okay=False, readable=True, help="Files."),
    ] = None,
    item_id: Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="This stored picture.")] = None,
    label: Annotated[list[str], typer.Option("--label", metavar="LABEL", help="A label to choose from.")],
    template: Templates = None,
    scale: Scale = None,
    top_k: Annotated[int, typer.Option("--top-k", metavar="N", min=1, max=1000, help="Most labels of a picture.")] = 5,
    collection: Collection = defaults.COLLECTION,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Say which of given labels fit pictures best, without training.

    Give --label as often as there are labels. Their probabilities are shares:
    "none of these" has to be one of them to be an answer. Several --template
    are averaged. Exit code 1 if a picture could not be classified.

    Of a whole collection `likeness label suggest` tells.
    """
    named: list[Path | str] = [*(pictures or []), *(item_id or [])]
    if not named:
        wrong_usage("Say what to classify: PICTURE or --id ID. `likeness classify --help` tells more.")
    require_text(item_id, label, template)
    # Files are read as the calls go: all of them at once may be more than memory holds.
    inputs = (Term.image(each) if isinstance(each, Path) else Term.id(each) for each in named)
    with connected(context, server, timeout) as client:
        told = client.classify(inputs, label, templates=template or (), scale=scale, top_k=top_k, collection=collection)
    if output_format is Format.JSON:
        render.show_json(render_labels.classes_as_json(named, told))
    else:
        render_labels.show_classes(named, told.results)
    failed = [(each, result.error) for each, result in zip(named, told.results, strict=True) if result.error]
    for each, error in failed:
        render.err().print(f"{plain(str(each))}: {plain(str(error))}")
    if failed:
        raise typer.Exit(1)


def duplicates(
    context: typer.Context,
    *,
    near: Annotated[
        float | None,
        typer.Option("--near", metavar="THRESHOLD", help="Also nearly the same: scores from here on, such as 0.97."),
    ] = None,
    neighbors: Annotated[
        int, typer.Option("--neighbors", metavar="N", min=1, max=100, help="With --near: neighbours looked at.")
    ] = 10,
    where: Where = None,
    collection: Collection = defaults.COLLECTION,
    ids: ShownIds = Ids.SHORT,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Find groups of stored pictures that are the same, or with --near nearly.

    The same are those of one content (SHA-256). --near tells of each picture
    the score against the most alike other one of its group; groups are chains.

    Nothing is deleted: `likeness delete ID...` does that.
    """
    only = condition(where)
    with connected(context, server, timeout) as client, WorkProgress("comparing") as bar:
        try:
            groups = list(
                client.find_duplicates(
                    min_score=near,
                    neighbors=neighbors if near is not None else 0,
                    where=only,
                    collection=collection,
                    on_progress=lambda done, total: bar.update("comparing", done, total),
                )
            )
        except KeyboardInterrupt:
            bar.say("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
    if output_format is Format.JSON:
        render.show_json(render_labels.groups_as_json(groups))
    else:
        render_labels.show_groups(groups, ids)
