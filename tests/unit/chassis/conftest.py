"""What tests of the chassis share."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog


@pytest.fixture
def own_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For what configures the log as a service does: the tests behind it find it as it was."""
    configure, root = structlog.configure, logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def uncached(**told: Any) -> None:
        configure(**{**told, "cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", uncached)
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
