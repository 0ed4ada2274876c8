"""The gateway's figures are made of what the sections found, and are missing where those are."""

from typing import Any

from benchmarks.gateway.scope import Scope
from benchmarks.gateway.summary import summary

SECTIONS: dict[str, Any] = {
    "latency": {
        "rows": [
            {"name": "text", "p50_ms": 20.0, "own_ms": 2.0},
            {"name": "text again", "p50_ms": 8.0, "own_ms": 2.0},
            {"name": "text, without a gateway", "p50_ms": 16.0},
        ]
    },
    "rates": {"rows": [{"name": f"text {n}", "per_s": 10.0 * n} for n in (1, 8, 32)]},
    "overload": {"rows": [{"name": "picture × 2", "goodput": 0.95}, {"name": "picture × 5", "goodput": 0.75}]},
    "ingest": {
        "rows": [
            {"name": "embedder stream", "rounds": [100.0, 50.0, 80.0]},
            {"name": "ingest, no thumbnails", "rounds": [95.0, 50.0, 72.0]},
            {"name": "ingest, thumbnails", "rounds": [80.0, 40.0, 72.0]},
        ]
    },
    "ingest_starter": {
        "rows": [
            {"name": "embedder stream", "rounds": [200.0, 100.0, 160.0]},
            {"name": "ingest, thumbnails", "rounds": [150.0, 70.0, 120.0]},
        ]
    },
    "memory": {"growth_mb": 12.5},
}


def test_figures_come_from_the_unremembered_text_and_from_ratios_within_a_round() -> None:
    assert summary(SECTIONS) == {
        "gateway_share_of_text_search_p50": 0.1,
        "text_search_over_direct_p50": 1.25,
        "searches_per_second": {"1": 10.0, "8": 80.0, "32": 320.0},
        "overload5_goodput": 0.75,
        "ingest_over_embedder": 0.8,
        "ingest_over_embedder_without_thumbnails": 0.95,
        "ingest_over_embedder_starter": 0.75,
        "ingest_rss_growth_mb": 12.5,
    }


def test_what_was_not_measured_has_no_figure() -> None:
    assert set(summary({}).values()) == {None}
    assert summary({"memory": SECTIONS["memory"]})["gateway_share_of_text_search_p50"] is None


def test_a_contender_that_failed_leaves_its_figure_out() -> None:
    failed = {**SECTIONS, "latency": {"rows": [{"name": "text", "error": "ended"}]}}
    assert summary(failed)["gateway_share_of_text_search_p50"] is None


def test_pictures_are_taken_in_with_clip_and_with_starter_unless_one_model_is_named() -> None:
    scope = Scope.of(None, quick=True)
    assert (scope.model, scope.ingest_model) == ("starter", "ViT-B-32")
    assert {"ingest", "ingest_starter"} <= set(scope.sections())
    for name in ("RN50", "starter"):
        named = Scope.of(name, quick=True)
        assert (named.model, named.ingest_model) == (name, name)
        assert "ingest" in named.sections()
        assert "ingest_starter" not in named.sections()
