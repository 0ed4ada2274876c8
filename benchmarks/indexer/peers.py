"""Other indexes, each in an environment of its own: ``python -m benchmarks.indexer.peers``."""

import argparse

from benchmarks.environments import Peer, set_up

PEERS = (
    Peer("hnswlib", ("hnswlib==0.8.0", "numpy"), "import hnswlib", ("hnswlib", "numpy==")),
    # pymilvus imports pandas only where it is asked for data frames; setuptools for its pkg_resources.
    Peer(
        "milvus-lite",
        ("milvus-lite==3.2.2", "pymilvus==3.0.2", "numpy", "setuptools<81"),
        "import pymilvus, milvus_lite",
        ("milvus-lite", "pymilvus", "numpy=="),
    ),
    Peer("lancedb", ("lancedb==0.40.0", "numpy", "pyarrow"), "import lancedb", ("lancedb", "pyarrow==", "numpy==")),
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.indexer.peers", description=__doc__)
    parser.add_argument("--limit", type=float, default=900, metavar="SECONDS", help="for all of them (%(default)s)")
    parser.add_argument("--again", action="store_true", help="those that were tried before, too")
    options = parser.parse_args()
    set_up(PEERS, options.limit, options.again)


if __name__ == "__main__":
    main()
