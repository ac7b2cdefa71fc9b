"""The shell around :mod:`.assigning`: what there is to choose from, and making a choice true."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from decimal import Decimal

import attrs
import structlog

from qiskit_controller.api.billing import BillingUnit, parse_price
from qiskit_controller.api.codec import DecodeError, from_wire, to_wire
from qiskit_controller.api.qiskitbackend import (
    DeviceStatus,
    PricingSpec,
    QiskitBackendSpec,
    QiskitBackendStatus,
)
from qiskit_controller.api.qiskitbudget import Reservation
from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.api.quantities import format_money, format_time
from qiskit_controller.api.run import ASSIGNMENT_KEY, DEVICES_KEY, Assignment, Plan
from qiskit_controller.kube.client import Client
from qiskit_controller.kube.controller import Enqueue
from qiskit_controller.kube.errors import NotFound
from qiskit_controller.kube.informer import Informer
from qiskit_controller.kube.objects import Object, key_of
from qiskit_controller.kube.queue import WorkQueue
from qiskit_controller.kube.resources import CONFIGMAPS
from qiskit_controller.reconcilers.qiskitbudget.ledger import Ledger
from qiskit_controller.reconcilers.qiskitjob.assigning import Market, Offer, amount_of
from qiskit_controller.scheduling.prices import Tariff

log = structlog.get_logger(__name__)

# They run in the pod itself and cost nothing, unless a QiskitBackend says otherwise.
IN_THE_POD = frozenset({"local_simulator", "ibm_simulator"})


@attrs.frozen
class Chosen:
    """How a job that starts now will come to its backend; see :class:`Plan`."""

    select: bool = False
    probe: bool = False
    secret: str | None = None


@attrs.define
class Selecting:
    """Chooses among QiskitBackends, and reserves in QiskitBudgets.

    Attributes:
        backends: the cache of QiskitBackends.
    """

    client: Client
    backends: Informer
    ledger: Ledger
    tariff: Tariff

    def feed(self, queue: WorkQueue[str], jobs: Informer) -> None:
        """Queue the jobs that wait for a backend whenever one changes."""

        def waiting(backend: Object) -> Iterable[str]:
            for job in jobs.list(backend["metadata"]["namespace"]):
                if (job.get("status") or {}).get("phase") == "Scheduling":
                    yield key_of(job)

        self.backends.add_handler(Enqueue(queue, waiting))

    def at_start(self, namespace: str, spec: QiskitJobSpec) -> Chosen:
        """Whether the job has to wait for a choice, and who tells what there is."""
        found = self._backends(namespace, spec, _secret_of(spec))
        if found:
            return Chosen(select=True)
        if _secret_of(spec) is None and spec.backend.type not in IN_THE_POD:
            # A job without credentials is given to an account of the namespace.
            every = self._backends(namespace, spec, None, any_secret=True)
            best = min(every, key=_rank, default=None)
            if best is not None and best.spec.credentials and best.spec.credentials.secret_ref:
                return Chosen(select=True, secret=best.spec.credentials.secret_ref.name)
        in_the_pod = spec.backend.type in IN_THE_POD
        return Chosen(select=not in_the_pod, probe=not in_the_pod)

    async def market(self, plan: Plan) -> Market:
        """What there is for a job that waits."""
        namespace = plan.job.namespace
        try:
            record = await self.client.get(CONFIGMAPS, plan.record, namespace)
        except NotFound:
            record = {"metadata": {}}
        data = record.get("data") or {}
        backends = self._backends(namespace, plan.spec, plan.secret or _secret_of(plan.spec))
        offers = _offers(backends)
        told = _read_devices(data.get(DEVICES_KEY))
        known = {each.device.name for each in offers}
        offers += [
            Offer(type=plan.spec.backend.type, device=each)
            for each in told or ()
            if each.name not in known
        ]
        name = plan.spec.backend.name
        if told is not None and name is not None and all(o.device.name != name for o in offers):
            # The driver knows best why there is no such device, or why nobody may ask for it.
            unseen = DeviceStatus(name=name, operational=True)
            offers.append(Offer(type=plan.spec.backend.type, device=unseen))
        assignment = None
        if data.get(ASSIGNMENT_KEY):
            assignment = from_wire(json.loads(data[ASSIGNMENT_KEY]), Assignment)
        unprobed = any(each.status.last_probe is None for each in backends)
        return Market(
            offers=tuple(offers),
            tariff=self.tariff,
            expected=unprobed or (plan.probe and told is None),
            budgets=self.ledger.matching(namespace, plan.spec.budget),
            assignment=assignment,
            version=record["metadata"].get("resourceVersion", ""),
        )

    async def assign(
        self,
        plan: Plan,
        market: Market,
        assignment: Assignment,
        check: Callable[[], Awaitable[None]],
        enter: Callable[[], Awaitable[None]],
    ) -> None:
        """Reserve for the assignment, then write it into the record.

        Args:
            check: raises Conflict when the QiskitJob is not what was decided on.
            enter: takes the job's place in its session; called in between.

        Raises:
            OverBudget: a budget has not so much left; nothing is reserved.
            BrokenBudget: a budget cannot be understood.
            Conflict: the record has changed.
        """
        claim = Reservation(
            uid=plan.job.uid,
            job=plan.job.name,
            amount=format_money(amount_of(assignment.costs)),
            since=format_time(self.ledger.clock()),
        )
        await self.ledger.reserve(plan.job.namespace, market.budgets, claim, check)
        await enter()
        body = {
            "metadata": {"resourceVersion": market.version},
            "data": {ASSIGNMENT_KEY: json.dumps(to_wire(assignment))},
        }
        await self.client.patch(CONFIGMAPS, plan.record, plan.job.namespace, body)
        log.info("assigned", backend=assignment.name, number=assignment.number)

    async def release(
        self, namespace: str, uid: str, amount: Decimal | None, ended: datetime
    ) -> None:
        """Settle a job that goes away with every budget."""
        await self.ledger.settle_all(namespace, uid, amount, ended)

    def _backends(
        self,
        namespace: str,
        spec: QiskitJobSpec,
        secret: str | None,
        *,
        any_secret: bool = False,
    ) -> list[_Backend]:
        """Those that the job may be given to."""
        found = []
        for obj in self.backends.list(namespace):
            backend = _read(obj)
            if backend is None or backend.spec.type != spec.backend.type:
                continue
            name = backend.spec.name
            if None not in (name, spec.backend.name) and name != spec.backend.name:
                continue
            credentials = backend.spec.credentials
            own = credentials.secret_ref.name if credentials and credentials.secret_ref else None
            if any_secret or own == secret:
                found.append(backend)
        return found


@attrs.frozen
class _Backend:
    name: str
    spec: QiskitBackendSpec
    status: QiskitBackendStatus


def _rank(backend: _Backend) -> tuple[bool, int, str]:
    return not backend.spec.default, -backend.spec.priority, backend.name


def _read(obj: Object) -> _Backend | None:
    try:
        spec = from_wire(obj["spec"], QiskitBackendSpec)
        status = from_wire(obj.get("status") or {}, QiskitBackendStatus)
    except DecodeError as error:
        log.warning("QiskitBackend cannot be read", error=str(error))
        return None
    return _Backend(obj["metadata"]["name"], spec, status)


def _offers(backends: Iterable[_Backend]) -> list[Offer]:
    """Each device once: as the QiskitBackend with the highest priority has it."""
    found: dict[str, Offer] = {}
    for backend in sorted(backends, key=lambda each: (-each.spec.priority, each.name)):
        pricing = backend.spec.pricing
        for device in backend.status.devices:
            if backend.spec.name not in (None, device.name):
                continue
            offer = Offer(
                type=backend.spec.type,
                device=device,
                own=_own_prices(pricing),
                plan=pricing.plan if pricing else None,
            )
            found.setdefault(device.name, offer)
    return list(found.values())


def _own_prices(pricing: PricingSpec | None) -> dict[BillingUnit, Decimal] | None:
    if pricing is None:
        return None
    given: dict[BillingUnit, str | None] = {
        "task": pricing.per_task,
        "shot": pricing.per_shot,
        "second": pricing.per_second,
    }
    prices = {unit: parse_price(text) for unit, text in given.items() if text is not None}
    return prices or None


def _read_devices(text: str | None) -> tuple[DeviceStatus, ...] | None:
    if not text:
        return None
    try:
        return from_wire(json.loads(text), tuple[DeviceStatus, ...])
    except ValueError as error:  # what is no JSON, and what is no list of devices
        log.warning("devices cannot be read", error=str(error))
        return None


def _secret_of(spec: QiskitJobSpec) -> str | None:
    credentials = spec.credentials
    return credentials.secret_ref.name if credentials and credentials.secret_ref else None
