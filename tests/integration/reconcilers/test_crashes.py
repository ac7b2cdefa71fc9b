"""Nothing lost, nothing done twice: crashes between any two writes, and two leaders at once."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections.abc import Callable
from typing import Any

import pytest

from qiskit_controller.api import names
from qiskit_controller.api.run import Reason
from qiskit_controller.kube.client import CONFIGMAPS, JOBS, Conflict
from qiskit_controller.kube.objects import Object
from qiskit_controller.reconcilers.qiskitjob import decision
from qiskit_controller.reconcilers.qiskitjob.reconciler import QISKITJOBS, Caches

from .cluster import (
    Cluster,
    FaultyClient,
    Replica,
    Story,
    Watcher,
    be_evicted,
    conditions,
    counted,
    events_of,
    fail,
    in_turn,
    nothing_left,
    phase_of,
    qiskitjob,
    succeed,
    succeed_at_once,
    until,
)

ALL_PHASES = ["Pending", "Validating", "Scheduling", "Running", "Completed"]

# Takes long; `./hack/test extended` runs it.
pytestmark = [pytest.mark.usefixtures("quick_retries"), pytest.mark.extended]


@pytest.fixture
def quick_cache_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Job that is not in the cache is looked for again soon."""
    monkeypatch.setattr(decision, "POD_PATIENCE", decision.POD_PATIENCE / 20)


