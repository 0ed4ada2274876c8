"""Where the limits of this process's container stand: control groups (cgroups), of version 2 and of version 1."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# How the kernel writes blanks and backslashes into the list of mounts.
_ESCAPED = re.compile(r"\\([0-7]{3})")


def folders(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The groups whose limits hold for this process: its own and those around it, as far as they can be seen.

    Of every hierarchy that may have the controller: both versions may be mounted. Nothing where there are no groups.

    Args:
        controller: "cpu" or "memory".
        root: of the file system.
    """
    own = _own_groups(controller, _lines(root / "proc/self/cgroup"))
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = (*after.split(" ", 2), "", "")[:3]
        version = 2 if kind == "cgroup2" else 1 if kind == "cgroup" and controller in options.split(",") else None
        if version not in own:
            continue
        shown, where = (_ESCAPED.sub(lambda code: chr(int(code[1], 8)), each) for each in before.split(" ")[3:5])
        mount = root / where.lstrip("/")
        # A container may see its own group as the top, under a name that the mount does not know.
        inside = own[version].is_relative_to(shown) and ".." not in own[version].parts
        group = mount / own[version].relative_to(shown) if inside else mount
        yield group
        while group != mount:
            group = group.parent
            yield group


def limit(file: Path) -> str:
    """What a group's file says; empty if there is no such file."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def _own_groups(controller: str, lines: list[str]) -> dict[int | None, PurePosixPath]:
    """This process's group in each version's hierarchy."""
    found = dict[int | None, PurePosixPath]()
    for line in lines:
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controller in controllers.split(","):
            found[1] = PurePosixPath(path)
        elif number == "0" and not controllers:
            found[2] = PurePosixPath(path)
    return found


def _lines(file: Path) -> list[str]:
    return limit(file).splitlines()
