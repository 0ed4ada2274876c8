"""``python -m benchmarks.indexer``: all sections at all sizes, or those that ``--only`` and ``--sizes`` name."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import environments
from benchmarks.embedder.processes import FailedError, end_on_signals
from benchmarks.indexer import ingest, recall, report, speed, startup
from benchmarks.indexer.field import Field
from benchmarks.indexer.peers import PEERS
from benchmarks.indexer.scope import SECTIONS, Scope
from benchmarks.results import errors

# Those that share what takes part; the one that adds items comes last.
_TOGETHER: dict[str, Callable[[Field], dict[str, Any]]] = {
    "speed": speed.run,
    "filters": speed.run_filters,
    "recall": recall.run,
    "ingest": ingest.run,
}


def main() -> int:
    """The command line; returns 1 if somebody failed."""
    options = _options()
    end_on_signals()
    scope = Scope.of(quick=options.quick, sizes=options.sizes, clients=options.clients, peers=options.peers)
    begun = time.monotonic()
    if scope.peers:
        environments.set_up(PEERS, scope.install_s)
    whole: dict[str, Any] = {}
    failed: list[str] = []
    for size in scope.sizes:
        wanted = [name for name in options.only or SECTIONS if scope.takes(name, size)]
        print(f"{size} items: {', '.join(wanted)} …", flush=True)
        started = time.monotonic()
        try:
            for section, found in _measured(scope, size, wanted):
                failed += [f"{section}, {size}, {text}" for text in errors(found)]
                whole = report.write(scope, section, size, found, time.monotonic() - started)
                started = time.monotonic()
        except FailedError as error:
            failed.append(f"{size}: {error}")
    if whole:
        report.show(whole)
    print(f"{report.RESULTS.path}, {time.monotonic() - begun:.0f} s")
    for text in failed:
        print(f"FAILED: {text}", file=sys.stderr)
    return int(bool(failed))


def _measured(scope: Scope, size: int, wanted: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if "startup" in wanted:
        yield "startup", startup.run(scope, size)
    together = [name for name in _TOGETHER if name in wanted]
    if together:
        with Field(scope, size) as field:
            for name in together:
                yield name, _TOGETHER[name](field)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.indexer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a cut of all sections, in ten minutes")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="one section; may be given again")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="ITEMS", help="others than the usual ones")
    parser.add_argument("--clients", type=int, default=2, help="processes that ask (%(default)s)")
    peers = os.environ.get("PEERS", "1") != "0"
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=peers, help="other libraries too (PEERS=0: not)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
