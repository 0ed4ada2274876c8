"""What was measured, for people and for programs."""

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.embedder.report import machine
from benchmarks.embedder.scope import ROOT
from benchmarks.gateway.client import STAGES
from benchmarks.gateway.scope import INGEST, INGEST_STARTER, SECTIONS, Scope
from benchmarks.gateway.summary import summary
from benchmarks.indexer.report import commit_of, shown, versions

RESULTS = ROOT / "benchmarks" / "results" / "gateway.json"
_MEASURED = ("gateway", "embedder", "indexer", "chassis", "protos", "benchmarks")
_STAGES = tuple(f"{stage}_ms" for stage in (*STAGES, "gateway", "own"))
_COLUMNS = {
    "latency": ("name", "per_s", "p50_ms", "p99_ms", *_STAGES),
    "rates": ("name", "per_s", "rounds", "p50_ms", "p99_ms", "refused", "client_cores"),
    "overload": ("name", "per_s", "goodput", "p50_ms", "p99_ms", "refused", "refused_p50_ms", "dropped"),
    INGEST_STARTER: ("name", "per_s", "rounds"),
    INGEST: ("name", "per_s", "rounds"),
}


def write(scope: Scope, section: str, found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Merges a section into the JSON and makes the summary anew; returns the whole.

    Sections of another model, length, commit or machine do not belong together: they are dropped.
    """
    told: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    models = {"model": scope.model, "ingest_model": scope.ingest_model}
    described = {**models, "quick": scope.quick, "commit": commit_of(*_MEASURED), "machine": machine()}
    known = told.get("sections", {}) if all(told.get(key) == value for key, value in described.items()) else {}
    stamped = {
        "command": " ".join(["python -m benchmarks.gateway", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    sections = {**known, section: {**found, "seconds": round(seconds, 1)}}
    sections = {name: sections[name] for name in SECTIONS if name in sections}
    whole = {**described, **stamped, "summary": summary(sections), "sections": sections}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    half_written = RESULTS.with_suffix(".json.part")
    half_written.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    half_written.replace(RESULTS)
    return whole


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
        table = Table(title=f"{name}, {section['seconds']:.0f} s")
        for column in columns:
            table.add_column(column.replace("_", " "), justify="left" if column == "name" else "right")
        for row in rows:
            table.add_row(*(shown(row.get(column)) for column in columns))
        console.print(table)
    table = Table("summary", "", title="Summary")
    for name, value in whole["summary"].items():
        table.add_row(name, shown(value))
    console.print(table)
