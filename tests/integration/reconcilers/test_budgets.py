"""Money on a real API server: budgets that cannot be raced, and books that balance."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Self

import attrs
import pytest

from qiskit_controller.api import names
from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.quantities import parse_money
from qiskit_controller.api.run import (
    ASSIGNMENT_KEY,
    Assignment,
    Progress,
    Reason,
    progress_key,
)
from qiskit_controller.kube.client import CONFIGMAPS, Client, Conflict, NotFound
from qiskit_controller.kube.controller import Controller, Result
from qiskit_controller.kube.informer import Informer
from qiskit_controller.kube.queue import WorkQueue
from qiskit_controller.kube.ratelimit import ItemExponentialBackoff
from qiskit_controller.reconcilers.qiskitbackend.reconciler import (
    QISKITBACKENDS,
    QiskitBackendReconciler,
    backends_informer,
)
from qiskit_controller.reconcilers.qiskitbudget.ledger import QISKITBUDGETS, Ledger
from qiskit_controller.reconcilers.qiskitbudget.reconciler import (
    Alert,
    QiskitBudgetReconciler,
    budgets_informer,
)
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings
from qiskit_controller.reconcilers.qiskitjob.market import Selecting
from qiskit_controller.reconcilers.qiskitjob.reconciler import QISKITJOBS
from qiskit_controller.scheduling.prices import Tariff, shipped

from ...unit.reconcilers import kubelet  # noqa: TID252 - tests are no package to be imported from
from .cluster import (
    Cluster,
    FaultyClient,
    Pod,
    Replica,
    Watcher,
    conditions,
    events_until,
    eventually,
    now,
    phase_of,
    qiskitjob,
    reach,
)

Object = dict[str, Any]


class MoneyReplica(Replica):
    """The controller with its budgets and backends, as `manager.py` wires them."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        *,
        faults: FaultyClient | None = None,
        workers: int = 8,
        clock: Callable[[], datetime] = now,
    ) -> None:
        super().__init__(client, namespace, faults=faults, workers=workers)
        used: Client = faults or client  # type: ignore[assignment]
        self.alerts: list[Alert] = []
        self.informers: tuple[Informer, ...] = (budgets_informer(client), backends_informer(client))
        ledger = Ledger(used, self.informers[0], clock=clock)
        self.reconciler.selecting = Selecting(used, self.informers[1], ledger, Tariff(shipped()))
        self.reconciler.clock = clock
        self._queues: list[WorkQueue[str]] = []
        self._others: list[Controller] = []
        self.budgets = QiskitBudgetReconciler(
            used, ledger, self.caches.jobs, self.events, on_alert=self._alert
        )
        self.backends = QiskitBackendReconciler(
            used,
            self.informers[1],
            self.caches.kubernetes_jobs,
            self.caches.pods,
            self.events,
            Settings(runner_image="runner"),
        )
        for each in (self.budgets, self.backends):
            self._add(each)

    def _add(self, reconciler: Any) -> None:
        queue: WorkQueue[str] = WorkQueue(ItemExponentialBackoff(base=0.002, cap=0.05))

        async def reconcile(key: str) -> Result:
            if not key.startswith(f"{self._namespace}/"):
                return Result()
            result: Result = await reconciler.reconcile(key)
            return result

        self._queues.append(queue)
        self._others.append(Controller("money", queue, reconcile, 2))

    async def _alert(self, alert: Alert) -> None:
        self.alerts.append(alert)

    async def __aenter__(self) -> Self:
        assert self.reconciler.selecting is not None
        self.reconciler.selecting.feed(self.queue, self.caches.jobs)
        for each, queue in zip((self.budgets, self.backends), self._queues[:2], strict=True):
            each.feed(queue)
        for informer in self.informers:
            self._tasks.start(informer.run())
        for informer in self.informers:
            await informer.wait_synced(60)
        await super().__aenter__()
        # As the manager does: nobody works before every cache is filled.
        for each in self._others:
            self._tasks.start(each.run())
        return self


async def assigned(pod: Pod) -> Assignment:
    """The executor's side: tell of the circuit, wait for the backend, take it up."""
    await reach(pod, "Scheduling")
    return await take_up(pod)


async def take_up(pod: Pod) -> Assignment:
    """The same for an executor that has told of the circuit already."""
    name = names.record_name(pod.owner)
    while True:
        record = await pod.client.get(CONFIGMAPS, name, pod.namespace)
        text = (record.get("data") or {}).get(ASSIGNMENT_KEY)
        if text:
            found = from_wire(json.loads(text), Assignment)
            taken = attrs.evolve(
                kubelet.progress(pod.attempt, "Validated"), assignment=found.number
            )
            with contextlib.suppress(Conflict):
                await tell(pod, taken, record["metadata"]["resourceVersion"])
                return found
        await asyncio.sleep(0.02)


