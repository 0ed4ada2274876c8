"""Other servers, each in an environment of its own under build/peers: ``python -m benchmarks.embedder.peers setup``.

Models are made here from random numbers.
"""

import argparse
import importlib.util
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.embedder.infinity_load import SERVED_NAME
from benchmarks.embedder.processes import START_S, FailedError, Process, free_port
from benchmarks.embedder.scope import WORK, surroundings
from benchmarks.environments import Peer, python_of, set_up

PEERS = (
    # The newest infinity-emb asks for less than it needs: it imports aiohttp, and optimum.bettertransformer, which is
    # gone from optimum 2 and refuses transformers from 4.49 on; its command line breaks with newer click and typer.
    Peer(
        "infinity",
        (
            "infinity-emb[torch,server,vision]==0.0.78",
            "aiohttp",
            "torch<2.9",
            "transformers<4.49",
            "optimum<2",
            "click<8.2",
            "typer<0.16",
        ),
        "import infinity_emb.cli",
        ("infinity", "torch==", "transformers==", "optimum=="),
    ),
    # It imports pkg_resources, which newer setuptools lack; docarray 0.21 does not know numpy 2.
    Peer(
        "clip-server",
        ("clip-server==0.8.3", "setuptools<81", "numpy<2"),
        "import clip_server.executors.clip_torch",
        ("clip-server", "torch==", "jina==", "docarray=="),
        "loads only weights whose MD5 it knows, from its own download server: none with random weights",
    ),
)
MEASURED = tuple(peer for peer in PEERS if not peer.unmeasured)
_QUIET = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


def infinity_model(architecture: str) -> Path:
    """The folder of a CLIP with random weights as Hugging Face's transformers store it; made once.

    Raises:
        FailedError: it could not be made; ``infinity_model`` knows two architectures.
    """
    folder = WORK / "models" / f"infinity-{architecture}"
    if folder.is_dir():
        return folder
    half_made = folder.with_name(f".{folder.name}")
    shutil.rmtree(half_made, ignore_errors=True)
    half_made.mkdir(parents=True)
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None
    assert spec.submodule_search_locations
    vocabulary = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    script = Path(__file__).with_name("infinity_model.py")
    command = [str(part) for part in (python_of("infinity"), script, half_made, architecture, vocabulary)]
    ran = subprocess.run(command, check=False, env=surroundings(_QUIET), capture_output=True, text=True)
    if ran.returncode != 0:
        said = (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]
        raise FailedError(f"infinity: no model with random weights for {architecture}: {said}")
    half_made.rename(folder)
    return folder


class Infinity(Process):
    """A running ``infinity-emb``.

    Attributes:
        port: of its HTTP interface.
    """

    def __init__(self, architecture: str) -> None:
        """Starts it, engine torch, batches of up to 32; ``ready`` waits for it."""
        self.port = free_port()
        program = python_of("infinity").with_name("infinity_emb")
        arguments = ["v2", "--model-id", str(infinity_model(architecture)), "--served-model-name", SERVED_NAME]
        arguments += ["--engine", "torch", "--batch-size", "32", "--host", "127.0.0.1", "--port", str(self.port)]
        arguments += ["--no-model-warmup"]  # two minutes on few cores; the benchmark warms it up itself
        super().__init__("infinity", [str(program), *arguments], surroundings(_QUIET), talks=False)

    def ready(self) -> None:
        """Waits until it answers."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and not self.ended:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        raise self.failed("does not answer")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedder.peers", description=__doc__)
    parser.add_argument("action", choices=["setup"])
    parser.add_argument("--limit", type=float, default=1800, metavar="SECONDS", help="for all of them (%(default)s)")
    parser.add_argument("--again", action="store_true", help="those that were tried before, too")
    options = parser.parse_args()
    set_up(PEERS, options.limit, options.again)


if __name__ == "__main__":
    main()
