"""Which collections were deleted: what tells one that is no more from one that is only missing.

Whoever keeps files of collections, as the gateway does, may delete those of a collection that was deleted. Those of one
that is missing may be all that is left of it: Chroma was lost, and the collection is not restored yet.

The uids are one document: the metadata of an empty Chroma collection called ``Likeness.Deleted``. It is lost with
Chroma, and put back with it. One that it lacks costs somebody's disk space and nothing else, so it needs no versions.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from indexer.collections import PREFIX, StoredCollection

# Readers read the document with all others, each second.
MOST = 1000
STORE_NAME = "Likeness.Deleted"
_UIDS = f"{PREFIX}deleted_uids"


@dataclass(frozen=True)
class Deleted:
    """Collections that were deleted.

    Attributes:
        uids: theirs, and those of what they were restored from; of the last deleted first.
        key: the store's id of the document; empty: there is none yet.
    """

    uids: Sequence[str] = ()
    key: str = ""

    def with_more(self, uids: Iterable[str]) -> "Deleted":
        """With these too; of more than ``MOST`` those that were deleted first are left out."""
        return Deleted(tuple(dict.fromkeys([*uids, *self.uids]))[:MOST], self.key)

    @property
    def metadata(self) -> dict[str, Any]:
        """What Chroma keeps as the document."""
        return {_UIDS: json.dumps(self.uids)}


def read(stored: Iterable[StoredCollection]) -> Deleted:
    """What everything that Chroma has tells of them."""
    for each in stored:
        if each.name == STORE_NAME:
            return Deleted(tuple(json.loads(each.metadata.get(_UIDS, "[]"))), each.key)
    return Deleted()
