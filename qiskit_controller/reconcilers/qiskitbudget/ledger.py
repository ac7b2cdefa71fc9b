"""Every change of a budget's record: read it, decide, write over the version that was read.

Why no charge is lost or made twice, wherever a controller crashes and however many there are:

- A job is admitted by a reservation, which is written before the job is told where to run.
- The order is: read the budget, read the job, write the budget over what was read. A job that
  has not ended when it is read cannot have been charged before; and had it been charged since,
  the budget would have another version, and the write would fail.
- A charge ends the reservation in the same write. It is made only when the job's end, with its
  cost, has been written, or when the job goes away; and the job's finalizer stays until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal

import attrs

from qiskit_controller.api import qiskitbudget, qiskitjob
from qiskit_controller.api.codec import DecodeError, from_wire, to_wire
from qiskit_controller.api.qiskitbudget import (
    QiskitBudgetSpec,
    QiskitBudgetStatus,
    Reservation,
)
from qiskit_controller.api.qiskitjob import BudgetSpec
from qiskit_controller.api.quantities import parse_time
from qiskit_controller.kube.client import Client
from qiskit_controller.kube.errors import Conflict, NotFound
from qiskit_controller.kube.informer import Informer
from qiskit_controller.kube.objects import Object
from qiskit_controller.kube.resources import Resource
from qiskit_controller.scheduling import budgets as books

QISKITBUDGETS = Resource(qiskitjob.GROUP, qiskitjob.VERSION, qiskitbudget.PLURAL, qiskitbudget.KIND)

Step = Callable[[QiskitBudgetSpec, QiskitBudgetStatus], QiskitBudgetStatus]


class BrokenBudget(Exception):
    """A budget's spec cannot be understood, so nothing can be let through; for people."""


async def _nothing() -> None:
    pass


@attrs.define
class Ledger:
    """The budgets of the cluster.

    Attributes:
        budgets: the cache; only to find budgets, never to change them.
        clock: the time now, with a time zone.
    """

    client: Client
    budgets: Informer
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    # One change at a time of each budget; another process is met by its resourceVersion.
    _locks: dict[str, asyncio.Lock] = attrs.field(factory=dict, init=False)

    def matching(self, namespace: str, budget: BudgetSpec | None) -> tuple[str, ...]:
        """Names of the budgets that a job falls under, in order."""
        found = []
        for each in self.budgets.list(namespace):
            try:
                selector = from_wire(each["spec"], QiskitBudgetSpec).selector
            except DecodeError:
                # It may be for this job; to reserve there will say what is wrong with it.
                selector = None
            if books.matches(selector, budget):
                found.append(each["metadata"]["name"])
        return tuple(sorted(found))

    async def reserve(
        self,
        namespace: str,
        names: Sequence[str],
        claim: Reservation,
        check: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        """Take the amount out of each of the budgets, or out of none.

        Args:
            check: raises when the job is not what the caller believes; it is called between
                reading and writing each budget.

        Raises:
            OverBudget: one has not so much left.
            BrokenBudget: one cannot be understood.
        """
        done: list[str] = []
        try:
            for name in names:

                def step(
                    spec: QiskitBudgetSpec, status: QiskitBudgetStatus, name: str = name
                ) -> QiskitBudgetStatus:
                    return books.reserve(name, spec, status, claim)

                await self.change(namespace, name, step, check)
                done.append(name)
        except (books.OverBudget, BrokenBudget):
            for name in names:
                await self.settle(namespace, name, claim.uid, Decimal(0), self.clock())
            raise

    async def settle(
        self, namespace: str, name: str, uid: str, amount: Decimal | None, ended: datetime
    ) -> None:
        """Turn the job's reservation in one budget into a charge; see :func:`books.settle`."""
        await self.change(
            namespace, name, lambda _, status: books.settle(status, uid, amount, ended)
        )

    async def settle_all(
        self, namespace: str, uid: str, amount: Decimal | None, ended: datetime
    ) -> None:
        """Settle a job with every budget that has a reservation of it, by the server's word."""
        if not self.budgets.list(namespace):
            return
        found = await self.client.list(QISKITBUDGETS, namespace)
        for each in found["items"]:
            claims = (each.get("status") or {}).get("reservations") or ()
            if any(claim.get("uid") == uid for claim in claims):
                await self.settle(namespace, each["metadata"]["name"], uid, amount, ended)

    async def change(
        self,
        namespace: str,
        name: str,
        step: Step,
        check: Callable[[], Awaitable[None]] = _nothing,
    ) -> tuple[QiskitBudgetStatus, QiskitBudgetStatus] | None:
        """One step of the record.

        Returns:
            The status before and after; None when the budget is gone.

        Raises:
            BrokenBudget: its spec cannot be understood.
        """
        async with self._locks.setdefault(f"{namespace}/{name}", asyncio.Lock()):
            while True:
                try:
                    budget = await self.client.get(QISKITBUDGETS, name, namespace)
                except NotFound:
                    return None
                await check()
                before = from_wire(budget.get("status") or {}, QiskitBudgetStatus)
                after = self._next(budget, before, step)
                if after == before:
                    return before, after
                try:
                    await self.client.replace(
                        QISKITBUDGETS, budget | {"status": to_wire(after)}, "status"
                    )
                except Conflict:
                    continue
                except NotFound:
                    return None
                return before, after

    def _next(self, budget: Object, status: QiskitBudgetStatus, step: Step) -> QiskitBudgetStatus:
        metadata, now = budget["metadata"], self.clock()
        try:
            spec = from_wire(budget["spec"], QiskitBudgetSpec, "spec")
            rolled = books.roll(spec, status, now, parse_time(metadata["creationTimestamp"]))
            # A money pattern that an older server did not check.
            books.reserved(rolled)
            return books.summarise(spec, step(spec, rolled), now)
        except ValueError as error:
            raise BrokenBudget(f"QiskitBudget {metadata['name']}: {error}") from None
