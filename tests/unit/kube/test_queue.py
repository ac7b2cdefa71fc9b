"""The work queue: examples for what is easy to say, and a model for the rest."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qiskit_controller.kube.queue import ShutDown, WorkQueue
from qiskit_controller.kube.ratelimit import ItemExponentialBackoff


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Metrics:
    def __init__(self) -> None:
        self.seen: list[tuple[str, float]] = []

    def depth(self, depth: int) -> None:
        self.seen.append(("depth", depth))

    def added(self) -> None:
        self.seen.append(("added", 1))

    def latency(self, seconds: float) -> None:
        self.seen.append(("latency", seconds))

    def work_duration(self, seconds: float) -> None:
        self.seen.append(("work", seconds))

    def retried(self) -> None:
        self.seen.append(("retried", 1))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def queue(clock: FakeClock) -> WorkQueue[str]:
    return WorkQueue(clock=clock)


async def take(queue: WorkQueue[str]) -> str:
    async with asyncio.timeout(1):
        return await queue.get()


async def test_first_come_first_served_within_a_priority(queue: WorkQueue[str]) -> None:
    for key, priority in [("a", 0), ("b", 10), ("c", 0), ("d", 10), ("e", -100)]:
        queue.add(key, priority=priority)
    assert [await take(queue) for _ in range(5)] == ["b", "d", "a", "c", "e"]


async def test_a_queued_key_is_queued_once(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.add("a")
    assert len(queue) == 1


async def test_a_higher_priority_lifts_a_queued_key(queue: WorkQueue[str]) -> None:
    for key in "abc":
        queue.add(key)
    queue.add("c", priority=5)
    queue.add("c", priority=-5)
    assert [await take(queue) for _ in range(3)] == ["c", "a", "b"]
    assert len(queue) == 0


async def test_added_while_processing_comes_back_after_done(queue: WorkQueue[str]) -> None:
    queue.add("a")
    await take(queue)
    queue.add("a", priority=3)
    assert len(queue) == 0
    queue.done("a")
    assert await take(queue) == "a"
    assert queue.priority_of("a") == 3


async def test_coming_back_is_at_the_end_of_the_line(queue: WorkQueue[str]) -> None:
    queue.add("a")
    await take(queue)
    queue.add("a")
    queue.add("b")
    queue.done("a")
    assert [await take(queue) for _ in range(2)] == ["b", "a"]


async def test_a_waiting_worker_is_woken_by_a_delayed_key() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("later", 0.06)
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.add_after("sooner", 0.02)
    queue.add("now")
    started = asyncio.get_running_loop().time()
    async with asyncio.timeout(1):
        assert sorted(await asyncio.gather(*workers)) == ["later", "now", "sooner"]
    assert asyncio.get_running_loop().time() - started >= 0.05


async def test_of_two_delays_the_earlier_wins(queue: WorkQueue[str], clock: FakeClock) -> None:
    queue.add_after("a", 10)
    queue.add_after("a", 5, priority=1)
    queue.add_after("a", 20)
    clock.now += 4.9
    assert len(queue) == 0
    clock.now += 0.1
    assert await take(queue) == "a"
    assert queue.priority_of("a") == 1
    queue.done("a")
    clock.now += 100
    assert len(queue) == 0


async def test_a_timer_outlives_work_that_comes_before_it(
    queue: WorkQueue[str], clock: FakeClock
) -> None:
    queue.add_after("a", 10)
    queue.add("a")
    await take(queue)
    queue.done("a")
    clock.now += 10
    assert await take(queue) == "a"


async def test_rate_limited_adds_wait_longer_each_time(clock: FakeClock) -> None:
    queue: WorkQueue[str] = WorkQueue(ItemExponentialBackoff(base=1, cap=100), clock=clock)
    for delay in (1, 2, 4):
        queue.add_rate_limited("a")
        clock.now += delay - 0.01
        assert len(queue) == 0
        clock.now += 0.01
        queue.done(await take(queue))
    assert queue.num_requeues("a") == 3
    queue.forget("a")
    assert queue.num_requeues("a") == 0


async def test_a_cancelled_worker_loses_no_wake_up(queue: WorkQueue[str]) -> None:
    first = asyncio.create_task(queue.get())
    second = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")  # wakes the first ...
    first.cancel()  # ... which will not take it
    assert await asyncio.wait_for(second, 1) == "a"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_worker_cancelled_while_waiting_leaves_no_trace(queue: WorkQueue[str]) -> None:
    worker = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    worker.cancel()
    queue.add("a")
    with pytest.raises(asyncio.CancelledError):
        await worker
    assert await take(queue) == "a"


async def test_shut_down_hands_out_nothing_more(queue: WorkQueue[str]) -> None:
    idle: WorkQueue[str] = WorkQueue()
    waiting = asyncio.create_task(idle.get())
    await asyncio.sleep(0)
    idle.shut_down()
    with pytest.raises(ShutDown):
        await waiting

    queue.add("a")
    queue.add_after("b", 0.001)
    queue.shut_down()
    queue.add("c")
    queue.add_after("d", 0)
    queue.add_rate_limited("e")
    assert len(queue) == 0
    with pytest.raises(ShutDown):
        await queue.get()


async def test_drain_waits_for_workers(queue: WorkQueue[str]) -> None:
    queue.add("a")
    await take(queue)
    queue.add("a")
    assert not await queue.shut_down_with_drain(0.01)
    draining = asyncio.create_task(queue.shut_down_with_drain())
    await asyncio.sleep(0)
    assert not draining.done()
    queue.done("a")  # what was added while it was in work is for whoever comes next
    assert await asyncio.wait_for(draining, 1)


async def test_draining_an_idle_queue_is_quick(queue: WorkQueue[str]) -> None:
    assert await queue.shut_down_with_drain(1)


async def test_metrics(clock: FakeClock) -> None:
    metrics = Metrics()
    queue: WorkQueue[str] = WorkQueue(metrics=metrics, clock=clock)
    queue.add("a")
    queue.add("a")
    queue.add("b")
    clock.now += 2
    await take(queue)
    clock.now += 3
    await take(queue)
    clock.now += 1
    assert queue.longest_running_seconds() == 4
    assert queue.unfinished_seconds() == 5
    queue.done("a")
    queue.add_rate_limited("a")
    assert metrics.seen == [
        ("added", 1), ("depth", 1), ("added", 1), ("depth", 2),
        ("depth", 1), ("latency", 2), ("depth", 0), ("latency", 5),
        ("work", 4), ("retried", 1),
    ]  # fmt: skip


KEYS = st.sampled_from("abc")
PRIORITIES = st.sampled_from([0, 0, -1, 1])


class QueueMachine(RuleBasedStateMachine):
    """Every operation in any order, against a model that is too simple to be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.queue: WorkQueue[str] = WorkQueue(ItemExponentialBackoff(1, 8), clock=self.clock)
        self.order = 0
        self.queued: dict[str, tuple[int, int]] = {}  # key -> priority, order of arrival
        self.again: dict[str, int] = {}  # key -> priority
        self.delayed: dict[str, tuple[float, int, int]] = {}  # key -> due, order, priority
        self.processing: set[str] = set()
        self.failures: dict[str, int] = {}

    def model_add(self, key: str, priority: int) -> None:
        if key in self.processing:
            self.again[key] = max(priority, self.again.get(key, priority))
        elif key in self.queued:
            before, order = self.queued[key]
            self.queued[key] = max(priority, before), order
        else:
            self.order += 1
            self.queued[key] = priority, self.order

    def model_add_after(self, key: str, delay: float, priority: int) -> None:
        self.order += 1
        due, order = self.clock.now + delay, self.order
        if key in self.delayed:
            due_before, order_before, priority_before = self.delayed[key]
            priority = max(priority, priority_before)
            if due_before <= due:
                due, order = due_before, order_before
        self.delayed[key] = due, order, priority

    @rule(key=KEYS, priority=PRIORITIES)
    def add(self, key: str, priority: int) -> None:
        self.queue.add(key, priority=priority)
        self.model_add(key, priority)

    @rule(key=KEYS, delay=st.integers(1, 5), priority=PRIORITIES)
    def add_after(self, key: str, delay: int, priority: int) -> None:
        self.queue.add_after(key, delay, priority=priority)
        self.model_add_after(key, delay, priority)

    @rule(key=KEYS, priority=PRIORITIES)
    def add_rate_limited(self, key: str, priority: int) -> None:
        failures = self.failures.get(key, 0)
        self.failures[key] = failures + 1
        self.queue.add_rate_limited(key, priority)
        self.model_add_after(key, min(8.0, 2.0**failures), priority)

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        self.queue.forget(key)
        self.failures.pop(key, None)

    @rule(seconds=st.integers(1, 6))
    def advance(self, seconds: int) -> None:
        self.clock.now += seconds
        for key, (due, _, priority) in sorted(self.delayed.items(), key=lambda item: item[1]):
            if due <= self.clock.now:
                del self.delayed[key]
                self.model_add(key, priority)

    @precondition(lambda self: self.queued)
    @rule()
    def get(self) -> None:
        # `get` waits for nothing when there is something, so one step of it is all of it.
        with pytest.raises(StopIteration) as stopped:
            self.queue.get().send(None)
        key = stopped.value.value
        best = max(priority for priority, _ in self.queued.values())
        candidates = {k: order for k, (priority, order) in self.queued.items() if priority == best}
        assert key not in self.processing
        assert key == min(candidates, key=lambda k: candidates[k])
        assert self.queue.priority_of(key) == best
        del self.queued[key]
        self.processing.add(key)

    @precondition(lambda self: self.processing)
    @rule(data=st.data())
    def done(self, data: Any) -> None:
        key = data.draw(st.sampled_from(sorted(self.processing)))
        self.queue.done(key)
        self.processing.remove(key)
        if key in self.again:
            self.model_add(key, self.again.pop(key))

    @invariant()
    def agrees(self) -> None:
        assert len(self.queue) == len(self.queued)
        for key in "abc":
            assert self.queue.num_requeues(key) == self.failures.get(key, 0)

    def teardown(self) -> None:
        """Nothing is lost: whatever was asked for can be had."""
        self.clock.now += 1000
        wanted = {*self.queued, *self.again, *self.delayed}
        for key in list(self.processing):
            self.queue.done(key)
        got = set()
        while len(self.queue):
            with pytest.raises(StopIteration) as stopped:
                self.queue.get().send(None)
            got.add(stopped.value.value)
        assert got == wanted


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(KEYS, st.integers(0, 3), PRIORITIES), max_size=60), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_workers_share_the_work(adds: list[tuple[str, int, int]], workers: int) -> None:
    """No key with two workers at once, and each worked on after it was last added."""
    asyncio.run(_work(adds, workers))


async def _work(adds: list[tuple[str, int, int]], workers: int) -> None:
    queue: WorkQueue[str] = WorkQueue()
    chance = random.Random(len(adds))
    busy: set[str] = set()
    last_added: dict[str, int] = {}
    last_worked: dict[str, int] = {}
    ticks: Iterator[int] = iter(range(1_000_000))

    async def work() -> None:
        while True:
            try:
                key = await queue.get()
            except ShutDown:
                return
            assert key not in busy
            busy.add(key)
            last_worked[key] = next(ticks)
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            busy.remove(key)
            queue.done(key)

    tasks = [asyncio.create_task(work()) for _ in range(workers)]
    for key, pause, priority in adds:
        last_added[key] = next(ticks)
        queue.add(key, priority=priority)
        for _ in range(pause):
            await asyncio.sleep(0)
    for _ in range(10_000):
        await asyncio.sleep(0)
        if not len(queue) and not busy:
            break
    assert await queue.shut_down_with_drain(5)
    await asyncio.gather(*tasks)
    assert last_worked.keys() == last_added.keys()
    assert all(last_worked[key] > added for key, added in last_added.items())
