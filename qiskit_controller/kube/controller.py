"""Workers that take keys from a queue and reconcile them, and what feeds that queue.

All that the author of a reconciler writes is `async def reconcile(key) -> Result`: look
at what is, make it what should be, and say when to look again. What becomes of the key:

==============================  ======================================================
`Result()`                      done until something changes; its failures are forgotten
`Result(requeue_after=30)`      the same, and once more in 30 seconds at the latest
raises `Conflict`               the cache was stale; retried, rate-limited, without noise
raises anything else            logged with its traceback; retried, rate-limited
==============================  ======================================================

There is no way to fail for good: a reconciler that has given up on an object writes that
into the object's status and returns. All that is logged meanwhile has a `reconcile_id`, and
what the reconciler binds beside it. Cancelling `run` cancels the reconciles under way,
which may stop between any two writes, as they might when the process is killed. To let
them finish, drain the queue, and `run` returns.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal, Protocol

import attrs
import structlog

from qiskit_controller.kube.errors import Conflict
from qiskit_controller.kube.objects import Object, key_of, resource_version_of
from qiskit_controller.kube.queue import ShutDown, WorkQueue

log = structlog.get_logger(__name__)

RESYNC_PRIORITY = -100
"""What is only a reminder (the first list, a resync) comes after what is news."""


@attrs.frozen
class Result:
    """What a reconcile has to say when it succeeded."""

    requeue_after: float | None = None
    """Seconds after which to reconcile again, whether or not anything changes."""


Reconcile = Callable[[str], Awaitable[Result]]

Outcome = Literal["success", "requeue_after", "conflict", "error"]


class ControllerMetrics(Protocol):
    """Told about every reconcile once it is over."""

    def reconciled(self, outcome: Outcome, seconds: float) -> None: ...


class _NoMetrics:
    def reconciled(self, outcome: Outcome, seconds: float) -> None: ...


class Controller:
    """`workers` reconciles at a time, never two of one key."""

    def __init__(
        self,
        name: str,
        queue: WorkQueue[str],
        reconcile: Reconcile,
        workers: int = 4,
        *,
        metrics: ControllerMetrics | None = None,
    ) -> None:
        self.name = name
        self.queue = queue
        self._reconcile = reconcile
        self._workers = workers
        self._metrics: ControllerMetrics = _NoMetrics() if metrics is None else metrics
        self._log = log.bind(controller=name)

    async def run(self) -> None:
        """Reconcile until cancelled, or until the queue is shut down and empty."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._workers):
                tasks.create_task(self._work(), name=f"{self.name}-worker-{number}")

    async def _work(self) -> None:
        while True:
            try:
                key = await self.queue.get()
            except ShutDown:
                return
            try:
                await self._process(key)
            finally:
                self.queue.done(key)

    async def _process(self, key: str) -> None:
        started = time.monotonic()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(reconcile_id=secrets.token_hex(4))
        # A retry or a timer keeps the urgency of the key, but is more than a reminder.
        priority = max(0, self.queue.priority_of(key))
        outcome: Outcome
        try:
            result = await self._reconcile(key)
        except Conflict as error:
            outcome = "conflict"
            self._log.debug("conflict, will retry", key=key, error=str(error))
            self.queue.add_rate_limited(key, priority=priority)
        except Exception:
            outcome = "error"
            self._log.exception(
                "reconcile failed, will retry", key=key, failures=self.queue.num_requeues(key) + 1
            )
            self.queue.add_rate_limited(key, priority=priority)
        else:
            outcome = "success"
            self.queue.forget(key)
            if result.requeue_after is not None:
                outcome = "requeue_after"
                self.queue.add_after(key, result.requeue_after, priority=priority)
        self._metrics.reconciled(outcome, time.monotonic() - started)
        structlog.contextvars.clear_contextvars()


class Enqueue:
    """An informer's handler that queues keys for every change.

    `keys` maps the changed object to the keys to reconcile, by default its own. For an
    object that belongs to another it is the other's key; for one that others refer to,
    those of all who do. On an update both states are asked, so that an object taken from
    one owner to another wakes both.
    """

    def __init__(
        self,
        queue: WorkQueue[str],
        keys: Callable[[Object], Iterable[str]] = lambda obj: (key_of(obj),),
        *,
        priority: Callable[[Object], int] = lambda obj: 0,
    ) -> None:
        self._queue = queue
        self._keys = keys
        self._priority = priority

    def on_add(self, obj: Object, is_initial: bool) -> None:
        self._enqueue(obj, obj, reminder=is_initial)

    def on_update(self, old: Object, new: Object) -> None:
        self._enqueue(old, new, reminder=resource_version_of(old) == resource_version_of(new))

    def on_delete(self, obj: Object) -> None:
        self._enqueue(obj, obj, reminder=False)

    def _enqueue(self, old: Object, new: Object, *, reminder: bool) -> None:
        priority = self._priority(new) + (RESYNC_PRIORITY if reminder else 0)
        for key in {**dict.fromkeys(self._keys(old)), **dict.fromkeys(self._keys(new))}:
            self._queue.add(key, priority=priority)
