"""The stages ``source`` and ``executor`` tell where their time goes, as spans.

The parent of them all is the stage's own span, which the controller makes of what the stage says
in its report; ``TRACEPARENT`` names it. They do not nest in each other: a pod that is lost would
leave those inside without their parent, which is sent only when it is over.

Without a collector in the environment (``OTEL_*``) nothing is imported and :func:`span` does
nothing. The untrusted stage has none, and does not import this module.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
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
        stage: the stage's own span, parent of all; None when nobody is told.
        waiting: what is over and has not been sent.
    """

    begun: datetime
    stage: SpanContext | None = None
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
    state.stage = parent
    told("start", state.begun, datetime.now(UTC))


def connect(*, last: bool = False) -> None:
    """From now on, send spans while the work goes on; until now they were kept.

    It starts a thread. So whoever forks does that before: a child that is forked beside a thread
    may find locks that nobody will ever open.

    Args:
        last: the stage has said that it is over, so nothing can be in it any more.
    """
    state = _current()
    if state.stage is None or state.sender is not None:
        return
    begun = datetime.now(UTC)
    from qiskit_controller.telemetry.otlp import SpanSender, configured

    if not configured("TRACES"):
        state.stage = None
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
    found = {key.replace("_", "."): value for key, value in attributes.items()}
    if _current().stage is None:
        yield found
        return
    begun = datetime.now(UTC)
    error: BaseException | None = None
    try:
        yield found
    except BaseException as raised:
        error = raised
        raise
    finally:
        _take(name, begun, datetime.now(UTC), found, error)


def told(name: str, start: datetime, end: datetime, **attributes: Attribute) -> None:
    """A span whose times someone else has told, such as a provider's queue."""
    found = {key.replace("_", "."): value for key, value in attributes.items()}
    _take(name, start, end, found)


def _take(
    name: str,
    start: datetime,
    end: datetime,
    attributes: Mapping[str, Attribute],
    error: BaseException | None = None,
) -> None:
    state = _current()
    if state.stage is None:
        return
    reason = getattr(error, "reason", None)
    state.take(
        Span(
            name=name,
            context=state.stage.sibling(secrets.token_hex(8)),
            parent=state.stage,
            start=start,
            end=end,
            attributes=attributes,
            error=str(error) if error is not None else None,
            error_type=str(reason or type(error).__name__) if error is not None else None,
        )
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
    state.sender = state.stage = None
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
