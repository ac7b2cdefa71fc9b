"""The state machine against a world that does its worst."""

from __future__ import annotations

import random

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from qiskit_controller.api.qiskitjob import FINISHED
from qiskit_controller.api.run import Reason, Retry
from qiskit_controller.reconcilers.qiskitjob.decision import decide

from . import kubelet
from .support import LIMITS, seconds, spec
from .world import ALL_PHASES, MISHAPS, Stored, World, check_status


def test_left_alone_a_job_passes_every_phase_and_completes() -> None:
    world = World()
    world.settle()
    world.check_rest()
    assert world.phases == ALL_PHASES
    assert [number for number, _ in world.started] == [1]
    assert [each.reason for each in world.events] == [
        "Accepted",
        "Started",
        "Validating",
        "CircuitValid",
        "BackendSelected",
        "Running",
        "Completed",
    ]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_job_that_always_fails_makes_as_many_attempts_as_allowed(retries: int) -> None:
    world = World(job=Stored(spec(execution={"maxRetries": retries})))
    for _ in range(200):
        for pod in world.alive():
            world.fail(pod, Reason.EXECUTOR_FAILED)
        world.sync()
        if world.timer is None:
            break
        world.now = max(world.now, world.timer)
        world.reconcile()
        world.control_jobs()
    world.check_rest()
    assert [number for number, _ in world.started] == list(range(1, retries + 2))
    gaps = [
        (later - earlier).total_seconds()
        for (_, earlier), (_, later) in zip(world.started, world.started[1:], strict=False)
    ]
    for n, gap in enumerate(gaps):
        assert 10 * 2**n <= gap <= 10 * 2**n * 1.2 + 10


def test_a_job_is_evicted_many_times_and_completes_all_the_same() -> None:
    world = World(job=Stored(spec(execution={"maxRetries": 0})))
    for _ in range(8):
        for _ in range(40):
            world.sync()
            if world.alive():
                break
            if world.timer is not None:
                world.now = max(world.now, world.timer)
                world.reconcile()
            world.control_jobs()
        for pod in world.alive():
            pod["status"] = kubelet.evicted()
    world.settle()
    world.check_rest()
    assert world.job is not None
    assert world.job.status.phase == "Completed"
    assert len(world.started) == 9
    assert [each.counted for each in world.job.status.attempts] == [False] * 8 + [True]


def go(world: World, steps: int) -> None:
    """Everybody does what they do, that many times, and no timer comes up."""
    for _ in range(steps):
        world.sync()
        world.reconcile()
        world.control_jobs()
        for pod in world.alive():
            world.step(pod)


@pytest.mark.parametrize("writes", range(12))
@pytest.mark.parametrize("step", range(12))
def test_a_crash_between_any_two_writes_changes_nothing(step: int, writes: int) -> None:
    world = World()
    go(world, step)
    world.sync()
    world.reconcile(writes)
    world.settle()
    world.check_rest()
    assert world.phases == ALL_PHASES
    assert len(world.started) == 1


@pytest.mark.parametrize("writes", range(12))
@pytest.mark.parametrize("step", range(16))
def test_a_crash_between_any_two_writes_submits_nothing_twice(step: int, writes: int) -> None:
    world = World(remote=True)
    go(world, step)
    world.sync()
    world.reconcile(writes)
    world.settle()
    world.check_rest()
    assert world.phases == ALL_PHASES
    assert [each.state for each in world.ledger] == ["Done"]


@pytest.mark.parametrize("how", ["cancel", "delete"])
@pytest.mark.parametrize("cut_off", [False, True])
@pytest.mark.parametrize("key_works", [False, True])
@pytest.mark.parametrize("step", range(20))
def test_whenever_it_is_ended_nothing_is_left_at_the_provider(
    step: int, how: str, cut_off: bool, key_works: bool
) -> None:
    world = World(remote=True, key_works=key_works)
    go(world, step)
    if cut_off and world.alive():
        world.mishap("cut off")
    getattr(world, how)()
    world.settle()
    world.check_rest()
    reasons = [each.reason for each in world.events]
    if "CancelledAtProvider" in reasons or "NotCancelledAtProvider" in reasons:
        assert ("CancelledAtProvider" in reasons) == key_works


