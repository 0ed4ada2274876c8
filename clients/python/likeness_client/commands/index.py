"""``likeness index``: walks, sends, shows progress, and says what became of it all."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likeness_client import defaults
from likeness_client.backoff import may_go_on
from likeness_client.commands.options import (
    INTERRUPTED,
    Collection,
    OutputFormat,
    Server,
    Timeout,
    connected,
    tell,
)
from likeness_client.errors import FILE_UNREADABLE, IndexInterruptedError, LikenessError
from likeness_client.items import IndexOutcome, IngestOptions, Picture, Skipped
from likeness_client.progress import IngestProgress, readable_bytes
from likeness_client.render import Format, out, path_text, plain, short_path, show_json
from likeness_client.walk import Walk

if TYPE_CHECKING:
    from likeness_client.client import Client

SHOWN_OF_A_REASON = 10
# Shorter pauses are not worth a line.
PAUSE_TOLD_S = 1.0
NEAR = 0.97


class Existing(StrEnum):
    """What becomes of a picture whose id is there already."""

    SKIP = "skip"
    REPLACE = "replace"


@dataclass(frozen=True)
class Refusal:
    """A file that is not stored, and why."""

    path: Path
    reason: str
    message: str


@dataclass(frozen=True)
class Present:
    """A file that was left out, since the collection has it, or the same, already."""

    path: Path
    skipped: Skipped


@dataclass
class Summary:
    """What became of an ingest.

    Attributes:
        present: files that were left out, by the reason.
        present_files: each of them; None: they are only counted, for there may be millions.
    """

    collection: str
    stored: int = 0
    stored_bytes: int = 0
    skipped: int = 0
    seconds: float = 0.0
    refused: list[Refusal] = field(default_factory=list)
    present: Counter[str] = field(default_factory=Counter)
    present_files: list[Present] | None = None
    unanswered: list[Path] = field(default_factory=list)
    not_sent: int = 0
    error: LikenessError | None = None
    interrupted: bool = False

    def add(self, outcome: IndexOutcome) -> None:
        """Counts one picture."""
        path = outcome.picture.path or Path()
        if outcome.skipped is not None:
            self.present[outcome.skipped.reason] += 1
            if self.present_files is not None:
                self.present_files.append(Present(path, outcome.skipped))
        elif outcome.error is None:
            self.stored += 1
            self.stored_bytes += outcome.size
        else:
            self.refused.append(Refusal(path, outcome.error.reason or outcome.error.code, outcome.error.message))

    @property
    def may_go_on(self) -> bool:
        """True if the same command again may do the rest."""
        return self.interrupted or (self.error is not None and may_go_on(self.error))

    @property
    def exit_code(self) -> int:
        """0 if everything is stored, or there already."""
        if self.interrupted:
            return INTERRUPTED
        return 1 if self.refused or self.error else 0


def index(
    context: typer.Context,
    *,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="DIR|FILE", exists=True, help="Directories are walked for pictures; files are sent."),
    ],
    label_from_parent: Annotated[
        bool, typer.Option("--label-from-parent", help="Label each picture with the name of its directory.")
    ] = False,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="LABEL", help="Label every picture so; repeatable.")
    ] = None,
    collection: Collection = defaults.COLLECTION,
    no_create: Annotated[bool, typer.Option("--no-create", help="Fail if there is no such collection.")] = False,
    all_files: Annotated[
        bool, typer.Option("--all-files", help="From directories, send also what is not named like a picture.")
    ] = False,
    existing: Annotated[
        Existing, typer.Option("--existing", help="What becomes of a picture whose id is there already.")
    ] = Existing.REPLACE,
    skip_duplicates: Annotated[
        list[str] | None,
        typer.Option(
            "--skip-duplicates",
            metavar="exact|near=SCORE",
            help="Leave out what is there under another id: the same file, or one that looks like it (near=0.97).",
        ),
    ] = None,
    keep_originals: Annotated[
        bool, typer.Option("--keep-originals", help="Have the gateway keep the files too, to embed them anew later.")
    ] = False,
    no_thumbnails: Annotated[bool, typer.Option("--no-thumbnails", help="Have it make no thumbnails.")] = False,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Take pictures into a collection.

    A picture's id is the hash of its content: sent again, it is not stored
    twice, but its labels, uri and all other metadata are replaced, unless
    --existing skip leaves it as it is. When the connection breaks, it is opened again a
    few times, and what has no answer is sent again.

    Exit code 1 if anything was refused or failed.
    """
    options = _options(existing, skip_duplicates or [], keep_originals=keep_originals, thumbnails=not no_thumbnails)
    summary = Summary(collection, present_files=[] if output_format is Format.JSON else None)
    total = sum(1 for _ in Walk(paths, all_files))
    walk = Walk(paths, all_files)
    labels = tuple(label or ())
    pictures = _Pending(Picture(path, labels=_labels(path, labels, label_from_parent)) for path in walk)
    began = time.monotonic()
    with (
        connected(context, server, timeout) as client,
        IngestProgress(total) as progress,
        _noting_dropped_interrupts(summary),
    ):
        try:
            _run(
                client,
                pictures=pictures,
                collection=collection,
                create=not no_create,
                options=options,
                progress=progress,
                summary=summary,
            )
        except KeyboardInterrupt:
            summary.interrupted = True
        except IndexInterruptedError as error:
            summary.error = error
    summary.unanswered = pictures.unanswered
    if summary.interrupted or summary.error:
        # More are taken than were counted where files have come since.
        summary.not_sent = max(0, total - pictures.taken)
    summary.seconds = time.monotonic() - began
    summary.skipped = walk.skipped
    summary.refused += [Refusal(path, FILE_UNREADABLE, f"directory: {why}") for path, why in walk.unreadable]
    if summary.error is not None:
        tell(summary.error)
    if output_format is Format.JSON:
        show_json(_as_json(summary))
    else:
        _show(summary)
    raise typer.Exit(summary.exit_code)


