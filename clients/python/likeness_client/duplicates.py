"""Groups of items that are the same picture, or nearly."""

from dataclasses import dataclass

from likeness_client.items import Item


@dataclass(frozen=True)
class DuplicateItem:
    """An item of a group.

    Attributes:
        item: the item.
        score: near duplicates: against the most alike other item of the group; exact ones: 1.
    """

    item: Item
    score: float


@dataclass(frozen=True)
class DuplicateGroup:
    """Items that are the same picture, or nearly.

    Attributes:
        items: in the order of their ids, the first 500; fewer if they are very large.
        count: items in the group, given or not.
    """

    items: tuple[DuplicateItem, ...]
    count: int
