"""Places for files, as settings name them: a directory, or a URL that fsspec knows."""

from typing import Annotated

from fsspec import get_filesystem_class
from pydantic import AfterValidator


def _usable(where: str) -> str:
    if "://" in where:
        try:
            get_filesystem_class(where.partition("://")[0])
        except (ImportError, ValueError) as error:
            raise ValueError(f"expected a directory or a URL that can be used here: {error}") from error
    return where


Place = Annotated[str, AfterValidator(_usable)]
"""A directory, or a URL whose file system is installed."""
