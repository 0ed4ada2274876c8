"""An index in its user's own process: ``python -m benchmarks.indexer.library NAME SIZE FOLDER``.

Runs in the environment of the library. What it has built it keeps under FOLDER, for the next run.
"""

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.desk import Answer, Desk, Request
from benchmarks.indexer import data
from benchmarks.indexer.scope import EF_CONSTRUCTION, EF_SEARCH, NEIGHBOURS, K
from benchmarks.indexer.threads import measured
from chassis.cores import cores

_POOL = 4_096
_CHUNK = 5_000


class Index(Protocol):
    """An index over the benchmark's vectors."""

    version: str
    # How many threads will search at once: a single one may take all cores for a batch.
    callers: int

    def search(self, vectors: data.Array, where: data.Where | None) -> list[list[int]]:
        """The rows of the K nearest of each vector; may be called by several threads."""


class Faiss:
    """``IndexHNSWFlat`` with the indexer's own settings: the floor under everything that is served."""

    callers = 1

    def __init__(self, size: int, folder: Path) -> None:
        self._faiss = importlib.import_module("faiss")
        self.version = self._faiss.__version__
        self._cores = cores()
        path = folder / "index.faiss"
        if path.is_file():
            self._index = self._faiss.read_index(str(path))
        else:
            self._index = self._faiss.IndexHNSWFlat(data.DIMENSION, NEIGHBOURS, self._faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efConstruction = EF_CONSTRUCTION
            self._index.add(data.vectors(size))
            self._faiss.write_index(self._index, str(path))
        self._index.hnsw.efSearch = EF_SEARCH
        self._numbers = data.numbers(size)
        self._clusters = data.clusters(size)

    def search(self, vectors: data.Array, where: data.Where | None) -> list[list[int]]:
        """A filter is a bitmap that the search is told."""
        found: list[list[int]] = self.nearest(vectors, where)[1].tolist()
        return found

    def nearest(self, vectors: data.Array, where: data.Where | None) -> tuple[Any, Any]:
        """The scores of what is found and its rows, float32 and int64 [queries, K]."""
        self._faiss.omp_set_num_threads(self._cores if self.callers == 1 else 1)  # counts in the calling thread
        params = None
        if where is not None:
            members = {"n": self._numbers, "c": self._clusters}[where[0]] < where[1]
            bitmap = np.packbits(members, bitorder="little")
            selector = self._faiss.IDSelectorBitmap(len(members), self._faiss.swig_ptr(bitmap))
            params = self._faiss.SearchParametersHNSW(efSearch=EF_SEARCH, sel=selector)
        scores, rows = self._index.search(vectors, K, params=params)
        return scores, rows


class Hnswlib:
    """``hnswlib``; no filters: it would call Python for each vector that it comes by."""

    callers = 1

    def __init__(self, size: int, folder: Path) -> None:
        hnswlib = importlib.import_module("hnswlib")
        self.version = importlib.import_module("importlib.metadata").version("hnswlib")
        self._index = hnswlib.Index(space="cosine", dim=data.DIMENSION)
        path = folder / "index.hnswlib"
        if path.is_file():
            self._index.load_index(str(path), max_elements=size)
        else:
            self._index.init_index(max_elements=size, ef_construction=EF_CONSTRUCTION, M=NEIGHBOURS)
            self._index.add_items(data.vectors(size), np.arange(size))
            self._index.save_index(str(path))
        self._index.set_ef(EF_SEARCH)

    def search(self, vectors: data.Array, where: data.Where | None) -> list[list[int]]:
        """As many threads as cores for a batch, one for a single vector."""
        assert where is None
        rows, _ = self._index.knn_query(vectors, k=K, num_threads=-1 if self.callers == 1 else 1)
        found: list[list[int]] = rows.tolist()
        return found


class ChromaEmbedded:
    """Chroma's ``PersistentClient`` over a copy of the indexer's own data."""

    callers = 1

    def __init__(self, size: int, folder: Path) -> None:  # noqa: ARG002 (the data is there)
        theirs = importlib.import_module("benchmarks.indexer.theirs")
        self.version = importlib.import_module("chromadb").__version__
        self._rows = theirs.rows
        client = theirs.embedded_client(str(folder))
        self._handle = client.get_collection("cosine", embedding_function=None)

    def search(self, vectors: data.Array, where: data.Where | None) -> list[list[int]]:
        """One ``query``."""
        found: list[list[int]] = self._rows(self._handle, vectors, where)
        return found


class MilvusLite:
    """Milvus Lite through its own client, which speaks gRPC to a server in its own process."""

    callers = 1

    def __init__(self, size: int, folder: Path) -> None:
        pymilvus = importlib.import_module("pymilvus")
        self.version = importlib.import_module("importlib.metadata").version("milvus-lite")
        path = folder / "milvus.db"
        there = path.exists()
        self._client = pymilvus.MilvusClient(str(path))
        if not there:
            self._fill(pymilvus, size)
        self._client.load_collection("cosine")

    def _fill(self, pymilvus: Any, size: int) -> None:
        kinds = pymilvus.DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", kinds.INT64, is_primary=True)
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=data.DIMENSION)
        schema.add_field("n", kinds.DOUBLE)
        schema.add_field("c", kinds.INT64)
        index = self._client.prepare_index_params()
        params = {"M": NEIGHBOURS, "efConstruction": EF_CONSTRUCTION}
        index.add_index("vector", index_type="HNSW", metric_type="COSINE", params=params)
        self._client.create_collection("cosine", schema=schema, index_params=index)
        vectors, numbers, clusters = data.vectors(size), data.numbers(size), data.clusters(size)
        for begin in range(0, size, _CHUNK):
            rows = range(begin, min(begin + _CHUNK, size))
            self._client.insert(
                "cosine",
                [{"id": r, "vector": vectors[r], "n": float(numbers[r]), "c": int(clusters[r])} for r in rows],
            )
        self._client.flush("cosine")

    def search(self, vectors: data.Array, where: data.Where | None) -> list[list[int]]:
        """One ``search``."""
        found = self._client.search(
            "cosine",
            data=list(vectors),
            filter=f"{where[0]} < {where[1]!r}" if where else "",
            limit=K,
            search_params={"params": {"ef": EF_SEARCH}},
        )
        return [[hit["id"] for hit in hits] for hits in found]


