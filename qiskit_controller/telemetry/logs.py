"""Logs: structlog for ours and the standard library's alike, JSON in a cluster.

Every line carries what was bound with ``structlog.contextvars``: the job, its UID and trace, and
which reconcile it is. A line with a secret cannot be made by accident; three nets lie below each
other, and all of them are the last thing that happens before a line is rendered, so they hold
for other people's libraries and for tracebacks too:

- names: values under names that speak of secrets are replaced, at any depth;
- forms: what looks like a credential in any text (``Bearer ...``, ``https://user:password@``,
  ``password=...``, a private key) is replaced;
- values: what the process was given as a secret is replaced wherever it turns up
  (:func:`conceal`).
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Literal

import structlog

Format = Literal["json", "console"]

_SECRET_WORDS = ("authorization", "password", "secret", "token", "api_key", "apikey", "api-key")
_REDACTED = "[redacted]"
# Shorter ones would be found in the middle of harmless words.
_LEAST_SECRET = 6

_FORMS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S
        ),
        _REDACTED,
    ),
    # An HTTP header, or the token of one.
    (re.compile(r"(?i)\b(bearer|basic|apikey)\s+[a-z0-9+/._~=-]{8,}"), rf"\1 {_REDACTED}"),
    # The password of an address; the user's name may be a token as well.
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s@]+@"), rf"\1{_REDACTED}@"),
    # name=value, "name": "value"
    (
        re.compile(
            r"(?i)\b([a-z0-9_.-]*(?:password|passwd|secret|token|api[-_]?key|access[-_]?key|"
            r"authorization|signature|credential)[a-z0-9_-]*[\"']?\s*[=:]\s*[\"']?)"
            r"(?!\[redacted\])(?!(?:bearer|basic|apikey)\b)[^\s\"'&,;}\])]{4,}"
        ),
        rf"\1{_REDACTED}",
    ),
    # A JSON Web Token; an AWS access key's name.
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), _REDACTED),
    (re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"), _REDACTED),
)
_concealed: set[str] = set()
# Of these we hear what is amiss and no more. At lower levels they tell of each request, some with
# the whole of it: of kubernetes_asyncio, Secrets among them.
_TALKATIVE = (
    "aiohttp",
    "asyncio",
    "boto3",
    "botocore",
    "braket",
    "google",
    "kubernetes_asyncio",
    "opentelemetry",
    "qiskit",
    "qiskit_aer",
    "qiskit_ibm_runtime",
    "requests",
    "s3transfer",
    "stevedore",
    "urllib3",
)


def conceal(values: Iterable[str]) -> None:
    """Never show these values again, in any log line or span of this process."""
    for value in values:
        for line in (value.strip(), *value.split()):
            if len(line) >= _LEAST_SECRET:
                _concealed.add(line)


def scrub(text: str) -> str:
    """The text without what is, or looks like, a secret."""
    # The longest first: one may be part of another.
    for secret in sorted(_concealed, key=len, reverse=True):
        text = text.replace(secret, _REDACTED)
    for form, instead in _FORMS:
        text = form.sub(instead, text)
    return text


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor that hides secrets by name, form and value, at any depth."""
    for name, value in event.items():
        event[name] = _redacted(name, value)
    return event


def _redacted(name: object, value: Any) -> Any:
    if any(word in str(name).lower() for word in _SECRET_WORDS):
        return _REDACTED
    if isinstance(value, Mapping):
        return {key: _redacted(key, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted("", inner) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    # Whatever it is, it is going to be shown as its text.
    return scrub(value if isinstance(value, str) else str(value))


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
    ]
    renderer: structlog.typing.Processor
    if format_ == "console" or (format_ is None and sys.stderr.isatty()):
        # Plain tracebacks: where rich is installed, the default ones show local variables.
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    else:
        renderer = structlog.processors.JSONRenderer()
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
                # As text: structured tracebacks would bring local variables, and what is in them.
                structlog.processors.format_exc_info,
                redact,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
