"""The recipes of the documentation: marked blocks, and a shell that runs them as they stand, but for ports."""

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.processes import ROOT, STOP_S, environment

DOCUMENT = ROOT / "docs" / "operate.md"
_BLOCK = re.compile(
    r"^(?P<indent> *)```(?:sh|python) recipe=(?P<name>[a-z-]+)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S
)
_DONE = "== the block has come to its end"
BLOCK_S = 110.0


def blocks(document: Path = DOCUMENT) -> dict[str, str]:
    """The text of each marked block, by its name."""
    found = {m["name"]: textwrap.dedent(m["text"]) for m in _BLOCK.finditer(document.read_text(encoding="utf-8"))}
    assert found, f"no recipes in {document}"
    return found


def block(name: str, ports: Mapping[str, str] | None = None) -> str:
    """One block, with other ports in the place of the document's."""
    text = blocks()[name]
    for documented, free in (ports or {}).items():
        assert documented in text or len(ports or {}) > 1, f"the block {name} speaks of no port {documented}"
        text = text.replace(documented, free)
    return text


def shell_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """What a shell with the virtual environment active has."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return environment({"PATH": path, "COLUMNS": "160", **variables})


def run(text: str, cwd: Path, variables: Mapping[str, str]) -> str:
    """Runs a block to its end, which must be a good one; returns what it printed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=cwd,
        env=shell_environment(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BLOCK_S,
        check=False,
    )
    assert done.returncode == 0, f"{text}\nended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def left_running(text: str, cwd: Path, variables: Mapping[str, str]) -> Iterator[str]:
    """Runs a block that starts services in the background, and ends those afterwards; yields what it printed."""
    script = (
        "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n"
        "trap 'exit 0' TERM\n"
        f"set -euo pipefail\n{text}\necho '{_DONE}'\nwait\n"
    )
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=cwd,
        env=shell_environment(variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        printed = []
        for line in process.stdout:
            if line.strip() == _DONE:
                break
            printed.append(line)
        else:
            logs = "".join(f"\n{log}:\n{log.read_text()[-3000:]}" for log in sorted(cwd.glob("*.log")))
            raise AssertionError(f"{text}\nended:\n{''.join(printed)}{logs}")
        yield "".join(printed)
    finally:
        process.terminate()
        process.wait(STOP_S)
        process.stdout.close()
