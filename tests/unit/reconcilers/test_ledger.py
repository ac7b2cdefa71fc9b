"""The books of budgets, kept by several controllers that die, lag and meet each other.

The API server is a dict that checks resourceVersions; everything above it is real. Each of the
controllers sees caches that are as old as the test pleases, and any write may be its last: the
write happens or not, and nothing after it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http import HTTPStatus
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.qiskitbudget import QiskitBudgetStatus, Reservation
from qiskit_controller.api.qiskitjob import CostStatus, QiskitJobStatus
from qiskit_controller.api.quantities import format_money, format_time, parse_money
from qiskit_controller.kube.errors import Conflict, NotFound
from qiskit_controller.reconcilers.qiskitbudget.ledger import Ledger
from qiskit_controller.reconcilers.qiskitbudget.reconciler import (
    QISKITJOBS,
    Alert,
    QiskitBudgetReconciler,
    charge_of,
)
from qiskit_controller.scheduling.budgets import OverBudget

Object = dict[str, Any]
NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
DOLLAR = Decimal(1)


class Crash(BaseException):
    """The controller was killed."""


@attrs.define
class Server:
    """Objects by kind and name; every write makes a new version."""

    objects: dict[tuple[str, str], Object] = attrs.field(factory=dict)
    version: int = 0

    def put(self, kind: str, obj: Object) -> Object:
        self.version += 1
        obj = copy.deepcopy(obj)
        obj["metadata"]["resourceVersion"] = str(self.version)
        self.objects[kind, obj["metadata"]["name"]] = obj
        return copy.deepcopy(obj)


@attrs.define
class Client:
    """One controller's way to the server; it dies at a write.

    Attributes:
        writes: how many are left; None for no end.
        happens: whether the last one still happens.
    """

    server: Server
    writes: int | None = None
    happens: bool = True
    job_read: Callable[[], Awaitable[None]] | None = None  # called once, after a job was read

    async def get(self, resource: Any, name: str, namespace: str | None = None) -> Object:
        await asyncio.sleep(0)
        found = self.server.objects.get((resource.plural, name))
        if found is None:
            raise NotFound(HTTPStatus.NOT_FOUND, "NotFound", name)
        found = copy.deepcopy(found)
        if self.job_read is not None and resource is QISKITJOBS:
            meanwhile, self.job_read = self.job_read, None
            await meanwhile()
        return found

    async def list(self, resource: Any, namespace: str | None = None) -> Object:
        await asyncio.sleep(0)
        items = [v for (kind, _), v in self.server.objects.items() if kind == resource.plural]
        return {"items": copy.deepcopy(items)}

    async def replace(self, resource: Any, obj: Object, subresource: str | None = None) -> Object:
        await asyncio.sleep(0)
        name, version = obj["metadata"]["name"], obj["metadata"]["resourceVersion"]
        current = self.server.objects.get((resource.plural, name))
        if current is None:
            raise NotFound(HTTPStatus.NOT_FOUND, "NotFound", name)
        if current["metadata"]["resourceVersion"] != version:
            raise Conflict(HTTPStatus.CONFLICT, "Conflict", name)
        last = self.writes == 0
        if self.writes is not None:
            self.writes -= 1
        if last and not self.happens:
            raise Crash
        written = self.server.put(resource.plural, obj)
        if last:
            raise Crash
        await asyncio.sleep(0)
        return written


@attrs.define
class Cache:
    """An informer that shows what was there when it last caught up."""

    server: Server
    kind: str
    objects: dict[str, Object] = attrs.field(factory=dict)

    def catch_up(self) -> None:
        self.objects = {
            name: copy.deepcopy(each)
            for (kind, name), each in self.server.objects.items()
            if kind == self.kind
        }

    def get(self, key: str) -> Object | None:
        return self.objects.get(key.partition("/")[2])

    def list(self, namespace: str | None = None) -> list[Object]:
        return list(self.objects.values())

    def by_index(self, name: str, value: str) -> list[Object]:
        assert name == "reservation"
        return [
            each
            for each in self.objects.values()
            if any(r["uid"] == value for r in (each.get("status") or {}).get("reservations", ()))
        ]


class Events:
    """Takes what is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def event(self, about: Object, kind: str, reason: str, message: str) -> None:
        self.told.append(f"{reason}: {message}")