async def tell(pod: Pod, progress: Progress, version: str | None = None) -> None:
    body: Object = {"data": {progress_key(pod.attempt): json.dumps(to_wire(progress))}}
    if version:
        body["metadata"] = {"resourceVersion": version}
    await pod.client.patch(CONFIGMAPS, names.record_name(pod.owner), pod.namespace, body)


async def run_where_told(pod: Pod) -> None:
    """All goes well, on the backend that was chosen."""
    await run_on(pod, await assigned(pod))


async def run_on(pod: Pod, chosen: Assignment) -> None:
    """All goes well, on that backend."""
    told = kubelet.progress(pod.attempt, "Executing")
    await tell(pod, attrs.evolve(told, backend=chosen.name, assignment=chosen.number))
    await pod.store()
    message = kubelet.success(pod.attempt, now(), backend=chosen.name)
    done = kubelet.terminated(now())
    await pod.status(kubelet.pod_status(done, kubelet.terminated(now(), message=message)))


async def fail_where_told(pod: Pod) -> None:
    """It executes, and then something is wrong for good."""
    chosen = await assigned(pod)
    await tell(pod, attrs.evolve(kubelet.progress(pod.attempt, "Executing"), backend=chosen.name))
    await asyncio.sleep(0.3)
    message = kubelet.failure(pod.attempt, Reason.BACKEND_REFUSED)
    done = kubelet.terminated(now())
    await pod.status(kubelet.pod_status(done, kubelet.terminated(now(), 1, message=message)))


async def wait_forever(pod: Pod) -> None:
    """It takes up its backend and then waits in its queue."""
    await assigned(pod)


def budget(name: str = "team", limit: str = "$10.00", **more: Any) -> Object:
    return {
        "apiVersion": "quantum.io/v1",
        "kind": "QiskitBudget",
        "metadata": {"name": name},
        "spec": {"limit": limit, **more},
    }


def backend(_name: str = "local", **spec: Any) -> Object:
    """Aer, which the operator lets the team pay for."""
    return {
        "apiVersion": "quantum.io/v1",
        "kind": "QiskitBackend",
        "metadata": {"name": _name},
        "spec": {"type": "local_simulator", "pricing": {"perTask": "$1.00"}, **spec},
    }


async def books_of(client: Client, namespace: str, name: str = "team") -> Object:
    found = await client.get(QISKITBUDGETS, name, namespace)
    status: Object = found.get("status") or {}
    return status


async def settled(cluster: Cluster, name: str = "team") -> Object:
    """The budget's status once nothing is reserved any more."""

    async def done() -> bool:
        status = await books_of(cluster.client, cluster.namespace, name)
        return bool(status) and not status.get("reservations")

    await eventually(done, "every reservation is settled")
    return await books_of(cluster.client, cluster.namespace, name)


@pytest.fixture
async def priced(cluster: Cluster) -> Cluster:
    """A namespace in which a run costs a dollar and ten may be spent."""
    cluster.story = run_where_told
    await cluster.client.create(QISKITBUDGETS, budget(), cluster.namespace)
    await cluster.client.create(QISKITBACKENDS, backend(), cluster.namespace)
    return cluster


async def release(cluster: Cluster, number: int, name: str = "q") -> None:
    """That many jobs at once."""
    async with asyncio.TaskGroup() as tasks:
        for n in range(number):
            job = qiskitjob(f"{name}{n}")
            tasks.create_task(cluster.client.create(QISKITJOBS, job, cluster.namespace))


async def race(priced: Cluster, watcher: Watcher, number: int) -> None:
    await release(priced, number)
    done = [await watcher.finished(f"q{n}") for n in range(number)]
    by_phase = Counter(map(phase_of, done))
    assert by_phase == {"Completed": 10, "Failed": number - 10}
    for job in done:
        found = conditions(job)
        if phase_of(job) == "Completed":
            assert (job["status"]["cost"], found["BackendSelected"]["status"]) == ("$1.00", "True")
            costs = job["status"]["costs"]
            assert (costs["estimated"], costs["actual"], costs["charged"]) == ("$1.00",) * 3
        else:
            assert found["Failed"]["reason"] == "BudgetExceeded"
            assert found["BudgetExceeded"]["status"] == "True"
            assert found["BudgetExceeded"]["message"].startswith(
                "Estimated cost $1.00 exceeds the $0.00 that remain of QiskitBudget team"
            )
            assert (
                job["status"]["costs"]["charged"] == "$0.00" if "costs" in job["status"] else True
            )
    books = await settled(priced)
    assert (books["spent"], books["reserved"], books["remaining"]) == ("$10.00", "$0.00", "$0.00")
    assert books["window"]["jobs"] == 10


