"""What becomes of a collection that is embedded anew."""

from dataclasses import dataclass

from likeness_client.errors import LikenessError


@dataclass(frozen=True)
class ReembedFailure:
    """An item that could not be embedded."""

    id: str
    error: LikenessError


@dataclass(frozen=True)
class Reembedded:
    """What became of a collection's items.

    Attributes:
        total: items in the source at the beginning.
        embedded: items that were embedded and stored in the target.
        unchanged: items that the target had already.
        failed: items that could not be embedded, at the end.
        removed: items deleted from the target, which the source did not have.
        switched: whether the alias was moved.
        failures: items that could not be embedded when it was tried, each once; a later round may have embedded some.
    """

    total: int
    embedded: int
    unchanged: int
    failed: int
    removed: int
    switched: bool
    failures: tuple[ReembedFailure, ...] = ()
