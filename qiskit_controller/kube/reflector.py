"""A reflector keeps a sink (a cache) equal to a collection on the API server.

It lists the collection, page by page, and hands the whole to the sink; then it watches
from the resourceVersion of that list and hands over change after change, for ever:

    list ──► watch from where the list was taken ──► watch from where that one ended ─┐
     ▲                 │                                        ▲                     │
     │                 └── "410 Gone", or nonsense ─┐           └─────────────────────┘
     └──────────────────────────────────────────────┘

- **Lists** are consistent reads in pages. (client-go lists at resourceVersion "0", from
  the API server's cache, which may be *older* than what this process has seen before it
  restarted. Where a stale read can start a paid quantum job again, a quorum read of some
  thousand small objects is cheap.) When a continue token expires under way, the rest is
  not worth having, and the collection is listed in one piece.
- **Watches** ask the server to end them after 5 to 10 minutes, at random so that the
  replicas and kinds do not reconnect together, and go on from the last resourceVersion
  seen. Bookmarks move that forward in collections where little happens, so that it does
  not fall out of the server's history.
- **Deletions are not lost.** After a gap that the history no longer covers, the sink gets
  the complete list and works out itself what has gone (`Sink.replace`).
- **Errors** cost time, not correctness: 0.8 s doubling to 30 s, jittered. The delays
  start over once a watch has delivered something or lived out its time. A list that
  succeeds does not count, or a watch that always fails would mean listing every second.
- **Nonsense** on a watch (a line that is no event, an object that `transform` chokes on)
  is answered by listing again, which always converges; going on from the same
  resourceVersion might meet the same nonsense for ever.
- **Silence** ends with the watch's deadline on this side, see `Client.watch`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from datetime import datetime
from typing import NoReturn, Protocol

import attrs
import structlog

from qiskit_controller.kube.client import Client
from qiskit_controller.kube.errors import ApiError, ConnectionFailed, Gone, error_from_status
from qiskit_controller.kube.objects import Object
from qiskit_controller.kube.ratelimit import Clock, ItemExponentialBackoff
from qiskit_controller.kube.resources import Resource

log = structlog.get_logger(__name__)

Transform = Callable[[Object], Object]
"""Applied to every object on its way in, to drop what no one will read. May change it."""


class Sink(Protocol):
    """Where a reflector puts what it sees."""

    def replace(self, objects: list[Object]) -> None:
        """These are all there are; whatever is not among them is gone."""

    def upsert(self, obj: Object) -> None:
        """This one was added or changed."""

    def remove(self, obj: Object) -> None:
        """This one was deleted; this is its last state."""


class ReflectorMetrics(Protocol):
    """Told about lists and watches. Times in seconds."""

    def listed(self, items: int, seconds: float) -> None:
        """A list is complete."""

    def watch_opened(self) -> None:
        """The server has begun to answer a watch."""

    def watch_ended(self, seconds: float, events: int) -> None:
        """An open watch is over, in whatever way, after so many events."""

    def event(self, lag: float | None) -> None:
        """An event has come, so long after the change it tells of, where that is known."""


class _NoMetrics:
    def listed(self, items: int, seconds: float) -> None: ...
    def watch_opened(self) -> None: ...
    def watch_ended(self, seconds: float, events: int) -> None: ...
    def event(self, lag: float | None) -> None: ...


@attrs.frozen
class Tuning:
    """Numbers that only tests and unusual clusters change. Times in seconds."""

    page_size: int = 500
    watch_seconds: tuple[float, float] = (300.0, 600.0)
    grace_seconds: float = 30.0
    backoff_base: float = 0.8
    backoff_cap: float = 30.0


class Reflector:
    """Runs list and watch for one collection; see the module's description."""

    def __init__(
        self,
        client: Client,
        resource: Resource,
        sink: Sink,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        metadata_only: bool = False,
        transform: Transform | None = None,
        tuning: Tuning | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._client = client
        self._resource = resource
        self._sink = sink
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._metadata_only = metadata_only
        self._transform = transform
        self._tuning = Tuning() if tuning is None else tuning
        self._clock = clock
        self.metrics: ReflectorMetrics = _NoMetrics()
        # One item (None) whose failures are counted, with jitter up to double the delay.
        self._backoff: ItemExponentialBackoff[None] = ItemExponentialBackoff(
            self._tuning.backoff_base, self._tuning.backoff_cap, jitter=1.0
        )
        self._resource_version: str | None = None
        self._last_contact = clock()
        self._log = log.bind(resource=resource.plural, namespace=namespace)

    @property
    def seconds_since_contact(self) -> float:
        """How long ago the server last said anything: a list, an event, a watch opened.

        In a quiet collection that may be as long as a watch lasts, and is no reason to
        worry before it is longer than that.
        """
        return self._clock() - self._last_contact

    async def run(self) -> NoReturn:
        """List and watch until cancelled. No error ends it."""
        while True:
            try:
                if self._resource_version is None:
                    await self._list()
                await self._watch()
                continue
            except Gone as error:
                self._resource_version = None
                self._log.info("history is gone, listing again", error=str(error))
            except ApiError as error:
                if not _may_resume(error):
                    self._resource_version = None
                self._log.warning("list or watch failed", error=str(error))
            except Exception:
                self._resource_version = None
                self._log.exception("list or watch failed, listing again")
            await asyncio.sleep(self._backoff.when(None))

    async def _list(self) -> None:
        started = self._clock()
        objects: list[Object] = []
        limit: int | None = self._tuning.page_size
        token: str | None = None
        while True:
            try:
                page = await self._client.list(
                    self._resource,
                    self._namespace,
                    label_selector=self._label_selector,
                    field_selector=self._field_selector,
                    limit=limit,
                    continue_=token,
                    metadata_only=self._metadata_only,
                )
            except Gone:
                if token is None:
                    raise
                objects, limit, token = [], None, None
                continue
            objects += [self._prepare(obj) for obj in page.get("items") or []]
            token = page["metadata"].get("continue")
            if not token:
                break
        self._last_contact = self._clock()
        self.metrics.listed(len(objects), self._last_contact - started)
        self._sink.replace(objects)
        self._resource_version = page["metadata"]["resourceVersion"]

    async def _watch(self) -> None:
        """One watch, from its beginning to its orderly end."""
        assert self._resource_version is not None  # noqa: S101 - `run` has listed
        started = self._clock()
        progress = False
        async with self._client.watch(
            self._resource,
            self._namespace,
            resource_version=self._resource_version,
            timeout_seconds=random.uniform(*self._tuning.watch_seconds),  # noqa: S311
            grace_seconds=self._tuning.grace_seconds,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            metadata_only=self._metadata_only,
        ) as events:
            self._last_contact = opened = self._clock()
            self.metrics.watch_opened()
            count = 0
            try:
                async for type_, obj in events:
                    self._last_contact = self._clock()
                    count += 1
                    self.metrics.event(_lag(type_, obj))
                    self._handle(type_, obj)
                    if not progress:
                        progress = True
                        self._backoff.forget(None)
            finally:
                self.metrics.watch_ended(self._clock() - opened, count)
        if not progress and self._clock() - started < 1:
            # Nothing said and hung up at once is a failure, however politely it is done;
            # taking it for an orderly end would mean asking again without a pause.
            raise ConnectionFailed("the watch ended as soon as it began")
        self._backoff.forget(None)

    def _handle(self, type_: str, obj: Object) -> None:
        if type_ == "ERROR":
            error = error_from_status(obj)
            if error.status != 429:
                # The server could not go on from here, so it would not from here again.
                self._resource_version = None
            raise error
        if type_ in ("ADDED", "MODIFIED"):
            self._sink.upsert(self._prepare(obj))
        elif type_ == "DELETED":
            self._sink.remove(self._prepare(obj))
        elif type_ != "BOOKMARK":
            raise ValueError(f"a watch event of unknown type {type_!r}")
        self._resource_version = obj["metadata"]["resourceVersion"]

    def _prepare(self, obj: Object) -> Object:
        # Often half of the object, and of no use to a reader.
        obj["metadata"].pop("managedFields", None)
        # In lists the server leaves these out, or they say PartialObjectMetadata.
        obj["apiVersion"] = self._resource.api_version
        obj["kind"] = self._resource.kind
        return self._transform(obj) if self._transform else obj


def _lag(type_: str, obj: Object) -> float | None:
    """How long ago the change was made that an event tells of, by the two machines' clocks.

    Whoever changed the object last has left the time in managedFields, in whole seconds: a lag
    below one second says nothing.
    """
    if type_ not in ("ADDED", "MODIFIED"):
        return None
    try:
        fields = obj["metadata"].get("managedFields") or ()
        latest = max((each.get("time") or "" for each in fields), default="")
        return max(0.0, time.time() - datetime.fromisoformat(latest).timestamp())
    # An event that makes no sense is dealt with by who handles it.
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _may_resume(error: ApiError) -> bool:
    """Whether the error says nothing about the resourceVersion it was met with.

    Others might: a server restored from a backup calls a resourceVersion from its former
    life too large, with status 504, and will do so until we list again.
    """
    return error.status in (0, 401, 403, 429, 500, 502, 503)
