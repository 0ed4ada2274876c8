"""How many CPU cores this process may use, and so how many threads make sense: one answer for all services.

The least of those it may run on (affinity, which a container's cpuset sets) and those that its control groups give it
time on (a quota: ``cpus`` in compose, a CPU limit in Kubernetes). A group that has used up its quota stands still, all
threads of it, for the rest of a tenth of a second: threads beyond the quota only make each other wait.
"""

import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from chassis.cgroups import folders, limit


@dataclass(frozen=True)
class Found:
    """What there is.

    Attributes:
        machine: cores of the machine.
        affinity: cores that this process may run on.
        quota: cores' worth of time that it gets; None: no limit.
    """

    machine: int
    affinity: int
    quota: float | None

    @property
    def usable(self) -> int:
        """Cores that it may use; a part of one counts as one."""
        return max(1, self.affinity if self.quota is None else min(self.affinity, math.ceil(self.quota)))


@cache
def found() -> Found:
    """As it was when first asked: threads are started by it once."""
    machine = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    return Found(machine, affinity, quota())


def cores() -> int:
    """CPU cores that this process may use."""
    return found().usable


def quota(root: Path = Path("/")) -> float | None:
    """The least quota of this process's control groups, in cores; None: it has none.

    Args:
        root: of the file system.
    """
    quotas = list[float]()
    for group in folders("cpu", root):
        # Version 2: "400000 100000", or "max 100000"; version 1: a file each, and −1 for none. Microseconds.
        told = limit(group / "cpu.max") or f"{limit(group / 'cpu.cfs_quota_us')} {limit(group / 'cpu.cfs_period_us')}"
        match told.split():
            case [time, period] if time.isdecimal() and period.isdecimal() and int(period) > 0:
                quotas.append(int(time) / int(period))
    return min(quotas, default=None)


def tell_libraries(*variables: str) -> None:
    """Sets variables that say to libraries how many threads to have, unless they are set; before these are loaded.

    Only where this process may not use all of the machine: by themselves they see that in part or not at all.
    """
    if cores() < found().machine:
        for variable in variables:
            os.environ.setdefault(variable, str(cores()))
