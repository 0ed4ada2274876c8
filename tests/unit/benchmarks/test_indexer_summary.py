"""The summary of the indexer's benchmark, from made-up sections."""

from typing import Any

from benchmarks.indexer.scope import SELECTIVITIES
from benchmarks.indexer.summary import summary

ASKED = {
    "queries_over_chroma_http",
    "queries_over_chroma_embedded",
    "queries_over_bare",
    "batched_queries_over_faiss",
    "ingest_over_chroma_http",
    "p99_ingest_over_idle",
    "filtered_over_plain_p50",
    "recall_at_10",
    "latency_200k_over_10k",
    "bytes_per_vector",
}
KINDS = [f"{per_cent:g} %" for per_cent in SELECTIVITIES]


def startup(rss_mib: float) -> dict[str, Any]:
    return {"row": {"rss_mib": rss_mib, "empty_rss_mib": 100.0}}


def speed(p50_ms: float) -> dict[str, Any]:
    rounds = {
        "ours 1": [500.0],
        "ours 8": [2000.0, 1000.0],
        "chroma http 8": [200.0, 100.0],
        "chroma embedded 8": [400.0, 200.0],
        "bare 8": [2500.0, 1250.0],
        "ours 8, calls of 16": [3000.0],
        "faiss 1, calls of 16": [4000.0],
        "faiss 8, calls of 16": [5000.0],
    }
    return {"rows": [{"name": name, "rounds": values, "p50_ms": p50_ms} for name, values in rounds.items()]}


def filters() -> dict[str, Any]:
    rows = [{"name": "ours plain", "rounds": [], "p50_ms": 1.0}]
    rows += [{"name": f"ours {kind}", "rounds": [], "p50_ms": 1.0 + i} for i, kind in enumerate(KINDS)]
    return {"rows": rows}


def recall(worst: float) -> dict[str, Any]:
    kinds = dict.fromkeys(KINDS, 1.0)
    rows: list[dict[str, Any]] = [
        {"name": "ours", "metric": "cosine", "plain": 0.999, **kinds, "10 %": worst},
        {"name": "ours", "metric": "product", "plain": 0.995, **kinds},
        {"name": "chroma http", "metric": "cosine", "plain": 0.5, **kinds, "half of the clusters": 0.1},
    ]
    return {"rows": rows}


def beside(name: str, busy: list[float]) -> dict[str, Any]:
    return {"name": name, "idle_p99_ms_rounds": [10.0, 10.0], "busy_p99_ms_rounds": busy}


def sections() -> dict[str, Any]:
    return {
        "startup": {"sizes": {"200000": startup(560.0), "10000": startup(180.0), "50000": startup(270.0)}},
        "speed": {"sizes": {"10000": speed(1.0), "50000": speed(1.2), "200000": speed(1.5)}},
        "filters": {"sizes": {"50000": filters()}},
        "recall": {"sizes": {"10000": recall(0.992), "50000": recall(0.998)}},
        "ingest": {
            "sizes": {
                "50000": {
                    "rows": [{"name": "ours", "rounds": [300.0]}, {"name": "chroma http", "rounds": [320.0]}],
                    "beside": [beside("ours 1", [20.0, 24.0]), beside("ours 8", [15.0, 15.0])],
                }
            }
        },
    }


def test_exactly_the_figures_that_are_asked_for_are_there_and_right() -> None:
    assert summary(sections()) == {
        "queries_over_chroma_http": 10.0,
        "queries_over_chroma_embedded": 5.0,
        "queries_over_bare": 0.8,
        "batched_queries_over_faiss": 0.6,
        "ingest_over_chroma_http": 0.9375,
        "p99_ingest_over_idle": 2.2,
        "filtered_over_plain_p50": 5.0,
        "recall_at_10": {"plain": 0.995, "filtered": 0.992},
        "latency_200k_over_10k": 1.5,
        "bytes_per_vector": 2097.152,
    }


def test_what_was_not_measured_is_null() -> None:
    found = summary({})
    assert set(found) == ASKED
    assert found.pop("recall_at_10") == {"plain": None, "filtered": None}
    assert set(found.values()) == {None}


def test_without_the_two_sizes_there_is_no_growth() -> None:
    told = sections()
    del told["speed"]["sizes"]["200000"]
    assert summary(told)["latency_200k_over_10k"] is None


def test_of_one_size_what_an_item_takes_is_not_told_from_what_an_indexer_takes_anyway() -> None:
    told = sections()
    told["startup"]["sizes"] = {"50000": startup(270.0)}
    assert summary(told)["bytes_per_vector"] is None


def test_a_selectivity_that_was_not_measured_is_not_passed_over() -> None:
    told = sections()
    told["filters"]["sizes"]["50000"]["rows"].pop()
    assert summary(told)["filtered_over_plain_p50"] is None