@attrs.define
class World:
    """Jobs that cost a dollar or so, two budgets, and controllers that come and go."""

    server: Server = attrs.field(factory=Server)
    now: datetime = NOON
    cost: dict[str, Decimal] = attrs.field(factory=dict)  # what each job was charged in the end
    admitted: set[str] = attrs.field(factory=set)
    alerts: list[Alert] = attrs.field(factory=list)

    def budget(self, name: str, limit: str, **spec: Any) -> None:
        metadata = {
            "name": name,
            "namespace": "ns",
            "uid": f"budget-{name}",
            "generation": 1,
            "creationTimestamp": format_time(NOON),
        }
        self.server.put("qiskitbudgets", {"metadata": metadata, "spec": {"limit": limit, **spec}})

    def job(self, number: int) -> str:
        name = f"job-{number}"
        metadata = {"name": name, "namespace": "ns", "uid": name, "finalizers": ["f"]}
        self.server.put("qiskitjobs", {"metadata": metadata, "spec": {}, "status": {}})
        return name

    def controller(self, writes: int | None = None, happens: bool = True) -> Controller:
        return Controller(self, Client(self.server, writes, happens))

    def books(self, name: str) -> QiskitBudgetStatus:
        found = self.server.objects["qiskitbudgets", name]
        return from_wire(found.get("status") or {}, QiskitBudgetStatus)


class Controller:
    """What a controller does about money, on caches of its own."""

    def __init__(self, world: World, client: Client) -> None:
        self.world, self.client = world, client
        self.jobs = Cache(world.server, "qiskitjobs")
        self.budgets = Cache(world.server, "qiskitbudgets")
        self.ledger = Ledger(client, self.budgets, clock=lambda: world.now)  # type: ignore[arg-type]
        self.events = Events()
        self.reconciler = QiskitBudgetReconciler(
            client,  # type: ignore[arg-type]
            self.ledger,
            self.jobs,  # type: ignore[arg-type]
            self.events,  # type: ignore[arg-type]
            on_alert=self._alert,
        )
        self.catch_up()

    async def _alert(self, alert: Alert) -> None:
        self.world.alerts.append(alert)

    def catch_up(self) -> None:
        self.jobs.catch_up()
        self.budgets.catch_up()

    async def start(self, name: str, amount: Decimal) -> None:
        """Admit a job, as it is in the cache: reserve, then write its status."""
        cached = self.jobs.get(f"ns/{name}")
        if cached is None or cached["status"].get("phase"):
            return

        async def check() -> None:
            live = await self.client.get(QISKITJOBS, name, "ns")
            if live["metadata"]["resourceVersion"] != cached["metadata"]["resourceVersion"]:
                raise Conflict(HTTPStatus.CONFLICT, "Conflict", name)

        claim = Reservation(
            uid=name, job=name, amount=format_money(amount), since=format_time(self.world.now)
        )
        try:
            await self.ledger.reserve("ns", self.ledger.matching("ns", None), claim, check)
        except OverBudget:
            costs = CostStatus(estimated=format_money(amount), charged="$0.00")
            done = QiskitJobStatus(
                phase="Failed", costs=costs, completion_time=format_time(self.world.now)
            )
            await self._write(cached, done)
            return
        costs = CostStatus(estimated=format_money(amount))
        await self._write(cached, QiskitJobStatus(phase="Scheduling", costs=costs))

    async def end(self, name: str, amount: Decimal) -> None:
        """Write the job's end, with what it has cost."""
        cached = self.jobs.get(f"ns/{name}")
        if cached is None or cached["status"].get("phase") != "Scheduling":
            return
        given = from_wire(cached["status"], QiskitJobStatus)
        costs = attrs.evolve(given.costs, actual=format_money(amount), charged=format_money(amount))
        done = attrs.evolve(
            given, phase="Completed", costs=costs, completion_time=format_time(self.world.now)
        )
        await self._write(cached, done)

    async def delete(self, name: str) -> None:
        """Let an ended job go: settle, then take it away."""
        cached = self.jobs.get(f"ns/{name}")
        if cached is None or cached["status"].get("phase") not in ("Completed", "Failed"):
            return
        charge = charge_of(from_wire(cached["status"], QiskitJobStatus))
        await self.ledger.settle_all("ns", name, charge, self.world.now)
        self.world.cost[name] = charge
        self.world.server.objects.pop(("qiskitjobs", name), None)

    async def look(self) -> None:
        """Reconcile every budget."""
        for each in list(self.budgets.objects):
            await self.reconciler.reconcile(f"ns/{each}")

    async def _write(self, job: Object, status: QiskitJobStatus) -> None:
        await self.client.replace(QISKITJOBS, job | {"status": to_wire(status)}, "status")