@pytest.mark.parametrize("late", [0, 10, 14])
def test_a_forgotten_pod_that_is_about_to_submit_is_waited_for(late: int) -> None:
    """It has written its intent, and submits as late as it may."""
    world = World(remote=True)
    while not any(each.get("doing") == "submitting" for each in world.alive()):
        world.turn(1)
    intended = world.now
    world.mishap("cut off")
    for _ in range(60):
        world.sync()
        if world.alive() and world.alive()[-1].get("doing"):
            break
        world.now = max(world.now, world.timer or world.now)
        world.reconcile()
        world.control_jobs()
        for pod in world.alive():
            world.step(pod)
    # Pods start sooner than the world's timers let them.
    world.now = intended + seconds(late)
    (pod,) = world.alive()
    pod["since"] = world.now
    for _ in range(5):
        world.step(pod)
    world.step_zombies()
    world.settle()
    world.check_rest()
    assert [each.state for each in world.ledger] == ["Done"]


def test_a_provider_s_job_that_fails_is_followed_by_another_one() -> None:
    world = World(job=Stored(spec(execution={"maxRetries": 2})), remote=True)
    for _ in range(400):
        world.turn(1)
        if world.ledger and len(world.ledger) < 3:
            world.provider_mishap("Failed")
    world.settle()
    world.check_rest()
    assert world.job is not None
    assert world.job.status.phase == "Completed"
    assert [(each.ticket, each.state) for each in world.ledger] == [
        (1, "Failed"),
        (2, "Failed"),
        (3, "Done"),
    ]


def test_a_job_that_fails_while_its_circuit_is_in_the_queue_cancels_it_there() -> None:
    world = World(job=Stored(spec(execution={"maxRetries": 0})), remote=True)
    for _ in range(200):
        world.turn(1)
        if world.ledger:
            break
    world.fail(world.alive()[-1], Reason.EXECUTOR_FAILED)
    world.settle()
    world.check_rest()
    assert world.job is not None
    assert world.job.status.phase == "Failed"
    assert [each.state for each in world.ledger] == ["Cancelled"]
    assert [each.reason for each in world.events][-3:] == [
        "CancellingAtProvider",
        "CancelledAtProvider",
        "ExecutorFailed",
    ]


@pytest.mark.parametrize("seed", range(120))
def test_long_stories(seed: int) -> None:
    """Longer than those below, and always the same."""
    fate = random.Random(seed)
    wanted = spec(execution={"maxRetries": fate.choice([0, 1, 2])})
    world = World(
        job=Stored(wanted),
        replaces=fate.random() < 0.3,
        remote=seed >= 60,
        key_works=fate.random() < 0.8,
    )
    permanent = fate.choice([Reason.OUTPUT_CONFLICT, Reason.EXECUTOR_FAILED])
    ends = fate.randrange(200)
    for n in range(60):
        match fate.choices(range(9), (8, 4, 4, 2, 2, 3, 1, 1, world.remote))[0]:
            case 0:
                world.turn(fate.randint(1, 6))
            case 1:
                world.sync(*(fate.random() < 0.5 for _ in range(3)))
            case 2:
                world.reconcile()
            case 3:
                world.reconcile(fate.randrange(6))
                world.sync()
            case 4:
                world.now += seconds(fate.choice([0.4, 4, 6, 11, 35, 400]))
            case 5 if world.alive():
                world.mishap(fate.choice(MISHAPS))
            case 6 if world.alive():
                world.fail(world.alive()[-1], permanent)
            case 7 if world.jobs:
                world.lose_job()
            case 8:
                world.provider_mishap(fate.choice(["Failed", "Cancelled"]))
        if n == ends:
            fate.choice([world.cancel, world.delete])()
    world.settle()
    world.check_rest()


class Mishaps(RuleBasedStateMachine):
    """Anything, in any order, with caches that lag as they like."""

    world: World

    @initialize(
        retries=st.integers(0, 2),
        timeout=st.sampled_from(["30s", "1h"]),
        ttl=st.none() | st.just(5),
        replaces=st.booleans(),
        head_start=st.integers(0, 14),
        remote=st.booleans(),
        key_works=st.booleans(),
    )
    def begin(
        self,
        retries: int,
        timeout: str,
        ttl: int | None,
        replaces: bool,
        head_start: int,
        remote: bool,
        key_works: bool,
    ) -> None:
        wanted = spec(
            execution={"maxRetries": retries, "timeout": timeout}, ttlSecondsAfterFinished=ttl
        )
        self.world = World(
            job=Stored(wanted), replaces=replaces, remote=remote, key_works=key_works
        )
        self.world.turn(head_start)

    # -- everybody ------------------------------------------------------------------

    @rule(turns=st.integers(1, 12))
    def the_world_turns(self, turns: int) -> None:
        self.world.turn(turns)

    # -- the controller -------------------------------------------------------------

    @rule(job=st.booleans(), jobs=st.booleans(), pods=st.booleans())
    def sync(self, job: bool, jobs: bool, pods: bool) -> None:
        self.world.sync(job, jobs, pods)

    @rule(fresh=st.booleans())
    def reconcile(self, fresh: bool) -> None:
        if fresh:
            self.world.sync()
        self.world.reconcile()

    @rule(writes=st.integers(0, 5))
    def crash(self, writes: int) -> None:
        self.world.reconcile(writes)
        self.world.sync()  # A new process lists everything before it works.

    @rule(passed=st.sampled_from([0.4, 1, 4, 6, 11, 35, 120, 400, 4000]))
    def time_passes(self, passed: float) -> None:
        self.world.now += seconds(passed)

    # -- the cluster ----------------------------------------------------------------

    @rule(deletions=st.booleans())
    def jobs_are_controlled(self, deletions: bool) -> None:
        if deletions:
            self.world.end_deletions()
        self.world.control_jobs()

    @precondition(lambda self: self.world.alive())
    @rule(steps=st.integers(1, 6))
    def the_pod_goes_on(self, steps: int) -> None:
        for _ in range(steps):
            for pod in self.world.alive():
                self.world.step(pod)

    @precondition(lambda self: self.world.alive())
    @rule(how=st.sampled_from(MISHAPS))
    def the_pod_has_a_mishap(self, how: str) -> None:
        self.world.mishap(how)

    @precondition(lambda self: self.world.remote)
    @rule(cut_off=st.booleans())
    def pods_at_the_provider_go_on(self, cut_off: bool) -> None:
        if cut_off:
            self.world.step_zombies()
        else:
            self.world.step_canceller()

    @precondition(lambda self: self.world.ledger)
    @rule(how=st.sampled_from(["Failed", "Cancelled"]))
    def the_provider_s_job_has_a_mishap(self, how: str) -> None:
        self.world.provider_mishap(how)

    @precondition(lambda self: any(pod["step"] >= 2 for pod in self.world.alive()))
    @rule(reason=st.sampled_from([each for each in Reason if each.retry is not Retry.FREE]))
    def the_executor_reports_a_failure(self, reason: Reason) -> None:
        self.world.fail(self.world.alive()[-1], reason)

    @precondition(lambda self: self.world.jobs)
    @rule()
    def somebody_deletes_the_kubernetes_job(self) -> None:
        self.world.lose_job()

    # -- the user -------------------------------------------------------------------

    @precondition(lambda self: self.world.job is not None and self.world.job.generation < 4)
    @rule(retries=st.integers(0, 5))
    def the_spec_is_edited(self, retries: int) -> None:
        self.world.edit(retries)

    # Not often, or no story would last long enough to become interesting.
    @precondition(lambda self: self.world.job is not None and not self.world.job.spec.cancel)
    @rule(really=st.integers(0, 5))
    def it_is_cancelled(self, really: int) -> None:
        if not really:
            self.world.cancel()

    @precondition(lambda self: self.world.job is not None and not self.world.job.deleting)
    @rule(really=st.integers(0, 5))
    def it_is_deleted(self, really: int) -> None:
        if not really:
            self.world.delete()

    # -- what always holds ----------------------------------------------------------

    @invariant()
    def the_status_is_sound(self) -> None:
        job = getattr(self, "world", World()).job
        if job is not None and job.status.phase is not None:
            check_status(job.status)

    @invariant()
    def decisions_are_idempotent(self) -> None:
        """Decided again on its own result, with nothing new: nothing new."""
        world: World | None = getattr(self, "world", None)
        if world is None or world.job is None or not world.synced:
            return
        seen = world.observe(world.job)
        for _ in range(8):
            decision = decide(seen, LIMITS)
            finalized = seen.finalized or any(
                type(each).__name__ == "AddFinalizer" for each in decision.actions
            )
            settled = decision.requeue_after != seconds(0) or seen.deleting
            seen = attrs.evolve(seen, status=decision.status, finalized=finalized)
            if settled:
                break
        else:
            raise AssertionError("it never comes to rest")
        again = decide(seen, LIMITS)
        if decision.actions or again.actions:
            return  # Their results are not to be seen yet.
        assert again.status == decision.status
        assert not again.events

    def teardown(self) -> None:
        world: World | None = getattr(self, "world", None)
        if world is None:
            return
        world.settle()
        world.check_rest()
        if world.job is not None:
            assert world.job.status.phase in FINISHED
            world.delete()
            world.settle()
            assert world.job is None
            world.check_rest()


def test_mishaps() -> None:
    run_state_machine_as_test(
        Mishaps,
        settings=settings(
            max_examples=int(__import__("os").environ.get("N", "60")),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