class LanceDb:
    """LanceDB with the HNSW index that it has, over 8-bit vectors in one partition."""

    callers = 1

    def __init__(self, size: int, folder: Path) -> None:
        lancedb, arrow = importlib.import_module("lancedb"), importlib.import_module("pyarrow")
        self.version = lancedb.__version__
        store = lancedb.connect(str(folder))
        if "cosine" in store.table_names():
            self._table = store.open_table("cosine")
            return
        flat = arrow.array(data.vectors(size).reshape(-1))
        columns = {
            "id": arrow.array(np.arange(size)),
            "vector": arrow.FixedSizeListArray.from_arrays(flat, data.DIMENSION),
            "n": arrow.array(data.numbers(size)),
            "c": arrow.array(data.clusters(size).astype(np.float64)),  # compared with a float, and it does not convert
        }
        self._table = store.create_table("cosine", arrow.table(columns))
        self._table.create_index(
            metric="cosine",
            index_type="IVF_HNSW_SQ",
            num_partitions=1,
            m=NEIGHBOURS,
            ef_construction=EF_CONSTRUCTION,
        )

    def search(self, vectors: data.Array, where: data.Where | None) -> list[list[int]]:
        """One search a vector: a batch is what its users make of it."""
        found = []
        for vector in vectors:
            asked = self._table.search(vector).distance_type("cosine").ef(EF_SEARCH).nprobes(1).limit(K).select(["id"])
            if where is not None:
                asked = asked.where(f"{where[0]} < {where[1]!r}", prefilter=True)
            found.append(asked.to_arrow()["id"].to_pylist())
        return found


LIBRARIES: dict[str, Callable[[int, Path], Index]] = {
    "faiss": Faiss,
    "hnswlib": Hnswlib,
    "chroma embedded": ChromaEmbedded,
    "milvus-lite": MilvusLite,
    "lancedb": LanceDb,
}


def main() -> None:
    """Opens or builds, then answers requests."""
    desk = Desk()
    name, size, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    index = LIBRARIES[name](size, folder)
    opened_s = time.perf_counter() - begun
    pool = data.queries(_POOL)

    def measure(request: Request) -> Answer:
        if request["how"] == "queries":
            index.callers = request["concurrency"]
            return measured(index.search, pool, request)
        asked, found = data.queries(request["queries"]), []
        for begin in range(0, len(asked), 16):
            found += index.search(asked[begin : begin + 16], request.get("where"))
        return {"rows": found}

    desk.serve({"version": index.version, "opened_s": round(opened_s, 1)}, measure)


if __name__ == "__main__":
    main()
