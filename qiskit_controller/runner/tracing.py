"""The stages ``source`` and ``executor`` tell where their time goes, as spans.

The parent of them all is the stage's own span, which the controller makes of what the stage says
in its report; ``TRACEPARENT`` names it. So nothing here is lost when the pod is, but its details,
and none of those is left without a parent.

Without a collector in the environment (``OTEL_*``) nothing is imported and :func:`span` does
nothing. The untrusted stage has none, and does not import this module.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from qiskit_controller.telemetry.trace import (
    TRACEPARENT_ENV,
    Attribute,
    Span,
    SpanContext,
    parse,
)

if TYPE_CHECKING:
    from qiskit_controller.telemetry.otlp import SpanSender

# What a collector that does not answer may cost a stage when it ends.
LAST_WORDS_SECONDS = 1.0
SERVICE = "qiskit-runner"
_NAMES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
)


@attrs.define
class _State:
    """Of this process.

    Attributes:
        open: the spans that are not over, the outermost first; empty when nobody is told.
        waiting: what is over and has not been sent.
    """

    begun: datetime
    open: list[SpanContext] = attrs.field(factory=list)
    waiting: list[Span] = attrs.field(factory=list)
    sender: SpanSender | None = None

    def take(self, span: Span) -> None:
        self.waiting.append(span)
        if self.sender is not None:
            self.sender.send(self.waiting)
            self.waiting.clear()


_state: _State | None = None


def begin() -> None:
    """Note when this process, the first of the container, began. Call it before any fork."""
    global _state
    _state = _State(_process_started())


def start() -> None:
    """Tell of what took so long until now, and of what follows.

    Call it in the process that does the work, when that has been imported.
    """
    state = _current()
    parent = parse(os.environ.get(TRACEPARENT_ENV))
    # Looked for here as well, so that whoever has no collector pays for no import.
    if parent is None or not parent.sampled or not any(map(os.environ.get, _NAMES)):
        return
    state.open[:] = [parent]
    told("start", state.begun, datetime.now(UTC))


def connect(*, last: bool = False) -> None:
    """From now on, send spans while the work goes on; until now they were kept.

    It starts a thread. So whoever forks does that before: a child that is forked beside a thread
    may find locks that nobody will ever open.

    Args:
        last: the stage has said that it is over, so nothing can be in it any more.
    """
    state = _current()
    if not state.open or state.sender is not None:
        return
    begun = datetime.now(UTC)
    from qiskit_controller.telemetry.otlp import SpanSender, configured

    if not configured("TRACES"):
        state.open.clear()
        return
    state.sender = SpanSender(SERVICE, seconds=LAST_WORDS_SECONDS)
    if not last:
        told("connect to collector", begun, datetime.now(UTC))
    state.sender.send(state.waiting)
    state.waiting.clear()


@contextmanager
def span(name: str, **attributes: Attribute) -> Iterator[dict[str, Attribute]]:
    """A span around what is done inside; attributes may be added to what it yields.

    What is raised inside is an error of the span. Names of attributes are written with ``_`` for
    ``.``, and begin with ``quantum``.
    """
    state = _current()
    found = {key.replace("_", "."): value for key, value in attributes.items()}
    if not state.open:
        yield found
        return
    parent = state.open[-1]
    context = parent.sibling(secrets.token_hex(8))
    begun = datetime.now(UTC)
    error: BaseException | None = None
    state.open.append(context)
    try:
        yield found
    except BaseException as raised:
        error = raised
        raise
    finally:
        if context in state.open:
            state.open.remove(context)
        reason = getattr(error, "reason", None)
        state.take(
            Span(
                name=name,
                context=context,
                parent=parent,
                start=begun,
                end=datetime.now(UTC),
                attributes=found,
                error=str(error) if error is not None else None,
                error_type=str(reason or type(error).__name__) if error is not None else None,
            )
        )


def told(name: str, start: datetime, end: datetime, **attributes: Attribute) -> None:
    """A span whose times someone else has told, such as a provider's queue."""
    state = _current()
    if not state.open:
        return
    parent = state.open[-1]
    context = parent.sibling(secrets.token_hex(8))
    found = {key.replace("_", "."): value for key, value in attributes.items()}
    state.take(
        Span(name=name, context=context, parent=parent, start=start, end=end, attributes=found)
    )


def begun() -> str:
    """When this stage began, for its report."""
    return _current().begun.isoformat(timespec="microseconds")


def now() -> str:
    """The time, for the report."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def finish(seconds: float = LAST_WORDS_SECONDS) -> None:
    """Send what is left, for as long as that at most. The report is written before."""
    connect(last=True)
    state = _current()
    if state.sender is not None:
        state.sender.close(seconds)
    state.sender = None
    state.open.clear()
    state.waiting.clear()


def trace_id() -> str | None:
    """The trace that this stage belongs to, for its logs."""
    parent = parse(os.environ.get(TRACEPARENT_ENV))
    return parent.trace_id if parent else None


def _current() -> _State:
    global _state
    if _state is None:
        _state = _State(_process_started())
    return _state


def _process_started(
    stat: Path = Path("/proc/self/stat"), clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> datetime:
    """When this process began, to a hundredth of a second: Python itself takes a few."""
    moment = clock()
    try:
        # "pid (name) state ppid ...", where the name may hold anything; field 22, in ticks.
        fields = stat.read_text().rpartition(")")[2].split()
        up = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        ago = time.clock_gettime(time.CLOCK_BOOTTIME) - up
    except (OSError, ValueError, IndexError):
        return moment
    # A container that cannot see the node's clock for it would be told nonsense.
    return moment - timedelta(seconds=ago) if 0 <= ago < 86_400 else moment
