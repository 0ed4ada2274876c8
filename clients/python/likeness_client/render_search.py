"""Shows what a search found: as a table for people, as JSON and CSV for programs."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from likeness_client.facets import Facets
from likeness_client.items import SearchResult
from likeness_client.render import (
    SHORT_ID,
    SHORT_LABELS,
    Ids,
    out,
    plain,
    seven_digits,
    short_uri,
    shorten,
    shown_ids,
    size,
    told,
    write,
)
from likeness_client.render_indexer import facets_as_json, show_facets


def hits_as_json(result: SearchResult, *, explain: bool) -> dict[str, Any]:
    """The hits, best first; beside them the counts, if facets were asked for."""
    hits = []
    for hit in result.hits:
        shown = {"rank": hit.rank, "id": hit.item.id, "score": seven_digits(hit.score), **told(hit.item)}
        if explain:
            shown["term_similarities"] = list(map(seven_digits, hit.term_similarities))
        hits.append(shown)
    return {"hits": hits} if result.count is None else {"hits": hits, **facets_as_json(_facets(result))}


def show_hits_as_csv(result: SearchResult, *, explain: bool) -> None:
    """The hits as CSV with a header; labels and similarities joined by semicolons, metadata as JSON."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["rank", "id", "score", "uri", "labels", "metadata", *(["term_similarities"] if explain else [])])
    for hit in result.hits:
        item = hit.item
        metadata = json.dumps(dict(item.metadata), ensure_ascii=False)
        row = [hit.rank, item.id, seven_digits(hit.score), item.uri, ";".join(item.labels), metadata]
        if explain:
            row.append(";".join(str(seven_digits(each)) for each in hit.term_similarities))
        rows.writerow(row)
    write(text.getvalue())


def show_hits(result: SearchResult, terms: Sequence[str], ids: Ids = Ids.SHORT) -> None:
    """The hits as a table, narrow enough for 80 columns unless the ids are shown in full.

    Args:
        result: what was found.
        terms: what was searched for, in words, to tell how alike each hit is to it; empty: that was not asked for.
        ids: how much of each id is shown.
    """
    console = out()
    if result.hits:
        shown, wider = shown_ids((hit.item.id for hit in result.hits), ids)
        out(wider).print(_table(result, terms, shown, console.width))
    else:
        console.print(f"Nothing in collection {plain(result.collection)} matches.")
    for number, term in enumerate(terms if result.hits else (), start=1):
        console.print(f"~{number}: {plain(term)}", soft_wrap=True)
    if result.count is not None:
        console.print()
        show_facets(_facets(result))


def _table(result: SearchResult, terms: Sequence[str], ids: Sequence[str], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Rank", justify="right", no_wrap=True)
    table.add_column("Score", justify="right", no_wrap=True)
    for number, _ in enumerate(terms, start=1):
        table.add_column(f"~{number}", justify="right", no_wrap=True)
    table.add_column("Labels", max_width=SHORT_LABELS, no_wrap=True, overflow="ellipsis")
    table.add_column("Picture", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Id", no_wrap=True)
    labels = [plain(", ".join(hit.item.labels)) for hit in result.hits]
    # Rank, score, size and id with the gaps between columns; what is left is the picture's.
    taken = 4 + 7 + 11 + SHORT_ID + 1 + 10 + min(SHORT_LABELS, max(6, *map(len, labels))) + 8 * len(terms)
    for hit, item_id, called in zip(result.hits, ids, labels, strict=True):
        where = plain(shorten(short_uri(hit.item.uri), max(16, width - taken)))
        similarities = [f"{each:.3f}" for each in hit.term_similarities[: len(terms)]]
        row = [str(hit.rank), f"{hit.score:.3f}", *similarities, called, where, size(hit.item), item_id]
        table.add_row(*map(Text, row))
    return table


def _facets(result: SearchResult) -> Facets:
    return Facets(result.count or 0, result.facets)
