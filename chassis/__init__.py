"""What every Likeness service shares: settings, lifecycle, health, errors, logs and the contract's values."""

import os

# Read by gRPC's library as it is loaded. At its own level it writes a line, of another form than the log's, for every
# connection whose handshake fails, and so as many as whoever reaches a port likes.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

# The release of all that is here; pyproject.toml takes it from this line.
__version__ = "0.1.0"
