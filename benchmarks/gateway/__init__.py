"""What the gateway costs: its share of a search, its searches a second, and ingest against the embedder's own rate."""
