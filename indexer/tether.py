"""``python -I tether.py PARENT COMMAND…``: becomes COMMAND, which the kernel kills when PARENT dies, however it dies.

A program of its own and no ``preexec_fn``: gRPC has threads, and Python code between fork and exec of a process with
threads can deadlock. The setting survives ``exec``. Linux only (prctl(2), PR_SET_PDEATHSIG); elsewhere COMMAND just
runs.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """The command line."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != parent:  # it died before the kernel was told
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main()
