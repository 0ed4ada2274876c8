"""``python -m indexer``: serves until told to stop."""

import sys

from chassis import server
from indexer.service import IndexerService
from indexer.settings import IndexerSettings


def main() -> None:
    """The command line."""
    settings = IndexerSettings.parse("python -m indexer", sys.argv[1:])
    server.run(settings, IndexerService(settings))


if __name__ == "__main__":
    main()
