"""Writers and readers at work: what they are told goes into the ledger, what they see is checked at once."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

import grpc
import numpy as np

from tests.chaos.checker import Below, Found, Kind, Violation, alike, check_hit_under_load
from tests.chaos.client import Client, reason
from tests.chaos.items import Source
from tests.chaos.ledger import Ledger, State

WRITERS, READERS = 3, 2
# What comes when the indexer or Chroma is dead, dying or not yet back.
EXPECTED = {"UNAVAILABLE", "STORE_UNAVAILABLE", "NOT_READY", "SHUTTING_DOWN", "OVERLOADED", "CANCELLED", "STORE_FULL"}
_PAUSE_S = 0.2
# Sets readers' seeds apart from writers'.
_READER = 1000


@dataclass
class Load:
    """The load of one round.

    Attributes:
        client: what is written through, and what is asked, unless there are ``readers``.
        ledger: what is written, and what may be seen.
        seed: of everything that is random.
        readers: asked instead, one thread each; what they answer may be as old as ``behind_s``.
        expected: reasons for which calls may fail.
        done: calls that were answered, by what they were.
        failed: calls that were not, by reason.
        violations: what was wrong at once.
    """

    client: Client
    ledger: Ledger
    seed: int
    readers: Sequence[Client] = ()
    behind_s: float = 0.0
    expected: Set[str] = frozenset(EXPECTED)
    done: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Sets writers and readers to work."""
        ids = sorted(item_id for item_id, _ in self.ledger.items())
        for number in range(WRITERS):
            writer = _Writer(self, number, [i for i in ids if _owner(i) == number])
            self._threads.append(threading.Thread(target=self._guarded, args=(writer.step,)))
        for number in range(len(self.readers) or READERS):
            reader = _Reader(self, number, self.readers[number] if self.readers else self.client)
            self._threads.append(threading.Thread(target=self._guarded, args=(reader.step,)))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets every call under way end, and waits for that."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _guarded(self, step: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                step()
            except grpc.RpcError as error:
                why = reason(error)
                self.failed[why] += 1
                if why not in self.expected:
                    self.violations.append(Violation(Kind.UNAVAILABLE, f"a call failed with {why}: {error}"))
                self._stop.wait(_PAUSE_S)
            except Exception as error:  # a fault of the test's own must not look like a quiet round
                self.violations.append(Violation(Kind.UNAVAILABLE, f"{type(error).__name__}: {error}"))
                return


class _Writer:
    """Upserts, updates and deletions of its own items, one call after another."""

    def __init__(self, load: Load, number: int, ids: list[str]) -> None:
        self._load, self._number, self._ids = load, number, ids
        self._source = Source((load.seed, number))
        self._rng = np.random.default_rng((load.seed, number, 1))
        self._made = 0
        self._unanswered: tuple[str, dict[str, State]] | None = None

    def step(self) -> None:
        kind, states = self._unanswered or self._next()
        if not states:
            return
        # Most writes that failed are repeated until they are acknowledged, the others stay in doubt.
        self._unanswered = (kind, states) if self._rng.random() < 0.8 else None
        self._write(kind, states)
        self._unanswered = None
        self._read_back(states)

    def _next(self) -> tuple[str, dict[str, State]]:
        kind = str(self._rng.choice(["add", "replace", "relabel", "delete"], p=[0.55, 0.1, 0.2, 0.15]))
        return kind, getattr(self, f"_{kind}")()

    def _write(self, kind: str, states: dict[str, State]) -> None:
        load = self._load
        load.ledger.sending(states, time.monotonic())
        missing: list[str] = []
        if kind == "delete":
            load.client.delete(states)
        elif kind == "relabel":
            missing = load.client.update({i: {"n": s.metadata["n"]} for i, s in states.items() if s is not None})
        else:
            load.client.upsert({i: s for i, s in states.items() if s is not None})
        load.ledger.acknowledged(states, time.monotonic())
        load.done[kind] += len(states)
        load.violations += [Violation(Kind.LOST, f"{i} was missing when its metadata was updated") for i in missing]

    def _read_back(self, states: dict[str, State]) -> None:
        """A write that was acknowledged is seen by the next read."""
        found = {item.id: item for item in self._load.client.get(list(states))}
        for item_id, state in states.items():
            seen = found.get(item_id)
            if not alike(state, seen.content if seen else None):
                self._load.violations.append(Violation(_misread(state, seen), f"{item_id}, read after it was written"))
        self._load.done["read back"] += 1

    def _add(self) -> dict[str, State]:
        contents = self._source.contents(int(self._rng.integers(1, 65)))
        first = self._made
        self._made += len(contents)
        made: dict[str, State] = {
            f"w{self._number}-{self._load.seed:08x}-{first + i:06d}": content for i, content in enumerate(contents)
        }
        self._ids += made
        return made

    def _replace(self) -> dict[str, State]:
        # Few: Chroma rewires its graph around each vector that moves, some 20 a second.
        ids = self._some(4)
        return dict(zip(ids, self._source.contents(len(ids)), strict=True))

    def _relabel(self) -> dict[str, State]:
        states: dict[str, State] = {}
        for item_id in self._some(32):
            match self._load.ledger.possible(item_id):
                case [now] if now is not None:
                    n = float(self._rng.uniform(0, 1000))
                    states[item_id] = type(now)(now.vector, {**now.metadata, "n": n})
        return states

    def _delete(self) -> dict[str, State]:
        ids = set(self._some(24))
        self._ids = [item_id for item_id in self._ids if item_id not in ids]
        return dict.fromkeys(ids)

    def _some(self, most: int) -> list[str]:
        n = min(int(self._rng.integers(1, most + 1)), len(self._ids))
        return [self._ids[i] for i in self._rng.choice(len(self._ids), n, replace=False)] if n else []


class _Reader:
    """Queries with and without a filter."""

    def __init__(self, load: Load, number: int, client: Client) -> None:
        self._load, self._client = load, client
        self._source = Source((load.seed, _READER + number))
        self._rng = np.random.default_rng((load.seed, _READER + number, 1))

    def step(self) -> None:
        queries = self._source.vectors(int(self._rng.choice([1, 4])))
        where = [None, Below("n", 500.0), Below("n", 20.0)][int(self._rng.integers(3))]
        began = time.monotonic() - self._load.behind_s
        answers = self._client.query(list(queries), where, 10)
        ended = time.monotonic()
        for query, hits in zip(queries, answers, strict=True):
            for hit in hits:
                wrong = check_hit_under_load(self._load.ledger, query, where, hit, began=began, ended=ended)
                if wrong is not None:
                    self._load.violations.append(wrong)
        self._load.done["query"] += len(queries)


def _owner(item_id: str) -> int:
    """Which writer an id belongs to: those that a writer made are its own, the others are dealt out."""
    return int(item_id[1]) if item_id.startswith("w") else int(item_id[-6:]) % WRITERS


def _misread(state: State, seen: Found | None) -> Kind:
    if state is None:
        return Kind.UNDELETED
    return Kind.LOST if seen is None else Kind.ALTERED