def charged(world: World) -> Decimal:
    """What all jobs were charged, those that are gone included."""
    total = sum(world.cost.values(), Decimal(0))
    for (kind, name), job in world.server.objects.items():
        if kind == "qiskitjobs" and name not in world.cost:
            total += charge_of(from_wire(job["status"], QiskitJobStatus))
    return total


async def settle_down(world: World) -> None:
    """A controller that does not die brings everything to its end."""
    for _ in range(3):
        controller = world.controller()
        for (kind, name), job in list(world.server.objects.items()):
            if kind == "qiskitjobs" and not job["status"].get("phase"):
                await controller.start(name, DOLLAR)
                controller.catch_up()
        for name in list(controller.jobs.objects):
            await controller.end(name, DOLLAR / 2)
        controller.catch_up()
        await controller.look()


def total_of(status: QiskitBudgetStatus) -> Decimal:
    windows = (*([status.window] if status.window else []), *status.history)
    return sum((parse_money(each.spent) for each in windows), Decimal(0))


moves = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "end", "end", "delete", "look", "lag", "time", "crash"]),
        st.integers(0, 7),
        st.integers(0, 200),
    ),
    max_size=40,
)


@given(moves, st.integers(0, 9), st.booleans())
@settings(deadline=None, max_examples=300)
def test_the_books_balance_whatever_happens(
    played: list[tuple[str, int, int]], last_write: int, happens: bool
) -> None:
    async def play() -> None:
        world = World()
        world.budget("a", "$4.00", period="monthly")
        world.budget("b", "$5.00", period="total")
        for number in range(8):
            world.job(number)
        controllers = [world.controller(last_write, happens), world.controller()]
        for what, number, more in played:
            which = more % 2
            controller = controllers[which]
            name, amount = f"job-{number}", Decimal(more) / 100
            match what:
                case "lag":
                    controller.catch_up()
                    continue
                case "time":
                    world.now += timedelta(hours=more)
                    continue
                case "crash":
                    controllers[which] = world.controller(more % 10, more > 100)
                    continue
            steps: dict[str, Any] = {
                "start": lambda c=controller, n=name, a=amount: c.start(n, a),
                "end": lambda c=controller, n=name, a=amount: c.end(n, min(a, DOLLAR)),
                "delete": lambda c=controller, n=name: c.delete(n),
                "look": lambda c=controller: c.look(),
            }
            try:
                await steps[what]()
            except Crash:
                controllers[which] = world.controller()
            except (Conflict, NotFound):
                controller.catch_up()
        await settle_down(world)
        for name in ("a", "b"):
            books = world.books(name)
            assert books.reservations == ()
            assert total_of(books) == charged(world)

    asyncio.run(play())


