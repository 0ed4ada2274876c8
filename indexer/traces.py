"""Looking for what is left of items in files: thousands of texts and vectors at once, in one reading.

Of a text, its bytes are looked for; of a longer one, windows of it, since SQLite cuts long values into pages. Of a
vector, groups of six numbers with the last 10 of their 24 binary digits left out: how a vector is normalised, and in
which order it is summed for that, changes the last digit or two.

At every place of a file the 8 bytes there are looked up among the ends of the windows of text, and, with those digits
left out, among the beginnings of the windows of vectors; where they are one, the whole window is compared by its hash
of 64 bits.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from chassis.metadata import Plain
from chassis.vectors import Array
from indexer.writes import StoredRecord

Words = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

# A shorter text is found by chance.
SHORTEST = 8
_LONGEST = 32
_READ = 2**20
_BLOCK = 2**17  # so that what is computed of it stays in the processor's cache

# A window of a vector: numbers, and what is left of each.
_NUMBERS, _MASK = 6, np.uint64(0xFFFFFC00_FFFFFC00)
_WINDOWS = 8
_VECTOR = 4 * _NUMBERS

_FACTORS = tuple(np.uint64(f) for f in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93))
_TABLE_BITS = 20
_TABLE = np.uint64(64 - _TABLE_BITS)


@dataclass(frozen=True)
class Trace:
    """What an item leaves: a text, or its vector.

    Attributes:
        stored: whether it is somewhere as long as the item is stored.
        windows: all that is looked for.
        plain: those of them without which it is not there.
    """

    stored: bool
    windows: frozenset[int]
    plain: frozenset[int]


@dataclass(frozen=True)
class Searched:
    """What a search has gone through.

    Attributes:
        files: read to the end.
        size: bytes in them.
        found: windows by file.
    """

    files: int
    size: int
    found: dict[Path, set[int]]

    @property
    def windows(self) -> set[int]:
        """Those that were found somewhere."""
        return set().union(*self.found.values())


class _Windows:
    """Windows of one kind, by length and hash."""

    def __init__(self, *, at_end: bool) -> None:
        """None yet; ``at_end``: whether a window's last 8 bytes are looked up, or its first."""
        self._at_end = at_end
        self.numbers: dict[int, dict[int, int]] = {}
        self._sorted: dict[int, Words] = {}
        self._maybe = np.zeros(2**_TABLE_BITS, np.bool_)

    def add(self, window: bytes, number: int) -> int:
        """Adds a window under a number, unless it is there; returns its number."""
        words = [int.from_bytes(window[place : place + 8], "little") for place in _places(len(window))]
        whole = sum(word * int(factor) for word, factor in zip(words, _FACTORS, strict=False)) % 2**64
        key = words[-1 if self._at_end else 0] * int(_FACTORS[0]) % 2**64
        self._maybe[key >> int(_TABLE)] = True
        self._sorted.pop(len(window), None)
        return self.numbers.setdefault(len(window), {}).setdefault(whole, number)

    def found(self, words: Words) -> set[int]:
        """Which there are, given the 8 bytes at each place."""
        keys = ((words * _FACTORS[0]) >> _TABLE).view(np.int64)
        likely = np.flatnonzero(self._maybe.take(keys, mode="clip"))
        if not len(likely):
            return set()
        found: set[int] = set()
        for length, numbers in self.numbers.items():
            begins = likely - (length - 8) if self._at_end else likely
            begins = begins[(begins >= 0) & (begins + length - 8 < len(words))]
            hashed = np.zeros(len(begins), np.uint64)
            for place, factor in zip(_places(length), _FACTORS, strict=False):
                hashed += words[begins + place] * factor
            if length not in self._sorted:
                self._sorted[length] = np.sort(np.fromiter(numbers, np.uint64))
            found.update(numbers[each] for each in np.intersect1d(hashed, self._sorted[length]).tolist())
        return found


