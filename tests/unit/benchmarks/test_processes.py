"""A signal ends the embedder's benchmark and all that it started, at once."""

import signal
import subprocess
import sys

import psutil
import pytest

from benchmarks.embedder.scope import ROOT

_PARENT = """
import subprocess, time
from benchmarks.embedder.processes import end_on_signals
end_on_signals()
child = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM INT; sleep 60; exit"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_benchmark_and_its_processes_also_where_sigint_is_ignored(number: signal.Signals) -> None:
    command = ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", _PARENT]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(number)
        assert parent.wait(10) == 128 + number
        assert not psutil.pid_exists(child)
