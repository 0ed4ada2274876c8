"""The figures that the README and the acceptance read, from what the sections found."""

from collections.abc import Mapping
from typing import Any

from benchmarks.embedder.figures import ratio
from benchmarks.embedder.turns import by_name
from benchmarks.indexer.field import BARE, CHROMA, EMBEDDED, FAISS, OURS
from benchmarks.indexer.ingest import BESIDE
from benchmarks.indexer.scope import MAIN, SELECTIVITIES, K
from benchmarks.indexer.speed import batched, filtered, plain, single

Found = Mapping[str, Any]
Summary = dict[str, float | dict[str, float | None] | None]


def summary(sections: Mapping[str, Found]) -> Summary:
    """Each figure, or None where its section or its size has not been measured.

    Ratios of rates are medians over the rounds. They are of 50,000 items, or of the largest size where that was left
    out; ``latency_200k_over_10k`` is of those two sizes or None.

    ``queries_over_…``: calls of one query, eight at a time; ``bare`` is faiss behind gRPC, and nothing else.
    ``batched_queries_over_faiss``: calls of 16, eight callers of ours against the better of one and eight of faiss.
    ``filtered_over_plain_p50``: the worst of all selectivities. ``p99_ingest_over_idle``: the worst of one caller and
    of eight. ``recall_at_10``: the worst of all sizes and metrics, and of all selectivities. The filter that leaves
    half of the clusters is no selectivity: it is in the tables alone. ``bytes_per_vector``: by how much the indexer's
    resident memory grows with each item from the least size to the largest; None of one size, since once it is asked
    anything it takes some 60 MiB, however little it holds.
    """
    speed = _main(sections, "speed")
    rates = by_name(speed["rows"]) if speed else {}
    ingest = _main(sections, "ingest")
    taken = by_name(ingest["rows"]) if ingest else {}
    found: Summary = {
        "queries_over_chroma_http": ratio(rates, single(OURS, 8), single(CHROMA, 8)),
        "queries_over_chroma_embedded": ratio(rates, single(OURS, 8), single(EMBEDDED, 8)),
        "queries_over_bare": ratio(rates, single(OURS, 8), single(BARE, 8)),
        "batched_queries_over_faiss": _worst(
            [ratio(rates, batched(OURS, 8), batched(FAISS, callers)) for callers in (1, 8)], min
        ),
        "ingest_over_chroma_http": ratio(taken, OURS, CHROMA),
        "p99_ingest_over_idle": _beside(ingest),
        "filtered_over_plain_p50": _filtered(_main(sections, "filters")),
        f"recall_at_{K}": _recall(sections.get("recall")),
        "latency_200k_over_10k": _growth(sections.get("speed")),
        "bytes_per_vector": _bytes_per_vector(sections.get("startup")),
    }
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def _main(sections: Mapping[str, Found], name: str) -> Found | None:
    """The section's figures of 50,000 items, or of the largest size there is."""
    sizes = sections.get(name, {}).get("sizes", {})
    found: Found | None = sizes.get(str(MAIN)) or (sizes[max(sizes, key=int)] if sizes else None)
    return found


def _beside(found: Found | None) -> float | None:
    rows = {row["name"]: row for row in found["beside"]} if found else {}
    ratios = []
    for concurrency in BESIDE:
        row = rows.get(single(OURS, concurrency), {})
        rounds = {"busy": row.get("busy_p99_ms_rounds", ()), "idle": row.get("idle_p99_ms_rounds", ())}
        ratios.append(ratio(rounds, "busy", "idle"))
    return _worst(ratios, max)


def _filtered(found: Found | None) -> float | None:
    """The worst of SELECTIVITIES, which half of the clusters is not among."""
    p50 = {row["name"]: row.get("p50_ms") for row in found["rows"]} if found else {}
    base = p50.get(plain(OURS))
    each = [p50.get(filtered(OURS, per_cent)) for per_cent in SELECTIVITIES]
    return _worst([value / base if value is not None and base else None for value in each], max)


def _recall(found: Found | None) -> dict[str, float | None]:
    """The worst without a filter, and of SELECTIVITIES, which half of the clusters is not among."""
    sizes = found["sizes"].values() if found else ()
    rows = [row for size in sizes for row in size["rows"] if row["name"] == OURS]
    kinds = [f"{per_cent:g} %" for per_cent in SELECTIVITIES]
    return {
        "plain": _worst([row.get("plain") for row in rows], min),
        "filtered": _worst([row.get(kind) for row in rows for kind in kinds], min),
    }


def _bytes_per_vector(found: Found | None) -> float | None:
    rss_mib = {int(size): each["row"]["rss_mib"] for size, each in found["sizes"].items()} if found else {}
    if len(rss_mib) < 2:
        return None
    least, most = min(rss_mib), max(rss_mib)
    return float((rss_mib[most] - rss_mib[least]) * 2**20 / (most - least))


def _growth(found: Found | None) -> float | None:
    sizes = found["sizes"] if found else {}
    p50 = [
        next((row.get("p50_ms") for row in sizes[size]["rows"] if row["name"] == single(OURS, 1)), None)
        if size in sizes
        else None
        for size in ("200000", "10000")
    ]
    return p50[0] / p50[1] if p50[0] is not None and p50[1] else None


def _worst(values: list[float | None], which: Any) -> float | None:
    """The worst; None if one is missing: a figure that was not measured is no good one."""
    return None if not values or None in values else float(which(values))
