"""SIGTERM while a service still loads its libraries: it ends, also where the kernel would keep the signal from it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

# In the place of a library that all services import.
LIBRARY = """
import signal
print("is being imported", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("service", ["embedder", "gateway", "indexer"])
async def test_sigterm_amid_the_imports_ends_a_service(service: str, tmp_path: Path) -> None:
    (tmp_path / "structlog.py").write_text(LIBRARY)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", service),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"is being imported\n"
        process.terminate()
        assert await process.wait() == 0  # by a handler of its own, which a first process needs
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
