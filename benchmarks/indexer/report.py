"""What was measured, for people and for programs."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.embedder.scope import ROOT
from benchmarks.embedder.turns import Row
from benchmarks.indexer.scope import EF_CONSTRUCTION, EF_SEARCH, NEIGHBOURS, SECTIONS, Scope
from benchmarks.indexer.summary import summary
from benchmarks.results import Results, earlier, shown

RESULTS = Results(
    ROOT / "benchmarks" / "results" / "indexer.json",
    "benchmarks.indexer",
    measured=("indexer", "chassis", "protos"),
    packages=("chromadb", "faiss-cpu", "grpcio", "protobuf", "numpy", "pyarrow"),
    order=SECTIONS,
    summary=summary,
)
_GRAPH = {"neighbours": NEIGHBOURS, "ef_construction": EF_CONSTRUCTION, "ef_search": EF_SEARCH}


def write(scope: Scope, section: str, size: int, found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Merges a section's figures of one size into the JSON and makes the summary anew; returns the whole."""
    about = {"quick": scope.quick, "clients": scope.clients, "graph": _GRAPH}
    return RESULTS.write(about, [section, "sizes", str(size)], found, seconds)


def show(whole: Mapping[str, Any]) -> None:
    """Prints every section as tables."""
    console = Console(width=None if sys.stdout.isatty() else 132)
    about = whole["machine"]
    console.print(
        f"\n[bold]{whole['command']}[/bold]: {about['cpu']}, {about['cores']} cores; {whole['date']}; commit "
        f"{whole['commit']}; graphs of {whole['graph']}; {whole['clients']} client processes"
    )
    rates = ("name", "per_s", "rounds", "p50_ms", "p99_ms", "client_cores")
    for name, section in whole["sections"].items():
        for size, found in sorted(section["sizes"].items(), key=lambda pair: int(pair[0])):
            title = f"{name}, {int(size):,} items, {found['date']}, {found['seconds']:.0f} s"
            match name:
                case "startup":
                    _table(console, title, [key for key in found["row"] if not key.endswith("rounds")], [found["row"]])
                case "recall":
                    _table(console, title, list(found["rows"][0]), found["rows"])
                case "ingest":
                    _table(console, title, ("name", "per_s", "rounds"), found["rows"])
                    _table(console, "Queries beside ingest", list(found["beside"][0]), found["beside"])
                case _:
                    _table(console, title, rates, found["rows"])
    table = Table("summary", "", title="Summary")
    for name, value in whole["summary"].items():
        table.add_row(name, shown(value))
    console.print(table)
    if told := earlier(whole):
        console.print(told)


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    table = Table(title=title)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column == "name" else "right")
    for row in rows:
        table.add_row(*(shown(row.get(column)) for column in columns))
    console.print(table)
