"""Thumbnails and originals of items: made and written before an item is stored, gone with it.

A file's name holds the collection's uid, a hash of the item's id, and the SHA-256 of the picture: so a thumbnail is
never another picture's, whatever is replaced at the same time, and no id becomes a part of a path::

    {uid}/{first two digits of H}/{H}/{sha256}.webp      H = SHA-256 of the id
    {uid}/{first two digits of H}/{H}/{sha256}.original

Of a collection that was restored from a backup, what was written before lies under the uids of what it was restored
from, and is read there (see ``uids``); whatever is written goes under its own.

Items that are deleted at the indexer itself, past the gateway, leave their files behind; so do collections, whose files
are swept away later (see ``media_sweep``).
"""

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from likeness.common.v1 import types_pb2

from chassis.cores import cores
from chassis.unbroken import unbroken
from gateway.media_files import PARTIAL, MediaFiles
from gateway.thumbnails import render

P = ParamSpec("P")
R = TypeVar("R")

THUMBNAIL, ORIGINAL = "webp", "original"

# Names in paths: what the indexer gives as uids and what the gateway stores as hashes, checked, since anybody may write
# metadata at the indexer.
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

# Decoding and encoding; and files, which mostly wait where they are far away.
_MOST_CPU_THREADS = 4
_FILE_THREADS = 8


@dataclass(frozen=True)
class PictureMedia:
    """A picture that is about to be stored.

    Attributes:
        id: the item's.
        sha256: of the picture, as stored in the item's metadata.
        image: the picture: encoded, or RGB pixels.
    """

    id: str
    sha256: str
    image: types_pb2.Image


