"""File systems as processes in containers see them, as far as control groups go."""

from collections.abc import Mapping
from pathlib import Path


def file_system(root: Path, cgroup: str, mounts: str, files: Mapping[str, str]) -> Path:
    """Makes one.

    Args:
        root: an empty folder.
        cgroup: /proc/self/cgroup.
        mounts: /proc/self/mountinfo, of the control groups alone.
        files: under /sys/fs/cgroup, by path.

    Returns:
        ``root``.
    """
    told = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts}
    for path, text in {**told, **{f"sys/fs/cgroup/{path}": text for path, text in files.items()}}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{text}\n")
    return root


# Version 2, with a namespace of the container's own: its group is the top of what it sees.
OWN_TOP = ("0::/", "29 23 0:26 / /sys/fs/cgroup ro,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate")
# Version 2, without one: a service of systemd's, or a container that sees the whole machine.
BELOW = ("0::/pods.slice/pod1/main", "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
# Version 1, as docker mounts it: only the own group, under the name that the machine knows.
FIRST = (
    "12:cpuset:/docker/ab\n11:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n0::/docker/ab",
    "35 30 0:31 /docker/ab /sys/fs/cgroup/cpuset ro - cgroup cgroup rw,cpuset\n"
    "36 30 0:32 /docker/ab /sys/fs/cgroup/cpu,cpuacct ro master:12 - cgroup cgroup rw,cpu,cpuacct\n"
    "37 30 0:33 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory",
)
# Both: version 1 has the controllers, version 2 none.
BOTH = (
    "4:memory:/one/two\n1:cpu:/one\n0::/",
    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
)
# Moved into another group than the container's after it was started: outside of what it sees.
OUTSIDE = ("0::/../other", "29 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw")
# Blanks and backslashes, which the list of mounts has as numbers.
STRANGE = (
    "0::/a\\x2d b.slice/c",
    "29 23 0:26 /a\\134x2d\\040b.slice /sys/fs/cgroup/of\\040c rw - cgroup2 cgroup2 rw",
)
