"""Texts that are only ever appended: their codes, and their order."""

import sys
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int32]

# Besides the text itself: its place in a dictionary and in a list, and its code. Measured with tracemalloc.
_TEXT_BYTES = 90

# Measured: putting one text in its place among 200,000 takes 5 µs, sorting them all 0.3 s.
_INSERTED_SHARE = 0.2
_CONVERTED_AT_ONCE = 4096


class Texts:
    """Distinct texts, their codes counted from 0 in the order in which they came."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.codes: dict[str, int] = {}
        self.nbytes = 0

    def code(self, text: str) -> int:
        """The text's code, a new one if need be."""
        code = self.codes.get(text)
        if code is None:
            code = len(self.texts)
            self.texts.append(text)
            self.codes[text] = code
            self.nbytes += sys.getsizeof(text) + _TEXT_BYTES
        return code


def translated(codes: Rows, of: Texts, to: Texts) -> Rows:
    """Codes of texts as other texts have them, which take up those they lack."""
    used = np.flatnonzero(np.bincount(codes, minlength=1))
    table = np.zeros(len(of.texts), np.int32)
    table[used] = [to.code(of.texts[code]) for code in used.tolist()]
    return table[codes]


class Order:
    """The order of the first texts of a list, by code point; equal ones as they came."""

    def __init__(self, texts: Sequence[str], places: Rows) -> None:
        """An order.

        Args:
            texts: the list; may have grown.
            places: int32 [n], the places in the list in the order of their texts.
        """
        self.places = places
        self._texts = texts

    @cached_property
    def ranks(self) -> Rows:
        """int32 [n]: where in the order each text of the list is."""
        ranks = np.empty(len(self.places), np.int32)
        ranks[self.places] = np.arange(len(self.places), dtype=np.int32)
        return ranks

    def first(self, text: str) -> int:
        """How many are less than a text."""
        return bisect_left(self.places, text, key=self._texts.__getitem__)

    def behind(self, text: str) -> int:
        """How many are less than a text or equal to it."""
        return bisect_right(self.places, text, key=self._texts.__getitem__)


class Sorted:
    """Keeps the order of a list that only grows. For worker threads: the first call takes long."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._order = Order(texts, np.empty(0, np.int32))
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return 2 * self._order.places.nbytes

    def order(self, count: int) -> Order:
        """The order of at least the first ``count`` texts."""
        if len(self._order.places) < count:
            with self._lock:
                places = self._order.places
                if len(places) < count:
                    self._order = Order(self._texts, self._extended(places, count))
        return self._order

    def _extended(self, places: Rows, count: int) -> Rows:
        known, text_at = len(places), self._texts.__getitem__
        if count - known > _INSERTED_SHARE * count:
            return _sorted(self._texts, 0, count)
        new = _sorted(self._texts, known, count)
        # Text by text, so that the event loop gets its turn in between.
        at = [bisect_right(places, text_at(place), key=text_at) for place in new.tolist()]
        return np.insert(places, at, new)


def _sorted(texts: Sequence[str], first: int, stop: int) -> Rows:
    """The places from the first one on in the order of their texts."""
    # numpy sorts without the interpreter's lock, by UTF-8, which is the order of code points. A sort of Python's would
    # halt the event loop: 0.25 s for 200,000 texts. Up to numpy 2.4 it takes a NUL for the end of a text.
    array = np.empty(stop - first, np.dtypes.StringDType())
    for begin in range(first, stop, _CONVERTED_AT_ONCE):
        end = min(stop, begin + _CONVERTED_AT_ONCE)
        some = texts[begin:end]
        if any("\0" in text for text in some):
            return np.array(sorted(range(first, stop), key=texts.__getitem__), np.int32)
        array[begin - first : end - first] = some
    return (np.argsort(array, kind="stable") + first).astype(np.int32)
