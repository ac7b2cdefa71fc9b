"""Leader election: of all replicas, one at a time does the work.

The replicas compete for one `coordination.k8s.io/v1` Lease. Who holds it renews it every
`retry_period`; the others take it when it has not changed for the duration it promises.

    standby   observes; takes the lease when it is released, or has not changed for the
              lease_duration that its holder promised
    leader    renews ... renews ... fails, fails, fails
                         │               │                  │
                         t               t+renew_deadline   t+lease_duration
                         last success    work is cancelled  work has stopped;
                                                            others may take the lease

**Clocks.** Nobody believes the times written in the Lease, which come from other
machines' clocks. A replica measures, by its own monotonic clock, how long it has *seen*
the Lease unchanged. The leader counts from the moment *before* it sent its last
successful renewal, so its idea of when it loses the Lease is earlier than anyone else's.

**Losing.** When `renew_deadline` has passed without a renewal, or the Lease is seen in
other hands, the work is cancelled, and has what is left of `lease_duration` to stop.
`run` then raises LeadershipLost, and the process is expected to exit: a fresh start is
the simplest way to know nothing outdated. Work that does not stop in that time would
work side by side with the next leader's, so the process is ended there and then.

**Leaving.** When `run` is cancelled, or the work returns, it stops the work first, still
renewing, and then releases the Lease: no holder, one second. A standby polls, which alone
would take up to 2 * retry_period and more to notice; so it watches the Lease as well, and
takes a released one within milliseconds. That makes a rollout's gap a short one.

`kubernetes_asyncio.leaderelection` (36.1) was judged against this first: it cancels the
work without waiting for its end, leaves it running altogether when the server cannot be
reached (only ApiException is caught) or `run` is cancelled, never releases the Lease, sets
no time limit on its requests, measures by the wall clock, and counts no leaseTransitions.
What remains in common is the shape of the Lease, so nothing of it is used.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol

import structlog

from qiskit_controller.kube.client import Client
from qiskit_controller.kube.errors import AlreadyExists, ApiError, Conflict, NotFound
from qiskit_controller.kube.objects import Object
from qiskit_controller.kube.ratelimit import Clock
from qiskit_controller.kube.reflector import Reflector
from qiskit_controller.kube.resources import LEASES

log = structlog.get_logger(__name__)

_JITTER = 1.2


class LeadershipLost(Exception):
    """The Lease could not be renewed; the work was cancelled and has stopped."""


class LeaderMetrics(Protocol):
    """Told when this replica begins and ceases to lead."""

    def leading(self, leading: bool) -> None: ...


class _NoMetrics:
    def leading(self, leading: bool) -> None: ...


def _end_process() -> None:
    # Past the end of the lease nothing may be left to chance, finally clauses included.
    os._exit(1)


class LeaderElector:
    """Competes for one Lease and runs work while it holds it; times in seconds.

    `identity` has to be unique among the replicas and over their restarts.
    """

    def __init__(
        self,
        client: Client,
        namespace: str,
        name: str,
        identity: str,
        lease_duration: float = 15.0,
        renew_deadline: float = 10.0,
        retry_period: float = 2.0,
        *,
        metrics: LeaderMetrics | None = None,
        on_stuck: Callable[[], None] = _end_process,
        clock: Clock = time.monotonic,
    ) -> None:
        if lease_duration <= renew_deadline:
            raise ValueError("lease_duration must exceed renew_deadline: work needs time to stop")
        if renew_deadline <= retry_period * _JITTER:
            raise ValueError(f"renew_deadline must exceed {_JITTER} * retry_period")
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._lease_duration = lease_duration
        self._renew_deadline = renew_deadline
        self._retry_period = retry_period
        self._metrics: LeaderMetrics = _NoMetrics() if metrics is None else metrics
        self._on_stuck = on_stuck
        self._clock = clock

        self._lease: Object | None = None  # as last seen
        self._seen_at = 0.0  # when it was first seen like that
        self._leading = False
        self._renewed_at = 0.0
        self._vacancy = asyncio.Event()  # The watch has seen that nobody holds the lease.
        self._log = log.bind(lease=f"{namespace}/{name}", identity=identity)

    @property
    def holder(self) -> str:
        """Who led when the Lease was last seen; "" for nobody."""
        return _spec(self._lease).get("holderIdentity") or ""

    async def run(self, on_started: Callable[[], Awaitable[None]]) -> None:
        """Wait for leadership, then run the work until it ends, or leadership does.

        Returns when the work has returned, raises what it raised, or raises
        LeadershipLost. However it ends, the work has stopped by then.
        """
        try:
            await self._acquire()
        except asyncio.CancelledError:
            if self.holder == self._identity:  # Just then.
                await self._release()
            raise
        self._log.info("became leader")
        self._set_leading(True)
        work: asyncio.Future[Any] = asyncio.ensure_future(on_started())
        renewing: asyncio.Future[Any] = asyncio.create_task(self._renew(), name="leader-election")
        try:
            await asyncio.wait({work, renewing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Reached when the work has ended, when the lease is lost, and by cancellation.
            try:
                work.cancel()
                await self._until_stopped(work, renewing)
            finally:
                renewing.cancel()
            await asyncio.wait({renewing})
            self._set_leading(False)
            if renewing.cancelled():
                await self._release()
        if not renewing.cancelled():
            renewing.result()  # Raises why leadership was lost.
        work.result()

    # -- standing by ----------------------------------------------------------------

    async def _acquire(self) -> None:
        watch = Reflector(
            self._client,
            LEASES,
            _LeaseWatch(self),
            namespace=self._namespace,
            field_selector=f"metadata.name={self._name}",
        )
        watching = asyncio.create_task(watch.run(), name="leader-election-watch")
        try:
            while True:
                # Cleared before looking, so that a release seen meanwhile is not missed.
                self._vacancy.clear()
                if await self._try():
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await self._vacancy.wait()
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    def _pause(self) -> float:
        """Seconds until a standby looks again of its own accord."""
        pause = self._retry_period * (1 + _JITTER * random.random())  # noqa: S311
        expires_in = self._expires_at() - self._clock()
        return min(pause, expires_in) if expires_in > 0 else pause

    # -- leading --------------------------------------------------------------------

    async def _renew(self) -> NoReturn:
        while True:
            await asyncio.sleep(self._retry_period)
            deadline = self._renewed_at + self._renew_deadline
            try:
                async with asyncio.timeout(deadline - self._clock()):
                    while not await self._try():
                        if self.holder not in ("", self._identity):
                            raise LeadershipLost(f"{self.holder} has taken the lease")
                        await asyncio.sleep(self._retry_period)
            except TimeoutError:
                raise LeadershipLost(f"not renewed in {self._renew_deadline} s") from None

    async def _until_stopped(
        self, work: asyncio.Future[Any], renewing: asyncio.Future[Any]
    ) -> None:
        """Wait for the cancelled work: as long as it takes if the lease is being renewed,
        otherwise as long as the lease lasts."""
        await asyncio.wait({work, renewing}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return
        self._log.error("leadership lost, stopping work", error=str(renewing.exception()))
        left = self._renewed_at + self._lease_duration - self._clock()
        await asyncio.wait({work}, timeout=max(0.0, left))
        if not work.done():
            self._log.critical("work has not stopped within the lease, ending the process")
            self._on_stuck()

    async def _release(self) -> None:
        """Give the lease back, so that nobody has to wait for it to run out."""
        try:
            async with asyncio.timeout(self._renew_deadline / 2):
                self._observe(await self._client.get(LEASES, self._name, self._namespace))
                if self.holder == self._identity:
                    await self._write(holder="", duration=1)
                    self._log.info("released the lease")
        except (ApiError, TimeoutError) as error:
            self._log.warning("lease not released, it has to run out", error=str(error))

    # -- the lease ------------------------------------------------------------------

    async def _try(self) -> bool:
        """Take the lease or renew it; whether that worked."""
        started = self._clock()
        try:
            # Half the deadline, so that after a request that hangs there is time for one
            # on another connection.
            async with asyncio.timeout(self._renew_deadline / 2):
                held = await self._take_or_renew()
        except (ApiError, TimeoutError) as error:
            if self._leading:
                self._lease = None  # It may be outdated: look before the next write.
            # To lose a race is what most replicas do.
            expected = isinstance(error, Conflict | AlreadyExists)
            write = self._log.debug if expected else self._log.warning
            write("lease not written", error=str(error) or "no answer in time")
            return False
        if held:
            self._renewed_at = started
        return held

    async def _take_or_renew(self) -> bool:
        duration = math.ceil(self._lease_duration)
        # A leader knows the lease, having written it last; if not, it meets a Conflict.
        if self._lease is None or not self._leading:
            try:
                self._observe(await self._client.get(LEASES, self._name, self._namespace))
            except NotFound:
                self._lease = None
                await self._write(holder=self._identity, duration=duration)
                return True
        if self.holder not in ("", self._identity) and self._clock() < self._expires_at():
            return False
        await self._write(holder=self._identity, duration=duration)
        return True

    async def _write(self, *, holder: str, duration: int) -> None:
        """Write the lease, provided it has not changed since it was last seen."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = _spec(self._lease)
        changes = {
            "holderIdentity": holder,
            "leaseDurationSeconds": duration,
            "renewTime": now,
        }
        if holder != self.holder:
            changes["acquireTime"] = now
            if holder:
                changes["leaseTransitions"] = spec.get("leaseTransitions", -1) + 1
        if self._lease is None:
            lease = {
                "apiVersion": LEASES.api_version,
                "kind": LEASES.kind,
                "metadata": {"name": self._name, "namespace": self._namespace},
                "spec": changes,
            }
            self._observe(await self._client.create(LEASES, lease))
        else:
            lease = {**self._lease, "spec": {**spec, **changes}}
            self._observe(await self._client.replace(LEASES, lease))

    def _observe(self, lease: Object | None) -> None:
        """Remember the lease; its time runs from now if it says something new."""
        if lease is None or _spec(lease) != _spec(self._lease):
            self._seen_at = self._clock()
        self._lease = lease

    def _expires_at(self) -> float:
        """When, by this clock, others than the holder may take the lease."""
        # What the holder promised counts, which may run with other settings than ours.
        promised: float = _spec(self._lease).get("leaseDurationSeconds", self._lease_duration)
        return self._seen_at + promised

    def _set_leading(self, leading: bool) -> None:
        self._leading = leading
        self._metrics.leading(leading)


class _LeaseWatch:
    """What a standby's reflector reports to (its Sink)."""

    def __init__(self, elector: LeaderElector) -> None:
        self._elector = elector

    def replace(self, objects: list[Object]) -> None:
        for lease in objects:
            self.upsert(lease)

    def upsert(self, obj: Object) -> None:
        self._elector._observe(obj)
        if not self._elector.holder:
            self._elector._vacancy.set()

    def remove(self, obj: Object) -> None:
        self._elector._observe(None)
        self._elector._vacancy.set()


def _spec(lease: Object | None) -> dict[str, Any]:
    return (lease or {}).get("spec") or {}
