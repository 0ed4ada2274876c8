"""A stream that broke is opened again: how often in a row, and after how long."""

from collections.abc import Callable

from likeness_client.errors import LikenessError

OnReconnect = Callable[[LikenessError, float], None]
"""Called before a stream is opened again, with what broke the one before and the seconds until then."""

ATTEMPTS = 6
"""The first, and five more in a row."""
FIRST_S = 0.5
MAX_S = 10.0


def backoff_s(error: LikenessError, failures: int, *, may_pass: bool | None = None) -> float:
    """Seconds to wait before the next attempt: ever more, and at least as many as the server asks for.

    Args:
        error: what broke the stream.
        failures: how often in a row it has been broken, this time included: at least 1.
        may_pass: whether trying again may help; None: what the error says.

    Raises:
        LikenessError: the error itself, where trying again does not help or was tried often enough.
    """
    passing = error.passing if may_pass is None else may_pass
    if not passing or failures >= ATTEMPTS:
        raise error
    longer_s: float = min(FIRST_S * 2 ** (failures - 1), MAX_S)
    return max(error.retry_after_s or 0.0, longer_s)


def may_go_on(error: LikenessError) -> bool:
    """Whether a stream that can be gone on with may be opened again.

    It may too where a server has let go, with DEADLINE_EXCEEDED, of whoever sent or read nothing for some minutes.
    """
    return error.passing or error.code == "DEADLINE_EXCEEDED"
