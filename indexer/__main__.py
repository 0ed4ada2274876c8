"""``python -m indexer``: serves until told to stop."""

from chassis import starting

if __name__ == "__main__":  # before the imports below, which take long
    starting.end_when_told()

import os
import sys

# Read by numpy's and faiss's libraries as they load. Threads of numpy's own make a small product slower, a thousandfold
# on busy cores; threads of faiss that spin while they wait take the cores from the others.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from chassis import server
from indexer.service import IndexerService
from indexer.settings import IndexerSettings


def main() -> None:
    """The command line."""
    settings = IndexerSettings.parse("python -m indexer", sys.argv[1:])
    server.run(settings, IndexerService(settings), server.Role(metrics_port=settings.metrics_port, keyless=True))


if __name__ == "__main__":
    main()
