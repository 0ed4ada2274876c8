"""A client process: ``python -m benchmarks.indexer.callers SEED``. The same for the indexer and for Chroma's server.

SEED: of its queries, so that two processes do not ask the same.
"""

import asyncio
import sys

import chromadb
import grpc

from benchmarks.desk import Answer, Desk, Request
from benchmarks.indexer.ours import Ours
from benchmarks.indexer.theirs import Theirs


class Caller:
    """Measures what it is asked for."""

    def __init__(self, seed: int) -> None:
        self._ours, self._theirs = Ours(seed), Theirs(seed)

    def measure(self, request: Request) -> Answer:
        """``of``: ours or chroma; ``how``: queries, answers, ingest or ingest_for."""
        if request["of"] == "ours":
            answer: Answer = asyncio.run(getattr(self._ours, request["how"])(request))
        else:
            answer = getattr(self._theirs, request["how"])(request)
        return answer


def main() -> None:
    """Answers requests."""
    desk = Desk()
    desk.serve({"grpcio": grpc.__version__, "chromadb": chromadb.__version__}, Caller(int(sys.argv[1])).measure)


if __name__ == "__main__":
    main()