async def test_a_budget_for_ten_lets_ten_of_thirty_through(
    priced: Cluster, watcher: Watcher
) -> None:
    async with MoneyReplica(priced.client, priced.namespace) as replica:
        await race(priced, watcher, 30)
        assert [each.threshold for each in replica.alerts] == [0.8, 1.0]


@pytest.mark.extended
@pytest.mark.parametrize("round_", range(20))
async def test_a_budget_for_ten_lets_ten_of_a_hundred_through(
    priced: Cluster, watcher: Watcher, round_: int
) -> None:
    async with MoneyReplica(priced.client, priced.namespace):
        await race(priced, watcher, 100)


async def test_two_controllers_at_once_let_no_more_through(
    priced: Cluster, watcher: Watcher
) -> None:
    async with (
        MoneyReplica(priced.client, priced.namespace),
        MoneyReplica(priced.client, priced.namespace),
    ):
        await race(priced, watcher, 30)


@pytest.mark.extended
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_books_balance_after_random_crashes(
    priced: Cluster, watcher: Watcher, seed: int
) -> None:
    """Controllers that die after any of their writes, one after the other."""
    numbers = random.Random(seed)
    jobs = 16

    async def story(pod: Pod) -> None:
        await (fail_where_told if pod.owner.endswith("3") else run_where_told)(pod)

    priced.story = story
    await priced.client.create(QISKITBUDGETS, budget("all", "$1000.00"), priced.namespace)
    created = asyncio.create_task(release(priced, jobs))
    ended = asyncio.gather(*(watcher.finished(f"q{n}") for n in range(jobs)))
    crashes = 0
    while not ended.done():
        faults = FaultyClient(priced.client, numbers.randint(1, 60))
        replica = await MoneyReplica(priced.client, priced.namespace, faults=faults).__aenter__()
        died = asyncio.create_task(faults.crashed.wait())
        await asyncio.wait({died, ended}, return_when=asyncio.FIRST_COMPLETED)
        crashes += faults.crashed.is_set()
        await replica.die()
        died.cancel()
    await created
    assert crashes > 5
    async with MoneyReplica(priced.client, priced.namespace):
        books = await settled(priced)
        every = await settled(priced, "all")
    found = await priced.client.list(QISKITJOBS, priced.namespace)
    charged = sum(
        (
            parse_money(each["status"]["costs"]["charged"])
            for each in found["items"]
            if "costs" in each["status"]
        ),
        Decimal(0),
    )
    assert parse_money(books["spent"]) == parse_money(every["spent"]) == charged
    assert charged == 10
    refused = [each for each in found["items"] if "BudgetExceeded" in conditions(each)]
    assert len(refused) == jobs - 10


async def test_what_deleted_jobs_have_cost_stays_charged(priced: Cluster, watcher: Watcher) -> None:
    async with MoneyReplica(priced.client, priced.namespace):
        await release(priced, 2)
        for n in range(2):
            await watcher.finished(f"q{n}")
        priced.story = wait_forever
        await release(priced, 1, "queued")
        await watcher.until("queued0", lambda job: "costs" in job["status"], "it has a backend")
        assert (await books_of(priced.client, priced.namespace))["reserved"] != "$0.00"
        priced.story = fail_where_told
        for name in ("q0", "q1", "queued0"):
            await priced.client.delete(QISKITJOBS, name, priced.namespace)
            await watcher.deleted(name)
        books = await settled(priced)
    # Nothing had begun to execute of the one in the queue.
    assert (books["spent"], books["remaining"]) == ("$2.00", "$8.00")


async def test_a_job_that_somebody_tears_away_is_charged_as_reserved(
    priced: Cluster, watcher: Watcher
) -> None:
    priced.story = wait_forever
    async with MoneyReplica(priced.client, priced.namespace):
        await release(priced, 1)
        await watcher.until("q0", lambda job: "costs" in job["status"], "it has a backend")
    await priced.client.delete(QISKITJOBS, "q0", priced.namespace)
    await priced.client.patch(
        QISKITJOBS, "q0", priced.namespace, {"metadata": {"finalizers": None}}
    )
    async with MoneyReplica(priced.client, priced.namespace):
        books = await settled(priced)
    assert books["spent"] == "$1.00"


