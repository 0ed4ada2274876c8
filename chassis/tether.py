"""A process that dies with the one that started it, however that dies.

``die_with`` is for a program of ours. For another there is ``python -I tether.py PARENT COMMAND…``, which becomes
COMMAND: a program of its own and no ``preexec_fn``, since gRPC has threads, and Python code between fork and exec of a
process with threads can deadlock; the setting survives ``exec``. Linux only (prctl(2), PR_SET_PDEATHSIG); elsewhere
nothing happens.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Has the kernel kill this process (SIGKILL) when its parent dies; exits with 1 if that has happened already.

    Args:
        parent: process id of the parent. It is its thread that counts: one that started this process and ends takes
            this process with it.

    Raises:
        OSError: the kernel refuses.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the kernel was told
        sys.exit(1)


def main() -> None:
    """The command line."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    die_with(parent)
    os.execv(command[0], command)  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main()
