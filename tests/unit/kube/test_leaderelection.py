"""Leader election by several replicas over one server, in durations of about a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from qiskit_controller.kube.client import Client
from qiskit_controller.kube.leaderelection import LeaderElector, LeadershipLost

LEASE = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/leader"
DURATION, DEADLINE, PERIOD = 1.0, 0.7, 0.1


class Work:
    """Work that notes when it ran, and takes its time to stop."""

    def __init__(self, stops_in: float = 0.0) -> None:
        self.stops_in = stops_in
        self.started = asyncio.Event()
        self.stopped_at: float | None = None

    async def __call__(self) -> None:
        self.started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(self.stops_in)
            self.stopped_at = time.monotonic()


@pytest.fixture
def api(stateful: Any) -> Any:
    return stateful[0]


@pytest.fixture
async def client(stateful: Any, connect: Callable[..., Client]) -> AsyncIterator[Client]:
    async with connect(stateful[1]) as client:
        yield client


@pytest.fixture
def elector(client: Client) -> Callable[..., LeaderElector]:
    def make(identity: str, on_stuck: Any = never, **more: Any) -> LeaderElector:
        return LeaderElector(
            client, "ns", "leader", identity, DURATION, DEADLINE, PERIOD, on_stuck=on_stuck, **more
        )

    return make


def never() -> None:
    """The real one would end pytest."""
    pytest.fail("work did not stop in time")


def spec(api: Any) -> dict[str, Any]:
    lease: dict[str, Any] = api.objects[LEASE]["spec"]
    return lease


def put_lease(api: Any, **fields: Any) -> None:
    lease = api.objects.get(LEASE, {"metadata": {"name": "leader", "namespace": "ns"}, "spec": {}})
    api._store("MODIFIED", LEASE, {**lease, "spec": {**lease["spec"], **fields}})


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(("renew", "retry"), [(1.0, 0.1), (0.7, 0.6)])
async def test_durations_that_cannot_work(client: Client, renew: float, retry: float) -> None:
    with pytest.raises(ValueError, match="must exceed"):
        LeaderElector(client, "ns", "leader", "a", 1.0, renew, retry)


async def test_one_leads_the_others_stand_by(api: Any, elector: Any, running: Any) -> None:
    works = [Work() for _ in range(3)]
    electors = [elector(name) for name in "abc"]
    tasks = [running(e.run(w)) for e, w in zip(electors, works, strict=True)]
    await asyncio.sleep(1.5 * DURATION)
    assert spec(api)["leaseTransitions"] == 0
    assert spec(api)["leaseDurationSeconds"] == 1
    (leader,) = (n for n, work in zip("abc", works, strict=True) if work.started.is_set())
    assert {e.holder for e in electors} == {spec(api)["holderIdentity"]} == {leader}
    assert not any(task.done() for task in tasks)


async def test_a_released_lease_is_taken_at_once(api: Any, client: Client, running: Any) -> None:
    """Also by a standby that by its timer alone would look much later."""
    first = LeaderElector(client, "ns", "leader", "a", 60, 40, 20)
    second = LeaderElector(client, "ns", "leader", "b", 60, 40, 20)
    work_a, work_b = Work(stops_in=0.1), Work()
    task = running(first.run(work_a))
    await asyncio.wait_for(work_a.started.wait(), 5)
    running(second.run(work_b))
    await asyncio.sleep(0.2)
    before = time.monotonic()
    await cancelled(task)
    await asyncio.wait_for(work_b.started.wait(), 5)
    assert time.monotonic() - before < 1
    assert work_a.stopped_at is not None
    assert work_a.stopped_at - before >= 0.1  # stopped first, released then
    assert spec(api)["leaseTransitions"] == 1


async def test_a_dead_leaders_lease_runs_out_by_our_clock_not_by_its(
    api: Any, elector: Any, running: Any
) -> None:
    put_lease(api, holderIdentity="dead", leaseDurationSeconds=1, leaseTransitions=4,
              renewTime="1999-01-01T00:00:00.000000Z")  # fmt: skip
    work = Work()
    before = time.monotonic()
    running(elector("a").run(work))
    await asyncio.wait_for(work.started.wait(), 5)
    assert 1.0 <= time.monotonic() - before < 1.5
    assert spec(api)["leaseTransitions"] == 5


async def test_a_renewed_lease_is_left_alone(api: Any, elector: Any, running: Any) -> None:
    put_lease(api, holderIdentity="other", leaseDurationSeconds=1, renewTime="0")
    work = Work()
    running(elector("a").run(work))
    for renewal in range(12):
        await asyncio.sleep(0.1)
        put_lease(api, renewTime=str(renewal))
    assert not work.started.is_set()


@pytest.mark.parametrize("outage", ["down", "hang"])
async def test_an_unreachable_server_costs_leadership_in_time(
    api: Any, elector: Any, running: Any, outage: str
) -> None:
    work = Work(stops_in=0.1)
    task = running(elector("a").run(work))
    await asyncio.wait_for(work.started.wait(), 5)
    setattr(api, outage, True)
    with pytest.raises(LeadershipLost):
        await asyncio.wait_for(task, 5)
    assert work.stopped_at is not None
    # Nobody can have seen the last renewal before it was stored.
    assert DEADLINE / 2 < work.stopped_at - api.stored_at < DURATION
    api.hang = False  # so that the server can stop


async def test_an_outage_shorter_than_the_deadline_is_survived(
    api: Any, elector: Any, running: Any
) -> None:
    work = Work()
    task = running(elector("a").run(work))
    await asyncio.wait_for(work.started.wait(), 5)
    api.down = True
    await asyncio.sleep(DEADLINE / 2)
    api.down = False
    await asyncio.sleep(DEADLINE)
    assert not task.done()


async def test_work_that_will_not_stop_ends_the_process(
    api: Any, elector: Any, running: Any
) -> None:
    ends: list[float] = []
    work = Work(stops_in=2 * DURATION)
    task = running(elector("a", on_stuck=lambda: ends.append(time.monotonic())).run(work))
    await asyncio.wait_for(work.started.wait(), 5)
    api.down = True
    with pytest.raises(LeadershipLost):
        await asyncio.wait_for(task, 5)
    (ended,) = ends
    assert DURATION / 2 < ended - api.stored_at <= DURATION + 0.05


async def test_a_lease_in_other_hands_is_lost_without_further_ado(
    api: Any, elector: Any, running: Any
) -> None:
    work = Work()
    leader = elector("a")
    task = running(leader.run(work))
    await asyncio.wait_for(work.started.wait(), 5)
    put_lease(api, holderIdentity="b")
    before = time.monotonic()
    with pytest.raises(LeadershipLost, match="b has taken"):
        await asyncio.wait_for(task, 5)
    assert time.monotonic() - before < DEADLINE
    assert spec(api)["holderIdentity"] == "b"
    # A renewal that met a conflict, and a look at why; no attempt to release.
    assert [method for method, _ in api.requests[-2:]] == ["PUT", "GET"]


async def test_a_change_by_a_third_party_costs_nothing(
    api: Any, elector: Any, running: Any
) -> None:
    work = Work()
    task = running(elector("a").run(work))
    await asyncio.wait_for(work.started.wait(), 5)
    put_lease(api)  # a new resourceVersion, as from `kubectl annotate`
    await asyncio.sleep(3 * PERIOD)
    del api.objects[LEASE]
    await asyncio.sleep(DEADLINE)
    assert not task.done()
    assert spec(api)["holderIdentity"] == "a"


async def test_the_lease_is_renewed_until_slow_work_has_stopped(
    api: Any, elector: Any, running: Any
) -> None:
    work, next_work = Work(stops_in=1.2 * DURATION), Work()
    task = running(elector("a").run(work))
    await asyncio.wait_for(work.started.wait(), 5)
    running(elector("b").run(next_work))
    task.cancel()
    await asyncio.wait_for(next_work.started.wait(), 5)
    assert work.stopped_at is not None
    assert time.monotonic() - work.stopped_at < 0.5
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_lease_is_released_when_the_work_ends(api: Any, elector: Any) -> None:
    async def done() -> None:
        pass

    async def fail() -> None:
        raise RuntimeError("a defect")

    await elector("a").run(done)
    assert (spec(api)["holderIdentity"], spec(api)["leaseDurationSeconds"]) == ("", 1)
    with pytest.raises(RuntimeError, match="a defect"):
        await elector("a").run(fail)
    assert spec(api)["holderIdentity"] == ""


async def test_a_release_that_fails_does_not_keep_the_process(
    api: Any, elector: Any, running: Any
) -> None:
    work = Work()
    task = running(elector("a").run(work))
    await asyncio.wait_for(work.started.wait(), 5)
    api.refuse = 403, "Forbidden"
    before = time.monotonic()
    await cancelled(task)
    assert time.monotonic() - before < DEADLINE
    assert spec(api)["holderIdentity"] == "a"


async def test_a_standby_can_be_cancelled(api: Any, elector: Any) -> None:
    put_lease(api, holderIdentity="other", leaseDurationSeconds=60)
    task = asyncio.create_task(elector("a").run(Work()))
    await asyncio.sleep(0.05)
    await cancelled(task)
    assert spec(api)["holderIdentity"] == "other"


async def test_metrics(api: Any, elector: Any) -> None:
    class Leading(list[bool]):
        def leading(self, leading: bool) -> None:
            self.append(leading)

    async def done() -> None:
        assert metrics == [True]

    metrics = Leading()
    await elector("a", metrics=metrics).run(done)
    assert metrics == [True, False]
