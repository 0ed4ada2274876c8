"""``python -m benchmarks.gateway``: all sections, or those that ``--only`` names."""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.embedder.inputs import prepare
from benchmarks.embedder.processes import FailedError, end_on_signals
from benchmarks.gateway import report, searches, taking_in
from benchmarks.gateway.overload import overload
from benchmarks.gateway.scope import INGEST, INGEST_STARTER, SECTIONS, Scope
from benchmarks.gateway.stack import Stack
from benchmarks.results import errors

_RUNS: dict[str, Callable[[Stack], dict[str, Any]]] = {
    "latency": searches.latency,
    "rates": searches.rates,
    "overload": overload,
    INGEST_STARTER: taking_in.ingest,
    "memory": taking_in.memory,
    INGEST: partial(taking_in.ingest, clip=True),
}


def main() -> int:
    """The command line; returns 1 if something failed."""
    options = _options()
    end_on_signals()
    scope = Scope.of(options.model, quick=options.quick)
    chosen = set(options.only or scope.sections())
    if missing := chosen - set(scope.sections()):
        print(f"with --model {options.model} there is no section {', '.join(missing)}", file=sys.stderr)
        return 2
    begun = time.monotonic()
    whole: dict[str, Any] = {}
    failed: list[str] = []
    try:
        prepare()
        for sections in (chosen - {INGEST}, chosen & {INGEST}):
            if sections:
                whole = _measured(scope, sections, failed) or whole
    except FailedError as error:
        failed.append(str(error))
    if whole:
        report.show(whole)
    print(f"{report.RESULTS.path}, {time.monotonic() - begun:.0f} s")
    for text in failed:
        print(f"FAILED: {text}", file=sys.stderr)
    return int(bool(failed))


def _measured(scope: Scope, chosen: set[str], failed: list[str]) -> dict[str, Any]:
    """Measures sections with one and the same services; returns the whole report."""
    whole: dict[str, Any] = {}
    alone = chosen == {INGEST}  # what is taken in goes into collections of its own
    model, items = (scope.ingest_model, 0) if alone else (scope.model, scope.items)
    print(f"Starting the services with {model} and storing {items} items …", flush=True)
    with Stack(scope, model, items) as stack:
        for section in filter(chosen.__contains__, SECTIONS):
            started = time.monotonic()
            found = _RUNS[section](stack)
            failed += [f"{section}, {text}" for text in errors(found)]
            whole = report.write(scope, section, found, time.monotonic() - started)
    return whole


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a cut of all sections, in less than ten minutes")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="one section; may be given again")
    parser.add_argument("--model", help="of every section: starter, or an architecture of open_clip's")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
