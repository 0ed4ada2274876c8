import pytest

from embedder.running_mean import RunningMean


def mean_of(*durations: float) -> float:
    mean = RunningMean()
    for each in durations:
        mean.add(each)
    return mean.value


def test_one_duration_is_not_enough_to_know() -> None:
    assert mean_of() == mean_of(5.0) == 0


@pytest.mark.parametrize("place", range(6))
def test_one_stall_does_not_make_the_mean_large_wherever_it_comes(place: int) -> None:
    durations = [0.01] * 6
    durations[place] = 60.0
    for count in range(2, 7):
        assert mean_of(*durations[:count]) < 0.03


def test_work_that_has_become_slow_is_known_after_a_few() -> None:
    assert mean_of(*[0.01] * 10, *[2.0] * 10) > 1.5


def test_work_that_has_become_quick_again_is_known_after_a_few() -> None:
    assert mean_of(*[2.0] * 10, *[0.01] * 20) < 0.05


def test_large_pictures_among_small_ones_all_count() -> None:
    assert mean_of(*[0.01, 0.01, 0.01, 0.05] * 20) == pytest.approx(0.02, rel=0.3)
