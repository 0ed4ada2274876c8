"""How long a call may still take."""

from typing import Any

import grpc


def remaining(context: grpc.aio.ServicerContext[Any, Any], default_s: float) -> float:
    """Seconds left of the caller's deadline, or ``default_s`` if the call brought none: the next hop's timeout."""
    left = context.time_remaining()
    return default_s if left is None else max(0.0, left)
