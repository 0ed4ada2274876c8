"""Gives back the files of collections that are gone: deleted at the indexer itself, or while files were out of reach.

An original may be the only copy of a picture, and an indexer may be empty because it is about to be restored. So:

1. first the folders are listed, then the collections; nothing is done if not all of these are known, or there are none
2. a folder without a collection is marked with the time; if its collection shows up, the mark goes
3. a folder that has been marked for a day goes, piece by piece

Whoever shares the files, with another indexer too, takes the marks off what is theirs every hour.
"""

import asyncio
import re
import time
from contextlib import suppress
from dataclasses import dataclass

import structlog
from likeness.indexer.v1 import indexer_pb2

from chassis.errors import LikenessError
from gateway.backends import Indexer
from gateway.media_files import MediaFiles

log = structlog.get_logger()

# What indexers give as uids; other folders in the same place are somebody else's.
_UID = re.compile(r"[0-9a-f]{32}")
_MARK = "orphaned"
GRACE_S = 24 * 3600
_EVERY_S = 3600
_PAGE = 1000


@dataclass(frozen=True)
class MediaSweep:
    """Looks for files without a collection, at the start and every hour.

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
        """Sweeps until the gateway stops. What fails is tried again an hour later."""
        while not self.stopping.is_set():
            try:
                await self.once(time.time())
            except LikenessError as error:
                log.warning("files of deleted collections not looked for", why=error.message)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), _EVERY_S)

    async def once(self, now: float) -> list[str]:
        """Marks and deletes; returns the uids whose files are gone.

        Args:
            now: seconds since the epoch.

        Raises:
            LikenessError: MEDIA_UNAVAILABLE, or the indexer does not answer.
        """
        # In this order: a collection whose folder is there has been made.
        folders = [name for name in await asyncio.to_thread(self.files.names, "") if _UID.fullmatch(name)]
        known = await self._known() if folders else None
        if known is None:
            return []
        gone: list[str] = []
        for uid in sorted(folders):
            if self.stopping.is_set():
                break
            marked = await self._marked(uid)
            if uid in known:
                if marked is not None:
                    await asyncio.to_thread(self.files.remove, f"{uid}/{_MARK}")
            elif marked is None:
                log.info("files of no collection", uid=uid, deleted_in_s=GRACE_S)
                await asyncio.to_thread(self.files.write, f"{uid}/{_MARK}", str(int(now)).encode())
            elif now - marked >= GRACE_S and await self._delete(uid):
                log.info("files of no collection deleted", uid=uid)
                gone.append(uid)
        return gone

    async def _known(self) -> set[str] | None:
        """The uids of all collections; None if some may be missing."""
        listing = indexer_pb2.ListCollectionsRequest(page_size=_PAGE)
        known: set[str] = set()
        while True:
            page = await self.indexer.list_collections(listing, self.timeout_s)
            known.update(collection.uid for collection in page.collections)
            if not page.next_page_token:
                # One that a newer release wrote is listed without its uid.
                return None if not known or "" in known else known
            listing.page_token = page.next_page_token

    async def _marked(self, uid: str) -> float | None:
        """Since when it has been without a collection, in seconds since the epoch; None: it has not, or not legibly."""
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
