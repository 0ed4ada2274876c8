"""Shows collections, items and backups: as tables for people, as JSON for programs."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from likeness_client.facets import Facets
from likeness_client.indexer import types
from likeness_client.indexer.shapes import collection_as_json, time_as_json
from likeness_client.indexer.types import Alias, Collection, Described, ErasureReport, ServingStatus, Snapshot
from likeness_client.items import Item, MetadataValue
from likeness_client.progress import readable_bytes
from likeness_client.render import Ids, out, plain, readable, shown_ids, told

AnyItem = Item | types.Item
"""As a gateway tells of it, or as an indexer does."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = (), *, wider: int = 0) -> None:
    """A table on stdout, so many columns wider than the terminal; those named in ``right`` hold numbers."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        whole = name in right or name == "Id"
        shown.add_column(name, overflow="fold", justify="right" if name in right else "left", no_wrap=whole)
    for row in rows:
        shown.add_row(*(Text(plain(cell)) for cell in row))
    out(wider).print(shown)


def show_collections(collections: Sequence[Collection]) -> None:
    """A row a collection."""
    if not collections:
        out().print(
            "No collections yet: `likeness index DIR` makes one, and so does `likeness collections create NAME`."
        )
        return
    columns = ("Collection", "Items", "Model", "Dimension", "Metric", "Aliases")
    rows = [
        (
            c.name,
            f"{c.count:,}",
            c.fingerprint.model,
            str(c.fingerprint.dimension),
            c.metric.value,
            ", ".join(c.aliases),
        )
        for c in collections
    ]
    table(columns, rows, right=("Items", "Dimension"))


def described_as_json(described: Collection | Described) -> dict[str, Any]:
    """A collection, and where it is served from if an indexer told of it."""
    if isinstance(described, Collection):
        return {"collection": collection_as_json(described)}
    status = described.status
    return {
        "collection": collection_as_json(described.collection),
        "status": {
            "mode": status.mode,
            "reason": status.reason,
            "loaded": status.loaded,
            "total": status.total,
            "rows": status.rows,
            "dead_rows": status.dead_rows,
            "dead_share": round(status.dead_share, 6),
            "unindexed_rows": status.unindexed_rows,
            "memory_bytes": status.memory_bytes,
            "disk_bytes": status.disk_bytes,
            "recall": status.recall,
            "last_write": time_as_json(status.last_write_time),
        },
    }


def show_described(described: Collection | Described) -> None:
    """A line for everything that is known of a collection."""
    collection = described if isinstance(described, Collection) else described.collection
    hnsw = collection.hnsw
    facts = {
        "name": collection.name,
        "uid": collection.uid,
        **({"earlier uids": ", ".join(collection.earlier_uids)} if collection.earlier_uids else {}),
        "description": collection.description or "–",
        "aliases": ", ".join(collection.aliases) or "–",
        "model": f"{collection.fingerprint.model}, {collection.fingerprint.dimension} numbers",
        "digest": collection.fingerprint.digest,
        "metric": collection.metric.value,
        "items": f"{collection.count:,}",
        "made": _moment(collection.create_time),
    }
    if hnsw is not None:
        facts["HNSW"] = (
            f"max_neighbors {_or_default(hnsw.max_neighbors)}, "
            f"ef_construction {_or_default(hnsw.ef_construction)}, ef_search {_or_default(hnsw.ef_search)}"
        )
    if isinstance(described, Described):
        facts |= _served(described.status)
    show_facts(facts)


def _served(status: ServingStatus) -> dict[str, str]:
    last_write = status.last_write_time
    return {
        "served from": status.mode if not status.reason else f"{status.mode}: {status.reason}",
        "in memory": readable_bytes(status.memory_bytes),
        "on disk": "unknown" if status.disk_bytes is None else readable_bytes(status.disk_bytes),
        "dead rows": f"{status.dead_rows:,} ({status.dead_share:.1%})",
        "recall": "not measured yet" if status.recall is None else f"{status.recall:.3f}",
        "last write": _moment(last_write) if last_write else "none since the indexer's start",
    }


def show_facts(facts: dict[str, str]) -> None:
    """A line a fact."""
    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in facts.items():
        shown.add_row(Text(name), Text(plain(value)))
    out().print(shown)


def show_aliases(aliases: Sequence[Alias]) -> None:
    """A row an alias."""
    if not aliases:
        out().print("No aliases: `likeness alias set ALIAS COLLECTION` makes one.")
        return
    table(("Alias", "Collection"), [(alias.name, alias.collection) for alias in aliases])


def snapshot_as_json(snapshot: Snapshot) -> dict[str, Any]:
    """A backup."""
    return {
        "name": snapshot.name,
        "collection": collection_as_json(snapshot.collection),
        "created": time_as_json(snapshot.create_time),
        "bytes": snapshot.size,
        "fault": snapshot.fault,
    }


def show_snapshots(snapshots: Sequence[Snapshot]) -> None:
    """A row a backup."""
    if not snapshots:
        out().print("No backups: `likeness snapshot create COLLECTION` makes one.")
        return
    rows = [
        (s.name, f"{s.collection.count:,}", readable_bytes(s.size), s.collection.fingerprint.model, s.fault or "whole")
        for s in snapshots
    ]
    table(("Backup", "Items", "Size", "Model", "State"), rows, right=("Items", "Size"))


def report_as_json(report: ErasureReport) -> dict[str, Any]:
    """What was erased."""
    return {
        "deleted": report.deleted,
        "files_searched": report.files_searched,
        "bytes_searched": report.bytes_searched,
        "traces": report.traces,
        "strings_left_out": report.strings_left_out,
        "found_in": list(report.found_in),
        "other_collections": list(report.other_collections),
        "snapshots": list(report.snapshots),
        "deleted_snapshots": list(report.deleted_snapshots),
        "ended": time_as_json(report.end_time),
    }


def show_report(report: ErasureReport) -> None:
    """What was erased, how it was checked, and what is left where."""
    console = out()
    console.print(f"Deleted {report.deleted:,} items.")
    if report.files_searched:
        console.print(
            f"Searched {report.files_searched:,} files ({readable_bytes(report.bytes_searched)}) for {report.traces:,} "
            f"traces; left out {report.strings_left_out:,} strings that are short or that other items have too.",
            soft_wrap=True,
        )
    else:
        console.print("Chroma's files are somebody else's: they were not searched.")
    for words, names in (
        ("Still found in", report.found_in),
        ("Backups that still hold one of the items", report.snapshots),
        ("Backups deleted", report.deleted_snapshots),
        ("Other collections that hold one of the ids, left as they are", report.other_collections),
    ):
        if names:
            console.print(f"{words}:")
            for name in names:
                console.print(f"  {plain(name)}", soft_wrap=True)
    if report.clean and report.files_searched:
        console.print("Nothing is left of them.")


def items_as_json(items: Sequence[AnyItem], more: bool) -> dict[str, Any]:
    """Items, and whether there are more; uri and labels beside the metadata if a gateway told of them."""
    shown = [
        {"id": item.id, **(told(item) if isinstance(item, Item) else {"metadata": dict(item.metadata)})}
        for item in items
    ]
    return {"items": shown, "more": more}


def show_items(items: Sequence[AnyItem], more: bool, ids: Ids = Ids.SHORT) -> None:
    """A row an item."""
    if not items:
        out().print("No item matches.")
        return
    shown, wider = shown_ids((item.id for item in items), ids)
    rows = [
        (item_id, "; ".join(f"{key}: {readable(value)}" for key, value in _known(item).items()))
        for item_id, item in zip(shown, items, strict=True)
    ]
    table(("Id", "Metadata"), rows, wider=wider)
    if more:
        out().print(f"… and more; these are the first {len(items):,} (--limit).")


def _known(item: AnyItem) -> Mapping[str, MetadataValue]:
    """The metadata; uri and labels, which a gateway tells beside it, come first if there are any."""
    if not isinstance(item, Item):
        return item.metadata
    beside: dict[str, MetadataValue] = {"uri": item.uri, "labels": list(item.labels)}
    return {key: value for key, value in beside.items() if value} | dict(item.metadata)


def facets_as_json(facets: Facets) -> dict[str, Any]:
    """Counts by value."""
    return {
        "count": facets.count,
        "facets": [
            {
                "key": facet.key,
                "values": [{"value": entry.value, "count": entry.count} for entry in facet.values],
                "distinct": facet.distinct,
                "missing": facet.missing,
            }
            for facet in facets.facets
        ],
    }


def show_facets(facets: Facets) -> None:
    """A table a key."""
    console = out()
    for facet in facets.facets:
        having = facets.count - facet.missing
        console.print(f"{plain(facet.key)}: {facet.distinct:,} values in {having:,} of {facets.count:,} items")
        if facet.values:
            table(("Value", "Items"), [(str(e.value), f"{e.count:,}") for e in facet.values], right=("Items",))


def _or_default(value: int) -> str:
    return str(value) if value else "default"


def _moment(moment: datetime | None) -> str:
    return moment.isoformat(sep=" ", timespec="seconds") if moment else "unknown"