class Media:
    """Makes, keeps, finds and deletes thumbnails and originals."""

    def __init__(self, where: str) -> None:
        """Touches nothing yet.

        Args:
            where: a directory, or a URL that fsspec knows.
        """
        self._files = MediaFiles(where)
        self._cpu = ThreadPoolExecutor(min(_MOST_CPU_THREADS, cores()), "thumbnail")
        self._io = ThreadPoolExecutor(_FILE_THREADS, "media")
        self._writers: Counter[str] = Counter()
        self._contested: set[str] = set()
        self._leaving: set[str] = set()  # folders of items that are being deleted
        self._waiting: list[asyncio.Future[None]] = []  # for others to leave folders

    @asynccontextmanager
    async def replacing(
        self, uid: str, pictures: Sequence[PictureMedia], *, thumbnails: bool, originals: bool
    ) -> AsyncIterator[None]:
        """Writes the files of items that the block stores; when it has, drops those of what they were before.

        Args:
            uid: the collection's.
            pictures: what the block stores, each of another id.
            thumbnails: whether thumbnails are made.
            originals: whether the bytes of encoded pictures are kept too.

        Raises:
            LikenessError: MEDIA_UNAVAILABLE: not everything could be written, and the block did not run; or what was
                before could not be dropped.
        """
        folders = {picture.id: _folder(uid, picture.id) for picture in pictures}
        await self._until(lambda: self._leaving.isdisjoint(folders.values()))
        self._enter(folders.values())
        try:
            await _all(self._write(folders[each.id], each, thumbnails, originals) for each in pictures)
            yield
            # Of an id that is the picture's hash there can be no earlier picture. Of one that somebody else is just
            # replacing, too, nobody here knows whose is the last: its files stay until it is replaced or deleted.
            later = [each for each in pictures if each.id != each.sha256 and folders[each.id] not in self._contested]
            await _all(self._on_files(self._drop_others, folders[each.id], each.sha256) for each in later)
        finally:
            self._leave(folders.values())

    @asynccontextmanager
    async def leaving(self, uids: Iterable[str], ids: Sequence[str]) -> AsyncIterator[None]:
        """Has nobody write files of items while the block deletes first the items and then the files (``forget``).

        Else an item that is taken in again between the two would lose its new files. Of two gateways that do so at the
        same moment neither knows.

        Args:
            uids: of collections: under each there may be files of the items.
            ids: of the items.
        """
        folders = {_folder(uid, item_id) for uid in uids for item_id in ids}
        await self._until(lambda: self._leaving.isdisjoint(folders))
        self._leaving |= folders
        try:  # those who write already hold nothing that others wait for, and new ones wait for this
            await self._until(lambda: folders.isdisjoint(self._writers))
            yield
        finally:
            self._leaving -= folders
            self._wake()

    async def thumbnail(self, uid: str, item_id: str, sha256: str, earlier_uids: Sequence[str] = ()) -> bytes | None:
        """An item's thumbnail, a WebP; None if there is none.

        Args:
            uid: the collection's.
            item_id: the item's.
            sha256: of its picture, as its metadata says.
            earlier_uids: of what the collection was restored from, where it is looked for next.

        Raises:
            LikenessError: MEDIA_UNAVAILABLE.
        """
        return await self._read((uid, *earlier_uids), item_id, sha256, THUMBNAIL)

    async def original(self, uid: str, item_id: str, sha256: str, earlier_uids: Sequence[str] = ()) -> bytes | None:
        """The bytes of an item's picture as it was taken in; None if they were not kept. Otherwise as ``thumbnail``."""
        return await self._read((uid, *earlier_uids), item_id, sha256, ORIGINAL)

    async def check(self, uid: str) -> None:
        """Sees whether the files of a collection, which may have none, can be reached.

        Raises:
            LikenessError: MEDIA_UNAVAILABLE.
        """
        await self._on_files(self._files.names, _checked(uid))

    async def forget(self, uid: str, ids: Iterable[str]) -> None:
        """Deletes the files of items, which may have none.

        Raises:
            LikenessError: MEDIA_UNAVAILABLE.
        """
        await _all(self._on_files(self._files.remove_folder, _folder(uid, item_id)) for item_id in ids)

    async def forget_collection(self, uid: str) -> None:
        """Deletes the files of a collection that was deleted.

        Raises:
            LikenessError: MEDIA_UNAVAILABLE.
        """
        await self._on_files(self._files.remove_folder, _checked(uid))

    def close(self) -> None:
        """Ends the threads."""
        self._cpu.shutdown(wait=False)
        self._io.shutdown(wait=False)

    async def _write(self, folder: str, picture: PictureMedia, thumbnails: bool, originals: bool) -> None:
        loop = asyncio.get_running_loop()
        path = f"{folder}/{picture.sha256}"
        if thumbnails:
            rendered = await loop.run_in_executor(self._cpu, copy_context().run, render, picture.image)
            if rendered is not None:  # a thumbnail can be made again: it need not outlive a power failure
                await self._on_files(self._files.write, f"{path}.{THUMBNAIL}", rendered)
        if originals and picture.image.WhichOneof("source") == "encoded":
            await self._on_files(self._files.write, f"{path}.{ORIGINAL}", picture.image.encoded, to_disk=True)

    async def _read(self, uids: Sequence[str], item_id: str, sha256: str, kind: str) -> bytes | None:
        if not _SHA256.fullmatch(sha256):
            return None
        for uid in uids:
            found = await self._on_files(self._files.read, f"{_folder(uid, item_id)}/{sha256}.{kind}")
            if found is not None:
                return found
        return None

    async def _on_files(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """In a thread, and to its end if it has begun, also when cancelled: what is held meanwhile must stay held."""
        # In the context of the call that it is done for, whose trace the log's lines carry.
        job = self._io.submit(copy_context().run, partial(work, *args, **kwargs))
        done = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            if not job.cancel():
                await unbroken(_ended(done))
            raise

    def _drop_others(self, folder: str, sha256: str) -> None:
        for name in self._files.names(folder):
            if not name.startswith(sha256) and not name.endswith(PARTIAL):
                self._files.remove(f"{folder}/{name}")

    def _enter(self, folders: Iterable[str]) -> None:
        for folder in folders:
            self._writers[folder] += 1
            if self._writers[folder] > 1:
                self._contested.add(folder)

    def _leave(self, folders: Iterable[str]) -> None:
        for folder in folders:
            self._writers[folder] -= 1
            if not self._writers[folder]:
                del self._writers[folder]
                self._contested.discard(folder)
        self._wake()

    async def _until(self, free: Callable[[], bool]) -> None:
        while not free():
            woken = asyncio.get_running_loop().create_future()
            self._waiting.append(woken)
            await woken

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)


def _folder(uid: str, item_id: str) -> str:
    digest = hashlib.sha256(item_id.encode()).hexdigest()
    return f"{_checked(uid)}/{digest[:2]}/{digest}"


def _checked(uid: str) -> str:
    if not _UID.fullmatch(uid):
        raise ValueError(f"{uid!r} is no collection's uid")
    return uid


async def _ended(job: "asyncio.Future[R]") -> None:
    await asyncio.wait({job})


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Does it all at once; all of it has ended before a failure is raised."""
    for done in await asyncio.gather(*work, return_exceptions=True):
        if done is not None:
            raise done
