"""What was measured, for people and for programs."""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.embedder.report import machine
from benchmarks.embedder.scope import ROOT
from benchmarks.embedder.turns import Row
from benchmarks.indexer.scope import EF_CONSTRUCTION, EF_SEARCH, NEIGHBOURS, SECTIONS, Scope
from benchmarks.indexer.summary import summary

RESULTS = ROOT / "benchmarks" / "results" / "indexer.json"
_MEASURED = ("indexer", "chassis", "protos")
_PACKAGES = ("chromadb", "faiss-cpu", "grpcio", "protobuf", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide speed."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def commit_of(*measured: str) -> str | None:
    """What is measured: this project's commit, and a digest of what is changed in these folders; None without git."""
    head = _git("rev-parse", "HEAD")
    if head is None or not _git("status", "--porcelain", "--", *measured):
        return head
    changed = hashlib.sha256()
    for path in sorted(path for folder in measured for path in (ROOT / folder).rglob("*") if path.suffix in _SOURCES):
        changed.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return f"{head}, dirty {changed.hexdigest()[:8]}"


_SOURCES = (".py", ".proto")


def write(scope: Scope, section: str, size: int, found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Merges a section's figures of one size into the JSON and makes the summary anew; returns the whole.

    Figures of another length, commit or machine do not belong together: they are dropped.
    """
    told: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    described = {"quick": scope.quick, "clients": scope.clients, "commit": commit_of(*_MEASURED), "machine": machine()}
    known = told.get("sections", {}) if all(told.get(key) == value for key, value in described.items()) else {}
    stamped = {
        "command": " ".join(["python -m benchmarks.indexer", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "graph": {"neighbours": NEIGHBOURS, "ef_construction": EF_CONSTRUCTION, "ef_search": EF_SEARCH},
    }
    sizes = {**known.get(section, {}).get("sizes", {}), str(size): {**found, "seconds": round(seconds, 1)}}
    sections = {**known, section: {"sizes": dict(sorted(sizes.items(), key=lambda pair: int(pair[0])))}}
    sections = {name: sections[name] for name in SECTIONS if name in sections}
    whole = {**described, **stamped, "summary": summary(sections), "sections": sections}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    half_written = RESULTS.with_suffix(".json.part")
    half_written.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    half_written.replace(RESULTS)
    return whole


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
        for size, found in section["sizes"].items():
            title = f"{name}, {int(size):,} items, {found['seconds']:.0f} s"
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


def shown(value: Any) -> str:
    """A figure, or several, in a cell."""
    match value:
        case None:
            return "–"
        case float():
            return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
        case list():
            return " ".join(map(shown, value))
        case dict():
            return ", ".join(f"{key} {shown(each)}" for key, each in value.items())
        case _:
            return str(value)


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    table = Table(title=title)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column == "name" else "right")
    for row in rows:
        table.add_row(*(shown(row.get(column)) for column in columns))
    console.print(table)


def _git(*arguments: str) -> str | None:
    try:
        ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.strip() or None
