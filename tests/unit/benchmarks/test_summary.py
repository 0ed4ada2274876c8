"""The summary of the embedder's benchmark, from made-up sections."""

from functools import partial
from typing import Any

import pytest

from benchmarks.embedder import turns
from benchmarks.embedder.contenders import merge, shares
from benchmarks.embedder.processes import FailedError
from benchmarks.embedder.summary import summary
from benchmarks.results import errors

ASKED = {
    "served_over_pipeline",
    "served_over_forward",
    "images_over_course",
    "short_texts_over_course",
    "images_over_infinity",
    "short_texts_over_infinity",
    "overload5_goodput",
    "refusal_p50_ms",
    "overload5_p99_over_load08_p99",
    "interactive_p99_in_batches",
    "rss_slope_mb_per_hour",
}


def _rows(**rounds: list[float]) -> dict[str, Any]:
    return {"rows": [{"name": name.replace("_", " "), "rounds": values} for name, values in rounds.items()]}


SECTIONS: dict[str, Any] = {
    "methods": {
        "about": {"specs": {"served": {"backend": "openvino", "precision": "bf16", "device": "cpu"}}},
        "images": _rows(course=[4.0, 2.0], forward=[20.0, 10.0], pipeline_32=[19.0, 9.5], grpc_32=[18.0, 9.0]),
        "texts": _rows(course=[8.0], grpc_32=[160.0], infinity_32=[40.0]),
    },
    "load": {
        "open": [
            {"load": 0.8, "p99_ms_rounds": [500.0, 400.0], "goodput": 0.8, "refused_p50_ms": None},
            {"load": 5.0, "p99_ms_rounds": [1500.0, 1200.0], "goodput": 0.95, "refused_p50_ms": 6.0},
        ],
        "beside_bulk": [{"p99_in_batches": 2.0}, {"p99_in_batches": 2.5}],
    },
    "growth": {"memory": {"slope_mb_per_hour": 1.5, "standard_error_mb_per_hour": 2.0}},
}


def test_every_figure_that_is_asked_for_is_there_and_right() -> None:
    found = summary(SECTIONS)
    assert set(found) >= ASKED
    assert found["served_over_forward"] == 0.9
    assert found["images_over_course"] == 4.5
    assert found["short_texts_over_infinity"] == 4.0
    assert found["overload5_p99_over_load08_p99"] == 3.0
    assert found["interactive_p99_in_batches"] == 2.5
    assert found["rss_slope_mb_per_hour"] == 1.5


def test_the_summary_says_in_which_precision_the_served_model_ran() -> None:
    found = summary(SECTIONS)
    assert (found["backend"], found["precision"], found["device"]) == ("openvino", "bf16", "cpu")


def test_a_missing_peer_is_null() -> None:
    assert summary(SECTIONS)["images_over_infinity"] is None


def test_a_missing_section_leaves_its_figures_null() -> None:
    assert set(summary({}).values()) == {None}


def test_a_failed_way_of_sending_bulk_is_not_passed_over() -> None:
    broken = SECTIONS | {"load": {"open": [], "beside_bulk": [{"p99_in_batches": 2.0}, {"error": "gone"}]}}
    assert summary(broken)["interactive_p99_in_batches"] is None


def test_contenders_are_asked_in_turn_and_one_that_fails_is_left_out() -> None:
    asked: list[str] = []

    def measure(name: str) -> dict[str, Any]:
        asked.append(name)
        if name == "bad":
            raise FailedError("bad: has ended")
        return {"per_s": float(len(asked)), "p50_ms": 1.0, "error": None}

    names = ("a", "bad", "b")
    rows = turns.in_turn({name: partial(measure, name) for name in names}, 2, "test")
    assert asked == ["a", "bad", "b", "b", "a"]
    assert [row["rounds"] for row in rows] == [[1.0, 5.0], [], [3.0, 4.0]]
    assert rows[0]["per_s"] == 3.0
    assert errors({"rows": rows}) == ["bad: bad: has ended"]


@pytest.mark.parametrize(("concurrency", "clients", "expected"), [(1, 4, [1]), (8, 3, [3, 3, 2]), (32, 1, [32])])
def test_the_concurrency_named_is_that_of_all_clients_together(
    concurrency: int, clients: int, expected: list[int]
) -> None:
    assert shares(concurrency, clients) == expected


def test_several_clients_figures_are_taken_together() -> None:
    one: dict[str, Any] = {"per_s": 10.0, "p99_ms": 5.0, "batch": 4.0, "failed": 0, "error": None}
    other: dict[str, Any] = {"per_s": 12.0, "p99_ms": 9.0, "batch": 8.0, "failed": 1, "error": "gone"}
    expected = {"per_s": 22.0, "p99_ms": 9.0, "batch": 6.0, "failed": 1, "error": "gone"}
    assert merge([one, other]) == pytest.approx(expected)
