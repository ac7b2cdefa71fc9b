from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from qiskit_controller.kube.client import Conflict
from qiskit_controller.kube.controller import RESYNC_PRIORITY, Controller, Enqueue, Result
from qiskit_controller.kube.queue import WorkQueue
from qiskit_controller.kube.ratelimit import ItemExponentialBackoff


class Outcomes(list[str]):
    def reconciled(self, outcome: str, seconds: float) -> None:
        self.append(outcome)


@pytest.fixture
def queue() -> WorkQueue[str]:
    return WorkQueue(ItemExponentialBackoff(base=0.001, cap=0.01))


async def reconciled(queue: WorkQueue[str], reconcile: Callable[..., Any], **more: Any) -> None:
    """Run a controller on what is in the queue until nothing is left."""
    controller = Controller("test", queue, reconcile, **more)
    running = asyncio.create_task(controller.run())
    await asyncio.sleep(0.05)
    assert await queue.shut_down_with_drain(1)
    await asyncio.wait_for(running, 1)


async def test_success_forgets_failures(queue: WorkQueue[str]) -> None:
    seen: list[str] = []

    async def reconcile(key: str) -> Result:
        seen.append(key)
        if len(seen) < 3:
            raise RuntimeError("not yet")
        assert queue.num_requeues(key) == 2
        return Result()

    outcomes = Outcomes()
    queue.add("ns/a")
    with capture_logs() as logs:
        await reconciled(queue, reconcile, metrics=outcomes)
    assert seen == ["ns/a"] * 3
    assert queue.num_requeues("ns/a") == 0
    assert outcomes == ["error", "error", "success"]
    errors = [entry for entry in logs if entry["log_level"] == "error"]
    assert [entry["failures"] for entry in errors] == [1, 2]
    assert all(entry["exc_info"] for entry in errors)


async def test_a_conflict_is_retried_without_noise(queue: WorkQueue[str]) -> None:
    tries = 0

    async def reconcile(key: str) -> Result:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Conflict(409, "Conflict", "the object has been modified")
        return Result()

    queue.add("ns/a")
    with capture_logs() as logs:
        await reconciled(queue, reconcile)
    assert tries == 2
    assert {entry["log_level"] for entry in logs} == {"debug"}


async def test_requeue_after(queue: WorkQueue[str]) -> None:
    times: list[float] = []

    async def reconcile(key: str) -> Result:
        times.append(asyncio.get_running_loop().time())
        return Result(requeue_after=0.02 if len(times) == 1 else None)

    queue.add("ns/a")
    await reconciled(queue, reconcile)
    assert len(times) == 2
    assert times[1] - times[0] >= 0.015


async def test_urgent_keys_stay_urgent_and_reminders_do_not_stay_reminders(
    queue: WorkQueue[str],
) -> None:
    priorities: list[tuple[str, int]] = []

    async def reconcile(key: str) -> Result:
        priorities.append((key, queue.priority_of(key)))
        return Result(requeue_after=0.01 if len(priorities) <= 2 else None)

    queue.add("urgent", priority=10)
    queue.add("reminder", priority=RESYNC_PRIORITY)
    await reconciled(queue, reconcile, workers=1)
    assert priorities == [("urgent", 10), ("reminder", -100), ("urgent", 10), ("reminder", 0)]


async def test_workers_run_at_the_same_time(queue: WorkQueue[str]) -> None:
    meeting = asyncio.Barrier(3)

    async def reconcile(key: str) -> Result:
        await asyncio.wait_for(meeting.wait(), 1)
        return Result()

    for key in "abc":
        queue.add(key)
    with capture_logs() as logs:
        await reconciled(queue, reconcile, workers=3)
    assert logs == []


async def test_cancelling_stops_the_reconcile_and_frees_the_key(queue: WorkQueue[str]) -> None:
    started = asyncio.Event()
    stopped = False

    async def reconcile(key: str) -> Result:
        nonlocal stopped
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stopped = True
            raise
        return Result()

    running = asyncio.create_task(Controller("test", queue, reconcile).run())
    queue.add("ns/a")
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert stopped
    queue.add("ns/a")
    assert len(queue) == 1


async def test_enqueue(queue: WorkQueue[str]) -> None:
    def obj(name: str, version: int, owner: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "resourceVersion": str(version)}, "owner": owner}

    handler = Enqueue(queue, lambda o: [o["owner"]], priority=lambda o: len(o["owner"]))
    handler.on_add(obj("a", 1, "first"), True)
    handler.on_update(obj("b", 1, "before"), obj("b", 2, "after"))
    handler.on_update(obj("c", 1, "same"), obj("c", 1, "same"))
    handler.on_delete(obj("d", 1, "gone"))
    got = [await queue.get() for _ in range(5)]
    assert got == ["before", "after", "gone", "first", "same"]
    assert [queue.priority_of(key) for key in got] == [5, 5, 4, -95, -96]


async def test_enqueue_takes_the_objects_own_key_by_default(queue: WorkQueue[str]) -> None:
    Enqueue(queue).on_delete({"metadata": {"name": "a", "namespace": "ns"}})
    assert await queue.get() == "ns/a"
