"""Charges what jobs have cost, begins new periods, and tells of thresholds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any

import attrs
import structlog

from qiskit_controller.api import qiskitbudget, qiskitjob
from qiskit_controller.api.billing import UNKNOWN
from qiskit_controller.api.codec import DecodeError, from_wire, to_wire
from qiskit_controller.api.conditions import Condition, upsert
from qiskit_controller.api.qiskitbudget import (
    QiskitBudgetSpec,
    QiskitBudgetStatus,
    Reservation,
)
from qiskit_controller.api.qiskitjob import FINISHED, BudgetSpec, QiskitJobStatus
from qiskit_controller.api.quantities import format_money, format_time, parse_money, parse_time
from qiskit_controller.kube.client import Client
from qiskit_controller.kube.controller import Enqueue, Result
from qiskit_controller.kube.errors import NotFound
from qiskit_controller.kube.events import EventRecorder
from qiskit_controller.kube.informer import Informer
from qiskit_controller.kube.objects import Object
from qiskit_controller.kube.queue import WorkQueue
from qiskit_controller.kube.resources import Resource
from qiskit_controller.reconcilers.qiskitbudget.ledger import (
    QISKITBUDGETS,
    BrokenBudget,
    Ledger,
)
from qiskit_controller.scheduling import budgets as books

log = structlog.get_logger(__name__)

QISKITJOBS = Resource(qiskitjob.GROUP, qiskitjob.VERSION, qiskitjob.PLURAL, qiskitjob.KIND)
_BY_RESERVATION = "reservation"


@attrs.frozen(kw_only=True)
class Alert:
    """A threshold that was reached; also the body of the webhook's POST."""

    namespace: str
    budget: str
    threshold: float
    message: str
    limit: str
    spent: str
    reserved: str
    period_start: str
    time: str


async def _tell_nobody(_: Alert) -> None:
    pass


def budgets_informer(client: Client) -> Informer:
    """QiskitBudgets of all namespaces, indexed."""
    informer = Informer(client, QISKITBUDGETS, resync_period=600)
    informer.add_indexer(_BY_RESERVATION, _reservations)
    return informer


