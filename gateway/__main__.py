"""``python -m gateway``."""

from chassis import starting

if __name__ == "__main__":  # before the imports below, which take long
    starting.end_when_told()

import sys

from chassis.server import run
from gateway.service import GatewayService
from gateway.settings import GatewaySettings


def main() -> None:
    """The command line."""
    settings = GatewaySettings.parse("python -m gateway", sys.argv[1:])
    run(settings, GatewayService(settings))


if __name__ == "__main__":
    main()
