"""A stream that broke is opened again: how often in a row, and after how long."""

from likeness_client.errors import LikenessError

ATTEMPTS = 6
FIRST_S = 0.5
MAX_S = 10.0


def backoff_s(error: LikenessError, failures: int, *, may_pass: bool | None = None) -> float:
    """Seconds to wait before the next attempt: as many as the server asks for, else ever longer ones.

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
    return error.retry_after_s or min(FIRST_S * 2 ** (failures - 1), MAX_S)
