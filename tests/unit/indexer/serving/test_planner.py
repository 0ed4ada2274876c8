from hypothesis import given
from hypothesis import strategies as st

from indexer.serving.planner import Planner, PlannerSettings

PLANNER = Planner(PlannerSettings(ef_search=128, rows_per_step=32))


def test_few_rows_are_all_scored() -> None:
    assert PLANNER.width(rows=4000, members=4000, wanted=10) is None


def test_many_rows_go_through_the_graph_at_the_width_set() -> None:
    assert PLANNER.width(rows=50_000, members=50_000, wanted=10) == 128


def test_what_a_wider_setting_asks_for_is_searched() -> None:
    assert Planner(PlannerSettings(ef_search=300)).width(rows=50_000, members=50_000, wanted=10) == 320


def test_a_filter_that_leaves_few_rows_has_them_scored() -> None:
    assert PLANNER.width(rows=50_000, members=1000, wanted=10) is None


def test_a_filter_that_leaves_half_widens_the_search_a_little() -> None:
    width = PLANNER.width(rows=50_000, members=25_000, wanted=10)
    assert width is not None
    assert 128 < width <= 192


def test_no_more_members_than_are_wanted_are_all_scored() -> None:
    assert PLANNER.width(rows=1_000_000, members=50, wanted=50) is None
    assert PLANNER.width(rows=0, members=0, wanted=10) is None


def test_a_deep_page_is_searched_wider_until_scoring_all_costs_less() -> None:
    widths = [PLANNER.width(rows=50_000, members=50_000, wanted=wanted) or 0 for wanted in (10, 50, 200)]
    assert 0 < widths[0] < widths[1] < widths[2]
    assert PLANNER.width(rows=50_000, members=50_000, wanted=5000) is None


def test_after_finding_nothing_half_of_a_collection_is_scored() -> None:
    assert PLANNER.wider(128, found=0, members=25_000, wanted=10) is None


def test_after_finding_nearly_enough_a_wider_search_is_tried() -> None:
    assert PLANNER.wider(128, found=9, members=45_000, wanted=10) == 512


def test_members_as_deep_as_chance_has_them_are_relied_upon() -> None:
    assert PLANNER.reaches(128, rank=10, rows=50_000, members=50_000, wanted=10)
    assert PLANNER.reaches(128, rank=15, rows=50_000, members=49_900, wanted=10), "some rows were deleted"
    assert PLANNER.reaches(160, rank=32, rows=50_000, members=25_000, wanted=10), "expected: 20"
    assert PLANNER.reaches(416, rank=150, rows=50_000, members=5_000, wanted=10), "expected: 100"


def test_members_that_lie_deep_are_searched_for_more_widely_once() -> None:
    asked = {"rank": 45, "rows": 50_000, "members": 25_000, "wanted": 10}
    assert not PLANNER.reaches(160, **asked)
    width = PLANNER.deeper(45, members=25_000)
    assert width is not None
    assert width > 160
    assert PLANNER.reaches(width, **asked)
    assert PLANNER.deeper(45, members=10_000) is None, "scoring all costs less"


members = st.integers(0, 10_000_000)


@given(members, members, st.integers(1, 20_000))
def test_a_search_through_the_graph_is_always_cheaper_than_scoring_all(rows: int, some: int, wanted: int) -> None:
    rows, some = max(rows, some), min(rows, some)
    width = PLANNER.width(rows, some, wanted)
    assert width is None or (width * 32 < some and width >= wanted * rows / some)


@given(st.integers(128, 100_000), members, st.integers(1, 20_000), st.data())
def test_widening_ends(width: int, some: int, wanted: int, data: st.DataObject) -> None:
    searches = 0
    wider: int | None = width
    while wider is not None:
        width = wider
        wider = PLANNER.wider(width, data.draw(st.integers(0, min(width, some))), some, wanted)
        assert wider is None or wider >= 4 * width
        searches += 1
    assert searches <= 10


@given(st.integers(32, 100_000), st.integers(1, 10_000_000), st.integers(1, 10_000_000), st.integers(1, 20_000))
def test_a_search_that_does_not_reach_is_made_wider_and_then_reaches(
    width: int, rows: int, some: int, wanted: int
) -> None:
    rows, some = max(rows, some), min(rows, some)
    for rank in (wanted, width // 2 + 1, width):
        if rank >= wanted and not PLANNER.reaches(width, rank, rows, some, wanted):
            deeper = PLANNER.deeper(rank, some)
            assert deeper is None or (deeper > width and PLANNER.reaches(deeper, rank, rows, some, wanted))
