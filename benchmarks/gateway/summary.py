"""The figures that the README and the acceptance read, from what the sections found."""

from collections.abc import Mapping
from typing import Any

from benchmarks.embedder.figures import ratio
from benchmarks.embedder.turns import by_name
from benchmarks.gateway.client import IMAGE, TEXT
from benchmarks.gateway.overload import name_of
from benchmarks.gateway.scope import CONCURRENCY, INGEST, INGEST_STARTER
from benchmarks.gateway.searches import DIRECT, row
from benchmarks.gateway.taking_in import EMBEDDER, PLAIN, THUMBNAILS

Found = Mapping[str, Any]


def summary(sections: Mapping[str, Found]) -> dict[str, Any]:
    """Each figure, or None where its section has not been measured.

    ``gateway_share_of_text_search_p50``: of what the client waits for, what is neither waiting for the embedder nor
    for the indexer; every text another one. ``…_over_direct_p50``: the same search over one that the client makes
    itself, by a call to each. ``overload5_goodput``: of new pictures that arrive five times as fast as 32 callers were
    answered, those answered, over that. ``ingest_over_embedder``: pictures a second through the gateway as it is unless
    told otherwise, that is with thumbnails, over those of EmbedStream, with ViT-B-32 or the model that was named;
    ``…_starter``: with the starter model, of which a picture costs as little as the rest of taking it in; medians over
    the rounds.
    """
    latency = {each["name"]: each for each in sections["latency"]["rows"]} if "latency" in sections else {}
    text, direct = latency.get(TEXT, {}), latency.get(DIRECT, {})
    rates = {each["name"]: each.get("per_s") for each in sections["rates"]["rows"]} if "rates" in sections else {}
    overload = {each["name"]: each for each in sections["overload"]["rows"]} if "overload" in sections else {}
    ingest, starter = (by_name(sections[name]["rows"]) if name in sections else {} for name in (INGEST, INGEST_STARTER))
    found: dict[str, Any] = {
        "gateway_share_of_text_search_p50": _over(text.get("own_ms"), text.get("p50_ms")),
        "text_search_over_direct_p50": _over(text.get("p50_ms"), direct.get("p50_ms")),
        "searches_per_second": {str(n): _rounded(rates.get(row(TEXT, n))) for n in CONCURRENCY} if rates else None,
        "overload5_goodput": overload.get(name_of(IMAGE, 5), {}).get("goodput"),
        "ingest_over_embedder": ratio(ingest, THUMBNAILS, EMBEDDER),
        "ingest_over_embedder_without_thumbnails": ratio(ingest, PLAIN, EMBEDDER),
        "ingest_over_embedder_starter": ratio(starter, THUMBNAILS, EMBEDDER),
        "ingest_rss_growth_mb": sections.get("memory", {}).get("growth_mb"),
    }
    return {name: _rounded(value) if isinstance(value, float) else value for name, value in found.items()}


def _over(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
