"""``python -m embedder``."""

import sys

from chassis import server
from embedder.allocator import share_one_arena
from embedder.settings import EmbedderSettings


def main() -> None:
    """Serves until told to stop."""
    settings = EmbedderSettings.parse("python -m embedder", sys.argv[1:])
    share_one_arena()
    from embedder.service import EmbedderService  # noqa: PLC0415 (--help and bad settings answer without its libraries)

    server.run(settings, EmbedderService(settings))


if __name__ == "__main__":
    main()
