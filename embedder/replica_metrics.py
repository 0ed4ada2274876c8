"""The figures of several serving processes: each replica writes its own to files, and their parent shows the sum.

A replica's files are named after its number, not its process: one that is started anew goes on with those of the one
before it, which has ended. So counters count on, and there are as many files as replicas, however often they die.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack

from embedder.settings import EmbedderSettings

# As in chassis.metrics, whose import has to wait until it is set.
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def write_as(index: int) -> None:
    """In a replica, before any metric is made: names its files. Does nothing where no figures are shown.

    Args:
        index: its number, which no other process of the folder has while it lives.
    """
    if FOLDER_VARIABLE not in os.environ:
        return
    from prometheus_client import values  # noqa: PLC0415 (after the variable is set, by the parent)

    values.ValueClass = values.MultiProcessValue(lambda: _name(index))  # type: ignore[no-untyped-call]


def show(settings: EmbedderSettings, folder: str, held: ExitStack) -> Callable[[int], None]:
    """In the parent: shows what the replicas write into the folder, until the stack is closed.

    Returns:
        What is to be told the number of a dead replica, before another one of that number is started.

    Raises:
        OSError: it cannot listen.
    """
    os.environ[FOLDER_VARIABLE] = folder  # before the import, which looks for it
    from prometheus_client import Counter  # noqa: PLC0415
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

    from chassis import metrics  # noqa: PLC0415

    endpoint = metrics.serve(settings.host, settings.metrics_port, tls=settings.tls)
    if endpoint is not None:
        held.callback(endpoint.stop)
    restarts = Counter("likeness_embedder_replica_restarts", "Replicas that died and were started anew.")

    def died(index: int) -> None:
        restarts.inc()
        mark_process_dead(_name(index))  # type: ignore[no-untyped-call]

    return died


def _name(index: int) -> str:
    """What stands for a replica in its files' names. No bare number: that may be its parent's process id."""
    return f"replica-{index}"
