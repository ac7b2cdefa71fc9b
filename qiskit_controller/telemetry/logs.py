"""Logs: structlog for ours and the standard library's alike, JSON in a cluster.

Every line carries what was bound with ``structlog.contextvars`` (the job and its UID while
it is reconciled). Values under names that speak of secrets are replaced before anything is
rendered.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal

import structlog

Format = Literal["json", "console"]

_SECRET_WORDS = ("authorization", "password", "secret", "token", "api_key", "apikey", "api-key")
_REDACTED = "[redacted]"


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor that hides the values of telling names, at any depth."""
    for name, value in event.items():
        event[name] = _redacted(name, value)
    return event


def _redacted(name: object, value: Any) -> Any:
    if any(word in str(name).lower() for word in _SECRET_WORDS):
        return _REDACTED
    if isinstance(value, Mapping):
        return {key: _redacted(key, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted("", inner) for inner in value]
    return value


def configure(level: str = "INFO", format_: Format | None = None) -> None:
    """Send all logs of the process to stderr.

    Args:
        level: the lowest level that is shown.
        format_: ``json`` or ``console``; by default the latter on a terminal.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    renderer: list[structlog.typing.Processor]
    if format_ == "console" or (format_ is None and sys.stderr.isatty()):
        # Plain tracebacks: where rich is installed, the default ones show local variables.
        renderer = [
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        ]
    else:
        renderer = [
            # As text: structured tracebacks would bring local variables, and what is in them.
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # At debug level it prints whole response bodies, those of Secrets among them.
    logging.getLogger("kubernetes_asyncio").setLevel(logging.WARNING)
