"""How much is measured: what the command line chose."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.embedder.scope import WORK as _WORK

WORK = _WORK / "indexer"
SECTIONS = ("startup", "speed", "filters", "recall", "ingest")

# As the indexer makes its graphs and searches them (indexer/serving) by the cosine, for every contender that has such
# settings.
NEIGHBOURS, EF_CONSTRUCTION, EF_SEARCH = 16, 128, 96
# As the indexer has Chroma make its collections. Queries are asked with EF_SEARCH; Chroma's own default is 100.
CHROMA_HNSW = {"ef_construction": 200, "max_neighbors": 16, "ef_search": 256}

K = 10
BATCH = 16
CONCURRENCY = (1, 8, 32)
# Per cent of the items that a filter leaves.
SELECTIVITIES = (0.1, 2.0, 10.0, 50.0, 98.0)
# Asked nothing with a filter: it would call Python for each vector that it comes by.
UNFILTERED = ("hnswlib",)
SIZES, QUICK_SIZES = (10_000, 50_000, 200_000), (5_000, 20_000)
# The size of the figures that are promised of 50,000.
MAIN = 50_000


@dataclass(frozen=True)
class Scope:
    """How long everything takes.

    Attributes:
        quick: whether this is the cut that ends in ten minutes.
        sizes: items in the collections, ascending.
        rounds: all contenders in turn; medians are shown. A machine that others share changes its speed within seconds:
            many rounds of short windows tell more than few of long ones.
        window_s: one measurement of queries.
        ramp_s: before each, in which nothing counts.
        ingest_items: of one measurement of ingest.
        ingest_rounds: how often.
        beside_s: one measurement of queries beside ingest.
        recall_queries: of which the answers are compared with numpy.
        clients: processes that send.
        peers: whether others than Chroma and faiss take part.
        install_s: longest time for installing them, all together.
    """

    quick: bool
    sizes: tuple[int, ...]
    rounds: int
    window_s: float
    ramp_s: float
    ingest_items: int
    ingest_rounds: int
    beside_s: float
    recall_queries: int
    clients: int
    peers: bool
    install_s: float

    @staticmethod
    def of(*, quick: bool, sizes: Sequence[int] | None, clients: int, peers: bool) -> "Scope":
        """The whole measurement, or the cut."""
        chosen = tuple(sorted(set(sizes or (QUICK_SIZES if quick else SIZES))))
        if quick:
            return Scope(True, chosen, 3, 0.8, 0.2, 1_536, 2, 3.0, 100, clients, peers, 120.0)
        return Scope(False, chosen, 5, 3.0, 0.5, 4_096, 3, 10.0, 500, clients, peers, 900.0)

    @property
    def main(self) -> int:
        """The size at which the figures of the summary are taken: 50,000, or the largest where that is left out."""
        return MAIN if MAIN in self.sizes else self.sizes[-1]

    def takes(self, section: str, size: int) -> bool:
        """Whether a section is measured at a size: ingest, and in the cut filters, at the main one alone."""
        return size == self.main or not (section == "ingest" or (self.quick and section == "filters"))

    def peers_at(self, size: int) -> bool:
        """Whether peers take part at a size: in the cut at the main one alone, since they build for a while."""
        return self.peers and (size == self.main or not self.quick)

    @property
    def metrics_size(self) -> int:
        """The size at which the metrics other than the cosine are looked at: filling takes minutes the first time."""
        return self.sizes[0] if self.quick else self.main