def _run(
    client: "Client",
    *,
    pictures: "_Pending",
    collection: str,
    create: bool,
    options: IngestOptions,
    progress: IngestProgress,
    summary: Summary,
) -> None:
    def stop_if_interrupted() -> None:
        if summary.interrupted:
            raise KeyboardInterrupt

    def say(error: LikenessError, unanswered: int, wait_s: float) -> None:
        stop_if_interrupted()
        progress.say(
            f"{error}\nConnecting again in {wait_s:g} s; {unanswered} pictures without an answer follow again."
        )

    def say_pause(seconds: float) -> None:
        if seconds >= PAUSE_TOLD_S:
            progress.say(f"The gateway has too much to do and asks for a pause of {seconds:.1f} s.")

    outcomes = client.index(
        pictures,
        collection=collection,
        create_collection=create,
        options=options,
        on_reconnect=say,
        on_backoff=say_pause,
    )
    for outcome in outcomes:
        pictures.answered(outcome.picture)
        summary.add(outcome)
        progress.advance(outcome.size)
        stop_if_interrupted()


class _Pending:
    """Pictures on their way: taken by the client, and not answered yet."""

    def __init__(self, pictures: Iterator[Picture]) -> None:
        self._pictures = pictures
        self._open: dict[int, Picture] = {}
        self.taken = 0

    def __iter__(self) -> Iterator[Picture]:
        for picture in self._pictures:
            self._open[id(picture)] = picture
            self.taken += 1
            yield picture

    def answered(self, picture: Picture) -> None:
        """It has its outcome."""
        self._open.pop(id(picture), None)

    @property
    def unanswered(self) -> list[Path]:
        """The files that have none, in the order in which they were taken."""
        return [picture.path for picture in self._open.values() if picture.path]


def _options(existing: Existing, skip: list[str], *, keep_originals: bool, thumbnails: bool) -> IngestOptions:
    near: float | None = None
    for each in skip:
        kind, _, score = each.partition("=")
        if each != "exact" and kind != "near":
            raise typer.BadParameter(f"{each!r}; expected exact, near or near=SCORE", param_hint="--skip-duplicates")
        if kind == "near":
            try:
                near = float(score) if score else NEAR
            except ValueError:
                raise typer.BadParameter(f"{score!r} is no number", param_hint="--skip-duplicates") from None
    return IngestOptions(
        skip_existing=existing is Existing.SKIP,
        skip_exact_duplicates="exact" in skip,
        skip_near_duplicates=near,
        keep_originals=keep_originals,
        thumbnails=thumbnails,
    )


