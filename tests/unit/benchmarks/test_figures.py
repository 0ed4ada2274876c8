"""What the embedder's benchmark makes of its observations."""

import pytest

from benchmarks.embedder.figures import block_means, line, median, percentiles, rate, ratio


def test_a_rate_is_the_same_whether_answers_come_singly_or_in_batches() -> None:
    single = [n / 20 for n in range(1, 101)]
    batches = [0.4 * (n // 8 + 1) for n in range(96)]
    assert rate(single, 5.0) == pytest.approx(20.0)
    assert rate(batches, 5.0) == pytest.approx(20.0, rel=0.01)


def test_a_rate_does_not_depend_on_where_the_window_cuts_a_batch() -> None:
    for offset in (0.0, 0.1, 0.2, 0.3):
        moments = [offset + 0.4 * (n // 8) for n in range(80)]
        seen = [moment for moment in moments if moment < 3.5]
        assert rate(seen, 3.5) == pytest.approx(20.0, rel=0.01)


def test_a_rate_of_few_answers_is_their_number_by_the_window() -> None:
    assert rate([], 2.0) == 0
    assert rate([1.0, 1.5], 2.0) == 1.0
    assert rate([1.0, 1.0, 1.0], 2.0) == 1.5


def test_a_burst_in_a_long_silence_is_no_high_rate() -> None:
    assert rate([0.01 * n for n in range(10)], 10.0) <= 1.5


def test_a_line_says_its_slope_and_how_sure_it_is() -> None:
    exact = line([0, 1, 2, 3], [1, 3, 5, 7])
    assert exact.slope == pytest.approx(2)
    assert exact.standard_error == pytest.approx(0, abs=1e-9)
    # By hand: the rests are -0.1, 0.2, -0.1; their squares 0.06 by one degree of freedom by a spread of 2.
    unsure = line([0, 1, 2], [0, 1.3, 2])
    assert unsure.slope == pytest.approx(1)
    assert unsure.standard_error == pytest.approx((0.06 / 2) ** 0.5)


def test_samples_that_repeat_each_other_do_not_make_a_line_surer() -> None:
    once = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    moments = [n / 20 for n in range(120)]
    x, y = block_means(moments, [once[n // 20] for n in range(120)], 1.0)
    assert y == once
    assert x == pytest.approx([n + 0.475 for n in range(6)])
    assert line(x, y).standard_error > 4 * line(moments, [once[n // 20] for n in range(120)]).standard_error


@pytest.mark.parametrize("x", [[0.0, 1.0], [1.0, 1.0, 1.0]])
def test_no_line_goes_through_too_few_points(x: list[float]) -> None:
    with pytest.raises(ValueError, match="points"):
        line(x, x)


def test_percentiles_of_nothing_are_none() -> None:
    assert percentiles([]) == {"p50_ms": None, "p95_ms": None, "p99_ms": None}
    assert percentiles([0.1] * 10)["p99_ms"] == pytest.approx(100)


def test_a_ratio_compares_within_rounds() -> None:
    # The machine was half as fast in the second round, and the ratio the same.
    assert ratio({"ours": [20.0, 10.0], "theirs": [10.0, 5.0]}, "ours", "theirs") == 2.0
    assert ratio({"ours": [20.0]}, "ours", "theirs") is None
    assert ratio({"ours": [20.0], "theirs": [0.0]}, "ours", "theirs") is None


def test_a_median_leaves_out_what_is_missing() -> None:
    assert median([None, 3.0, 1.0, 2.0]) == 2.0
    assert median([None]) is None
