"""What is wrong with a call, gathered field by field and told as one error."""

from collections.abc import Sequence
from types import TracebackType

from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError, Violation, invalid

# gRPC clients refuse trailers beyond 8 KiB, so a bad call's violations must fit in fewer.
MAX_VIOLATION_BYTES = 2000


class Violations:
    """Collects what is wrong with a call, field by field: ``with violations: check(…)``."""

    def __init__(self) -> None:
        self.found: list[LikenessError] = []

    def __enter__(self) -> None: ...

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        if isinstance(error, LikenessError):
            self.found.append(error)
            return True
        return False

    def raise_any(self) -> None:
        """Raises one error for all."""
        if self.found:
            raise merged(self.found)


def merged(errors: Sequence[LikenessError]) -> LikenessError:
    """One error for several (at least one): the first one's reason and message, and as many bad fields as fit."""
    named: list[Violation] = []
    room = MAX_VIOLATION_BYTES
    for error in errors:
        room -= sum(len(v.field.encode()) + len(v.description.encode()) for v in error.violations)
        if room < 0 and named:
            break
        named.extend(error.violations)
    unnamed = len(errors) - len(named)
    message = errors[0].message
    if len(errors) > 1:
        message += f" (and {len(errors) - 1} more bad fields)"
    if unnamed:
        root = named[0].field.split("[")[0]
        named.append(Violation(root, f"{unnamed} more bad fields, not named here"))
    return LikenessError(errors[0].reason, message, named)


def check_count(count: int, most: int, field: str, what: str) -> None:
    """Refuses none, and more than ``most``.

    Raises:
        LikenessError: FIELD_INVALID or BATCH_TOO_LARGE, naming the field.
    """
    if count == 0:
        raise invalid(field, f"empty; expected 1 to {most:,} {what}")
    if count > most:
        raise invalid(field, f"{count:,} {what}; expected 1 to {most:,}", error_pb2.REASON_BATCH_TOO_LARGE)
