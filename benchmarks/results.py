"""What a benchmark writes down: its figures, each with its date, and on what they were measured."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.embedder.scope import ROOT
from chassis.cores import cores

# Told of each part, so that those of earlier runs can be told from this one's.
_RUN = datetime.now(UTC).isoformat(timespec="milliseconds")
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_tile", "avx_vnni", "asimd", "bf16")
_SOURCES = (".py", ".proto")


@dataclass(frozen=True)
class Results:
    """The file of one benchmark.

    Attributes:
        path: the JSON.
        program: what runs it, such as ``benchmarks.indexer``.
        measured: folders whose code decides the figures.
        packages: whose versions do.
        order: the sections, as they are shown.
        summary: the figures that are asked for, from all sections.
    """

    path: Path
    program: str
    measured: Sequence[str]
    packages: Sequence[str]
    order: Sequence[str]
    summary: Callable[[dict[str, Any]], dict[str, Any]]

    def write(
        self, about: Mapping[str, Any], where: Sequence[str], found: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Merges a part into the JSON and makes the summary anew; returns the whole.

        Parts of which ``about``, the commit or the machine differ do not belong together: they are dropped. Those of an
        earlier run of the command are kept, and ``from_earlier_runs`` names them, each with its date: so much of the
        summary is not of this run.

        Args:
            about: what the figures are of.
            where: the part's place: the name of its section, and what leads to it there.
            found: the part.
            seconds: how long it took.
        """
        told: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        described = {**about, "commit": commit(self.measured), "machine": machine()}
        together = "from_earlier_runs" in told and all(told.get(key) == value for key, value in described.items())
        known: dict[str, Any] = told.get("sections", {}) if together else {}
        stamped = {
            "command": " ".join([f"python -m {self.program}", *sys.argv[1:]]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(self.packages),
        }
        place = known
        for name in where[:-1]:
            place = place.setdefault(name, {})
        place[where[-1]] = {**found, **stamped, "run": _RUN, "seconds": round(seconds, 1)}
        sections = {name: known[name] for name in self.order if name in known}
        others = {name: part["date"] for name, part in _parts(sections) if part["run"] != _RUN}
        made = {"from_earlier_runs": others, "summary": self.summary(sections), "sections": sections}
        whole = {**described, **stamped, **made}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half_written = self.path.with_suffix(".json.part")
        half_written.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
        half_written.replace(self.path)
        return whole


def _parts(found: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parts of sections, each with the names that lead to it."""
    for name, each in found.items():
        if "run" in each:
            yield f"{where}{name}", each
        else:
            yield from _parts(each, f"{where}{name} ")


def earlier(whole: Mapping[str, Any]) -> str:
    """A line that says which figures are not of this run; empty where all are."""
    told = ", ".join(f"{name} ({date})" for name, date in whole["from_earlier_runs"].items())
    return f"from earlier runs: {told}" if told else ""


def errors(found: Any, where: str = "") -> list[str]:
    """Every ``error`` that a result holds, with the name of its row."""
    if isinstance(found, list):
        return [text for each in found for text in errors(each, where)]
    if not isinstance(found, dict):
        return []
    here = str(found.get("name") or where)
    own = [f"{here}: {found['error']}"] if found.get("error") else []
    return own + [text for key, each in found.items() for text in errors(each, here if here else key)]


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


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Of Python and of packages; None for those that are not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit(measured: Sequence[str]) -> str | None:
    """What is measured: this project's commit, and a digest of what is changed in these folders; None without git."""
    head = _output("git", "rev-parse", "HEAD")
    if head is None or not _output("git", "status", "--porcelain", "--", *measured):
        return head
    changed = hashlib.sha256()
    for path in sorted(path for folder in measured for path in (ROOT / folder).rglob("*") if path.suffix in _SOURCES):
        changed.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return f"{head}, dirty {changed.hexdigest()[:8]}"


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _output(*command: str) -> str | None:
    """What a program prints, or None where there is none or it fails."""
    try:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.strip() or None
