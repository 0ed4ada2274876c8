"""Other names of collections, and how they are kept.

All aliases are one document: the metadata of an empty Chroma collection called ``Likeness.Aliases.<version>``. (Names
in the contract have no capitals, so it is in nobody's way.) A change makes the document of the next version, and then
drops the one before. Of several the highest version counts, and a name is given once in Chroma: so a change takes
effect at one moment or not at all, never overwrites another, and one that got no answer can be repeated.

Aliases stand for names, which a rebuild leaves alone. One whose collection is no more is kept, and stands for nothing.
"""

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from indexer.collections import PREFIX, StoredCollection

_NAME = re.compile(r"Likeness\.Aliases\.([0-9]+)")
_CHANGE = f"{PREFIX}change"
_ALIAS = "alias:"


@dataclass(frozen=True)
class Aliases:
    """All of them at one moment.

    Attributes:
        version: counts the changes.
        targets: names of collections, by alias.
        change: tells this document from any other of the same version.
    """

    version: int = 0
    targets: Mapping[str, str] = field(default_factory=dict)
    change: str = ""

    @property
    def store_name(self) -> str:
        """What Chroma calls the document."""
        return f"Likeness.Aliases.{self.version}"

    @property
    def metadata(self) -> dict[str, Any]:
        """What Chroma keeps as the document."""
        return {_CHANGE: self.change, **{f"{_ALIAS}{alias}": name for alias, name in self.targets.items()}}

    def standing_for(self, name: str) -> list[str]:
        """The aliases of a collection, ordered by name."""
        return sorted(alias for alias, target in self.targets.items() if target == name)

    def moved(self, alias: str, name: str | None) -> "Aliases":
        """The next version, in which an alias stands for that collection; None: in which it is no more."""
        targets = {**self.targets}
        if name is None:
            del targets[alias]
        else:
            targets[alias] = name
        return Aliases(self.version + 1, targets, uuid.uuid4().hex)


def latest(stored: Iterable[StoredCollection]) -> tuple[Aliases, list[StoredCollection]]:
    """The aliases among everything that Chroma has.

    Returns:
        They, and every version of their document, the earliest first.
    """
    found = [(int(match[1]), each) for each in stored if (match := _NAME.fullmatch(each.name))]
    found.sort(key=lambda pair: pair[0])
    if not found:
        return Aliases(), []
    version, newest = found[-1]
    targets = {key.removeprefix(_ALIAS): str(name) for key, name in newest.metadata.items() if key.startswith(_ALIAS)}
    return Aliases(version, targets, str(newest.metadata.get(_CHANGE, ""))), [each for _, each in found]
