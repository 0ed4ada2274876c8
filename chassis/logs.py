"""Structured logs on standard error: JSON for machines, one coloured line an event on a terminal."""

import logging
import re
import sys
from io import StringIO
from typing import TextIO

import structlog

from chassis import trace

# Without the frames' variables: they hold pictures and keys.
_tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _shown(control: re.Match[str]) -> str:
    return repr(control[0])[1:-1]


def _on_one_line(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What a client sent may be in the words of a library and in values; of strings the renderer escapes some alone."""
    told = {**event, "event": str(event.get("event", ""))}
    return {name: _CONTROL.sub(_shown, value) if isinstance(value, str) else value for name, value in told.items()}


def _traceback(out: TextIO, what: structlog.typing.ExcInfo) -> None:
    """A stack trace, which ends with the error's own words."""
    lines = StringIO()
    structlog.dev.plain_traceback(lines, what)
    out.write(_CONTROL_IN_LINES.sub(_shown, lines.getvalue()))


def configure(level: str, style: str, service: str) -> None:
    """Sends structlog's events, and those of the libraries' own loggers, to standard error.

    Args:
        level: the lowest level that is written, such as "INFO".
        style: "json", "console", or "auto": console on a terminal, JSON elsewhere.
        service: the name that every line carries.
    """
    console = style == "console" or (style == "auto" and sys.stderr.isatty())

    # Not bound as a context variable: threads begin with an empty context, and their lines need the name too.
    def name(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {"service": service, **event}

    shared: list[structlog.typing.Processor] = [
        name,
        trace.in_log,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    renderer: list[structlog.typing.Processor] = (
        [_on_one_line, structlog.dev.ConsoleRenderer(exception_formatter=_traceback)]
        if console
        else [structlog.processors.ExceptionRenderer(_tracebacks), structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # These write a line for every request or file at INFO.
    for chatty in ("grpc", "httpx", "httpcore", "urllib3", "PIL", "uvicorn"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
