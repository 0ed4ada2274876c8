"""A file into a collection: which collection, from where in the file, and how far it came.

How far it came stands in ``FILE.import.json`` beside the file, as long as it is not all the way.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from likeness_client.errors import FIELD_INVALID, RESUME_REFUSED, LikenessError
from likeness_client.indexer.client import IndexerClient
from likeness_client.indexer.types import Collection, Metric
from likeness_client.items import Fingerprint
from likeness_client.transfer import state
from likeness_client.transfer.sources import open_source
from likeness_client.transfer.upload import Progress, Upload

VERSION = 1
SAVE_EVERY_S = 1.0


class Import:
    """An import: ``prepare``, ``run``, ``close``.

    Attributes:
        source: the file.
        progress: how far it is; ``after`` counts what an earlier import did, the rest does not.
        state_path: where that is remembered.
        resumable: whether what is remembered there is this import's.
    """

    def __init__(
        self, client: IndexerClient, path: Path, csv: Path | None = None, *, resume: bool = False, strict: bool = False
    ) -> None:
        """Opens the file.

        Raises:
            LikenessError: it cannot be read; or (RESUME_REFUSED) there is nothing to go on with, or the file is not
                what it was.
        """
        self.state_path = path.with_name(path.name + ".import.json")
        self.progress = Progress()
        self.resumable = resume
        self._client = client
        self._strict = strict
        self._told = {"version": VERSION, "files": [_identity(file) for file in (path, csv) if file is not None]}
        self._begun: dict[str, Any] | None = None
        if resume:
            self._begun = state.load(self.state_path)
            for key, value in self._told.items():
                if self._begun.get(key) != value:
                    message = f"{path} is not what it was when the import began; begin anew without --resume"
                    raise LikenessError("FAILED_PRECONDITION", RESUME_REFUSED, message)
            self.progress.after = int(self._begun["after"])
        self.source = open_source(path, csv)
        self._fingerprint: Fingerprint | None = None
        self._collection: Collection | None = None

    def prepare(self, name: str, *, create: bool, model: str, digest: str, metric: Metric | None) -> str:
        """Finds the collection, or makes it; returns its own name.

        Args:
            name: its name or an alias; empty: where the export came from.
            create: whether to make it if there is none.
            model: the vectors' model, for people; empty: as the export tells.
            digest: its fingerprint; empty: as the export tells, if it does.
            metric: of a collection that is made; None: as the export tells, else cosine.

        Raises:
            LikenessError: there is none, or not enough is known to make it; or (RESUME_REFUSED) it is another one than
                the import was begun into.
        """
        facts = self.source.facts
        name = name or (facts.collection.name if facts else "")
        if not name:
            message = f"{self.source.path} does not tell where it came from; name the collection by --collection"
            raise LikenessError("INVALID_ARGUMENT", FIELD_INVALID, message)
        dimension = self.source.dimension
        if digest:
            self._fingerprint = Fingerprint(model, digest, dimension or 0)
        elif facts is not None:
            self._fingerprint = facts.collection.fingerprint
        try:
            found = self._client.collection(name).collection
        except LikenessError as error:
            if error.reason != "COLLECTION_NOT_FOUND" or not create:
                raise
            found = self._create(name, metric)
        if digest and not dimension:
            self._fingerprint = Fingerprint(model, digest, found.fingerprint.dimension)
        if self._begun is not None and self._begun["uid"] != found.uid:
            message = (
                f"collection {found.name} is another one than the import was begun into; begin anew without --resume"
            )
            raise LikenessError("FAILED_PRECONDITION", RESUME_REFUSED, message)
        self._collection = found
        return found.name

    def run(
        self,
        *,
        on_rows: Callable[[], None] | None = None,
        on_wait: Callable[[LikenessError, float], None] | None = None,
        on_unsaved: Callable[[OSError], None] | None = None,
    ) -> None:
        """Uploads the rows. If that fails, or is interrupted, what is done by then is remembered.

        Where that cannot be written it goes on without.

        Args:
            on_rows: called whenever ``progress`` has moved.
            on_wait: called before a pause, with its cause and its seconds.
            on_unsaved: called once, with the reason, if it cannot be remembered how far it is.

        Raises:
            LikenessError: see ``Upload.run``.
        """
        assert self._collection is not None, "prepare comes first"
        saved_at = time.monotonic()
        writable = True

        def save() -> None:
            nonlocal saved_at, writable
            saved_at = time.monotonic()
            try:
                if writable:
                    self._save()
            except OSError as error:
                writable = False
                if on_unsaved is not None:
                    on_unsaved(error)

        def moved() -> None:
            if time.monotonic() - saved_at >= SAVE_EVERY_S:
                save()
            if on_rows is not None:
                on_rows()

        upload = Upload(
            self._client,
            self._collection.name,
            self._client.status().limits,
            expected_fingerprint=self._fingerprint,
            strict=self._strict,
            progress=self.progress,
            on_acknowledged=moved,
            on_wait=on_wait,
        )
        try:
            upload.run(self.source.rows(self.progress.after))
        except BaseException:  # an interrupt too
            save()
            raise
        if self.state_path.exists():  # else there is nothing to remove, and perhaps no right to
            self.state_path.unlink()
        self.resumable = False

    def close(self) -> None:
        """Closes the file."""
        self.source.close()

    def _create(self, name: str, metric: Metric | None) -> Collection:
        facts = self.source.facts
        if self._fingerprint is None or not self._fingerprint.dimension:
            message = f"{self.source.path} does not tell the model that its vectors come from; --create needs " + (
                "--model and --digest" if self._fingerprint is None else "vectors of one length: make it first"
            )
            raise LikenessError("INVALID_ARGUMENT", FIELD_INVALID, message)
        return self._client.create_collection(
            name,
            self._fingerprint,
            metric=metric or (facts.collection.metric if facts else Metric.COSINE),
            hnsw=facts.collection.hnsw if facts else None,
            description=facts.collection.description if facts else "",
            earlier_uids=(facts.collection.uid, *facts.collection.earlier_uids) if facts else (),
        )

    def _save(self) -> None:
        assert self._collection is not None
        state.save(self.state_path, {**self._told, "uid": self._collection.uid, "after": self.progress.after})
        self.resumable = True


def _identity(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {"name": path.name, "size": found.st_size, "mtime_ns": found.st_mtime_ns}