@given(st.integers(1, 3), st.integers(0, 30), st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_race_of_many_controllers_lets_exactly_ten_through(
    controllers: int, last_write: int, happens: bool
) -> None:
    """Thirty jobs at once, each started by every controller, one of which dies on the way."""

    async def play() -> None:
        world = World()
        world.budget("team", "$10.00")
        names = [world.job(number) for number in range(30)]
        several = [world.controller() for _ in range(controllers)]
        several.append(world.controller(last_write, happens))

        async def start(controller: Controller, name: str) -> None:
            for _ in range(200):
                try:
                    await controller.start(name, DOLLAR)
                except Conflict:
                    controller.catch_up()
                    continue
                return

        tasks = [asyncio.create_task(_mortal(start(c, n))) for n in names for c in several]
        await asyncio.gather(*tasks)
        fresh = world.controller()
        for name in names:
            await start(fresh, name)
            fresh.catch_up()
        phases = _phases(world)
        assert phases.count("Scheduling") == 10
        assert phases.count("Failed") == 20
        assert len(world.books("team").reservations) == 10

    asyncio.run(play())


async def _mortal(step: Any) -> None:
    """A task of a controller that may die; the others go on."""
    with contextlib.suppress(Crash):
        await step


def _phases(world: World) -> list[str]:
    return [
        str(job["status"].get("phase"))
        for (kind, _), job in world.server.objects.items()
        if kind == "qiskitjobs"
    ]


async def _live_and_die(world: World, name: str) -> None:
    """A job's whole life, by a controller whose caches are current."""
    controller = world.controller()
    await controller.start(name, DOLLAR)
    controller.catch_up()
    await controller.end(name, DOLLAR)
    controller.catch_up()
    await controller.look()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_leader_of_the_past_cannot_charge_a_job_again(when: str) -> None:
    """All of the job's life passes before it asks, or just after it has read the job."""
    world = World()
    world.budget("team", "$5.00")
    name = world.job(1)
    old = world.controller()
    if when == "before":
        await _live_and_die(world, name)
    else:
        old.client.job_read = lambda: _live_and_die(world, name)
    with pytest.raises(Conflict):
        await old.start(name, DOLLAR)
    for _ in range(2):
        fresh = world.controller()
        await fresh.look()
    books = world.books("team")
    assert (books.spent, books.reserved) == ("$1.00", "$0.00")


async def test_a_budget_of_the_past_does_not_take_up_what_is_charged() -> None:
    """A controller that still believes the job to run adds no reservation of it."""
    world = World()
    world.budget("team", "$5.00")
    name = world.job(1)
    controller = world.controller()
    await controller.start(name, DOLLAR)
    old = world.controller()
    old.budgets.objects["team"]["status"]["reservations"] = []  # of before it was there
    controller.catch_up()
    await controller.end(name, DOLLAR)
    controller.catch_up()
    await controller.look()
    await old.look()
    assert (world.books("team").spent, world.books("team").reserved) == ("$1.00", "$0.00")


async def test_a_refusal_by_the_second_budget_gives_the_first_its_money_back() -> None:
    world = World()
    world.budget("a", "$5.00")
    world.budget("b", "$1.00")
    world.job(1)
    controller = world.controller()
    await controller.start("job-1", Decimal(2))
    assert _phases(world) == ["Failed"]
    assert world.books("a").reservations == ()
    assert world.books("b").reservations == ()


async def test_alerts_are_sent_once_for_each_threshold_and_period() -> None:
    world = World()
    world.budget("team", "$2.00", alertThresholds=[0.5, 1.0])
    for number in range(2):
        world.job(number)
    controller = world.controller()
    for number in range(2):
        await controller.start(f"job-{number}", DOLLAR)
        controller.catch_up()
        for _ in range(2):
            await controller.look()
            controller.catch_up()
    assert [(each.threshold, each.budget) for each in world.alerts] == [
        (0.5, "team"),
        (1.0, "team"),
    ]
    assert controller.events.told == [
        "BudgetThreshold: 50% of the limit of $2.00 is used: $0.00 spent, $1.00 reserved",
        "BudgetExhausted: 100% of the limit of $2.00 is used: $0.00 spent, $2.00 reserved",
    ]
    conditions = {each.type: each.status for each in world.books("team").conditions}
    assert conditions == {"Ready": "True", "Exceeded": "True"}


@pytest.mark.parametrize("gone", [True, False])
async def test_a_job_that_was_torn_away_is_charged_as_reserved(gone: bool) -> None:
    world = World()
    world.budget("team", "$2.00")
    world.job(1)
    controller = world.controller()
    await controller.start("job-1", DOLLAR)
    world.server.objects.pop(("qiskitjobs", "job-1"))
    if not gone:  # one of the same name is another one
        world.job(1)
        world.server.objects["qiskitjobs", "job-1"]["metadata"]["uid"] = "another"
    controller.catch_up()
    await controller.look()
    assert world.books("team").spent == "$1.00"


async def test_only_status_is_written_of_a_budget() -> None:
    world = World()
    world.budget("team", "$2.00")
    before = copy.deepcopy(world.server.objects["qiskitbudgets", "team"]["spec"])
    controller = world.controller()
    await controller.look()
    assert world.server.objects["qiskitbudgets", "team"]["spec"] == before
