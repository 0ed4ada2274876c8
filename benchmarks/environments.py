"""Other people's programs, each in an environment of its own under build/peers.

Packages come from the index that pip is configured with. They are installed by uv: pip's resolver did not come to an
end with clip-server's requirements in seven minutes, uv's does in one.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent.parent / "build" / "peers"


@dataclass(frozen=True)
class Peer:
    """A program to install.

    Attributes:
        name: of its environment.
        requirements: as pip takes them.
        probe: Python that shows that it not only installs but starts to be imported.
        shown: the packages whose versions the results tell, by the beginnings of their names.
        unmeasured: why it is not measured although it is installed; empty: it is.
    """

    name: str
    requirements: tuple[str, ...]
    probe: str
    shown: tuple[str, ...]
    unmeasured: str = ""


def python_of(peer: str) -> Path:
    """The peer's own interpreter."""
    return PEERS / peer / "bin" / "python"


def state(peer: str) -> dict[str, Any]:
    """What became of the peer's installation: installed (true, false, or null if never tried) and what was said."""
    path = PEERS / f"{peer}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"installed": None}
    if found["installed"] and not python_of(peer).is_file():
        return {"installed": None}
    return found


def set_up(peers: Sequence[Peer], limit_s: float, again: bool = False) -> None:
    """Installs what has not been tried yet, together within a time limit."""
    deadline = time.monotonic() + limit_s
    for peer in peers:
        if again or state(peer.name)["installed"] is None:
            left = max(1.0, deadline - time.monotonic())
            print(f"Setting up {peer.name} in {PEERS / peer.name} (at most {left:.0f} s) …", flush=True)
            _write(peer.name, _install(peer, left))
        print(f"{peer.name}: {json.dumps(state(peer.name))}", flush=True)


def _install(peer: Peer, limit_s: float) -> dict[str, Any]:
    folder = PEERS / peer.name
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.monotonic()
    uv = Path(sys.executable).with_name("uv")
    steps = [
        [sys.executable, "-m", "venv", folder],
        [uv, "pip", "install", "--quiet", "--python", python_of(peer.name), *peer.requirements],
        [python_of(peer.name), "-c", peer.probe],
    ]
    for command in steps:
        left = limit_s - (time.monotonic() - begun)
        if (said := _failure(command, left)) is not None:
            # An unfinished installation may succeed with more time: only a refusal is remembered as such.
            gave_up = said == ""
            return {
                "installed": None if gave_up else False,
                "said": f"not finished within {limit_s:.0f} s" if gave_up else said,
                "requirements": peer.requirements,
            }
    freeze = subprocess.run(
        [python_of(peer.name), "-m", "pip", "freeze", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = freeze.stdout.splitlines()
    versions = [text for text in lines if text.lower().replace("_", "-").startswith(peer.shown)]
    found = {"installed": True, "seconds": round(time.monotonic() - begun), "versions": versions}
    return found | ({"not_measured": peer.unmeasured} if peer.unmeasured else {})


def _failure(command: list[Any], left_s: float) -> str | None:
    """Runs a command; None if it went well, its last line if not, nothing if the time ran out."""
    process = subprocess.Popen(
        command, env=_index(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=max(1.0, left_s))
    except BaseException as error:
        process.kill()
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            return ""
        raise
    lines = [text.strip() for text in output.splitlines() if text.strip()]
    return None if process.returncode == 0 else (lines or [f"exit code {process.returncode}"])[-1]


def _index() -> dict[str, str]:
    """The environment, with pip's choice of an index told to uv, which does not read pip's configuration."""
    told = dict(os.environ)
    for ours, theirs in (("index-url", "UV_DEFAULT_INDEX"), ("find-links", "UV_FIND_LINKS")):
        for place in (":env:", "install", "global"):
            asked = [sys.executable, "-m", "pip", "config", "get", f"{place}.{ours}"]
            said = subprocess.run(asked, capture_output=True, text=True, check=False)
            if said.returncode == 0 and said.stdout.strip():
                told.setdefault(theirs, said.stdout.strip())
    return told


def _write(peer: str, found: dict[str, Any]) -> None:
    PEERS.mkdir(parents=True, exist_ok=True)
    (PEERS / f"{peer}.json").write_text(json.dumps(found, indent=1) + "\n")
