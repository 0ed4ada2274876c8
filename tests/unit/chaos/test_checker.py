"""The chaos test's checker: it finds what is wrong, and nothing else."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.chaos.checker import Below, Found, Hit, Kind, Truth, check_hit_under_load, check_items
from tests.chaos.items import Source
from tests.chaos.ledger import Content, Ledger

N, K = 200, 10
STORED = {f"i{n:03d}": content for n, content in enumerate(Source((7,)).contents(N))}
TRUTH = Truth.of(STORED.items())
QUERY = Source((8,)).vectors(1)[0]


@pytest.fixture
def ledger() -> Ledger:
    made = Ledger()
    made.preload(STORED)
    return made


def listed() -> list[Found]:
    return [Found(item_id, content) for item_id, content in sorted(STORED.items())]


def nearest(k: int, where: Below | None = None) -> list[Hit]:
    scores, members = TRUTH.scores(QUERY), TRUTH.members(where)
    rows = [row for row in np.argsort(-scores) if members[row]][:k]
    return [Hit(TRUTH.ids[row], float(np.float32(scores[row]))) for row in rows]


def kinds(violations: Sequence[object]) -> set[Kind]:
    return {violation.kind for violation in violations}  # type: ignore[attr-defined]


def test_a_faithful_list_has_nothing_wrong_with_it(ledger: Ledger) -> None:
    rounded = [Found(f.id, Content(f.content.vector * np.float32(1 + 1e-6), f.content.metadata)) for f in listed()]
    wrong, states = check_items(ledger, rounded, N)
    assert not wrong
    assert states == STORED  # without the rounding


def altered(items: list[Found]) -> list[Found]:
    content = items[3].content
    return [*items[:3], Found(items[3].id, Content(content.vector, {**content.metadata, "n": -1.0})), *items[4:]]


def moved(items: list[Found]) -> list[Found]:
    return [*items[:3], Found(items[3].id, Content(items[4].content.vector, items[3].content.metadata)), *items[4:]]


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda items: items[1:], Kind.LOST),
        (altered, Kind.ALTERED),
        (moved, Kind.ALTERED),
        (lambda items: [items[0], *items], Kind.DUPLICATE),
        (lambda items: items[::-1], Kind.WRONG_ANSWER),
        (lambda items: [*items, Found("zz", items[0].content)], Kind.UNDELETED),
    ],
)
def test_a_spoilt_list_is_found_out(ledger: Ledger, spoil: Callable[[list[Found]], list[Found]], kind: Kind) -> None:
    spoilt = spoil(listed())
    wrong, _ = check_items(ledger, spoilt, len({found.id for found in spoilt}))
    assert kinds(wrong) == {kind}


def test_a_wrong_count_is_found_out(ledger: Ledger) -> None:
    wrong, _ = check_items(ledger, listed(), N + 1)
    assert kinds(wrong) == {Kind.MISCOUNTED}


def test_a_deleted_item_that_is_back_is_found_out(ledger: Ledger) -> None:
    ledger.sending({"i003": None}, 1.0)
    ledger.acknowledged({"i003": None}, 2.0)
    wrong, _ = check_items(ledger, listed(), N)
    assert kinds(wrong) == {Kind.UNDELETED}


def test_an_item_in_doubt_may_be_as_it_was_or_as_it_was_written_but_not_otherwise(ledger: Ledger) -> None:
    other = Source((9,)).contents(1)[0]
    ledger.sending({"i003": other}, 1.0)
    assert not check_items(ledger, listed(), N)[0]
    items = listed()
    items[3] = Found("i003", other)
    wrong, states = check_items(ledger, items, N)
    assert not wrong
    assert states["i003"] is other
    assert kinds(check_items(ledger, altered(listed()), N)[0]) == {Kind.ALTERED}
    assert kinds(check_items(ledger, [f for f in listed() if f.id != "i003"], N - 1)[0]) == {Kind.LOST}


@pytest.mark.parametrize("where", [None, Below("n", 500.0), Below("n", 0.0)])
def test_the_exact_answer_has_nothing_wrong_with_it(where: Below | None) -> None:
    wrong, recall = TRUTH.check(QUERY, where, K, nearest(K, where))
    assert not wrong
    assert recall.share == 1.0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda hits: [Hit("nobody", hits[0].score), *hits[1:]],
        lambda hits: [Hit(hits[0].id, hits[0].score + 0.001), *hits[1:]],
        lambda hits: [hits[0], hits[0], *hits[2:]],
        lambda hits: hits[::-1],
        lambda hits: hits[:-1],
        lambda hits: [],
    ],
)
def test_a_spoilt_answer_is_found_out(spoil: Callable[[list[Hit]], list[Hit]]) -> None:
    wrong, _ = TRUTH.check(QUERY, None, K, spoil(nearest(K)))
    assert kinds(wrong) == {Kind.WRONG_ANSWER}


def test_a_hit_for_which_the_filter_is_false_is_found_out() -> None:
    wrong, _ = TRUTH.check(QUERY, Below("n", 500.0), K, nearest(K))
    assert kinds(wrong) == {Kind.WRONG_ANSWER}


def test_a_neighbour_passed_over_lowers_the_recall_and_is_no_wrong_answer() -> None:
    wrong, recall = TRUTH.check(QUERY, None, K, nearest(K + 1)[1:])
    assert not wrong
    assert recall.share == 0.9


def test_under_load_a_hit_is_judged_by_what_its_item_was_meanwhile(ledger: Ledger) -> None:
    hit = nearest(1)[0]
    ledger.sending({hit.id: None}, 10.0)
    ledger.acknowledged({hit.id: None}, 11.0)
    assert check_hit_under_load(ledger, QUERY, None, hit, began=9.0, ended=9.5) is None
    assert check_hit_under_load(ledger, QUERY, None, hit, began=10.5, ended=12.0) is None
    after = check_hit_under_load(ledger, QUERY, None, hit, began=11.5, ended=12.0)
    assert after is not None
    wrong = check_hit_under_load(ledger, QUERY, None, Hit(hit.id, hit.score - 0.01), began=9.0, ended=9.5)
    assert wrong is not None
    assert check_hit_under_load(ledger, QUERY, Below("n", -1.0), hit, began=9.0, ended=9.5) is not None
