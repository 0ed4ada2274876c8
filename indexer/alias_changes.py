"""Changing aliases: see ``aliases`` for how they are kept."""

import structlog
from likeness.common.v1 import error_pb2

from chassis.errors import LikenessError
from indexer.aliases import Aliases, latest
from indexer.collections import Metric, not_found
from indexer.listed import Listed
from indexer.namespace import Namespace, exists

log = structlog.get_logger()


class AliasChanges(Namespace):
    """Aliases, as a part of ``catalog.Collections``."""

    def aliases_of(self, name: str) -> list[str]:
        """The aliases of a collection, by what is known, ordered by name."""
        return self._aliases.standing_for(name)

    async def list_aliases(self) -> list[tuple[str, str]]:
        """All aliases, and the collections they stand for, ordered by name.

        Raises:
            LikenessError: STORE_UNAVAILABLE.
        """
        if not self._follows:
            async with self._fresh():
                pass
        return sorted(self._aliases.targets.items())

    async def set_alias(self, alias: str, name: str, expected: str | None = None) -> str:
        """Makes an alias, or moves it: ``use`` gives the one collection, and at the next moment the other.

        Args:
            alias: it.
            name: of the collection that it is to stand for.
            expected: of the one that it must stand for until now; empty: it must be new; None: whatever it is.

        Returns:
            The name of the collection that it stood for; empty: it is new.

        Raises:
            LikenessError: COLLECTION_EXISTS, COLLECTION_NOT_FOUND, ALIAS_MOVED, FIELD_INVALID or STORE_UNAVAILABLE.
        """
        async with self._fresh() as listed:
            if alias in self._known or self._is_staged(alias):
                raise exists(alias, "is the name of a collection")
            if self._own_name(name, "collection").uid in self._leaving:
                raise not_found(name)
            before = self._aliases.targets.get(alias, "")
            if expected is not None and before != expected:
                stands = f"stands for {before!r}" if before else "does not exist"
                wanted = f"expected {expected!r}" if expected else "expected none"
                message = f"alias {alias!r} {stands}, {wanted}; list the aliases, then decide anew"
                raise LikenessError(error_pb2.REASON_ALIAS_MOVED, message)
            if before != name:
                await self._replace_aliases(self._aliases.moved(alias, name), listed)
            return before

    async def delete_alias(self, alias: str) -> str:
        """Deletes an alias; returns the name of the collection that it stood for.

        Raises:
            LikenessError: ALIAS_NOT_FOUND or STORE_UNAVAILABLE.
        """
        async with self._fresh() as listed:
            before = self._aliases.targets.get(alias)
            if before is None:
                message = f"there is no alias {alias!r}; list the aliases to find its name"
                raise LikenessError(error_pb2.REASON_ALIAS_NOT_FOUND, message)
            await self._replace_aliases(self._aliases.moved(alias, None), listed)
            return before

    async def _replace_aliases(self, aliases: Aliases, listed: Listed) -> None:
        async def attempt() -> None:
            if await self._store.create(aliases.store_name, Metric.COSINE, aliases.metadata) is None:
                there, _ = latest(await self._store.collections())
                if there != aliases:
                    message = "another indexer has changed the aliases: this one is not the writer any more"
                    raise LikenessError(error_pb2.REASON_READ_ONLY, message)

        await self._until_known("changing the aliases", attempt)
        self._aliases = aliases
        for document in listed.documents:
            try:
                await self._drop(document.name, document.key)
            except LikenessError as error:  # which the next change does again
                log.warning("an earlier list of the aliases stays", document=document.name, why=error.message)
