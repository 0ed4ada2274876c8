"""The least that answers queries through gRPC in Python: ``python -m benchmarks.indexer.bare PORT SIZE FOLDER``.

faiss behind ``IndexerService.Query``, on one event loop, with nothing checked, nothing stored and nothing around it.
What gRPC and Python take of faiss's speed, whoever serves, shows in it; the rest is the indexer's own.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from likeness.indexer.v1 import indexer_pb2

from benchmarks.indexer import data
from benchmarks.indexer.library import Faiss


class Bare:
    """Answers queries of one vector each."""

    def __init__(self, size: int, folder: Path) -> None:
        self._index = Faiss(size, folder)
        self._ids = [data.item_id(row) for row in range(size)]

    async def query(self, request: indexer_pb2.QueryRequest, _context: Any) -> indexer_pb2.QueryResponse:
        """The nearest of each."""
        vectors = np.stack([np.frombuffer(query.examples[0].vector.f32, "<f4") for query in request.queries])
        response = indexer_pb2.QueryResponse()
        found = [each.tolist() for each in self._index.nearest(vectors, None)]
        for scores, rows in zip(*found, strict=True):
            hits = response.results.add().hits
            for score, row in zip(scores, rows, strict=True):
                hits.add(id=self._ids[row], score=score, distance=1 - score)
        return response


async def serve(port: int, bare: Bare) -> None:
    """Until it is killed."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        bare.query, indexer_pb2.QueryRequest.FromString, indexer_pb2.QueryResponse.SerializeToString
    )
    service = grpc.method_handlers_generic_handler("likeness.indexer.v1.IndexerService", {"Query": handler})
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Bare(int(sys.argv[2]), Path(sys.argv[3]))))
