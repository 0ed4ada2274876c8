"""``python -m benchmarks.embedder``: all sections, or those that ``--only`` names."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.embedder import copies, growth, input_kinds, load, methods, poison, report
from benchmarks.embedder.inputs import prepare
from benchmarks.embedder.models import STARTER, local
from benchmarks.embedder.processes import end_on_signals
from benchmarks.embedder.scope import QUICK_SECTIONS, SECTIONS, Scope, Target
from benchmarks.results import errors

_RUN: Mapping[str, Callable[[Scope], dict[str, Any]]] = {
    "methods": methods.run,
    "inputs": input_kinds.run,
    "load": load.run,
    "growth": growth.run,
    "poison": poison.run,
    "copies": copies.run,
}


def main() -> int:
    """The command line; returns 1 if a contender failed."""
    options = _options()
    end_on_signals()
    device = f"cuda:{options.gpu}" if options.gpu is not None else options.device
    target = Target(options.model, options.backend, options.precision, device)
    scope = Scope.of(target, options.quick, options.clients, options.peers)
    begun = time.monotonic()
    print(f"{target}: pictures and models …", flush=True)
    prepare()
    for model in (target.model, STARTER):
        local(model)
    whole: dict[str, Any] = {}
    failed = []
    for section in options.only or (QUICK_SECTIONS if options.quick else SECTIONS):
        print(f"{section} …", flush=True)
        started = time.monotonic()
        found = _RUN[section](scope)
        failed += [f"{section}, {text}" for text in errors(found)]
        whole = report.write(scope, section, found, time.monotonic() - started)
    report.show(whole)
    print(f"{report.RESULTS.path}, {time.monotonic() - begun:.0f} s")
    for text in failed:
        print(f"FAILED: {text}", file=sys.stderr)
    return int(bool(failed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedder", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a cut of the first four, in a quarter of an hour")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="one section; may be given again")
    parser.add_argument("--model", default="ViT-B-32", help="starter, or an architecture of open_clip's (%(default)s)")
    parser.add_argument("--backend", default="auto", help="as LIKENESS_BACKEND")
    parser.add_argument("--precision", default="auto", help="as LIKENESS_PRECISION")
    parser.add_argument("--device", default="auto", help="as LIKENESS_DEVICE")
    parser.add_argument("--gpu", nargs="?", type=int, const=0, metavar="NUMBER", help="the same as --device cuda:0")
    parser.add_argument("--clients", type=int, default=1, help="processes that send; more where one is the limit")
    peers = os.environ.get("PEERS", "1") != "0"
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=peers, help="other servers too (PEERS=0: not)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