@dataclass
class Traces:
    """What is looked for.

    Attributes:
        traces: each of them.
        too_short: texts that are too short to be looked for.
    """

    traces: list[Trace] = field(default_factory=list)
    too_short: int = 0
    _texts: _Windows = field(default_factory=lambda: _Windows(at_end=True))
    _vectors: _Windows = field(default_factory=lambda: _Windows(at_end=False))
    _count: int = 0

    @classmethod
    def of(cls, ids: Iterable[str], stored: Sequence[StoredRecord], *, cosine: bool) -> "Traces":
        """The traces of items.

        Args:
            ids: of all.
            stored: those that exist.
            cosine: whether their vectors are normalised somewhere.
        """
        traces = cls()
        there = {record.id for record in stored}
        for item_id in ids:
            traces._add_text(item_id, stored=item_id in there)
        for text in {text: None for record in stored for value in record.metadata.values() for text in _texts(value)}:
            traces._add_text(text, stored=True)
        for record in stored:
            traces._add_vector(record.vector, cosine=cosine)
        return traces

    def found(self, data: bytes) -> set[int]:
        """Which windows there are in some bytes."""
        found: set[int] = set()
        for begin in range(0, len(data), _BLOCK):
            block = data[begin : begin + _BLOCK + _LONGEST - 1]
            if len(block) < SHORTEST:
                break
            words = np.ascontiguousarray(np.ndarray((len(block) - SHORTEST + 1,), "<u8", block, strides=(1,)))
            found |= self._texts.found(words)
            if self._vectors.numbers:
                words &= _MASK
                found |= self._vectors.found(words)
        return found

    def search(self, folder: Path, progress: Callable[[int], None]) -> Searched:
        """Reads every file below a folder to its end, in a thread. What goes meanwhile does not count.

        Args:
            folder: where.
            progress: told now and then how many bytes were read; what it raises ends the search.
        """
        files, size, found = 0, 0, dict[Path, set[int]]()
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
            try:
                for data, more in _read(path):
                    if windows := self.found(data):
                        found.setdefault(path, set()).update(windows)
                    size += more
                    progress(size)
            except FileNotFoundError:
                found.pop(path, None)
                continue
            files += 1
        return Searched(files, size, found)

    def _add_text(self, text: str, *, stored: bool) -> None:
        if len(text.encode()) < SHORTEST:
            self.too_short += 1
            return
        # Chroma keeps a change of metadata as JSON until it has carried it out.
        forms = [text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]]
        windows = [self._numbered(self._texts, _windows(form.encode())) for form in forms]
        self.traces.append(Trace(stored, frozenset().union(*windows), windows[0]))

    def _add_vector(self, vector: Array, *, cosine: bool) -> None:
        length = float(np.linalg.norm(vector.astype(np.float64)))
        forms = [vector, (vector / length).astype(np.float32)] if cosine else [vector]
        windows = [self._numbered(self._vectors, _groups(form)) for form in forms]
        if windows[0]:
            self.traces.append(Trace(True, frozenset().union(*windows), windows[0]))

    def _numbered(self, kind: _Windows, windows: Iterable[bytes]) -> frozenset[int]:
        numbers = set()
        for window in windows:
            number = kind.add(window, self._count)
            self._count = max(self._count, number + 1)
            numbers.add(number)
        return frozenset(numbers)


def _places(length: int) -> Sequence[int]:
    """Where in a window its words begin: together they are all of it, in ascending order."""
    if length == 8:
        return (0,)
    if length == _VECTOR:
        return (0, 8, 16)
    return (0, length - 8) if length <= 16 else (0, 8, length - 16, length - 8)


def _windows(text: bytes) -> list[bytes]:
    if len(text) <= _LONGEST:
        return [text]
    middle = (len(text) - _LONGEST) // 2
    return [text[:_LONGEST], text[middle : middle + _LONGEST], text[-_LONGEST:]]


def _groups(vector: Array) -> Iterator[bytes]:
    """Windows of a vector, as far as they are of its own: no zeros, and no number twice."""
    last = len(vector) - _NUMBERS
    places = sorted({round(place) for place in np.linspace(0, last, min(_WINDOWS, last + 1))}) if last >= 0 else []
    for place in places:
        window = np.ascontiguousarray(vector[place : place + _NUMBERS], "<f4")
        if window.all() and len(np.unique(window)) == _NUMBERS:
            yield (window.view("<u8") & _MASK).tobytes()


def _texts(value: Plain) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from value


def _read(path: Path) -> Iterator[tuple[bytes, int]]:
    """A file's parts, each with the end of the one before, and how much of it is new."""
    before = b""
    with path.open("rb") as file:
        while part := file.read(_READ):
            yield before + part, len(part)
            before = (before + part)[1 - _LONGEST :]
