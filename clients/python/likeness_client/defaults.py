"""The contract's defaults, and where a gateway is looked for."""

ADDRESS = "localhost:50050"
ADDRESS_VARIABLE = "LIKENESS_GATEWAY"
TIMEOUT_S = 30.0
COLLECTION = "images"
TOP_K = 10