@attrs.define
class QiskitBudgetReconciler:
    """Keeps the record of one QiskitBudget true.

    Attributes:
        jobs: the cache of QiskitJobs.
        on_alert: told of each threshold, once, after that was written.
    """

    client: Client
    ledger: Ledger
    jobs: Informer
    events: EventRecorder
    on_alert: Callable[[Alert], Awaitable[None]] = _tell_nobody

    def feed(self, queue: WorkQueue[str]) -> None:
        """Queue a budget whenever it, or a job that it has reserved for, changes."""
        self.ledger.budgets.add_handler(Enqueue(queue))
        self.jobs.add_handler(Enqueue(queue, self._budgets_of))

    def _budgets_of(self, job: Object) -> Iterable[str]:
        metadata = job["metadata"]
        for each in self.ledger.budgets.by_index(_BY_RESERVATION, metadata["uid"]):
            yield f"{metadata['namespace']}/{each['metadata']['name']}"

    async def reconcile(self, key: str) -> Result:
        """One look at the budget with that key; see :class:`Controller`."""
        cached = self.ledger.budgets.get(key)
        if cached is None:
            return Result()
        metadata = cached["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        running: list[Reservation] = []

        async def check() -> None:
            # After the budget was read: a job that has not ended now was not charged before.
            running[:] = await self._unreserved(cached)

        def step(spec: QiskitBudgetSpec, status: QiskitBudgetStatus) -> QiskitBudgetStatus:
            return self._step(metadata, spec, status, ended, running)

        try:
            ended = await self._ended(cached)
            changed = await self.ledger.change(namespace, name, step, check)
        except BrokenBudget as error:
            await self._write_broken(cached, str(error))
            return Result()
        if changed is None:
            return Result()
        before, after = changed
        for threshold in after.alerted:
            if threshold not in before.alerted:
                await self._alert(cached, after, threshold)
        left = books.next_change(after, self.ledger.clock())
        return Result(requeue_after=left.total_seconds())

    def _step(
        self,
        metadata: Object,
        spec: QiskitBudgetSpec,
        status: QiskitBudgetStatus,
        ended: dict[str, tuple[Decimal | None, datetime]],
        running: list[Reservation],
    ) -> QiskitBudgetStatus:
        now = self.ledger.clock()
        if status.observed_generation is None:
            status = self._before_it_was_there(metadata["namespace"], spec, status)
        for uid, (amount, when) in ended.items():
            status = books.settle(status, uid, amount, when)
        known = {each.uid for each in status.reservations}
        more = tuple(each for each in running if each.uid not in known)
        status = attrs.evolve(
            status,
            reservations=(*status.reservations, *more),
            observed_generation=metadata.get("generation"),
        )
        due = books.thresholds_reached(spec, status)
        status = attrs.evolve(status, alerted=(*status.alerted, *due))
        return _with_conditions(spec, status, now)

    def _before_it_was_there(
        self, namespace: str, spec: QiskitBudgetSpec, status: QiskitBudgetStatus
    ) -> QiskitBudgetStatus:
        """A new budget counts the jobs of its period that ended before there was one."""
        window = status.window
        if window is None:
            return status
        for job in self.jobs.list(namespace):
            found = _status_of(job)
            if found.phase not in FINISHED or not books.matches(spec.selector, _budget_of(job)):
                continue
            when = parse_time(found.completion_time or window.start)
            charge = charge_of(found)
            if charge and when >= parse_time(window.start):
                uid = job["metadata"]["uid"]
                if all(each.uid != uid for each in status.reservations):
                    claim = _claim(job, charge, when)
                    status = attrs.evolve(status, reservations=(*status.reservations, claim))
                    status = books.settle(status, uid, charge, when)
        return status

    async def _ended(self, budget: Object) -> dict[str, tuple[Decimal | None, datetime]]:
        """What jobs with a reservation have cost, by UID, and when they ended."""
        namespace = budget["metadata"]["namespace"]
        status = from_wire(budget.get("status") or {}, QiskitBudgetStatus)
        found: dict[str, tuple[Decimal | None, datetime]] = {}
        for claim in status.reservations:
            job = self.jobs.get(f"{namespace}/{claim.job}")
            if job is None or job["metadata"]["uid"] != claim.uid:
                if await self._live(namespace, claim.job, claim.uid) is None:
                    # Its finalizer was taken off by somebody else, so what it has cost is not
                    # known: as much as was reserved, to be safe.
                    found[claim.uid] = None, self.ledger.clock()
                continue
            ended = _status_of(job)
            if ended.phase in FINISHED:
                when = parse_time(ended.completion_time) if ended.completion_time else None
                found[claim.uid] = charge_of(ended), when or self.ledger.clock()
        return found

    async def _unreserved(self, budget: Object) -> list[Reservation]:
        """What jobs may cost that were given a backend before this budget was for them."""
        metadata = budget["metadata"]
        try:
            selector = from_wire(budget["spec"], QiskitBudgetSpec).selector
        except DecodeError:
            return []
        found = []
        for cached in self.jobs.list(metadata["namespace"]):
            name, uid = cached["metadata"]["name"], cached["metadata"]["uid"]
            given = _status_of(cached)
            if given.phase in FINISHED or given.costs is None or given.costs.charged is not None:
                continue
            reserved = self.ledger.budgets.by_index(_BY_RESERVATION, uid)
            if any(each["metadata"]["uid"] == metadata["uid"] for each in reserved):
                continue
            if not books.matches(selector, _budget_of(cached)):
                continue
            job = await self._live(metadata["namespace"], name, uid)
            if job is None or _status_of(job).phase in FINISHED:
                continue
            if "deletionTimestamp" in job["metadata"]:
                continue  # It may have been charged already, and only waits to go.
            amount = estimate_of(given)
            if amount:
                found.append(_claim(job, amount, self.ledger.clock()))
        return found

    async def _live(self, namespace: str, name: str, uid: str) -> Object | None:
        try:
            job = await self.client.get(QISKITJOBS, name, namespace)
        except NotFound:
            return None
        return job if job["metadata"]["uid"] == uid else None

    async def _write_broken(self, cached: Object, message: str) -> None:
        status = from_wire(cached.get("status") or {}, QiskitBudgetStatus)
        generation = cached["metadata"].get("generation")
        condition = Condition(
            type="Ready",
            status="False",
            reason="InvalidSpec",
            message=message,
            observed_generation=generation,
        )
        now = self.ledger.clock()
        new = attrs.evolve(status, conditions=upsert(status.conditions, condition, now))
        if new != status:
            await self.client.replace(QISKITBUDGETS, cached | {"status": to_wire(new)}, "status")
            self.events.event(_reference(cached), "Warning", "InvalidSpec", message)

    async def _alert(self, budget: Object, status: QiskitBudgetStatus, threshold: float) -> None:
        metadata, limit = budget["metadata"], format_money(parse_money(budget["spec"]["limit"]))
        message = (
            f"{threshold:.0%} of the limit of {limit} is used: {status.spent} spent, "
            f"{status.reserved} reserved"
        )
        reason = "BudgetExhausted" if threshold >= 1 else "BudgetThreshold"
        self.events.event(_reference(budget), "Warning", reason, message)
        await self.on_alert(
            Alert(
                namespace=metadata["namespace"],
                budget=metadata["name"],
                threshold=threshold,
                message=message,
                limit=limit,
                spent=status.spent or "",
                reserved=status.reserved or "",
                period_start=status.window.start if status.window else "",
                time=format_time(self.ledger.clock()),
            )
        )


def charge_of(status: QiskitJobStatus) -> Decimal:
    """What a job that has ended is charged."""
    costs = status.costs
    if costs is None or costs.charged is None or costs.charged == UNKNOWN:
        return Decimal(0)
    return parse_money(costs.charged)


def estimate_of(status: QiskitJobStatus) -> Decimal:
    """What a job may cost that has not ended."""
    costs = status.costs
    if costs is None or not costs.estimated or costs.estimated == UNKNOWN:
        return Decimal(0)
    return parse_money(costs.estimated)


def _with_conditions(
    spec: QiskitBudgetSpec, status: QiskitBudgetStatus, now: datetime
) -> QiskitBudgetStatus:
    left = parse_money(spec.limit) - books.spent(status) - books.reserved(status)
    over = left <= 0
    made = (
        ("Ready", True, "Enforced", ""),
        ("Exceeded", over, "NothingRemains" if over else "WithinLimit", ""),
    )
    conditions = status.conditions
    for type_, true, reason, message in made:
        condition = Condition(
            type=type_,
            status="True" if true else "False",
            reason=reason,
            message=message,
            observed_generation=status.observed_generation,
        )
        conditions = upsert(conditions, condition, now)
    return attrs.evolve(status, conditions=conditions)


def _claim(job: Object, amount: Decimal, since: datetime) -> Reservation:
    return Reservation(
        uid=job["metadata"]["uid"],
        job=job["metadata"]["name"],
        amount=format_money(amount),
        since=format_time(since),
    )


def _status_of(job: Object) -> QiskitJobStatus:
    """The part of a job's status that money is about; the cache holds whole objects."""
    status = job.get("status") or {}
    kept = {key: status[key] for key in ("phase", "costs", "completionTime") if key in status}
    return from_wire(kept, QiskitJobStatus)


def _budget_of(job: Object) -> BudgetSpec | None:
    try:
        return from_wire(job["spec"].get("budget") or {}, BudgetSpec)
    except DecodeError:
        return None


def _reservations(budget: Object) -> Iterable[str]:
    for each in (budget.get("status") or {}).get("reservations") or ():
        yield each["uid"]


def _reference(budget: Object) -> dict[str, Any]:
    return {
        "apiVersion": qiskitjob.API_VERSION,
        "kind": qiskitbudget.KIND,
        "metadata": budget["metadata"],
    }