async def with_a_crash(
    cluster: Cluster, watcher: Watcher, faults: FaultyClient, act: Callable[[], Any] | None = None
) -> bool:
    """Run a controller that dies at the write that `faults` names, then another one.

    Returns:
        Whether it died; the story has no such write otherwise.
    """
    async with asyncio.timeout(120):
        first = await Replica(cluster.client, cluster.namespace, faults=faults).__aenter__()
        await cluster.client.create(QISKITJOBS, qiskitjob(), cluster.namespace)
        acting = asyncio.create_task(act()) if act else None
        died = asyncio.create_task(faults.crashed.wait())
        ended = asyncio.create_task(watcher.finished("bell"))
        await asyncio.wait({died, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not faults.crashed.is_set():
            # It may still die when it cleans up behind the last status.
            await asyncio.wait({died}, timeout=0.2)
        await first.die()
        died.cancel()
        async with Replica(cluster.client, cluster.namespace) as second:
            await ended
            if acting is not None:
                await acting
            await second.events.flush(10)
    return faults.crashed.is_set()


async def check_told_once(cluster: Cluster, name: str = "bell", attempts: int = 1) -> None:
    """An Event may be lost with the process that was about to write it, but none comes twice.

    What two attempts have in common is told of each.
    """
    told = counted(await events_of(cluster.client, cluster.namespace, name))
    assert told
    for text, times in told.items():
        assert times == 1 or (times <= attempts and text.startswith(_OF_EACH_ATTEMPT)), told


_OF_EACH_ATTEMPT = ("CircuitValid:", "BackendSelected:", "Running:")


async def check_one_job_for_each_attempt(cluster: Cluster, attempts: int) -> None:
    assert cluster.made == {("bell", n): 1 for n in range(1, attempts + 1)}
    found = await cluster.client.list(JOBS, cluster.namespace)
    assert len(found["items"]) == attempts


# There are 18 or a few more: how a pod comes to its feet is told in one or in two steps.
@pytest.mark.parametrize("at", range(1, 22))
async def test_a_crash_after_any_write(cluster: Cluster, watcher: Watcher, at: int) -> None:
    died = await with_a_crash(cluster, watcher, FaultyClient(cluster.client, at))
    assert died or at > 18
    assert watcher.phases("bell") == ALL_PHASES
    done = watcher.states["bell"][-1]
    assert done["status"]["results"]["counts"] == {"00": 500, "11": 524}
    await check_one_job_for_each_attempt(cluster, 1)
    await check_told_once(cluster)
    output = await cluster.client.get(CONFIGMAPS, "bell-results", cluster.namespace)
    assert output["data"]["attempt"] == "1"
    await cluster.client.delete(QISKITJOBS, "bell", cluster.namespace)
    async with Replica(cluster.client, cluster.namespace):
        await watcher.deleted("bell")
    await nothing_left(cluster.client, cluster.namespace)


@pytest.mark.parametrize("at", [1, 2, 3, 9, 10, 13, 18])
async def test_an_answer_that_is_lost(cluster: Cluster, watcher: Watcher, at: int) -> None:
    faults = FaultyClient(cluster.client, at, lose_answer=True)
    async with Replica(cluster.client, cluster.namespace, faults=faults) as replica:
        await cluster.client.create(QISKITJOBS, qiskitjob(), cluster.namespace)
        await watcher.phase("bell", "Completed")
        await replica.events.flush(10)
    assert faults.writes >= at
    assert watcher.phases("bell") == ALL_PHASES
    await check_one_job_for_each_attempt(cluster, 1)
    await check_told_once(cluster)


@pytest.mark.parametrize("at", range(11, 36, 3))
async def test_a_crash_around_retries(cluster: Cluster, watcher: Watcher, at: int) -> None:
    cluster.story = in_turn(fail(Reason.EXECUTOR_FAILED), be_evicted, succeed)
    await with_a_crash(cluster, watcher, FaultyClient(cluster.client, at))
    done = watcher.states["bell"][-1]
    assert phase_of(done) == "Completed"
    assert [each.get("reason") for each in done["status"]["attempts"]] == [
        "ExecutorFailed",
        "Evicted",
        None,
    ]
    # The Job of the evicted attempt is deleted, or it would make up for its pod.
    assert cluster.made == {("bell", 1): 1, ("bell", 2): 1, ("bell", 3): 1}
    await check_told_once(cluster, attempts=3)


@pytest.mark.parametrize("phase", ["Pending", "Running"])
@pytest.mark.parametrize("at", [10, 11, 13, 16])
async def test_a_crash_around_a_cancel(
    cluster: Cluster, watcher: Watcher, phase: str, at: int
) -> None:
    cluster.story = until(phase)

    async def cancel() -> None:
        await watcher.until("bell", lambda job: job["status"].get("attempts"), "it has started")
        await watcher.phase("bell", phase)
        await cluster.client.patch(
            QISKITJOBS, "bell", cluster.namespace, {"spec": {"cancel": True}}
        )

    await with_a_crash(cluster, watcher, FaultyClient(cluster.client, at), cancel)
    done = watcher.states["bell"][-1]
    assert phase_of(done) == "Cancelled"
    assert conditions(done)["Cancelled"]["status"] == "True"
    assert cluster.made == {("bell", 1): 1}
    async with Replica(cluster.client, cluster.namespace):
        await cluster.client.delete(QISKITJOBS, "bell", cluster.namespace)
        await watcher.deleted("bell")
    await nothing_left(cluster.client, cluster.namespace)


@pytest.mark.parametrize("at", [1, 2])
async def test_a_crash_around_a_deletion(cluster: Cluster, watcher: Watcher, at: int) -> None:
    cluster.story = until("Running")
    async with Replica(cluster.client, cluster.namespace):
        await cluster.client.create(QISKITJOBS, qiskitjob(), cluster.namespace)
        await watcher.phase("bell", "Running")
    await cluster.client.delete(QISKITJOBS, "bell", cluster.namespace)
    faults = FaultyClient(cluster.client, at)
    first = await Replica(cluster.client, cluster.namespace, faults=faults).__aenter__()
    await faults.crashed.wait()
    await first.die()
    async with Replica(cluster.client, cluster.namespace):
        await watcher.deleted("bell")
    await nothing_left(cluster.client, cluster.namespace)


@pytest.mark.parametrize(
    ("story", "end", "attempts"),
    [
        (succeed, "Completed", 1),
        (in_turn(fail(Reason.EXECUTOR_FAILED), be_evicted, succeed), "Completed", 3),
        (fail(Reason.CIRCUIT_INVALID), "Failed", 1),
    ],
)
async def test_two_at_once(
    cluster: Cluster, watcher: Watcher, story: Story, end: str, attempts: int
) -> None:
    cluster.story = story
    async with (
        Replica(cluster.client, cluster.namespace) as one,
        Replica(cluster.client, cluster.namespace) as other,
    ):
        for n in range(5):
            await cluster.client.create(QISKITJOBS, qiskitjob(f"bell-{n}"), cluster.namespace)
        for n in range(5):
            done = await watcher.finished(f"bell-{n}")
            assert phase_of(done) == end
            assert len(done["status"]["attempts"]) == attempts
        await one.events.flush(10)
        await other.events.flush(10)
    expected = {(f"bell-{n}", m): 1 for n in range(5) for m in range(1, attempts + 1)}
    assert cluster.made == expected
    for n in range(5):
        if attempts == 1 and end == "Completed":
            assert watcher.phases(f"bell-{n}") == ALL_PHASES
        await check_told_once(cluster, f"bell-{n}", attempts)


class Frozen:
    """An informer as it was at some time."""

    def __init__(self, informer: Any, objects: list[Object] | None = None) -> None:
        self._informer = informer
        found = informer.list() if objects is None else objects
        self._objects = {
            f"{each['metadata']['namespace']}/{each['metadata']['name']}": copy.deepcopy(each)
            for each in found
        }

    def get(self, key: str) -> Object | None:
        return self._objects.get(key)

    def by_index(self, name: str, value: str) -> list[Object]:
        function = self._informer._store._functions[name]
        return [each for each in self._objects.values() if value in function(each)]


@pytest.mark.usefixtures("quick_cache_checks")
@pytest.mark.parametrize("end", ["Completed", "Failed", "Cancelled", "Timeout"])
async def test_a_reconciler_that_lives_in_the_past_changes_nothing(
    cluster: Cluster, watcher: Watcher, end: str
) -> None:
    """Every state that the caches ever had, once the job has ended; with and without its Job."""
    stories: dict[str, Story] = {
        "Completed": in_turn(fail(Reason.EXECUTOR_FAILED), succeed),
        "Failed": fail(Reason.CIRCUIT_INVALID),
    }
    cluster.story = stories.get(end, until("Running"))
    execution = {"timeout": "1s" if end == "Timeout" else "1h"}
    async with Replica(cluster.client, cluster.namespace) as replica:
        await cluster.client.create(QISKITJOBS, qiskitjob(execution=execution), cluster.namespace)
        if end == "Cancelled":
            await watcher.phase("bell", "Running")
            await cluster.client.patch(
                QISKITJOBS, "bell", cluster.namespace, {"spec": {"cancel": True}}
            )
        done = await watcher.finished("bell")
        made = dict(cluster.made)
        past = list(watcher.states["bell"])
        live = replica.caches
        before = {each["metadata"]["uid"] for each in live.kubernetes_jobs.list(cluster.namespace)}
        now = Frozen(live.kubernetes_jobs)
        for state in past:
            for kubernetes_jobs in (now, Frozen(live.kubernetes_jobs, [])):
                replica.reconciler.caches = Caches(
                    jobs=Frozen(live.jobs, [state]),  # type: ignore[arg-type]
                    kubernetes_jobs=kubernetes_jobs,  # type: ignore[arg-type]
                    pods=Frozen(live.pods),  # type: ignore[arg-type]
                    config_maps=live.config_maps,
                )
                with contextlib.suppress(Conflict):  # It would come back with newer caches.
                    await replica.reconciler.reconcile(f"{cluster.namespace}/bell")
        replica.reconciler.caches = live
    after = await cluster.client.get(QISKITJOBS, "bell", cluster.namespace)
    assert after["status"] == done["status"] | {"message": after["status"]["message"]}
    assert phase_of(after) == phase_of(done)
    assert cluster.made == made
    found = await cluster.client.list(JOBS, cluster.namespace)
    assert {each["metadata"]["uid"] for each in found["items"]} <= before


async def test_two_hundred_at_once(
    cluster: Cluster, watcher: Watcher, capsys: pytest.CaptureFixture[str]
) -> None:
    number = 200
    cluster.story = succeed_at_once
    async with Replica(cluster.client, cluster.namespace, workers=8) as replica:
        began = time.monotonic()
        gate = asyncio.Semaphore(16)

        async def create(n: int) -> None:
            async with gate:
                await cluster.client.create(QISKITJOBS, qiskitjob(f"q{n}"), cluster.namespace)

        async with asyncio.TaskGroup() as tasks:
            for n in range(number):
                tasks.create_task(create(n))
        created = time.monotonic()
        ends = []
        for n in range(number):
            done = await watcher.finished(f"q{n}")
            assert phase_of(done) == "Completed"
            assert watcher.phases(f"q{n}") == ALL_PHASES
            ends.append(time.monotonic())
        finished = time.monotonic()
        assert len(replica.queue) == 0
    assert cluster.made == {(f"q{n}", 1): 1 for n in range(number)}
    found = await cluster.client.list(
        CONFIGMAPS, cluster.namespace, label_selector=f"{names.MANAGED_BY}={names.MANAGER}"
    )
    outputs = [each for each in found["items"] if each["metadata"]["name"].endswith("-results")]
    assert len(outputs) == number
    with capsys.disabled():
        print(
            f"\n{number} QiskitJobs: created in {created - began:.1f} s, all completed after "
            f"{finished - began:.1f} s ({number / (finished - began):.1f} a second)"
        )
