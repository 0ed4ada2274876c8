"""``python -m benchmarks.gateway``: all sections, or those that ``--only`` names."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.embedder.inputs import prepare
from benchmarks.embedder.processes import FailedError, end_on_signals
from benchmarks.embedder.report import errors
from benchmarks.gateway import report, searches, taking_in
from benchmarks.gateway.overload import overload
from benchmarks.gateway.scope import INGEST, INGEST_STARTER, SECTIONS, Scope
from benchmarks.gateway.stack import Stack

_RUNS: dict[str, Callable[[Stack], dict[str, Any]]] = {
    "latency": searches.latency,
    "rates": searches.rates,
    "overload": overload,
    INGEST_STARTER: taking_in.ingest,
    "memory": taking_in.memory,
    INGEST: taking_in.ingest,
}


def main() -> int:
    """The command line; returns 1 if something failed."""
    options = _options()
    end_on_signals()
    scope = Scope.of(options.model, quick=options.quick)
    begun = time.monotonic()
    whole: dict[str, Any] = {}
    failed: list[str] = []
    try:
        prepare()
        chosen = options.only or scope.sections()
        for model in dict.fromkeys(scope.model_of(section) for section in chosen):
            sections = [section for section in chosen if scope.model_of(section) == model]
            # What is taken in goes into collections of its own.
            there = replace(scope, model=model, items=0 if sections == [INGEST] else scope.items)
            print(f"Starting the services with {model} and storing {there.items} items …", flush=True)
            with Stack(there) as stack:
                for section in sections:
                    started = time.monotonic()
                    found = _RUNS[section](stack)
                    failed += [f"{section}, {text}" for text in errors(found)]
                    whole = report.write(scope, section, found, time.monotonic() - started)
    except FailedError as error:
        failed.append(str(error))
    if whole:
        report.show(whole)
    print(f"{report.RESULTS}, {time.monotonic() - begun:.0f} s")
    for text in failed:
        print(f"FAILED: {text}", file=sys.stderr)
    return int(bool(failed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a cut of all sections, in less than ten minutes")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="one section; may be given again")
    parser.add_argument("--model", help="of every section: starter, or an architecture of open_clip's")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
