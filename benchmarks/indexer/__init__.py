"""The indexer's speed beside Chroma's own and others': ``make bench-indexer``."""
