"""The indexer and its Chroma killed again and again under load: ``python -m tests.chaos``; exits with 1 on any fault.

Rounds of kill -9 first, then the scenarios; at last a gateway, whose networks are cut too. The same seed kills the same
victims after the same times; what the load has reached by then is the machine's affair. A scenario none of whose kills
came while what it is about was under way is a fault too; one that cannot be tried here is said to be skipped.
"""

import argparse
import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import grpc

from tests.chaos import full_disk, gateway, readers, report, scenarios
from tests.chaos.base import WORK, contents, copied
from tests.chaos.checker import Kind, Violation
from tests.chaos.indexer import DownError, Indexer
from tests.chaos.ledger import Ledger
from tests.chaos.rounds import READY_S, Outcome, kill_round

Scenario = Callable[[Path, Path, int], Generator[Outcome, None, None]]
SCENARIOS: dict[str, Scenario] = {
    "snapshot": scenarios.during_snapshot,
    "rebuild": scenarios.during_rebuild,
    "disk": full_disk.fills_up,
}
ROUNDS, READERS, GATEWAY = "rounds", "readers", "gateway"
# Of kill -9, and of those with readers and with a gateway, which take longer.
_ROUNDS, _READER_ROUNDS, _GATEWAY_ROUNDS = 50, 30, 30
_BASE, _READER_BASE = 50_000, 5_000


def main() -> int:
    """The command line."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    folder, logs = WORK / "run", WORK / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    began = time.monotonic()
    outcomes: list[Outcome] = []
    for name in options.only or [ROUNDS, *SCENARIOS, READERS, GATEWAY]:
        run = _run(name, options, folder, logs)
        try:
            with contextlib.closing(run):  # ends its processes, whatever happens here
                for outcome in run:
                    outcomes.append(outcome)
                    report.say(report.line(outcome))
        except (DownError, grpc.RpcError) as error:
            outcomes.append(Outcome(name, violations=[Violation(Kind.UNAVAILABLE, str(error))]))
            report.say(report.line(outcomes[-1]))
    for outcome in report.never_hit(outcomes):
        outcomes.append(outcome)
        report.say(report.line(outcome))
    shutil.rmtree(folder, ignore_errors=True)
    rest = f"seed {options.seed}, {time.monotonic() - began:.0f} s; logs in {logs}"
    report.show(outcomes, rest)
    return int(any(outcome.violations for outcome in outcomes))


def _run(name: str, options: argparse.Namespace, folder: Path, logs: Path) -> Generator[Outcome, None, None]:
    if name == ROUNDS:
        return _rounds(options, folder, logs)
    if name == READERS:
        rounds, base = options.rounds or _READER_ROUNDS, options.base or _READER_BASE
        return readers.follow(folder, logs, options.seed, rounds, base)
    if name == GATEWAY:
        return gateway.rounds(folder, logs, options.seed, options.rounds or _GATEWAY_ROUNDS)
    return SCENARIOS[name](folder, logs, options.seed)


def _rounds(options: argparse.Namespace, folder: Path, logs: Path) -> Generator[Outcome, None, None]:
    base, rounds = options.base or _BASE, options.rounds or _ROUNDS
    ledger = Ledger()
    ledger.preload(contents(base))
    with Indexer(copied(base, folder), logs, LIKENESS_READS=options.reads) as indexer:
        report.say(f"{base} items; the first start took {indexer.start():.1f} s")
        for number in range(rounds):
            yield kill_round(number, indexer, ledger, options.seed, options.ready)
        # Nothing but Chroma: what memory and snapshots held must have been that.
        outcome = Outcome("from Chroma alone")
        indexer.stop()
        indexer.forget_snapshots()
        outcome.note = f"started without a snapshot in {indexer.start():.1f} s"
        outcome.look(indexer, ledger, options.seed)
        yield outcome


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"of kill -9 ({_ROUNDS}), of those with readers ({_READER_ROUNDS}) and with a gateway ({_GATEWAY_ROUNDS})",
    )
    parser.add_argument("--seed", type=int, default=1, help="of everything that is random (%(default)s)")
    parser.add_argument("--base", type=int, help=f"items stored before ({_BASE}; {_READER_BASE} with readers)")
    parser.add_argument("--reads", default="auto", help="LIKENESS_READS during the rounds (%(default)s)")
    parser.add_argument("--ready", type=float, default=READY_S, metavar="SECONDS", help="longest absence (%(default)s)")
    parser.add_argument(
        "--only", action="append", choices=[ROUNDS, *SCENARIOS, READERS, GATEWAY], help="may be given again"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
