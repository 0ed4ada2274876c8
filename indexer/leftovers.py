"""What is no collection any more: copies that were not finished, generations that were replaced, what was deleted.

Nobody sees any of it, so it is dropped behind the callers: of a large one, that takes minutes. And nothing of it could
be taken for a collection when it is half gone: it never had the marks of one, has lost them, or is an earlier
generation of one that is there. So what a stop or a kill leaves of it, the next start finds.
"""

import asyncio
from collections.abc import Sequence

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.collections import StoredCollection
from indexer.namespace import Namespace

log = structlog.get_logger()

_TRY_AGAIN_S = 1.0


class Leftovers(Namespace):
    """Dropping what is left, as a part of ``catalog.Collections``."""

    async def recover(self) -> None:
        """Finds what an earlier run left; before anything is made. It is no hindrance to serving.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        async with self._fresh() as listed:
            self._left = listed.left

    def drop_left(self) -> None:
        """Begins to drop what ``recover`` has found, once everything is served."""
        for left in self._left:
            log.info("dropping what an earlier run left", what=left.name)
        self._dropping_left = self._drop_later(*self._left, still=True)

    async def left_dropped(self) -> bool:
        """Returns once that has ended; whether all of it is gone."""
        if (task := self._dropping_left) is None:
            return not self._left
        await asyncio.wait({task})
        return not task.cancelled() and task.result()

    async def stop(self) -> None:
        """Ends what goes on behind the callers; the next start of a writer finishes it."""
        for task in self._behind:
            task.cancel()
        await asyncio.gather(*self._behind, return_exceptions=True)

    def _drop_later(self, *left: StoredCollection, still: bool = False) -> asyncio.Task[bool]:
        """Drops what is no collection any more, one after another; the task says whether all of it is gone.

        Args:
            left: what.
            still: whether it is looked at again before: a late request of the writer before may have made one of it.
        """
        task = asyncio.create_task(self._drop_all(left, still), name="dropping what is no collection any more")
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)
        return task

    async def _drop_all(self, left: Sequence[StoredCollection], still: bool) -> bool:
        return all([await self._drop_patiently(each, still) for each in left])

    async def _drop_patiently(self, left: StoredCollection, still: bool) -> bool:
        told = None
        try:
            while (why := await self._not_dropped(left, still)) is not None:
                if why != told:  # and not once a second
                    log.warning("what is no collection any more is not gone yet", what=left.name, why=why)
                told = why
                await asyncio.sleep(_TRY_AGAIN_S)
        except Exception as error:  # of which nobody would hear
            log.error("what is no collection any more stays until the next start", what=left.name, exc_info=error)
            return False
        return True

    async def _not_dropped(self, left: StoredCollection, still: bool) -> str | None:
        """Drops it; returns why that is to be tried again, or None."""
        try:
            if still:
                async with self._fresh() as listed:
                    if left.key not in {each.key for each in listed.left}:
                        return None
            await self._drop(left.name, left.key)
        except LikenessError as error:
            if error.reason not in (error_pb2.REASON_STORE_UNAVAILABLE, error_pb2.REASON_STORE_FULL):
                raise
            return error.message
        return None
