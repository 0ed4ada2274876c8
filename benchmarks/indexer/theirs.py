"""Chroma as its users call it: its own HTTP client, or its embedded one, with as many threads as callers."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import chromadb
from chromadb.config import Settings

from benchmarks.desk import Answer, Request
from benchmarks.embedder.figures import rate
from benchmarks.indexer import data
from benchmarks.indexer.scope import CHROMA_HNSW, EF_SEARCH, K
from benchmarks.indexer.threads import measured

_CALL = 64
_POOL = 4_096


def http_client(url: str) -> Any:
    """Chroma's client of a server."""
    parts = urlsplit(url)
    settings = Settings(anonymized_telemetry=False)
    return chromadb.HttpClient(host=parts.hostname or "", port=parts.port or 8000, settings=settings)


def embedded_client(folder: str) -> Any:
    """Chroma's client over a directory."""
    return chromadb.PersistentClient(folder, settings=Settings(anonymized_telemetry=False))


def search_alike(client: Any, collection: str) -> None:
    """Sets ef_search; it counts once the collection is loaded anew."""
    client.get_collection(collection, embedding_function=None).modify(configuration={"hnsw": {"ef_search": EF_SEARCH}})


def where_of(where: data.Where | None) -> Any:
    """A filter in Chroma's words."""
    return {where[0]: {"$lt": where[1]}} if where is not None else None


def rows(handle: Any, vectors: data.Array, where: data.Where | None) -> list[list[int]]:
    """The rows that are found for each vector."""
    found = handle.query(query_embeddings=list(vectors), n_results=K, where=where_of(where), include=["distances"])
    return [data.rows_of(ids) for ids in found["ids"]]


class Theirs:
    """What a client process does with Chroma."""

    def __init__(self, seed: int) -> None:
        self._vectors = data.queries(_POOL, seed)

    def queries(self, request: Request) -> Answer:
        """Queries for so many seconds, from so many callers."""
        handle = http_client(request["address"]).get_collection(request["collection"], embedding_function=None)
        return measured(lambda vectors, where: rows(handle, vectors, where), self._vectors, request)

    def answers(self, request: Request) -> Answer:
        """The rows that are found for the first so many queries."""
        handle = http_client(request["address"]).get_collection(request["collection"], embedding_function=None)
        asked, found = data.queries(request["queries"]), []
        for begin in range(0, len(asked), 16):
            found += rows(handle, asked[begin : begin + 16], request.get("where"))
        return {"rows": found}

    def ingest(self, request: Request) -> Answer:
        """So many items into a new collection, in calls of 64; it stays, as ours do."""
        client, name = http_client(request["address"]), request["collection"]
        hnsw = CHROMA_HNSW if request["alike"] else {}
        handle = client.create_collection(
            name, configuration={"hnsw": {"space": "cosine", **hnsw}}, embedding_function=None
        )
        calls = _Shared(_adds(data.more_vectors(request["items"], request["seed"]), 0))
        begun = time.perf_counter()
        errors = _in_threads(lambda: _drain(calls, lambda call: handle.add(**call)), request["concurrency"])
        took = time.perf_counter() - begun
        return {"per_s": request["items"] / took, "error": errors[0] if errors else None}

    def ingest_for(self, request: Request) -> Answer:
        """Items into a collection that is there, as fast as they are taken, for so many seconds."""
        handle = http_client(request["address"]).get_collection(request["collection"], embedding_function=None)
        calls = _Shared(_adds(data.more_vectors(50_000, request["seed"]), request["first"]))
        done: list[float] = []
        begun = time.perf_counter()

        def add(call: dict[str, Any]) -> bool:
            handle.add(**call)
            now = time.perf_counter() - begun
            done.extend([now] * _CALL)
            return bool(now > request["seconds"])

        errors = _in_threads(lambda: _drain(calls, add), request["concurrency"])
        per_s = rate([moment for moment in done if moment <= request["seconds"]], request["seconds"])
        return {"per_s": per_s, "items": len(done), "error": errors[0] if errors else None}


class _Shared:
    """An iterator that threads share."""

    def __init__(self, items: Iterator[dict[str, Any]]) -> None:
        self._items, self._lock = items, threading.Lock()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        with self._lock:
            return next(self._items)


def _adds(vectors: data.Array, first: int) -> Iterator[dict[str, Any]]:
    numbers = data.numbers(len(vectors))
    for begin in range(0, len(vectors), _CALL):
        part = vectors[begin : begin + _CALL]
        chosen = range(begin, begin + len(part))
        yield {
            "ids": [data.item_id(first + row) for row in chosen],
            "embeddings": list(part),
            "metadatas": [{"n": float(numbers[row]), "c": row % 1000} for row in chosen],
        }


def _drain(calls: _Shared, add: Callable[[dict[str, Any]], object]) -> None:
    for call in calls:
        if add(call) is True:
            return


def _in_threads(work: Callable[[], None], threads: int) -> list[str]:
    errors: list[str] = []

    def guarded() -> None:
        try:
            work()
        except Exception as error:  # the row shows it
            errors.append(f"{type(error).__name__}: {error}")

    started = [threading.Thread(target=guarded) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return errors
