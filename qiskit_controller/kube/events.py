"""Events: what `kubectl describe` shows at its end, written so that they inform, not flood.

`EventRecorder.event` only notes the event in a bounded buffer and returns; a background
task writes. Recording can so be done anywhere, takes no time, and never fails. On the
way to the API server an event passes three gates, as in client-go:

1. **Aggregate.** When one object has had 10 events in 10 minutes that differ only in
   their message, the next ones become one event, "(combined from similar events): ...",
   with the latest message.
2. **Deduplicate.** An event that was written before (same object, type, reason and
   message, or the same aggregate) is not written again: the count and the lastTimestamp
   of the one in the cluster are patched. `kubectl get events` shows `x17`.
3. **Throttle.** Each object has a token bucket, 25 at once and one more every 5 minutes.
   What exceeds it is dropped: it is news to nobody by then.

When the API server cannot be reached, or asks to slow down, an event is tried 12 times
before it is given up, and those behind it wait; when the buffer is full, the oldest is
dropped and counted. An event that the server refuses is dropped at once, and without a
word if its namespace is being deleted, where nothing can be created any more.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeVar

import attrs
import structlog

from qiskit_controller.kube.client import Client
from qiskit_controller.kube.errors import AlreadyExists, ApiError, Forbidden, NotFound
from qiskit_controller.kube.objects import Object
from qiskit_controller.kube.ratelimit import Clock, TokenBucket
from qiskit_controller.kube.resources import EVENTS

log = structlog.get_logger(__name__)

V = TypeVar("V")

MAX_MESSAGE_BYTES = 1024
"""The API server refuses longer messages in events of the newer API."""

_CLUSTER_NAMESPACE = "default"
"""Where the events of objects without a namespace live, by convention."""


class EventMetrics(Protocol):
    """Told what became of events that were not written."""

    def dropped(self, why: str) -> None:
        """`why` is buffer_full, throttled, refused or unreachable."""


class _NoMetrics:
    def dropped(self, why: str) -> None: ...


@attrs.frozen
class Limits:
    """How much is too much; the numbers of client-go. Times in seconds."""

    buffer: int = 1000
    objects: int = 4096  # of which the gates keep memory, least recently seen out first
    similar: int = 10
    similar_window: float = 600.0
    burst: int = 25
    qps: float = 1 / 300
    tries: int = 12
    retry_seconds: float = 10.0


@attrs.frozen
class _Occurrence:
    """One call of `event`."""

    regarding: tuple[tuple[str, str], ...]  # an ObjectReference, as something hashable
    type: str
    reason: str
    message: str
    at: datetime


@attrs.define(eq=False)
class _Record:
    """An Event that is, or is about to be, in the cluster."""

    first_at: datetime
    name: str
    message: str = ""
    count: int = 0
    written: bool = False


@attrs.define(eq=False)
class _Similar:
    """Occurrences that differ in nothing but the message."""

    last_at: float
    messages: set[str] = attrs.field(factory=set)


class _Recent(Generic[V]):
    """A dict that makes what it lacks and forgets what was not asked for the longest."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        if key not in self._values:
            self._values[key] = make()
            if len(self._values) > self._size:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]


