"""Shows what a command found: as tables for people, as JSON and CSV for programs."""

import codecs
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from likeness_client.items import GetResult, Item, MetadataValue
from likeness_client.status import CollectionStatus, Status

SHORT_ID = 12
SHORT_LABELS = 24
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Format(StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"


class SearchFormat(StrEnum):
    """How to print hits."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class Ids(StrEnum):
    """How much of an id a table shows."""

    SHORT = "short"
    FULL = "full"


def out(wider: int = 0) -> Console:
    """The console on stdout, made so many columns wider than it is."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.width += wider
    return console


def err() -> Console:
    """The console on stderr."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def show_json(value: Mapping[str, Any]) -> None:
    """One line of JSON on stdout; in ASCII, as JSON can be, where that is not UTF-8."""
    write(json.dumps(value, ensure_ascii=_encoding() != "utf-8", allow_nan=False) + "\n")


def write(text: str) -> None:
    """A text on stdout, if there is one; what its encoding lacks is replaced, as in a file's name that is no UTF-8."""
    if sys.stdout:  # none, if it was closed
        encoding = _encoding()
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


def _encoding() -> str:
    """What stdout is written in, by the name that Python's codecs have for it."""
    return codecs.lookup((sys.stdout and sys.stdout.encoding) or "utf-8").name


def items_as_json(result: GetResult) -> dict[str, Any]:
    """The items found and the ids that are not there."""
    items = [{"id": item.id, **told(item)} for item in result.items]
    return {"items": items, "missing_ids": list(result.missing_ids)}


def show_items(result: GetResult) -> None:
    """Each item with everything that is known of it."""
    console = out()
    for number, item in enumerate(result.items):
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        known: dict[str, MetadataValue] = {"id": item.id, "uri": item.uri, "labels": list(item.labels), **item.metadata}
        for key, value in known.items():
            table.add_row(Text(plain(key)), Text(readable(value)))
        if number:
            console.print()
        console.print(table)


def collections_as_json(status: Status) -> dict[str, Any]:
    """The collections, by name."""
    return {"collections": [_collection(collection) for collection in status.collections]}


def status_as_json(status: Status) -> dict[str, Any]:
    """The state of the whole."""
    services = [
        {"name": s.name, "address": s.address, "serving": s.serving, "error": str(s.error) if s.error else None}
        for s in status.services
    ]
    model = status.model and {
        "model": status.model.fingerprint.model,
        "digest": status.model.fingerprint.digest,
        "dimension": status.model.fingerprint.dimension,
        "device": status.model.device,
        "precision": status.model.precision,
    }
    return {"version": status.version, "services": services, "model": model, **collections_as_json(status)}


def show_collections(status: Status) -> None:
    """The collections as a table."""
    console = out()
    if not status.collections:
        console.print("No collections yet: `likeness index DIR` makes one.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Collection", overflow="fold")
    table.add_column("Pictures", justify="right", no_wrap=True)
    table.add_column("Model", overflow="fold")
    table.add_column("Dimension", justify="right", no_wrap=True)
    table.add_column("Searchable", no_wrap=True)
    for collection in status.collections:
        fingerprint = collection.fingerprint
        searchable = "yes" if collection.searchable else "no: other model"
        if status.model is None:
            searchable = "no embedder"
        row = [collection.name, f"{collection.count:,}", fingerprint.model, str(fingerprint.dimension), searchable]
        table.add_row(*(Text(plain(cell)) for cell in row))
    console.print(table)


def show_status(status: Status, address: str) -> None:
    """Services, model and collections."""
    console = out()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("Service", "Address", "State"):
        table.add_column(name, overflow="fold")
    table.add_row("gateway", Text(plain(address)), Text(f"serving, release {plain(status.version)}", style="green"))
    for service in status.services:
        down = f"down: {service.error}" if service.error else "down"
        state = Text("serving", style="green") if service.serving else Text(plain(down), style="red")
        table.add_row(Text(plain(service.name)), Text(plain(service.address)), state)
    console.print(table)
    if status.model is not None:
        model = status.model
        said = f"{model.fingerprint.model}, {model.fingerprint.dimension} numbers, {model.precision} on {model.device}"
        console.print(f"\nModel: {plain(said)} (digest {short_id(model.fingerprint.digest)})\n")
    else:
        console.print("\nModel: unknown while no embedder answers\n")
    show_collections(status)


def plain(text: str) -> str:
    """The text without what a terminal would obey rather than show."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def counted(number: int, noun: str) -> str:
    """Such as ``1 picture`` and ``2,000 pictures``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def short_id(item_id: str) -> str:
    """The first digits of a content hash; any other id as it is, up to a length."""
    limit = SHORT_ID if _SHA256.fullmatch(item_id) else SHORT_ID + 1
    return plain(item_id) if len(item_id) <= limit else plain(item_id[:SHORT_ID]) + "…"


def shown_ids(item_ids: Iterable[str], ids: Ids) -> tuple[list[str], int]:
    """The ids as a table shows them, and how many columns wider than for short ones it has to be."""
    if ids is Ids.SHORT:
        return list(map(short_id, item_ids)), 0
    shown = list(map(plain, item_ids))
    return shown, max(0, max(map(cell_len, shown), default=0) - SHORT_ID - 1)


def short_uri(uri: str) -> str:
    """The path of a ``file://`` URI, relative to where the reader stands if it is below; any other URI as it is."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # such as http://[cdn/a.jpg: any text may be stored as a uri
        return uri
    if parts.scheme != "file":
        return uri
    return short_path(Path(unquote(parts.path)))


def short_path(path: Path) -> str:
    """The path relative to the working directory if it is below that, with ``~`` if it is below home."""
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_relative_to(base):
            return prefix + path_text(path.relative_to(base))
    return path_text(path)


def path_text(path: Path) -> str:
    """The path as text; what of a file's name is no UTF-8 is replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def shorten(text: str, width: int) -> str:
    """The end of the text, which tells pictures apart, in at most ``width`` characters."""
    return text if len(text) <= width else "…" + text[-(width - 1) :]


def told(item: Item) -> dict[str, Any]:
    """What JSON tells of an item besides its id."""
    return {"uri": item.uri, "labels": list(item.labels), "metadata": dict(item.metadata)}


def _collection(collection: CollectionStatus) -> dict[str, Any]:
    return {
        "name": collection.name,
        "count": collection.count,
        "model": collection.fingerprint.model,
        "digest": collection.fingerprint.digest,
        "dimension": collection.fingerprint.dimension,
        "searchable": collection.searchable,
    }


def seven_digits(score: float) -> float:
    """A float32 for JSON and CSV."""
    # A float32 holds seven digits: more would show its rounding, 0.91 as 0.9100000262260437.
    return float(f"{score:.7g}")


def size(item: Item) -> str:
    """Such as ``640×480``; empty if it is not known."""
    width, height = item.metadata.get("width"), item.metadata.get("height")
    return f"{width}×{height}" if width and height else ""


def readable(value: MetadataValue) -> str:
    """A value of metadata for people."""
    return plain(", ".join(value) if isinstance(value, list) else str(value))
