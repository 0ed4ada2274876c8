"""``python -m embedder``."""

from chassis import starting

if __name__ == "__main__":  # before the imports below, which take long
    starting.end_when_told()

import sys

from embedder import replica_metrics, replicas
from embedder.allocator import share_one_arena
from embedder.settings import EmbedderSettings


def main() -> None:
    """Serves until told to stop."""
    replica = replicas.Replica.of_this_process()
    settings = EmbedderSettings.parse("python -m embedder", sys.argv[1:])
    if replica is None and settings.workers > 1:
        raise SystemExit(replicas.run(settings))
    share_one_arena()
    if replica is not None:
        replica_metrics.write_as(replica.index)
    # Here: --help, bad settings and a parent of replicas do without these libraries.
    from chassis import server  # noqa: PLC0415
    from embedder.decoding import leave  # noqa: PLC0415
    from embedder.service import EmbedderService  # noqa: PLC0415

    if replica is None:
        role = server.Role(metrics_port=settings.metrics_port, keyless=True)
    else:
        role = server.Role(replica=replica.index, late=replica.late, ready=replica.ready, keyless=True)
    try:
        server.run(settings, EmbedderService(settings), role)
    except SystemExit as end:
        leave(int(end.code or 0))
        raise


if __name__ == "__main__":
    main()
