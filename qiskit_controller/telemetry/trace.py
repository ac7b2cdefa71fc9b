"""Traces as plain values: which trace a QiskitJob has, and what its spans are.

A QiskitJob is one trace, whoever works for it and however often that one is replaced. So no
identifier is kept in a process: the trace's and every span's are derived from the object's UID
and from what the span is about, and a span that is made twice, by two leaders, is the same span.
A span can name a parent that is made later, by someone else.

``traceparent`` is W3C Trace Context's (https://www.w3.org/TR/trace-context/#traceparent-header).
Nothing here imports OpenTelemetry: who has no collector does not pay for it. What sends spans is
:mod:`qiskit_controller.telemetry.otlp`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

# On a QiskitJob. The first is the user's, for a trace that the job shall be a part of; the
# second is ours.
USER_ANNOTATION = "traceparent"
ANNOTATION = "quantum.io/traceparent"
# In the environment of the stages that may tell of themselves.
TRACEPARENT_ENV = "TRACEPARENT"

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_ROOT = "job"

Attribute = str | int | float | bool


@attrs.frozen
class SpanContext:
    """What names a span: ``traceparent`` taken apart; lower case hexadecimal."""

    trace_id: str
    span_id: str
    sampled: bool = True

    def __str__(self) -> str:
        """The ``traceparent`` header."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    def sibling(self, span_id: str) -> SpanContext:
        """Another span of the same trace."""
        return attrs.evolve(self, span_id=span_id)


@attrs.frozen
class JobTrace:
    """The trace of a QiskitJob.

    Attributes:
        root: its span, from creation to the end.
        parent: the span of the user's that it is a part of.
    """

    uid: str
    root: SpanContext
    parent: SpanContext | None = None

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return self.root.trace_id

    def span(self, *about: object) -> SpanContext:
        """The span about something of this job, such as ``("attempt", 2)``."""
        return self.root.sibling(span_id_of(self.uid, *about))


@attrs.frozen(kw_only=True)
class Span:
    """A span that is over.

    Attributes:
        error: why it failed, for people; None when it did not.
        error_type: the same as one word.
    """

    name: str
    context: SpanContext
    parent: SpanContext | None
    start: datetime
    end: datetime
    attributes: Mapping[str, Attribute] = attrs.field(factory=dict)
    error: str | None = None
    error_type: str | None = None


def parse(text: object) -> SpanContext | None:
    """A ``traceparent``, or None for what is not one (of any version, as the standard says)."""
    found = _TRACEPARENT.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) * int(span_id, 16):
        return None
    return SpanContext(trace_id, span_id, sampled=bool(int(flags, 16) & 1))


def span_id_of(uid: str, *about: object) -> str:
    """The same for the same, and different for anything else; never all zeros."""
    return _digest("span", uid, *about)[:16]


def trace_of(metadata: Mapping[str, Any]) -> JobTrace:
    """The trace of the QiskitJob with this metadata.

    What was written into our annotation counts, whatever the user's says later. One that was
    copied from another object, as by ``kubectl get -o yaml``, names another root and is none.
    """
    uid = str(metadata["uid"])
    annotations = metadata.get("annotations") or {}
    root_id = span_id_of(uid, _ROOT)
    parent = parse(annotations.get(USER_ANNOTATION))
    written = parse(annotations.get(ANNOTATION))
    if written is not None and written.span_id == root_id:
        same = parent is not None and parent.trace_id == written.trace_id
        return JobTrace(uid, written, parent if same else None)
    if parent is not None:
        return JobTrace(uid, parent.sibling(root_id), parent)
    return JobTrace(uid, SpanContext(_digest("trace", uid)[:32], root_id))


def _digest(*parts: object) -> str:
    # The first byte keeps it from being zero, which would be no identifier.
    return "a" + hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


# --- what a reconcile did -------------------------------------------------------------------

_WRITES = frozenset({"create", "update", "patch", "delete"})


@attrs.frozen
class Call:
    """A write to the API server. `status` is HTTP's, 0 without an answer."""

    verb: str
    resource: str
    status: int
    start: datetime
    end: datetime

    @property
    def failed(self) -> bool:
        """Whether it is worth a look; a conflict, or what is there or gone already, is not."""
        return self.status not in (404, 409) and not 200 <= self.status < 300


_calls: ContextVar[list[Call] | None] = ContextVar("calls", default=None)
_waited: ContextVar[float] = ContextVar("waited", default=0.0)


@contextmanager
def recorded_calls() -> Iterator[list[Call]]:
    """The writes of what runs inside."""
    found: list[Call] = []
    token = _calls.set(found)
    try:
        yield found
    finally:
        _calls.reset(token)


def note_call(verb: str, resource: str, status: int, seconds: float) -> None:
    """A request is over just now; kept if someone records, and if it is a write."""
    calls = _calls.get()
    if calls is not None and verb in _WRITES:
        end = datetime.now(UTC)
        calls.append(Call(verb, resource, status, end - timedelta(seconds=seconds), end))


def note_wait(seconds: float) -> None:
    """What this task does next has waited for so long."""
    _waited.set(seconds)


def waited_in_queue() -> float:
    """The last :func:`note_wait` of this task, in seconds."""
    return _waited.get()
