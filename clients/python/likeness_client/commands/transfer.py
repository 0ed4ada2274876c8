"""``likeness export`` and ``likeness import``."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from likeness_client import defaults, render
from likeness_client.commands.options import (
    INTERRUPTED,
    Collection,
    Indexer,
    OutputFormat,
    Timeout,
    Where,
    condition,
    connected_indexer,
    in_text,
    is_text,
    tell,
    wrong_usage,
)
from likeness_client.errors import FILE_UNREADABLE, RESUME_REFUSED, LikenessError
from likeness_client.indexer.types import Metric
from likeness_client.progress import WorkProgress, readable_bytes
from likeness_client.render import Format, path_text, plain
from likeness_client.transfer.formats import FileFormat, format_of

if TYPE_CHECKING:
    from likeness_client.transfer.upload import Progress

SHOWN_REFUSALS = 20


def export(
    context: typer.Context,
    *,
    path: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="The file to make.")],
    file_format: Annotated[
        FileFormat | None, typer.Option("--as", help="How to write; not named: by the file's extension.")
    ] = None,
    where: Where = None,
    without_vectors: Annotated[bool, typer.Option("--without-vectors", help="Ids and metadata only.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an export into FILE was interrupted.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    collection: Collection = defaults.COLLECTION,
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """Write a collection's items into a file: .parquet or .jsonl.

    FILE appears when it is complete. Until then FILE.part holds what has
    come; --resume goes on with it. A connection that breaks is opened again a
    few times.
    """
    condition(where)
    chosen = file_format or format_of(path)
    if chosen is None:
        wrong_usage(f"{path}: expected a name that ends in .parquet or .jsonl, or --as parquet or --as jsonl.")
    _check_name(path, chosen)
    began = time.monotonic()
    with connected_indexer(context, indexer, timeout) as client, WorkProgress("exporting") as bar:
        from likeness_client.transfer.download import download  # noqa: PLC0415  # pyarrow takes 0.2 s to import

        try:
            done = download(
                client,
                collection,
                path,
                chosen,
                where=where or "",
                vectors=not without_vectors,
                resume=resume,
                overwrite=overwrite,
                on_rows=lambda rows, total: bar.update("exporting", rows, total),
                on_reconnect=lambda error, wait_s: bar.say(f"{error}\nGoing on in {wait_s:g} s."),
            )
        except KeyboardInterrupt:
            bar.say("Interrupted." + _goes_on(path))
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            bar.say(f"{path_text(Path(error.filename or path))}: {error.strerror or error}." + _goes_on(path))
            raise typer.Exit(1) from None
        except LikenessError:
            if _goes_on(path):
                bar.say("The same command with --resume goes on, if it can.")
            raise
    seconds = time.monotonic() - began
    if output_format is Format.JSON:
        render.show_json(
            {
                "file": path_text(path),
                "format": chosen.value,
                "collection": done.collection.name,
                "uid": done.collection.uid,
                "rows": done.rows,
                "resumed": done.resumed,
                "bytes": done.size,
                "seconds": round(seconds, 3),
            }
        )
        return
    rate = (done.rows - done.resumed) / max(seconds, 1e-9)
    render.out().print(
        f"Exported {done.rows:,} items of collection {plain(done.collection.name)} into {plain(path_text(path))}: "
        f"{readable_bytes(done.size)} in {seconds:.1f} s, {rate:,.0f} a second.",
        soft_wrap=True,
    )


def _goes_on(path: Path) -> str:
    """What to do after an export that did not end, if it came so far that another can go on with it; else empty."""
    from likeness_client.transfer.download import state_path  # noqa: PLC0415  # pyarrow takes 0.2 s to import

    # Not Path.exists, which raises where the name is too long.
    return " The same command with --resume goes on." if os.path.exists(state_path(path)) else ""  # noqa: PTH110


@dataclass
class _Outcome:
    """What became of an import."""

    path: Path
    unit: str = "row"
    collection: str = ""
    skipped: int = 0
    seconds: float = 0.0
    error: LikenessError | None = None
    interrupted: bool = False


def import_items(
    context: typer.Context,
    *,
    path: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A .parquet, .jsonl or .npy file.")
    ],
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", exists=True, dir_okay=False, help="Ids and metadata beside a .npy."),
    ] = None,
    collection: Annotated[
        str,
        typer.Option(
            "--collection", metavar="NAME", help="Where to; not named: where the export came from.", callback=in_text
        ),
    ] = "",
    create: Annotated[bool, typer.Option("--create", help="Make the collection if there is none.")] = False,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="Name of the vectors' model.", callback=in_text)
    ] = "",
    digest: Annotated[
        str, typer.Option("--digest", metavar="HEX", help="Its fingerprint; checked, if given.", callback=in_text)
    ] = "",
    metric: Annotated[Metric | None, typer.Option("--metric", help="Of the collection made by --create.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that is refused.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an import of FILE was interrupted.")] = False,
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """Write the items of a file into a collection.

    .parquet: columns id, vector, and metadata (JSON) or a column a key.
    .jsonl: {"id": …, "vector": […], "metadata": {…}} a line.
    .npy with --csv: row n of the array and row n of the table; column id.

    What --create needs to know of the model is in exports of ours; for other
    files --model and --digest tell it. An item whose id is known replaces what
    was stored. A row that is refused does not stop the rest; exit code 1 then.
    """
    if bool(model) != bool(digest):
        wrong_usage("--model and --digest belong together.")
    _check_name(path, format_of(path))
    outcome = _Outcome(path, collection=collection)
    began = time.monotonic()
    with connected_indexer(context, indexer, timeout) as client, WorkProgress("importing") as bar:
        from likeness_client.transfer.importing import Import  # noqa: PLC0415  # pyarrow takes 0.2 s to import

        work = Import(client, path, csv, resume=resume, strict=strict)
        outcome.unit = work.source.unit
        outcome.skipped = work.progress.after
        try:
            outcome.collection = work.prepare(collection, create=create, model=model, digest=digest, metric=metric)
            work.run(
                on_rows=lambda: bar.update("importing", work.progress.after, work.source.total or 0),
                on_wait=lambda error, wait_s: bar.say(f"{error}\nGoing on in {wait_s:g} s."),
                on_unsaved=lambda error: bar.say(
                    f"{path_text(work.state_path)} cannot be written ({error.strerror}): "
                    "how far the import is, is not remembered."
                ),
            )
        except KeyboardInterrupt:
            outcome.interrupted = True
        except LikenessError as error:
            outcome.error = error
        except OSError as error:
            told = f"{path_text(Path(error.filename or path))}: {error.strerror or error}"
            outcome.error = LikenessError("INVALID_ARGUMENT", FILE_UNREADABLE, told)
        finally:
            work.close()
    outcome.seconds = time.monotonic() - began
    if outcome.error is not None:
        tell(outcome.error)
    refused = outcome.error is not None and outcome.error.reason == RESUME_REFUSED
    _show(outcome, work.progress, output_format, resumable=work.resumable and not refused)


def _check_name(path: Path, file_format: FileFormat | None) -> None:
    """A path that is no UTF-8 is wrong usage where pyarrow has to open it."""
    if file_format is FileFormat.PARQUET and not is_text(str(path)):
        wrong_usage(f"{path_text(path)}: a path that is no UTF-8 cannot be read or written as Parquet; rename it.")


def _show(outcome: _Outcome, progress: "Progress", output_format: Format, *, resumable: bool) -> None:
    if output_format is Format.JSON:
        render.show_json(
            {
                "file": path_text(outcome.path),
                "collection": outcome.collection,
                "stored": progress.stored,
                "refused": progress.refused,
                "refusals": [
                    {
                        "file": path_text(outcome.path),
                        outcome.unit: r.row,
                        "id": r.id,
                        "reason": r.reason,
                        "message": r.message,
                    }
                    for r in progress.refusals
                ],
                "skipped": outcome.skipped,
                "seconds": round(outcome.seconds, 3),
                "error": str(outcome.error) if outcome.error else None,
                "interrupted": outcome.interrupted,
            }
        )
    else:
        console = render.out()
        rate = progress.stored / max(outcome.seconds, 1e-9)
        begun = "Interrupted. " if outcome.interrupted else ""
        console.print(
            f"{begun}Stored {progress.stored:,} items in collection {plain(outcome.collection)} in "
            f"{outcome.seconds:.1f} s, {rate:,.0f} a second.",
            soft_wrap=True,
        )
        if outcome.skipped:
            console.print(f"Skipped what an earlier import had done: up to {outcome.unit} {outcome.skipped:,}.")
        if progress.refused:
            console.print(f"Refused {progress.refused:,}:")
            for r in progress.refusals[:SHOWN_REFUSALS]:
                place = f"{plain(path_text(outcome.path))}, {outcome.unit} {r.row}"
                called = f" ({plain(r.id)})" if r.id else ""
                console.print(f"  {place}{called}: {plain(r.reason)}: {plain(r.message)}", soft_wrap=True)
            if progress.refused > SHOWN_REFUSALS:
                console.print(f"  … and {progress.refused - SHOWN_REFUSALS:,} more; --format json lists 1,000")
        if resumable and (outcome.error or outcome.interrupted):
            console.print("The same command with --resume goes on.")
    if outcome.interrupted:
        raise typer.Exit(INTERRUPTED)
    if outcome.error or progress.refused:
        raise typer.Exit(1)
