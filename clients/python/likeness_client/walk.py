"""Finds the pictures that a command line names: every file given, and what directories hold."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Of the formats that the contract accepts; the server goes by the bytes, never by these.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib",
     ".tif", ".tiff", ".avif", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c")
)  # fmt: skip


@dataclass
class Walk:
    """One walk over files and directories, in sorted order; links to directories are not followed.

    Attributes:
        paths: a file is always taken; a directory is walked for pictures.
        all_files: whether to take from directories also files that are not named like a picture.
        skipped: files left out so far, for their names.
        unreadable: directories that could not be read so far, with why.
    """

    paths: Sequence[Path]
    all_files: bool
    skipped: int = 0
    unreadable: list[tuple[Path, str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Path]:
        for path in self.paths:
            if path.is_dir():
                yield from self._directory(path)
            else:
                yield path

    def _directory(self, top: Path) -> Iterator[Path]:
        for directory, subdirectories, names in os.walk(top, onerror=self._note):
            subdirectories.sort()
            for name in sorted(names):
                if self.all_files or Path(name).suffix.lower() in SUFFIXES:
                    yield Path(directory, name)
                else:
                    self.skipped += 1

    def _note(self, error: OSError) -> None:
        self.unreadable.append((Path(os.fsdecode(error.filename)), error.strerror or str(error)))
