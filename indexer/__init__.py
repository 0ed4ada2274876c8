"""The indexer: collections of vectors with metadata over Chroma, and their nearest neighbours."""
