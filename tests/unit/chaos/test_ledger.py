"""The chaos test's ledger: what may be, by what was sent and what was acknowledged."""

import numpy as np

from tests.chaos.ledger import Content, Ledger

A, B, C = (Content(np.full(4, 0.5, np.float32), {"n": float(n)}) for n in range(3))


def test_an_item_that_nobody_wrote_is_not_there() -> None:
    assert Ledger().possible("x") == [None]


def test_a_write_without_an_answer_leaves_two_states_possible() -> None:
    ledger = Ledger()
    ledger.sending({"x": A}, 1.0)
    assert ledger.possible("x") == [None, A]
    assert ledger.doubtful() == ["x"]
    assert not ledger.certain("x")


def test_an_acknowledged_write_leaves_one_state() -> None:
    ledger = Ledger()
    ledger.sending({"x": A}, 1.0)
    ledger.sending({"x": B}, 2.0)
    ledger.acknowledged({"x": B}, 3.0)
    assert ledger.possible("x") == [B]
    assert dict(ledger.items()) == {"x": B}


def test_a_deletion_is_a_state_like_any_other() -> None:
    ledger = Ledger()
    ledger.preload({"x": A, "y": B})
    ledger.sending({"x": None}, 1.0)
    assert ledger.possible("x") == [A, None]
    ledger.acknowledged({"x": None}, 2.0)
    assert ledger.possible("x") == [None]
    assert dict(ledger.items()) == {"y": B}


def test_what_a_check_found_ends_the_doubt() -> None:
    ledger = Ledger()
    ledger.preload({"x": A})
    ledger.sending({"x": B}, 1.0)
    ledger.found({"x": B})
    assert ledger.possible("x") == [B]


def test_what_was_sent_lately_without_an_answer_may_still_come() -> None:
    ledger = Ledger()
    ledger.preload({"x": A, "y": A, "z": A})
    ledger.sending({"x": B}, 1.0)
    ledger.sending({"x": C, "y": B, "z": C}, 20.0)
    ledger.acknowledged({"z": C}, 21.0)
    assert ledger.sent_after(10.0) == ["x", "y"]
    assert ledger.sent_after(20.0) == []
    ledger.found({"x": A, "y": B, "z": C}, since=10.0)
    assert ledger.possible("x") == [C, A]
    assert ledger.possible("y") == [B]
    assert ledger.possible("z") == [C]
    ledger.sending({"x": None}, 30.0)
    ledger.acknowledged({"x": None}, 31.0)
    assert ledger.possible("x") == [None]


def test_what_was_acknowledged_does_not_come_again() -> None:
    ledger = Ledger()
    ledger.sending({"x": A}, 25.0)
    ledger.acknowledged({"x": A}, 26.0)
    ledger.sending({"x": B}, 28.0)
    ledger.found({"x": B}, since=10.0)
    assert ledger.possible("x") == [B]


def test_a_span_allows_the_states_of_every_moment_in_it() -> None:
    ledger = Ledger()
    ledger.preload({"x": A})
    ledger.sending({"x": B}, 10.0)
    ledger.acknowledged({"x": B}, 12.0)
    ledger.sending({"x": C}, 20.0)
    assert ledger.possible_during("x", 1.0, 2.0) == [A]
    assert ledger.possible_during("x", 9.0, 11.0) == [A, B]
    assert ledger.possible_during("x", 13.0, 14.0) == [B]
    assert ledger.possible_during("x", 21.0, 22.0) == [B, C]
