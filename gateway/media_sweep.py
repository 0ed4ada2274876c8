"""Gives back the files of collections that are gone: deleted at the indexer itself, or while files were out of reach.

An original may be the only copy of a picture, and a collection that is not there may be about to be restored. So only
what the indexer says was deleted goes:

1. first the folders are listed, then the collections; nothing is done if not all of these are known
2. the folder of a collection that was deleted, and from which no other was restored, is marked with the time; if a
   collection needs it again, the mark goes
3. a folder that has been marked for a day goes, piece by piece

Folders of which the indexer knows nothing stay. Whoever shares the files, with another indexer too, takes the marks off
what is theirs every hour.
"""

import asyncio
import re
import time
from contextlib import suppress
from dataclasses import dataclass

import structlog

from chassis.errors import LikenessError
from gateway.backends import Indexer
from gateway.media_files import MediaFiles
from gateway.streams import unless
from gateway.uids import Listing, listing

log = structlog.get_logger()

# What indexers give as uids; other folders in the same place are somebody else's.
_UID = re.compile(r"[0-9a-f]{32}")
_MARK = "orphaned"
GRACE_S = 24 * 3600
_EVERY_S = 3600


@dataclass(frozen=True)
class MediaSweep:
    """Looks for files of deleted collections, at the start and every hour.

    Attributes:
        indexer: knows the collections.
        files: where thumbnails and originals are.
        stopping: is set when the gateway stops.
        timeout_s: how long one call may take.
    """

    indexer: Indexer
    files: MediaFiles
    stopping: asyncio.Event
    timeout_s: float

    async def run(self) -> None:
        """Sweeps until the gateway stops, which it does not hold up. What fails is tried again an hour later."""
        while not self.stopping.is_set():
            try:
                await self.once(time.time())
            except LikenessError as error:
                if self.stopping.is_set():
                    return
                log.warning("files of deleted collections not looked for", why=error.message)
            with suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await self.stopping.wait()

    async def once(self, now: float) -> list[str]:
        """Marks and deletes; returns the uids whose files are gone.

        Args:
            now: seconds since the epoch.

        Raises:
            LikenessError: MEDIA_UNAVAILABLE, the indexer does not answer, or (SHUTTING_DOWN) the gateway stops first.
        """
        # In this order: a collection whose folder is there has been made.
        folders = [name for name in await asyncio.to_thread(self.files.names, "") if _UID.fullmatch(name)]
        if not folders:
            return []
        there = await self._listing()
        if "" in there.needed:  # of an earlier release, which does not tell the uids of all
            return []
        gone: list[str] = []
        unknown: list[str] = []
        for uid in sorted(folders):
            if self.stopping.is_set():
                break
            marked = await self._marked(uid)
            if uid in there.needed:
                if marked is not None:
                    await asyncio.to_thread(self.files.remove, f"{uid}/{_MARK}")
            elif uid not in there.deleted:
                unknown.append(uid)
            elif marked is None:
                log.info("files of a deleted collection", uid=uid, deleted_in_s=GRACE_S)
                await asyncio.to_thread(self.files.write, f"{uid}/{_MARK}", str(int(now)).encode())
            elif now - marked >= GRACE_S and await self._still_deleted(uid) and await self._delete(uid):
                log.info("files of a deleted collection deleted", uid=uid)
                gone.append(uid)
        if unknown:
            log.info(
                "files of collections that the indexer does not know stay", folders=len(unknown), some=unknown[:10]
            )
        return gone

    async def _still_deleted(self, uid: str) -> bool:
        """Whether it is to this moment: the deletions before may have taken minutes, and it may have been restored."""
        there = await self._listing()
        return uid in there.deleted and uid not in there.needed

    async def _listing(self) -> Listing:
        """What the indexer has. Given up when the gateway stops: the indexer may be at it for a minute."""
        asking = listing(self.indexer, lambda: self.timeout_s)
        return await unless(self.stopping, asking, "the next sweep asks again")

    async def _marked(self, uid: str) -> float | None:
        """Since when it has been known to be deleted, in seconds since the epoch; None: it has not, or not legibly."""
        mark = await asyncio.to_thread(self.files.read, f"{uid}/{_MARK}")
        return int(mark) if mark is not None and mark.isdigit() else None

    async def _delete(self, uid: str) -> bool:
        """Whether all of it has gone. The mark is the last, so what is broken off goes on at the next sweep."""
        for name in await asyncio.to_thread(self.files.names, uid):
            if self.stopping.is_set():
                return False
            if name != _MARK:
                await asyncio.to_thread(self.files.remove_folder, f"{uid}/{name}")
        await asyncio.to_thread(self.files.remove_folder, uid)
        return True