@contextmanager
def _noting_dropped_interrupts(summary: Summary) -> Iterator[None]:
    """Notes an interrupt that Python drops because it came within a finalizer.

    gRPC's calls have one, in Python, which runs whenever a stream has broken: the command would go on, and exit with 1.
    """
    before = sys.unraisablehook

    def note(dropped: "sys.UnraisableHookArgs") -> None:
        if dropped.exc_type is KeyboardInterrupt:
            summary.interrupted = True
        else:
            before(dropped)

    sys.unraisablehook = note
    try:
        yield
    finally:
        sys.unraisablehook = before


def _labels(path: Path, labels: tuple[str, ...], label_from_parent: bool) -> tuple[str, ...]:
    # Without "..", and without following links, as in the uri.
    parent = Path(os.path.abspath(path)).parent.name if label_from_parent else ""  # noqa: PTH100
    return (*labels, parent) if parent else labels


def _show(summary: Summary) -> None:
    console = out()
    rate = summary.stored / summary.seconds if summary.seconds else 0.0
    about = f": {readable_bytes(summary.stored_bytes)} in {summary.seconds:.1f} s, {rate:,.1f} a second"
    begun = "Interrupted. " if summary.interrupted else ""
    console.print(
        f"{begun}Stored {summary.stored:,} {_pictures(summary.stored)} in collection {plain(summary.collection)}"
        f"{about if summary.stored else ''}.",
        soft_wrap=True,
    )
    if summary.skipped:
        console.print(
            f"Skipped {summary.skipped:,} not named like a picture (--all-files sends them too).",
            soft_wrap=True,
        )
    if summary.present:
        told = ", ".join(f"{count:,} {plain(reason)}" for reason, count in sorted(summary.present.items()))
        console.print(f"Left out {summary.present.total():,} that the collection has already: {told}.", soft_wrap=True)
    if summary.unanswered:
        count, unsure = len(summary.unanswered), " and may or may not be stored" if summary.may_go_on else ""
        console.print(f"{count:,} {_pictures(count)} had no answer{unsure}.", soft_wrap=True)
    if summary.not_sent:
        were = "was" if summary.not_sent == 1 else "were"
        console.print(f"{summary.not_sent:,} {_pictures(summary.not_sent)} {were} not sent.", soft_wrap=True)
    if summary.may_go_on:
        console.print("The same command again sends the rest; what is stored already is not stored twice.")
    if summary.refused:
        console.print(f"Refused {len(summary.refused):,}:")
    by_reason = sorted(summary.refused, key=lambda refusal: refusal.reason)
    for reason, group in groupby(by_reason, key=lambda refusal: refusal.reason):
        refusals = list(group)
        console.print(f"  {plain(reason)}: {len(refusals):,}")
        for refusal in refusals[:SHOWN_OF_A_REASON]:
            console.print(f"    {plain(short_path(refusal.path))}: {plain(refusal.message)}", soft_wrap=True)
        if len(refusals) > SHOWN_OF_A_REASON:
            console.print(f"    … and {len(refusals) - SHOWN_OF_A_REASON:,} more; --format json lists them all")


def _as_json(summary: Summary) -> dict[str, Any]:
    return {
        "collection": summary.collection,
        "stored": summary.stored,
        "refused": [
            {"path": path_text(refusal.path), "reason": refusal.reason, "message": refusal.message}
            for refusal in summary.refused
        ],
        "already_there": [
            {"path": path_text(present.path), **asdict(present.skipped)} for present in summary.present_files or ()
        ],
        "unanswered": [path_text(path) for path in summary.unanswered],
        "not_sent": summary.not_sent,
        "skipped": summary.skipped,
        "seconds": round(summary.seconds, 3),
        "error": str(summary.error) if summary.error else None,
        "interrupted": summary.interrupted,
    }


def _pictures(count: int) -> str:
    return "picture" if count == 1 else "pictures"
