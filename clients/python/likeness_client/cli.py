"""Runs the command ``likeness``; what it can do is in ``commands.app``."""

import errno
import io
import os
import sys


def main() -> None:
    """Runs the command line; an interrupt, and what cannot be written, are told in a line."""
    try:
        from likeness_client.commands.app import app  # noqa: PLC0415  # 0.2 s, in which Ctrl-C may come

        if isinstance(sys.stdout, io.TextIOWrapper):  # None, if it was closed
            sys.stdout.reconfigure(errors="replace")  # a table is of use without what its encoding lacks
        try:
            app()
        finally:
            if sys.stdout:  # none, if it was closed
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(130)  # as after any command that is interrupted
    except OSError as error:
        # What is left in the buffer goes nowhere: Python would try it again at the end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.errno != errno.EPIPE:
            sys.stderr.write(f"{error.filename or 'standard output'}: {error.strerror or error}\n")
        sys.exit(1)
