"""What was measured, for people and for programs."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.embedder.input_kinds import rows_of
from benchmarks.embedder.scope import ROOT, SECTIONS, Scope
from benchmarks.embedder.summary import summary
from benchmarks.embedder.turns import Row
from benchmarks.results import Results, earlier, shown

RESULTS = Results(
    ROOT / "benchmarks" / "results" / "embedder.json",
    "benchmarks.embedder",
    measured=("embedder", "chassis"),
    packages=("torch", "openvino", "open_clip_torch", "chromadb", "grpcio", "pillow", "numpy"),
    order=SECTIONS,
    summary=summary,
)


def write(scope: Scope, section: str, found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Merges a section into the JSON and makes the summary anew; returns the whole."""
    return RESULTS.write({"target": vars(scope.target), "quick": scope.quick}, [section], found, seconds)


def show(whole: Mapping[str, Any]) -> None:
    """Prints every section as tables."""
    console = Console(width=None if sys.stdout.isatty() else 132)
    about = whole["machine"]
    console.print(
        f"\n[bold]{whole['command']}[/bold]: {whole['target']['model']}, {about['cpu']}, {about['cores']} cores, "
        f"{', '.join(about['flags'])}; {whole['date']}; commit {whole['commit']}"
    )
    sections = whole["sections"]
    for name, show_section in _SHOWN.items():
        if name in sections:
            console.print(f"\n[bold]{name}[/bold]: {sections[name]['date']}, {sections[name]['seconds']:.0f} s")
            show_section(console, sections[name])
    table = Table("summary", "", title="Summary")
    for name, value in whole["summary"].items():
        table.add_row(name, shown(value))
    console.print(table)
    if told := earlier(whole):
        console.print(told)


def _methods(console: Console, found: Mapping[str, Any]) -> None:
    for name in ("images", "texts"):
        part = found[name]
        rows = part["rows"]
        best = next((row.get("per_s") for row in rows if row["name"] == "forward"), None)
        table = Table(title=f"Methods: {part['kind']}; bare forward pass in batches of {part['best_batch']}")
        for header in (
            "method",
            "per s",
            "of forward",
            "rounds",
            "p50 ms",
            "p99 ms",
            "batch",
            "cores: server",
            "client",
        ):
            table.add_column(header, justify="left" if header == "method" else "right")
        for row in rows:
            share = row["per_s"] / best if best and row.get("per_s") else None
            rounds = " ".join(f"{value:.1f}" for value in row["rounds"])
            cores = (row.get("server_cores"), row.get("client_cores"))
            figures = (row.get("per_s"), share)
            latency: tuple[Any, ...] = (row.get("p50_ms"), row.get("p99_ms"), row.get("batch"))
            table.add_row(row["name"], *map(shown, figures), rounds, *map(shown, (*latency, *cores)))
        console.print(table)
    for name, spec in found["about"]["specs"].items():
        console.print(
            f"{name}: {', '.join(str(spec[key]) for key in ('backend', 'precision', 'device') if key in spec)}"
        )
    for peer, state in (found["about"]["peers"] or {}).items():
        console.print(f"{peer}: {json.dumps(state)}")


def _inputs(console: Console, found: Mapping[str, Any]) -> None:
    table = Table("model or backend", "input", "method", title="Inputs")
    for header in ("per s", "p50 ms", "p99 ms", "batch"):
        table.add_column(header, justify="right")
    for model, kind, row in rows_of(dict(found)):
        table.add_row(
            model, kind, row["name"], *(shown(row.get(key)) for key in ("per_s", "p50_ms", "p99_ms", "batch"))
        )
    console.print(table)


def _load(console: Console, found: Mapping[str, Any]) -> None:
    columns = ("load", "capacity_per_s", "offered_per_s", "per_s", "goodput", "p50_ms", "p95_ms", "p99_ms", "refused")
    refusals = ("refused_p50_ms", "refused_p99_ms", "lag_p99_ms", "failed")
    _table(console, "Load: Poisson arrivals at multiples of capacity", (*columns, *refusals), found["open"])
    columns = ("bulk", "per_s", "interactive_items", "p50_ms", "p95_ms", "p99_ms", "batch_s", "p99_in_batches", "error")
    _table(console, "Interactive calls, one at a time, beside bulk", columns, found["beside_bulk"])


def _growth(console: Console, found: Mapping[str, Any]) -> None:
    for kind, sizes in found["by_batch"].items():
        rows = [{"batch": size, "per_s": per_s} for size, per_s in sizes.items()]
        _table(console, f"Forward pass by batch size: {kind}", ("batch", "per_s"), rows)
    for what in ("concurrency", "processes"):
        served = ("name", "per_s", "p50_ms", "p99_ms", "batch", "refused", "server_cores", "client_cores")
        _table(console, f"Served, by {what}", served, found[f"by_{what}"])
    columns = ("seconds", "slope_mb_per_hour", "standard_error_mb_per_hour", "first_mib", "last_mib", "highest_mib")
    _table(console, "Memory under a mixture of inputs", (*columns, "per_s"), [found["memory"]])


def _poison(console: Console, found: Mapping[str, Any]) -> None:
    if found["missing"]:
        console.print(found["missing"])
        return
    columns = ("files", "rounds", "seconds", "warm_mib", "last_mib", "highest_mib", "ready", "codes")
    _table(console, "Hostile files, over and over", columns, [dict(found)])


def _copies(console: Console, found: Mapping[str, Any]) -> None:
    if found["missing"]:
        console.print(found["missing"])
        return
    columns = ("name", "items", "allocations", "allocated_kb", "copies", "copied_kb")
    _table(console, "For each picture, of 16 KiB or more", columns, found["rows"])


_SHOWN: Mapping[str, Callable[[Console, Mapping[str, Any]], None]] = {
    "methods": _methods,
    "inputs": _inputs,
    "load": _load,
    "growth": _growth,
    "poison": _poison,
    "copies": _copies,
}


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    if not rows:
        return
    table = Table(title=title)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(shown(row.get(column)) for column in columns))
    console.print(table)
