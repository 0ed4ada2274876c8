"""A collection read from its first item to its last, in the order of the ids, batch by batch: exports and backups.

From memory, all of a scan shows one state: it holds on to the view that it began with, and reads a batch of it at a
time, in a thread. From Chroma, the ids are listed first, and each batch shows the state that it was read in.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from chassis.vectors import Array
from indexer.reads import Fields, StoredItem

# Of a batch, which is one message of an export: so small that putting it together holds nobody up, so large that what
# each message costs does not count.
MOST_ITEMS = 1024
BATCH_BYTES = 2**20
# What an item takes in a message besides what it holds: tags and lengths.
_AROUND = 24
_CONVERTED_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Items in a row.

    Attributes:
        ids: of the items, ascending by code point.
        vectors: float32 [n, dimension]; None where they were not asked for.
        lengths: float32 [n]: the vectors are directions, each to be multiplied by its length; None: they are what was
            written.
        packed: the serialised likeness.common.v1.Metadata of each; None where it was not asked for.
    """

    ids: Sequence[str]
    vectors: Array | None = None
    lengths: Array | None = None
    packed: Sequence[bytes] | None = None

    def originals(self) -> Array | None:
        """The vectors as reads give them, float32 [n, dimension]."""
        return self.vectors if self.vectors is None or self.lengths is None else self.vectors * self.lengths[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """A scan under way.

    Attributes:
        total: items that it has; 0: unknown, where Chroma filters.
        batches: none of them empty. To be closed when it is not read to its end: ``contextlib.aclosing``.
    """

    total: int
    batches: AsyncGenerator[Batch, None]


def of_rows(
    rows: npt.NDArray[np.int32],
    read: Callable[[npt.NDArray[np.int32]], Batch],
    in_thread: Callable[[Callable[[], Batch]], Awaitable[Batch]],
) -> Scan:
    """A scan of rows in memory.

    Args:
        rows: int32 [n], in the order of their ids.
        read: reads the first of them, at least one.
        in_thread: has that done in a thread.
    """

    async def batches() -> AsyncGenerator[Batch, None]:
        begin = 0
        while begin < len(rows):
            batch = await in_thread(partial(read, rows[begin : begin + MOST_ITEMS]))
            begin += len(batch.ids)
            yield batch

    return Scan(len(rows), batches())


def fitting(sizes: Sequence[int]) -> int:
    """How many of the first items, given by their bytes, go into a batch: at least one, if there is one."""
    total = 0
    for count, size in enumerate(sizes[:MOST_ITEMS]):
        total += size + _AROUND
        if total > BATCH_BYTES and count:
            return count
    return min(len(sizes), MOST_ITEMS)


def of_items(items: Sequence[StoredItem], fields: Fields) -> Batch:
    """Items that were read one by one, at least one, as a batch."""
    return Batch(
        [item.id for item in items],
        np.stack([item.vector for item in items if item.vector is not None]) if fields.vector else None,
        None,
        [item.packed or b"" for item in items] if fields.metadata else None,
    )


def ascending(ids: Sequence[str], after: str) -> list[str]:
    """Ids in order, those behind ``after`` alone. For a thread."""
    # numpy sorts without the interpreter's lock, by UTF-8, which is the order of code points.
    array = np.empty(len(ids), np.dtypes.StringDType())
    for begin in range(0, len(ids), _CONVERTED_AT_ONCE):
        array[begin : begin + _CONVERTED_AT_ONCE] = ids[begin : begin + _CONVERTED_AT_ONCE]
    order = np.argsort(array, kind="stable").tolist()
    return [item_id for place in order if (item_id := ids[place]) > after]
