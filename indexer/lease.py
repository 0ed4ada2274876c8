"""Who writes, of several indexers over one Chroma server: a lease that is kept in Chroma itself.

Chroma gives a name to one collection only. So a writer is who has made the collection ``Likeness.Writer.<term>`` with
the highest term, and whoever wants to follow it has to make that of the next one: of several that try, one can.

1. The writer renews its document there every second, and looks for a higher term *after* that. If there is none, it is
   the writer for ``lease_s`` seconds from when it began to renew, by its own clock. Otherwise it never is again.
2. Whoever wants to take over watches the document. If it is renewed, the writer lives, and the newcomer gives up. If it
   is not for longer than ``lease_s``, the newcomer makes the next term, and looks once more whether the document was
   renewed before that: then it waits for as long as that renewal can count.
3. A writer that stops in good order says so in its document; nobody has to wait then. Nor where the predecessor ran on
   the same machine over the same data directory, whose lock the newcomer holds: it is dead.

Before each request of a write a writer makes sure that its lease has some time left (after it was stopped, or cut off,
it renews it first), and once more before the write is acknowledged. What stays is the moment between that look and the
arrival of a request in Chroma, which has no means to refuse it: a process that is stopped in just that moment, for
longer than the lease, may still overwrite what its successor has written since.
"""

import asyncio
import os
import socket
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer import heartbeat
from indexer.clock import clock
from indexer.collections import StoredCollection
from indexer.heartbeat import Heartbeat, Holder, Published
from indexer.status import Role

log = structlog.get_logger()

BEAT_S = 1.0
# The share of the lease that has to be left when a write begins.
_RESERVE = 0.3


class LeaseStore(Protocol):
    """Where the documents are: see ``store.ChromaStore``. Each raises STORE_UNAVAILABLE."""

    async def collections(self) -> list[StoredCollection]:
        """All of Chroma's collections, with their metadata."""

    async def make_document(self, name: str, metadata: Mapping[str, str | int]) -> bool:
        """Makes an empty collection; False: there is one of that name."""

    async def rewrite_document(self, name: str, key: str, metadata: Mapping[str, str | int]) -> None:
        """Replaces a collection's own metadata.

        Raises:
            LikenessError: COLLECTION_NOT_FOUND: there is no such collection.
        """

    async def drop_document(self, name: str) -> None:
        """Deletes a collection; one that does not exist is no error."""


