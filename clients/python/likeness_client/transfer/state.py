"""Small JSON files that remember how far something is; replaced as a whole, so that none is ever half written."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from likeness_client.errors import RESUME_REFUSED, LikenessError


def save(path: Path, told: Mapping[str, Any]) -> None:
    """Writes it, and forces it to disk."""
    partial = path.with_name(path.name + ".new")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(told, file)  # as ASCII: a file's name may be no UTF-8
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with suppress(OSError):  # that it failed is known
            partial.unlink(missing_ok=True)
        raise


def load(path: Path) -> dict[str, Any]:
    """Reads it back.

    Raises:
        LikenessError: RESUME_REFUSED; there is none, or it is damaged.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LikenessError(
            "NOT_FOUND", RESUME_REFUSED, f"there is nothing to go on with: no {path}; leave --resume out"
        ) from None
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read ({error}); delete it, and begin anew without --resume"
        raise LikenessError("FAILED_PRECONDITION", RESUME_REFUSED, message) from None
    if not isinstance(told, dict):
        message = f"{path} holds no JSON object; delete it, and begin anew without --resume"
        raise LikenessError("FAILED_PRECONDITION", RESUME_REFUSED, message)
    return told
