import threading
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.metadata import Plain
from indexer.reads import After, Listing
from indexer.serving.columns import Columns
from indexer.serving.orders import Orders
from indexer.serving.texts import Sorted
from tests.unit.indexer import model, strategies

ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=3)
order_by = st.sampled_from(["", *strategies.KEYS, "absent"])


class Rows:
    """Rows as a table keeps them: an item that is written again is a new row, and its old one is dead."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.columns = Columns()
        self.orders = Orders(self.ids, self.columns)
        self.items: dict[str, dict[str, Plain]] = {}
        self.row_of: dict[str, int] = {}

    def write(self, items: dict[str, dict[str, Plain]]) -> None:
        first = len(self.ids)
        self.ids.extend(items)
        self.columns.extend(first, list(items.values()))
        self.items.update(items)
        self.row_of.update({item_id: first + i for i, item_id in enumerate(items)})

    def delete(self, item_id: str) -> None:
        del self.items[item_id], self.row_of[item_id]

    @property
    def alive(self) -> np.ndarray:
        alive = np.zeros(len(self.ids), np.bool_)
        alive[list(self.row_of.values())] = True
        return alive

    def page(self, listing: Listing) -> tuple[list[str], After | None]:
        found, after = self.orders.page(self.alive, listing)
        return [self.ids[row] for row in found], after

    def all(self, order_by: str, descending: bool, size: int) -> list[str]:
        found: list[str] = []
        after: After | None = None
        while True:
            page, after = self.page(Listing(None, order_by, descending, size, after))
            found += page
            if after is None:
                return found
            assert len(page) == size


@given(st.dictionaries(ids, strategies.metadata, max_size=25), order_by, st.booleans(), st.integers(1, 8))
def test_pages_together_are_the_contract_s_order(
    items: dict[str, dict[str, Plain]], key: str, descending: bool, size: int
) -> None:
    rows = Rows()
    rows.write(items)
    assert rows.all(key, descending, size) == model.ordered(items, key, descending)


@settings(max_examples=60)
@given(st.data(), order_by, st.booleans(), st.integers(1, 6))
def test_what_is_there_all_along_comes_exactly_once_whatever_is_written_meanwhile(
    data: st.DataObject, key: str, descending: bool, size: int
) -> None:
    rows = Rows()
    rows.write(data.draw(st.dictionaries(ids, strategies.metadata, max_size=25)))
    always = dict(rows.items)
    found: list[str] = []
    after: After | None = None
    while True:
        page, after = rows.page(Listing(None, key, descending, size, after))
        assert page == [item_id for item_id in model.ordered(rows.items, key, descending) if item_id in set(page)]
        found += page
        if after is None:
            break
        written = data.draw(st.dictionaries(ids, strategies.metadata, max_size=4))
        rows.write(written)
        gone = data.draw(st.sets(st.sampled_from(sorted(rows.items)), max_size=2))
        for item_id in gone:
            rows.delete(item_id)
        for item_id in {*written, *gone}:
            always.pop(item_id, None)
    assert [item_id for item_id in found if item_id in always] == model.ordered(always, key, descending)


@given(st.dictionaries(ids, strategies.metadata, min_size=1, max_size=25), order_by, st.booleans(), st.data())
def test_a_page_names_the_item_that_it_ends_with(
    items: dict[str, dict[str, Plain]], key: str, descending: bool, data: st.DataObject
) -> None:
    rows = Rows()
    rows.write(items)
    last = data.draw(st.sampled_from(sorted(items)))
    value = items[last].get(key)
    after = After(last, None if isinstance(value, list) else value)
    listing = Listing(None, key, descending, data.draw(st.integers(1, 5)), after)
    assert rows.page(listing) == model.page(items, listing)


def test_an_older_state_is_listed_as_it_was() -> None:
    rows = Rows()
    rows.write({name: {"a": name} for name in "bdf"})
    before = rows.alive
    rows.write({name: {"a": name} for name in "aceg"})
    for key in ("", "a", "absent"):
        assert rows.all(key, False, 2) == list("abcdefg")
        found, after = rows.orders.page(before, Listing(None, key, False, 10, None))
        assert ([rows.ids[row] for row in found], after) == (["b", "d", "f"], None)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=4), max_size=60), st.data())
def test_texts_are_in_the_order_of_code_points_however_they_came(texts: list[str], data: st.DataObject) -> None:
    growing: list[str] = []
    kept = Sorted(growing)
    while len(growing) < len(texts):
        growing.extend(texts[len(growing) : data.draw(st.integers(len(growing) + 1, len(texts)))])
        order = kept.order(len(growing))
        assert order.places.tolist() == sorted(range(len(growing)), key=growing.__getitem__)
        assert [order.places[rank] for rank in order.ranks] == list(range(len(growing)))
        text = data.draw(st.sampled_from(texts))
        assert order.first(text) == sum(one < text for one in growing)
        assert order.behind(text) == sum(one <= text for one in growing)


def test_what_stands_behind_a_nul_counts_too() -> None:
    growing = ["a\0z", "b", "a\0b", "a", "a\0ba"]
    assert Sorted(growing).order(5).places.tolist() == [3, 2, 4, 0, 1]
    growing += ["a\0c"]
    kept = Sorted(growing)
    kept.order(5)
    assert kept.order(6).places.tolist() == [3, 2, 4, 5, 0, 1]


class Compared(str):
    """A text that notes which others Python compares it with."""

    __slots__ = ()
    with_others: ClassVar[list[tuple[str, str]]] = []

    def __lt__(self, other: str) -> bool:
        self.with_others.append((self, other))
        return str.__lt__(self, other)


def test_texts_that_are_new_are_not_sorted_by_python_which_would_hold_its_lock() -> None:
    texts = [Compared(f"{i * 7919 % 1_000_003:07}") for i in range(1000)]
    kept = Sorted(texts)
    kept.order(900)
    Compared.with_others.clear()
    assert kept.order(1000).places.tolist() == sorted(range(1000), key=lambda i: str(texts[i]))
    new = set(texts[900:])
    assert Compared.with_others, "to find their places among the others"
    assert not [both for both in Compared.with_others if new.issuperset(both)]


@pytest.mark.parametrize("key", ["", "n", "s"])
def test_threads_page_in_order_while_rows_are_appended(key: str) -> None:
    rows = Rows()
    stop = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        while not stop.is_set():
            count = rows.columns.count
            found, _ = rows.orders.page(np.ones(count, np.bool_), Listing(None, key, False, 500, None))
            names = [rows.ids[row] for row in found]
            if len(names) != min(500, count) or any(one >= other for one, other in pairwise(names)):
                wrong.append(f"{len(names)} of {count}")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for first in range(0, 100 * 64, 64):
        numbers = [(row * 7919) % 1_000_003 for row in range(first, first + 64)]
        rows.write({f"{n:07}": {"n": n, "s": f"{n:07}"} for n in numbers})
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong
