"""What was measured, for people and for programs."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.embedder.input_kinds import rows_of
from benchmarks.embedder.scope import ROOT, SECTIONS, Scope
from benchmarks.embedder.summary import summary
from benchmarks.embedder.turns import Row
from chassis.cores import cores

RESULTS = ROOT / "benchmarks" / "results" / "embedder.json"
# Told of each section, so that those of earlier runs can be told from this one's.
_RUN = datetime.now(UTC).isoformat(timespec="milliseconds")
_MEASURED = ("embedder", "chassis")
_PACKAGES = ("torch", "openvino", "open_clip_torch", "chromadb", "grpcio", "pillow", "numpy")
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_tile", "avx_vnni", "asimd", "bf16")


def machine() -> dict[str, Any]:
    """The machine, as far as it tells."""
    cpuinfo = _text(Path("/proc/cpuinfo"))
    named = next((text.split(":", 1)[1].strip() for text in cpuinfo.splitlines() if text.startswith("model name")), "")
    flags = set(cpuinfo.split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": named or platform.processor() or platform.machine(),
        "cores": cores(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "memory_gib": round(memory, 1),
        "gpu": _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "system": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that decide speed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """What is measured: this project's commit, and a digest of what is changed in the embedder; None without git."""
    head = _output("git", "rev-parse", "HEAD")
    if head is None or not _output("git", "status", "--porcelain", "--", *_MEASURED):
        return head
    changed = hashlib.sha256()
    for path in sorted(path for folder in _MEASURED for path in (ROOT / folder).rglob("*.py")):
        changed.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return f"{head}, dirty {changed.hexdigest()[:8]}"


def write(scope: Scope, section: str, found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Merges a section into the JSON and makes the summary anew; returns the whole.

    Sections of another target, length, commit or machine do not belong together: they are dropped. Those of an earlier
    run of the command are kept, and ``from_earlier_runs`` names them, each with its date: so much of the summary is not
    of this run.
    """
    told: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    described = {
        "target": vars(scope.target),
        "quick": scope.quick,
        "commit": commit(),
        "machine": machine(),
    }
    known = told.get("sections", {}) if all(told.get(key) == value for key, value in described.items()) else {}
    stamped = {
        "command": " ".join(["python -m benchmarks.embedder", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    sections = {**known, section: {**stamped, "run": _RUN, "seconds": round(seconds, 1), **found}}
    sections = {name: sections[name] for name in SECTIONS if name in sections}
    earlier = {name: each["date"] for name, each in sections.items() if each.get("run") != _RUN}
    whole = {
        **described,
        **stamped,
        "from_earlier_runs": earlier,
        "summary": summary(sections),
        "sections": sections,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    half_written = RESULTS.with_suffix(".json.part")
    half_written.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    half_written.replace(RESULTS)
    return whole


def errors(found: Any, where: str = "") -> list[str]:
    """Every ``error`` that a result holds, with the name of its row."""
    if isinstance(found, list):
        return [text for each in found for text in errors(each, where)]
    if not isinstance(found, dict):
        return []
    here = str(found.get("name") or where)
    own = [f"{here}: {found['error']}"] if found.get("error") else []
    return own + [text for key, each in found.items() for text in errors(each, here if here else key)]


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
        table.add_row(name, _shown(value))
    console.print(table)
    if earlier := whole["from_earlier_runs"]:
        console.print("from earlier runs: " + ", ".join(f"{name} ({date})" for name, date in earlier.items()))


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
            table.add_row(row["name"], *map(_shown, figures), rounds, *map(_shown, (*latency, *cores)))
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
            model, kind, row["name"], *(_shown(row.get(key)) for key in ("per_s", "p50_ms", "p99_ms", "batch"))
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
        table.add_row(*(_shown(row.get(column)) for column in columns))
    console.print(table)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _output(*command: str) -> str | None:
    """What a program prints, or None where there is none or it fails."""
    try:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.strip() or None
