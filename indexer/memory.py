"""How much memory this process may use."""

import os
from pathlib import Path

from chassis.cgroups import folders, limit

# A group's limit, in bytes: control groups of version 2 and of version 1.
_FILES = ("memory.max", "memory.limit_in_bytes")


def memory_bytes(root: Path = Path("/")) -> int:
    """Bytes that the machine has, or that its container may use, if that is less.

    Args:
        root: of the file system.
    """
    told = [limit(group / file) for group in folders("memory", root) for file in _FILES]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(int(text) for text in told if text.isdecimal())])
