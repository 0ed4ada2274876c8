"""``likeness snapshot …``, ``restore``, ``rebuild`` and ``erase``: what takes a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from likeness_client import defaults, render, render_indexer
from likeness_client.commands.options import (
    INTERRUPTED,
    Collection,
    Indexer,
    OutputFormat,
    Timeout,
    connected_indexer,
    in_text,
    require_text,
)
from likeness_client.indexer.shapes import collection_as_json
from likeness_client.indexer.types import Progress
from likeness_client.progress import WorkProgress, readable_bytes
from likeness_client.render import Format, plain

if TYPE_CHECKING:
    from likeness_client.indexer.client import IndexerClient

snapshot_app = typer.Typer(no_args_is_help=True, help="Backups of collections, kept where the indexer is.")

Name = Annotated[str, typer.Argument(metavar="COLLECTION", help="The collection.", callback=in_text)]
SnapshotName = Annotated[
    str, typer.Argument(metavar="BACKUP", help="Its name, such as photos/20261122T101500.123Z.", callback=in_text)
]


@contextmanager
def _working(
    context: typer.Context, indexer: str | None, timeout: float | None, stage: str
) -> Iterator[tuple["IndexerClient", Callable[[Progress], None]]]:
    """A client, and what shows how far a job of the indexer is; an interrupt leaves the job alone."""
    with connected_indexer(context, indexer, timeout) as client, WorkProgress(stage) as bar:

        def show(progress: Progress) -> None:
            bar.update(progress.stage, progress.done, progress.total)

        try:
            yield client, show
        except KeyboardInterrupt:
            bar.say("Interrupted. The indexer goes on with it.")
            raise typer.Exit(INTERRUPTED) from None


@snapshot_app.command("create")
def create(
    context: typer.Context,
    *,
    collection: Name,
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """Write a backup of a collection, in one state, while it is used."""
    with _working(context, indexer, timeout, "backing up") as (client, show):
        made = client.create_snapshot(collection, on_progress=show)
    if output_format is Format.JSON:
        render.show_json({"snapshot": render_indexer.snapshot_as_json(made.snapshot), "deleted": list(made.deleted)})
        return
    count = made.snapshot.collection.count
    render.out().print(
        f"Wrote backup {plain(made.snapshot.name)}: {count:,} items, {readable_bytes(made.snapshot.size)}.",
        soft_wrap=True,
    )
    for name in made.deleted:
        render.out().print(f"Deleted the older backup {plain(name)}.", soft_wrap=True)


@snapshot_app.command("list")
def list_snapshots(
    context: typer.Context,
    *,
    collection: Annotated[
        str,
        typer.Option(
            "--collection", metavar="NAME", help="Only those of this collection, which may be gone.", callback=in_text
        ),
    ] = "",
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """List the backups, the newest first."""
    with connected_indexer(context, indexer, timeout) as client:
        found = client.snapshots(collection)
    if output_format is Format.JSON:
        render.show_json({"snapshots": list(map(render_indexer.snapshot_as_json, found))})
    else:
        render_indexer.show_snapshots(found)


@snapshot_app.command("delete")
def delete(
    context: typer.Context,
    *,
    snapshot: SnapshotName,
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """Delete a backup."""
    with connected_indexer(context, indexer, timeout) as client:
        client.delete_snapshot(snapshot)
    if output_format is Format.JSON:
        render.show_json({"deleted": snapshot})
    else:
        render.out().print(f"Deleted backup {plain(snapshot)}.", soft_wrap=True)


def restore(
    context: typer.Context,
    *,
    snapshot: Annotated[
        str,
        typer.Argument(
            metavar="BACKUP", help="Its name, or a collection's for the newest whole one of it.", callback=in_text
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="NAME", help="The collection to make; not named: the one that it was of.", callback=in_text
        ),
    ] = "",
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """Make a collection from a backup; it can be used once it is complete, and is not seen before."""
    with _working(context, indexer, timeout, "restoring") as (client, show):
        if "/" not in snapshot:
            whole = [found.name for found in client.snapshots(snapshot) if not found.fault]
            if not whole:
                render.err().print(f"There is no whole backup of collection {plain(snapshot)}.")
                raise typer.Exit(1)
            snapshot = whole[0]
        made = client.restore_snapshot(snapshot, collection=to, on_progress=show)
    if output_format is Format.JSON:
        render.show_json({"collection": collection_as_json(made), "snapshot": snapshot})
    else:
        text = f"Restored collection {plain(made.name)}: {made.count:,} items, from {plain(snapshot)}."
        render.out().print(text, soft_wrap=True)


def rebuild(
    context: typer.Context,
    *,
    collection: Name,
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """Store a collection anew: with its present HNSW parameters, and without traces of what was deleted."""
    with _working(context, indexer, timeout, "rebuilding") as (client, show):
        done = client.rebuild(collection, on_progress=show)
    if output_format is Format.JSON:
        render.show_json(
            {
                "collection": collection_as_json(done.collection),
                "bytes_before": done.bytes_before,
                "bytes_after": done.bytes_after,
            }
        )
        return
    size = ""
    if done.bytes_after:
        size = (
            f"; the data directory takes {readable_bytes(done.bytes_after)}, before {readable_bytes(done.bytes_before)}"
        )
    render.out().print(
        f"Rebuilt collection {plain(done.collection.name)}: {done.collection.count:,} items{size}.", soft_wrap=True
    )


def erase(
    context: typer.Context,
    *,
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="Ids of items, 1 to 1,024.")],
    delete_snapshots: Annotated[
        bool, typer.Option("--delete-snapshots", help="Delete the collection's backups that hold one of them as well.")
    ] = False,
    collection: Collection = defaults.COLLECTION,
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """Delete items so that nothing of them is left on the disk, and report what was searched and found.

    Exit code 1 if something is left: in a file, or in a backup. Thumbnails and originals are the gateway's: delete the
    same ids there afterwards, with likeness delete.
    """
    require_text(ids)
    with _working(context, indexer, timeout, "erasing") as (client, show):
        report = client.erase(collection, ids, delete_snapshots=delete_snapshots, on_progress=show)
    if output_format is Format.JSON:
        render.show_json({"report": render_indexer.report_as_json(report)})
    else:
        render_indexer.show_report(report)
    if not report.clean:
        raise typer.Exit(1)
