"""What was measured, for people and for programs."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.embedder.scope import ROOT
from benchmarks.gateway.client import STAGES
from benchmarks.gateway.scope import INGEST, INGEST_STARTER, SECTIONS, Scope
from benchmarks.gateway.summary import summary
from benchmarks.results import Results, earlier, shown

RESULTS = Results(
    ROOT / "benchmarks" / "results" / "gateway.json",
    "benchmarks.gateway",
    measured=("gateway", "embedder", "indexer", "chassis", "protos", "benchmarks"),
    packages=("chromadb", "faiss-cpu", "grpcio", "protobuf", "numpy", "pyarrow"),
    order=SECTIONS,
    summary=summary,
)
_STAGES = tuple(f"{stage}_ms" for stage in (*STAGES, "gateway", "own"))
_COLUMNS = {
    "latency": ("name", "per_s", "p50_ms", "p99_ms", *_STAGES),
    "rates": ("name", "per_s", "rounds", "p50_ms", "p99_ms", "refused", "client_cores"),
    "overload": ("name", "per_s", "goodput", "p50_ms", "p99_ms", "refused", "refused_p50_ms", "dropped"),
    INGEST_STARTER: ("name", "per_s", "rounds"),
    INGEST: ("name", "per_s", "rounds"),
}


def write(scope: Scope, section: str, found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Merges a section into the JSON and makes the summary anew; returns the whole."""
    about = {"model": scope.model, "ingest_model": scope.ingest_model, "quick": scope.quick}
    return RESULTS.write(about, [section], found, seconds)


def show(whole: Mapping[str, Any]) -> None:
    """Prints every section as a table."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    about, models = whole["machine"], " and ".join(dict.fromkeys([whole["model"], whole["ingest_model"]]))
    console.print(
        f"\n[bold]{whole['command']}[/bold]: {models}, {about['cpu']}, {about['cores']} cores; "
        f"{whole['date']}; commit {whole['commit']}"
    )
    for name, section in whole["sections"].items():
        rows = section.get("rows", [section])
        columns = _COLUMNS.get(name, ("pictures", "per_s", "settled_mib", "highest_mib", "last_mib", "growth_mb"))
        table = Table(title=f"{name}, {section['date']}, {section['seconds']:.0f} s")
        for column in columns:
            table.add_column(column.replace("_", " "), justify="left" if column == "name" else "right")
        for row in rows:
            table.add_row(*(shown(row.get(column)) for column in columns))
        console.print(table)
    table = Table("summary", "", title="Summary")
    for name, value in whole["summary"].items():
        table.add_row(name, shown(value))
    console.print(table)
    if told := earlier(whole):
        console.print(told)
