"""Under which uids the files of a collection are: its own, and those of what it was restored from, which others share.

A collection made from a backup has a uid of its own. What was written for the one in the backup stays where it is, and
is found there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from likeness.common.v1 import error_pb2
from likeness.common.v1.types_pb2 import ItemFields
from likeness.indexer.v1 import indexer_pb2

from chassis.errors import LikenessError
from gateway.backends import Indexer

_PAGE = 1000


@dataclass(frozen=True)
class Listing:
    """All collections that an indexer has.

    Attributes:
        collections: they.
        deleted: uids of those that it had, and of what they were restored from.
    """

    collections: Sequence[indexer_pb2.Collection]
    deleted: frozenset[str]

    @property
    def needed(self) -> frozenset[str]:
        """Every uid under which there may be files of a collection."""
        return frozenset(uid for each in self.collections for uid in _all(each))

    def needed_beside(self, uid: str) -> frozenset[str]:
        """The same, of all collections but the one of this uid."""
        return frozenset(each for other in self.collections if other.uid != uid for each in _all(other))


async def listing(indexer: Indexer, time: Callable[[], float]) -> Listing:
    """All collections, page by page.

    Args:
        indexer: has them.
        time: gives the seconds for one page.

    Raises:
        LikenessError: the indexer does not answer.
    """
    request = indexer_pb2.ListCollectionsRequest(page_size=_PAGE)
    found: list[indexer_pb2.Collection] = []
    while True:
        page = await indexer.list_collections(request, time())
        found.extend(page.collections)
        if not page.next_page_token:
            return Listing(found, frozenset(page.deleted_uids))
        request.page_token = page.next_page_token


async def sharing(
    indexer: Indexer, collection: indexer_pb2.Collection, time: Callable[[], float]
) -> Mapping[str, Sequence[str]]:
    """The names of other collections that look for files under the same earlier uids, by those uids.

    Args:
        indexer: has the collection.
        collection: it.
        time: gives the seconds for one call.

    Raises:
        LikenessError: the indexer does not answer.
    """
    if not collection.earlier_uids:
        return {}
    others = [each for each in (await listing(indexer, time)).collections if each.uid != collection.uid]
    return {uid: [other.name for other in others if uid in _all(other)] for uid in collection.earlier_uids}


async def forgettable(
    indexer: Indexer, ids: Sequence[str], shared: Mapping[str, Sequence[str]], time: Callable[[], float]
) -> list[tuple[str, list[str]]]:
    """Of which items the files under earlier uids may go: of those that none of the sharing collections has.

    Args:
        indexer: has the collections.
        ids: of items, at most 1,024.
        shared: what ``sharing`` gave.
        time: gives the seconds for one call.

    Returns:
        Each earlier uid, and the ids.

    Raises:
        LikenessError: an id is none, or the indexer does not answer.
    """
    needed: dict[str, set[str]] = {}
    for name in {name for names in shared.values() for name in names}:
        needed[name] = await existing(indexer, name, ids, time())
    return [(uid, [i for i in ids if not any(i in needed[name] for name in names)]) for uid, names in shared.items()]


async def existing(indexer: Indexer, collection: str, ids: Sequence[str], timeout_s: float) -> set[str]:
    """Which of these items a collection has, by name; all of them, if that is not known.

    Raises:
        LikenessError: an id is none, or the indexer does not answer.
    """
    request = indexer_pb2.GetItemsRequest(collection=collection, ids=ids, fields=ItemFields())
    try:
        return {item.id for item in (await indexer.get(request, timeout_s)).items}
    except LikenessError as error:
        if error.reason == error_pb2.REASON_COLLECTION_NOT_FOUND:  # deleted just now
            return set()
        if error.reason == error_pb2.REASON_SCHEMA_UNSUPPORTED:  # of a newer release: what it has is not known
            return set(ids)
        raise


def _all(collection: indexer_pb2.Collection) -> Iterator[str]:
    yield collection.uid
    yield from collection.earlier_uids