class Lease:
    """This process's right to write."""

    role = Role.WRITER
    lag_s = 0.0

    def __init__(
        self,
        store: LeaseStore,
        published: Callable[[], Mapping[str, Published]],
        lost: Callable[[str], Awaitable[None]],
        *,
        clock: Callable[[], float] = clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Not held yet.

        Args:
            store: where the documents are.
            published: what the document says of the collections.
            lost: called once when another has become the writer, with the reason.
            clock: seconds that only grow, also while the machine is suspended.
            sleep: waits for so many of them, in which it may be longer by the clock.
        """
        self._store = store
        self._me = Holder("", "", "", 0, "", 0.0)
        self._published = published
        self._on_lost = lost
        self._clock = clock
        self._sleep = sleep
        self._mine: Heartbeat | None = None
        self._key = ""
        self._valid_until = 0.0
        self._lost: LikenessError | None = None
        self._renewing = asyncio.Lock()
        self._beating: asyncio.Task[None] | None = None

    async def acquire(self, me: Holder) -> bool:
        """Becomes the writer.

        Args:
            me: this process.

        Returns:
            Whether the writer before, if there was one, has stopped in good order: then nothing of it can still reach
            Chroma.

        Raises:
            LikenessError: READ_ONLY: another one lives, which the message names; STORE_UNAVAILABLE.
        """
        self._me = me
        while True:
            last = await self._last()
            if not self._over(last):
                assert last is not None
                last = await self._outlived(last)
            if await self._claim(last):
                return last is None or last.released

    def require(self) -> None:
        """Called before anything is changed.

        Raises:
            LikenessError: READ_ONLY: another has become the writer; STORE_UNAVAILABLE: it is not certain just now.
        """
        if self._lost is not None:
            raise self._lost
        if self._clock() >= self._valid_until:
            raise _uncertain()

    async def permit(self) -> None:
        """Makes sure that nobody else writes, for long enough to write a chunk; renews the lease if it has to.

        Raises:
            LikenessError: as ``require``.
        """
        if self._lost is None and self._clock() < self._valid_until - _RESERVE * self._me.lease_s:
            return
        await self._renew()
        self.require()

    async def release(self, *, in_doubt: bool = False) -> None:
        """Stops being the writer, so that the next one need not wait. Nothing may be written from then on.

        Args:
            in_doubt: something that was asked of Chroma may still be done: the next one waits, and looks for it.
        """
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait({self._beating})
        if self._mine is None or self._lost is not None:
            return
        self._lost = LikenessError(error_pb2.REASON_SHUTTING_DOWN, "the indexer is stopping; try again")
        if in_doubt:
            log.warning("the next writer will have to wait", why="Chroma has not answered what it was asked last")
            return
        try:
            document = replace(self._mine, beat=self._mine.beat + 1, released=True, collections=self._published())
            await self._store.rewrite_document(document.name, self._key, document.to_metadata())
        except LikenessError as error:
            log.warning("the next writer will have to wait", why=error.message)

    def _over(self, last: Heartbeat | None) -> bool:
        """Whether nobody can be writing under that term."""
        return last is None or last.released or last.holder.place == self._me.place

    async def _outlived(self, last: Heartbeat) -> Heartbeat | None:
        """Waits for longer than a lease; returns the last document then, or as soon as its writer has stopped.

        Raises:
            LikenessError: READ_ONLY: it lives.
        """
        since = self._clock()
        log.info("waiting whether the writer lives", writer=str(last.holder), at_most_s=self._patience(last))
        waited = False
        while not waited:
            await self._sleep(BEAT_S / 2)
            # Asked before the look: a machine that is suspended between the two has not seen the writer live.
            waited = self._clock() - since >= self._patience(last)
            now = await self._last()
            if self._over(now):
                return now
            if now is not None and (now.term, now.beat) != (last.term, last.beat):
                raise _refused(now)
        return last

    async def _claim(self, last: Heartbeat | None) -> bool:
        """Makes the term after ``last``; False: somebody else was quicker."""
        began = self._clock()
        mine = Heartbeat(1 + (last.term if last is not None else 0), self._me, 0, False, self._published())
        try:
            await self._store.make_document(mine.name, mine.to_metadata())
        except LikenessError as error:
            # Without an answer, it may have been made all the same, or may be still.
            log.warning("reading back whether this is the writer now", why=error.message)
        stored = heartbeat.read(await self._store.collections())
        there = next((pair for pair in stored if pair[0].term == mine.term), None)
        if there is None or there[0].holder.owner != self._me.owner:
            return False
        self._mine, self._key = mine, there[1].key
        self._valid_until = began + self._me.lease_s
        self._beating = asyncio.create_task(self._beat(), name="heartbeat of the writer")
        before = next((found for found, _ in stored if last is not None and found.term == last.term), None)
        if before is not None and last is not None and before.beat != last.beat and not self._over(before):
            # It lived until just now: its last renewal may have begun a moment before this term was made.
            log.warning("the writer before was renewed at the last moment", writer=str(before.holder))
            await self._sleep(self._patience(before))
        await self._renew()
        self.require()
        log.info("this is the writer", term=mine.term, lease_s=self._me.lease_s)
        return True

    async def _beat(self) -> None:
        while self._lost is None:
            await self._sleep(BEAT_S)
            try:
                await self._renew()
            except LikenessError as error:
                log.warning("the lease was not renewed", why=error.message, left_s=self._valid_until - self._clock())
            except Exception as error:  # which must not end the renewing
                log.error("the lease was not renewed", exc_info=error)

    async def _renew(self) -> None:
        async with self._renewing:
            if self._lost is not None or self._mine is None:
                return
            try:
                # A request that is as old as a cut in the network is answered by nobody.
                async with asyncio.timeout(self._me.lease_s / 3):
                    await self._renew_once(self._mine)
            except TimeoutError as error:
                raise _uncertain() from error

    async def _renew_once(self, mine: Heartbeat) -> None:
        began = self._clock()
        mine = self._mine = replace(mine, beat=mine.beat + 1, collections=self._published())
        gone = False
        try:
            await self._store.rewrite_document(mine.name, self._key, mine.to_metadata())
        except LikenessError as error:
            if error.reason != error_pb2.REASON_COLLECTION_NOT_FOUND:
                raise
            gone = True
        stored = heartbeat.read(await self._store.collections())
        last = stored[-1][0] if stored else None
        if gone or last is None or last.term != mine.term:
            await self._lose(last if last is not None and last.term != mine.term else None)
            return
        self._valid_until = began + self._me.lease_s
        await self._drop([earlier.name for earlier, _ in stored[:-1]])

    async def _drop(self, earlier: Sequence[str]) -> None:
        """Deletes the documents of earlier terms, so that whoever renews one of them learns that it is over."""
        try:
            for name in earlier:
                await self._store.drop_document(name)
        except LikenessError as error:  # the next renewal tries again
            log.warning("documents of earlier terms are still there", names=list(earlier), why=error.message)

    async def _lose(self, to: Heartbeat | None) -> None:
        whom = f"{to.holder} has become the writer" if to is not None else "its lease was deleted in Chroma"
        self._lost = LikenessError(
            error_pb2.REASON_READ_ONLY, f"this indexer is not the writer any more: {whom}; send writes there"
        )
        log.error("this is not the writer any more", why=whom)
        await self._on_lost(whom)

    async def _last(self) -> Heartbeat | None:
        stored = heartbeat.read(await self._store.collections())
        return stored[-1][0] if stored else None

    def _patience(self, other: Heartbeat) -> float:
        return max(self._me.lease_s, other.holder.lease_s) + BEAT_S


class ReadOnly:
    """The lease of an indexer that only reads."""

    role = Role.READER

    def __init__(self, writer: Callable[[], Heartbeat | None], lag_s: Callable[[], float]) -> None:
        """Never held.

        Args:
            writer: what the writer said last; None: nothing is known of one.
            lag_s: seconds by which what is served may be behind it.
        """
        self._writer = writer
        self._lag_s = lag_s

    @property
    def lag_s(self) -> float:
        """Seconds by which what is served may be behind the writer."""
        return self._lag_s()

    def require(self) -> None:
        """Raises READ_ONLY, always, naming the writer if one is known."""
        writer = self._writer()
        if writer is None:
            whom = "no writer is known just now"
        elif writer.released:
            whom = f"the writer was {writer.holder}, and has stopped"
        else:
            whom = f"the writer is {writer.holder}"
        raise LikenessError(
            error_pb2.REASON_READ_ONLY,
            f"this indexer only reads (LIKENESS_ROLE=reader); send writes to the writer: {whom}",
        )

    async def permit(self) -> None:
        """As ``require``."""
        self.require()


def this_process(data_dir: Path, address: str, lease_s: float) -> Holder:
    """This process, as its document names it.

    Args:
        data_dir: whose lock it holds.
        address: where it answers.
        lease_s: seconds after a renewal for which it is the writer.
    """
    host, directory = socket.gethostname(), data_dir.absolute()
    boot = Path("/proc/sys/kernel/random/boot_id")
    # Where the system does not tell, nobody is at the same place: the next one waits.
    machine = boot.read_text().strip() if boot.exists() else uuid.uuid4().hex
    inode = directory.stat()
    # Containers of one machine may have directories of one name: those have other devices or inodes.
    place = f"{machine} {host} {directory} {inode.st_dev} {inode.st_ino}"
    return Holder(uuid.uuid4().hex, place, host, os.getpid(), address, lease_s)


def _refused(writer: Heartbeat) -> LikenessError:
    return LikenessError(
        error_pb2.REASON_READ_ONLY,
        f"this Chroma has a writer: {writer.holder}, which has just renewed its lease; stop that process first, or "
        "start this one with LIKENESS_ROLE=reader",
    )


def _uncertain() -> LikenessError:
    return LikenessError(
        error_pb2.REASON_STORE_UNAVAILABLE,
        "it is not certain that this is still the writer: its lease could not be renewed in Chroma; try again",
        retry_after_s=1.0,
    )
