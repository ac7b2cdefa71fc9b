"""The work queue between informers, which see changes, and workers, which reconcile.

It holds *keys*, never objects or events: a worker looks up the newest state when it
gets to the key, so ten changes to one object are one piece of work. A key is in at most
one of three places that make this safe:

- **queued**: waiting for a worker, by priority and then first come, first served.
  Adding a queued key again changes nothing, except that a higher priority lifts it.
- **processing**: with a worker, from `get` to `done`. No second worker can get it.
- **again**: added while processing. `done` moves it back to queued, so a change that
  arrives halfway through a reconcile is never lost and never reconciled in parallel.

Apart from those there is **delayed**: keys with a time at which to add them. A key has
one such time; the earliest asked for wins. A delayed key may be queued or processing as
well, because a timer set for later says nothing about work that is due now.

Nothing here sleeps or polls. `get` waits on a future, and only while somebody waits in
`get` is a timer kept for the next delayed key. All methods but `get` and
`shut_down_with_drain` are synchronous and must be called from the event loop's thread.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

import attrs

from qiskit_controller.kube.ratelimit import Clock, RateLimiter, default_controller_rate_limiter

K = TypeVar("K", bound=Hashable)


class ShutDown(Exception):
    """The queue was shut down and has no more work to hand out."""


class QueueMetrics(Protocol):
    """What the queue tells about itself as it happens.

    How long work has been running *by now* is no event, so it is asked for:
    `WorkQueue.unfinished_seconds` and `WorkQueue.longest_running_seconds`.
    """

    def depth(self, depth: int) -> None:
        """How many keys wait for a worker."""

    def added(self) -> None:
        """A key was added that was not queued already."""

    def latency(self, seconds: float) -> None:
        """A worker got a key this long after it was added."""

    def work_duration(self, seconds: float) -> None:
        """A worker was done with a key after this long."""

    def retried(self) -> None:
        """A key was added rate-limited."""


class _NoMetrics:
    def depth(self, depth: int) -> None: ...
    def added(self) -> None: ...
    def latency(self, seconds: float) -> None: ...
    def work_duration(self, seconds: float) -> None: ...
    def retried(self) -> None: ...


@attrs.define(eq=False)
class _Entry:
    """One stay of a key in the queue."""

    priority: int
    order: int  # Breaks ties: a lower number was added earlier.
    added_at: float


@attrs.frozen(eq=False)
class _Work:
    """One stay of a key with a worker."""

    started_at: float
    priority: int


class WorkQueue(Generic[K]):
    """A deduplicating, delaying, rate-limited priority queue of keys."""

    def __init__(
        self,
        rate_limiter: RateLimiter[K] | None = None,
        *,
        metrics: QueueMetrics | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._limiter: RateLimiter[K] = (
            default_controller_rate_limiter() if rate_limiter is None else rate_limiter
        )
        self._metrics: QueueMetrics = _NoMetrics() if metrics is None else metrics
        self._clock = clock
        self._order = itertools.count()

        self._queued: dict[K, _Entry] = {}
        # Raising a priority pushes a second tuple; the outdated one is skipped when it
        # surfaces, because it no longer matches the entry in `_queued`.
        self._heap: list[tuple[int, int, K]] = []
        self._processing: dict[K, _Work] = {}
        self._again: dict[K, _Entry] = {}
        # The same trick: a tuple counts only while `_delayed` agrees with its time.
        self._delayed: dict[K, tuple[float, int]] = {}
        self._delay_heap: list[tuple[float, int, K]] = []

        self._getters: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._shutting_down = False
        self._drained = asyncio.Event()

    def __len__(self) -> int:
        """How many keys wait for a worker; neither delayed ones nor those in work."""
        self._promote_due()
        return len(self._queued)

    # -- putting work in ------------------------------------------------------------

    def add(self, key: K, *, priority: int = 0) -> None:
        """Queue `key`; higher priorities are handed out first."""
        if self._shutting_down:
            return
        entry = self._again.get(key) if key in self._processing else self._queued.get(key)
        if entry is None:
            entry = _Entry(priority, next(self._order), self._clock())
            self._metrics.added()
            if key in self._processing:
                self._again[key] = entry
            else:
                self._enqueue(key, entry)
        elif priority > entry.priority:
            entry.priority = priority
            if key in self._queued:
                heapq.heappush(self._heap, (-priority, entry.order, key))

    def add_after(self, key: K, delay: float, *, priority: int = 0) -> None:
        """Add `key` in `delay` seconds, or earlier if that was already asked for."""
        if self._shutting_down:
            return
        if delay <= 0:
            self.add(key, priority=priority)
            return
        due = self._clock() + delay
        if key in self._delayed:
            earlier, other_priority = self._delayed[key]
            priority = max(priority, other_priority)
            due = min(due, earlier)
            if due == earlier:
                self._delayed[key] = (earlier, priority)
                return
        self._delayed[key] = (due, priority)
        heapq.heappush(self._delay_heap, (due, next(self._order), key))
        self._arm_timer()

    def add_rate_limited(self, key: K, priority: int = 0) -> None:
        """Add `key` when its rate limiter says so: the way to retry after a failure."""
        if self._shutting_down:
            return
        self._metrics.retried()
        self.add_after(key, self._limiter.when(key), priority=priority)

    def forget(self, key: K) -> None:
        """Clear the failures of `key`, so that the next retry is a quick one again.

        Only the rate limiter forgets. The key stays queued if it is, and `done` has to
        be called all the same.
        """
        self._limiter.forget(key)

    def num_requeues(self, key: K) -> int:
        """How many times in a row `key` was added rate-limited."""
        return self._limiter.num_requeues(key)

    # -- getting work out -----------------------------------------------------------

    async def get(self) -> K:
        """The next key; it is the caller's alone until it calls `done`.

        Raises ShutDown once the queue is shut down.
        """
        while True:
            self._promote_due()
            if self._shutting_down:
                raise ShutDown
            if self._queued:
                return self._take()
            getter = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            self._arm_timer()
            try:
                await getter
            except asyncio.CancelledError:
                if not getter.cancelled():
                    # Woken and cancelled at once: the wake-up was meant for somebody.
                    self._wake_getter()
                elif getter in self._getters:
                    self._getters.remove(getter)
                raise

    def done(self, key: K) -> None:
        """The worker that got `key` has finished with it, one way or the other."""
        work = self._processing.pop(key)
        self._metrics.work_duration(self._clock() - work.started_at)
        entry = self._again.pop(key, None)
        if entry is not None:
            # It queues up behind what was added while its turn was still running.
            entry.order = next(self._order)
            self._enqueue(key, entry)
        self._check_drained()

    def priority_of(self, key: K) -> int:
        """The priority with which the worker got `key`; 0 when no worker has it."""
        work = self._processing.get(key)
        return work.priority if work else 0

    # -- the end --------------------------------------------------------------------

    def shut_down(self) -> None:
        """Take no more work and hand out none; `get` raises ShutDown.

        What is queued or delayed is dropped: whoever comes next finds it by listing. client-go
        still hands out what is queued; with a long queue, whoever waits for the lease would
        wait for that.
        """
        self._shutting_down = True
        self._queued.clear()
        self._again.clear()
        self._heap.clear()
        self._metrics.depth(0)
        self._delayed.clear()
        self._delay_heap.clear()
        self._cancel_timer()
        while self._getters:
            self._wake_getter()
        self._check_drained()

    async def shut_down_with_drain(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Shut down and wait until workers are done; False if `timeout` came first."""
        self.shut_down()
        try:
            async with asyncio.timeout(timeout):
                await self._drained.wait()
        except TimeoutError:
            return False
        return True

    # -- how it is going ------------------------------------------------------------

    def unfinished_seconds(self) -> float:
        """How long the keys in work have been there, added up. Growth means stuck."""
        now = self._clock()
        return sum(now - work.started_at for work in self._processing.values())

    def longest_running_seconds(self) -> float:
        """How long the key that has been in work the longest has been there."""
        now = self._clock()
        return max((now - work.started_at for work in self._processing.values()), default=0.0)

    # -- inside ---------------------------------------------------------------------

    def _enqueue(self, key: K, entry: _Entry) -> None:
        self._queued[key] = entry
        heapq.heappush(self._heap, (-entry.priority, entry.order, key))
        self._metrics.depth(len(self._queued))
        self._wake_getter()

    def _take(self) -> K:
        while True:
            negative_priority, order, key = heapq.heappop(self._heap)
            entry = self._queued.get(key)
            if entry and (-entry.priority, entry.order) == (negative_priority, order):
                break
        del self._queued[key]
        now = self._clock()
        self._processing[key] = _Work(now, entry.priority)
        self._metrics.depth(len(self._queued))
        self._metrics.latency(now - entry.added_at)
        return key

    def _promote_due(self) -> None:
        """Queue the delayed keys whose time has come."""
        now = self._clock()
        while self._delay_heap and self._delay_heap[0][0] <= now:
            due, _, key = heapq.heappop(self._delay_heap)
            if key in self._delayed and self._delayed[key][0] == due:
                _, priority = self._delayed.pop(key)
                self.add(key, priority=priority)

    def _arm_timer(self) -> None:
        """While somebody waits in `get`, wake up for the earliest delayed key."""
        self._cancel_timer()
        if self._getters and self._delay_heap:
            delay = max(0.0, self._delay_heap[0][0] - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._promote_due()
        self._arm_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake_getter(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return

    def _check_drained(self) -> None:
        if self._shutting_down and not self._processing:
            self._drained.set()
