"""The figures that the README and the acceptance read, from what the sections found."""

from collections.abc import Mapping
from typing import Any

from benchmarks.embedder.figures import ratio
from benchmarks.embedder.methods import COURSE, FORWARD, STREAM, TWO, infinity, pipeline, served
from benchmarks.embedder.turns import by_name

Found = Mapping[str, Any]

BEST = served(32)


def summary(sections: Mapping[str, Found]) -> dict[str, float | str | None]:
    """Each figure, or None where its section has not run or a contender was missing.

    Ratios of throughput are medians over the rounds; those of the contract are of calls at concurrency 32. What is
    served runs in ``precision`` on ``backend`` and ``device``; the course's way is fp32 always, infinity chooses for
    itself (fp32 on a CPU): ``images_over_course`` and ``images_over_infinity`` compare like with like if ours is fp32.
    """
    methods = sections.get("methods")
    spec = methods["about"]["specs"].get("served") or methods["about"]["specs"].get(FORWARD) or {} if methods else {}
    found = {**_methods(methods), **_load(sections.get("load")), **_growth(sections.get("growth"))}
    rounded = {name: None if value is None else round(value, 4) for name, value in found.items()}
    return {**{name: spec.get(name) for name in ("backend", "precision", "device")}, **rounded}


def _methods(section: Found | None) -> dict[str, float | None]:
    images = by_name(section["images"]["rows"]) if section else {}
    texts = by_name(section["texts"]["rows"]) if section else {}
    return {
        "served_over_pipeline": ratio(images, BEST, pipeline(32)),
        "served_over_forward": ratio(images, BEST, FORWARD),
        "stream_over_forward": ratio(images, STREAM, FORWARD),
        "two_processes_over_one": ratio(images, TWO, BEST),
        "texts_served_over_pipeline": ratio(texts, BEST, pipeline(32)),
        "texts_served_over_forward": ratio(texts, BEST, FORWARD),
        "images_over_course": ratio(images, BEST, COURSE),
        "short_texts_over_course": ratio(texts, BEST, COURSE),
        "images_over_infinity": ratio(images, BEST, infinity(32)),
        "short_texts_over_infinity": ratio(texts, BEST, infinity(32)),
    }


def _load(section: Found | None) -> dict[str, float | None]:
    at = {row["load"]: row for row in section["open"]} if section else {}
    beside = [row.get("p99_in_batches") for row in section["beside_bulk"]] if section else []
    five, most = at.get(5.0, {}), at.get(0.8, {})
    p99 = {"5": five.get("p99_ms_rounds", ()), "0.8": most.get("p99_ms_rounds", ())}
    return {
        "overload5_goodput": five.get("goodput"),
        "refusal_p50_ms": five.get("refused_p50_ms"),
        "overload5_p99_over_load08_p99": ratio(p99, "5", "0.8"),
        # The worse of the two ways of sending bulk; none if one of them failed.
        "interactive_p99_in_batches": max(beside) if beside and None not in beside else None,
    }


def _growth(section: Found | None) -> dict[str, float | None]:
    memory = section["memory"] if section else {}
    return {
        "rss_slope_mb_per_hour": memory.get("slope_mb_per_hour"),
        "rss_slope_standard_error": memory.get("standard_error_mb_per_hour"),
    }
