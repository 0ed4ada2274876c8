"""The contract's defaults, and where a gateway and an indexer are looked for."""

ADDRESS = "localhost:50050"
ADDRESS_VARIABLE = "LIKENESS_GATEWAY"
INDEXER_ADDRESS = "127.0.0.1:50052"
INDEXER_VARIABLE = "LIKENESS_INDEXER"
TIMEOUT_S = 30.0
COLLECTION = "images"
TOP_K = 10