async def test_a_month_ends_while_jobs_run(priced: Cluster, watcher: Watcher) -> None:
    """Crossed by a clock of the test's own; what ended in March is March's."""
    moment = [datetime(2026, 3, 31, 23, 59, 30, tzinfo=UTC)]

    def clock() -> datetime:
        return moment[0]

    hold = asyncio.Event()

    async def story(pod: Pod) -> None:
        if pod.owner.startswith("held"):
            chosen = await assigned(pod)
            await tell(
                pod, attrs.evolve(kubelet.progress(pod.attempt, "Executing"), backend=chosen.name)
            )
            await hold.wait()
            await pod.store()
            message = kubelet.success(pod.attempt, now())
            ran = kubelet.terminated(now(), message=message)
            await pod.status(kubelet.pod_status(kubelet.terminated(now()), ran))
        else:
            await run_where_told(pod)

    priced.story = story
    async with MoneyReplica(priced.client, priced.namespace, clock=clock) as replica:
        await release(priced, 8)
        for n in range(8):
            await watcher.finished(f"q{n}")
        await release(priced, 2, "held")
        for n in range(2):
            await watcher.phase(f"held{n}", "Running")
        moment[0] += timedelta(minutes=1)
        # Eight were spent in March, two are reserved still, so eight are left of April's ten.
        hold.set()
        await release(priced, 9, "april")
        done = [await watcher.finished(f"april{n}") for n in range(9)]
        for n in range(2):
            await watcher.finished(f"held{n}")
        assert Counter(map(phase_of, done)) == {"Completed": 8, "Failed": 1}
        books = await settled(priced)
        assert books["window"] == {
            "start": "2026-04-01T00:00:00Z",
            "end": "2026-05-01T00:00:00Z",
            "spent": "$10.00",
            "jobs": 10,
        }
        assert [(each["start"], each["spent"]) for each in books["history"]] == [
            ("2026-03-01T00:00:00Z", "$8.00")
        ]
        assert [each.period_start for each in replica.alerts] == [
            "2026-03-01T00:00:00Z",
            "2026-03-01T00:00:00Z",
            "2026-04-01T00:00:00Z",
            "2026-04-01T00:00:00Z",
        ]


async def test_the_message_of_the_reference(priced: Cluster, watcher: Watcher) -> None:
    client, namespace = priced.client, priced.namespace
    named = {"type": "local_simulator", "name": "aer_simulator_statevector"}
    dear = backend("dear", **named | {"pricing": {"perTask": "$15.00"}})
    await client.create(QISKITBACKENDS, dear, namespace)
    async with MoneyReplica(client, namespace):
        job = qiskitjob("dear", backend=named, budget={"maxCost": "$10.00"})
        await client.create(QISKITJOBS, job, namespace)
        failed = await watcher.finished("dear")
        assert phase_of(failed) == "Failed"
        found = conditions(failed)["BudgetExceeded"]
        assert found["status"] == "True"
        assert found["message"] == "Estimated cost $15.00 exceeds budget $10.00"
        await events_until(client, namespace, "dear", "BudgetExceeded")
        books = await settled(priced)
        assert (books["spent"], books["reserved"]) == ("$0.00", "$0.00")


async def test_a_new_budget_counts_what_was_there_before(priced: Cluster, watcher: Watcher) -> None:
    async with MoneyReplica(priced.client, priced.namespace):
        await release(priced, 2)
        for n in range(2):
            await watcher.finished(f"q{n}")
        priced.story = wait_forever
        await release(priced, 1, "late")
        await watcher.until("late0", lambda job: "costs" in job["status"], "it has a backend")
        await priced.client.create(QISKITBUDGETS, budget("second"), priced.namespace)

        async def counted() -> bool:
            status = await books_of(priced.client, priced.namespace, "second")
            return (status.get("spent"), status.get("reserved")) == ("$2.00", "$1.00")

        await eventually(counted, "the new budget has the old jobs")


async def test_a_broken_budget_lets_nothing_through_and_says_why(
    priced: Cluster, watcher: Watcher
) -> None:
    client, namespace = priced.client, priced.namespace
    await client.create(QISKITBUDGETS, budget("broken", timeZone="Mars/Olympus"), namespace)
    async with MoneyReplica(client, namespace):
        await release(priced, 1)
        job = await watcher.until(
            "q0", lambda job: "BackendSelected" in conditions(job), "it is told why it waits"
        )
        found = conditions(job)["BackendSelected"]
        assert (found["status"], found["reason"]) == ("False", "BudgetInvalid")
        assert "there is no time zone 'Mars/Olympus'" in found["message"]

        async def said() -> bool:
            status = await books_of(client, namespace, "broken")
            return any(each["reason"] == "InvalidSpec" for each in status.get("conditions", ()))

        await eventually(said, "the budget says what is wrong with it")
        await client.patch(QISKITBUDGETS, "broken", namespace, {"spec": {"timeZone": "UTC"}})
        replaced = await client.get(QISKITBUDGETS, "broken", namespace)
        assert replaced["spec"]["timeZone"] == "UTC"
        # It looks again after half a minute; a person would do something sooner.
        await client.patch(
            QISKITJOBS, "q0", namespace, {"metadata": {"annotations": {"look": "again"}}}
        )
        assert phase_of(await watcher.finished("q0")) == "Completed"
    with pytest.raises(NotFound):
        await client.get(QISKITBUDGETS, "none", namespace)