class _Correlator:
    """The three gates: which record an occurrence counts for, and whether to write it."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._similar: _Recent[_Similar] = _Recent(limits.objects)
        self._records: _Recent[_Record] = _Recent(limits.objects)
        self._buckets: _Recent[TokenBucket] = _Recent(limits.objects)

    def correlate(self, occurrence: _Occurrence) -> _Record | None:
        """The record with this occurrence counted in; None if it is one too many."""
        record = self._record_for(occurrence)
        record.count += 1  # Also when it is not written: the next one that is tells.
        bucket = self._buckets.get(
            occurrence.regarding,
            lambda: TokenBucket(self._limits.qps, self._limits.burst, self._clock),
        )
        return record if bucket.take() else None

    def _record_for(self, occurrence: _Occurrence) -> _Record:
        group = (occurrence.regarding, occurrence.type, occurrence.reason)
        now = self._clock()
        similar = self._similar.get(group, lambda: _Similar(now))
        if now - similar.last_at > self._limits.similar_window:
            similar.messages.clear()
        similar.last_at = now
        if len(similar.messages) < self._limits.similar:
            similar.messages.add(occurrence.message)
        message, key = occurrence.message, (*group, occurrence.message)
        if len(similar.messages) >= self._limits.similar:
            message = _cut(f"(combined from similar events): {message}", MAX_MESSAGE_BYTES)
            key = (*group, "")
        record = self._records.get(
            key, lambda: _Record(occurrence.at, _event_name(occurrence.regarding))
        )
        record.message = message
        return record


class EventRecorder:
    """Records Events about objects, in the name of one component."""

    def __init__(
        self,
        client: Client,
        component: str,
        instance: str,
        *,
        limits: Limits | None = None,
        metrics: EventMetrics | None = None,
        clock: Clock = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._component = component
        self._instance = instance
        self._limits = Limits() if limits is None else limits
        self._metrics: EventMetrics = _NoMetrics() if metrics is None else metrics
        self._now = now
        self._correlator = _Correlator(self._limits, clock)
        self._buffer: deque[_Occurrence] = deque()
        self._pending = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._writer: asyncio.Task[None] | None = None

    def event(self, obj_or_ref: Object, type_: str, reason: str, message: str) -> None:
        """Record that something happened to an object; returns at once.

        `obj_or_ref` is the object itself or an ObjectReference to it; `type_` is Normal
        or Warning; `reason` is one CamelCase word for machines; `message` is a sentence
        for people, cut at 1024 bytes.
        """
        regarding = tuple(sorted(_reference(obj_or_ref).items()))
        message = _cut(message, MAX_MESSAGE_BYTES)
        if len(self._buffer) >= self._limits.buffer:
            self._buffer.popleft()
            self._dropped("buffer_full")
        self._buffer.append(_Occurrence(regarding, type_, reason, message, self._now()))
        self._idle.clear()
        self._pending.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all(), name="event-recorder")

    async def flush(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Wait until all recorded events are written; False if `timeout` came first."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def aclose(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """Write what is buffered, for `timeout` seconds at most, and stop."""
        try:
            await self.flush(timeout)
        finally:
            if self._writer is not None:
                self._writer.cancel()
                await asyncio.wait([self._writer])

    # -- inside ---------------------------------------------------------------------

    async def _write_all(self) -> None:
        while True:
            await self._pending.wait()
            while self._buffer:
                try:
                    await self._write(self._buffer.popleft())
                except Exception:
                    # A defect of ours; it must cost one event and not all that follow.
                    log.exception("writing an event failed")
            self._pending.clear()
            self._idle.set()

    async def _write(self, occurrence: _Occurrence) -> None:
        record = self._correlator.correlate(occurrence)
        if record is None:
            self._dropped("throttled")
            return
        # Jitter before the first retry, so that a hundred recorders which lost the same
        # API server do not return to it together.
        delay = self._limits.retry_seconds * random.random()  # noqa: S311
        for attempt in range(self._limits.tries):
            if attempt:
                await asyncio.sleep(delay)
                delay = self._limits.retry_seconds
            try:
                await self._send(record, occurrence)
                return
            except ApiError as error:
                if error.status in (0, 429) or error.status >= 500:
                    log.debug("event not written yet", attempt=attempt + 1, error=str(error))
                    continue
                self._refused(error, occurrence)
                return
        self._dropped("unreachable")
        log.warning("event given up", reason=occurrence.reason, tries=self._limits.tries)

    async def _send(self, record: _Record, occurrence: _Occurrence) -> None:
        """Bring the event in the cluster up to date, or make it."""
        regarding = dict(occurrence.regarding)
        namespace = regarding.get("namespace", _CLUSTER_NAMESPACE)
        change = {
            "count": record.count,
            "lastTimestamp": _timestamp(occurrence.at),
            "message": record.message,
        }
        if record.written:
            try:
                await self._client.patch(EVENTS, record.name, namespace, change)
                return
            except NotFound:
                # The server forgets events after an hour. The next one goes on counting.
                record.written = False
                record.name = _event_name(occurrence.regarding)
        event = {
            **change,
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": record.name, "namespace": namespace},
            "involvedObject": regarding,
            "type": occurrence.type,
            "reason": occurrence.reason,
            "firstTimestamp": _timestamp(record.first_at),
            "source": {"component": self._component, "host": self._instance},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
        }
        try:
            await self._client.create(EVENTS, event)
        except AlreadyExists:
            # Our own, from a try whose answer was lost.
            log.debug("event exists already", name=record.name)
        record.written = True

    def _refused(self, error: ApiError, occurrence: _Occurrence) -> None:
        self._dropped("refused")
        if isinstance(error, Forbidden) and error.has_cause("NamespaceTerminating"):
            return
        log.warning("event refused", reason=occurrence.reason, error=str(error))

    def _dropped(self, why: str) -> None:
        self._metrics.dropped(why)


def _reference(obj_or_ref: Object) -> dict[str, str]:
    """An ObjectReference to an object; a reference is one already."""
    metadata = obj_or_ref.get("metadata")
    reference = obj_or_ref
    if metadata is not None:
        reference = {
            "apiVersion": obj_or_ref["apiVersion"],
            "kind": obj_or_ref["kind"],
            "namespace": metadata.get("namespace"),
            "name": metadata["name"],
            "uid": metadata.get("uid"),
        }
    # No resourceVersion: it would make every event of an object one about another thing.
    return {
        field: reference[field]
        for field in ("apiVersion", "kind", "namespace", "name", "uid", "fieldPath")
        if reference.get(field)
    }


def _event_name(regarding: tuple[tuple[str, str], ...]) -> str:
    # The object's name and a time, as client-go does; 253 characters are allowed.
    return f"{dict(regarding)['name'][:230]}.{time.time_ns():x}"


def _cut(message: str, size: int) -> str:
    """`message` in at most `size` bytes of UTF-8, marked where something is missing."""
    encoded = message.encode()
    if len(encoded) <= size:
        return message
    return encoded[: size - 3].decode(errors="ignore") + "..."


def _timestamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
