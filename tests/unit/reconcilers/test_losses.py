"""What may come over a pod that is not the job's doing, as old and new Kubernetes tell it.

The statuses are those that Kubernetes 1.20 and 1.31 write; of the newer one there is no cluster
to build against. What is left out is what nobody reads.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import attrs
import pytest

from qiskit_controller.api.conditions import find
from qiskit_controller.api.quantities import format_time, parse_time
from qiskit_controller.api.run import Reason
from qiskit_controller.kube.errors import ApiError, Forbidden, error_from_status
from qiskit_controller.kube.queue import WorkQueue
from qiskit_controller.reconcilers.qiskitjob import reconciler
from qiskit_controller.reconcilers.qiskitjob.decision import (
    CIRCUIT_GRACE,
    SHOWN_FREE_ATTEMPTS,
    StartAttempt,
    StopRuns,
    blocked,
    retry_delay,
    waiting,
)
from qiskit_controller.reconcilers.qiskitjob.observed import PodView, Terminated, view_pod, view_run

from .support import (
    LIMITS,
    NOW,
    attempt,
    brought_to_an_end,
    condition,
    decided,
    followed,
    observed,
    pod,
    reasons,
    run,
    seconds,
    spec,
    status,
    underway,
)

Object = dict[str, Any]

RUNNING = pod(circuit_started=NOW - seconds(40), executor_started=NOW - seconds(35))


def container(name: str, **state: Object) -> Object:
    return {"name": name, "state": state}


def terminated(code: int, reason: str, message: str = "") -> Object:
    return {
        "exitCode": code,
        "reason": reason,
        "message": message,
        "startedAt": "2026-01-01T11:59:00Z",
        "finishedAt": "2026-01-01T11:59:30Z",
    }


CIRCUIT_DONE = container("circuit", terminated=terminated(0, "Completed"))
EXECUTING = container("executor", running={"startedAt": "2026-01-01T11:59:30Z"})
TOLD_TO_STOP = container("executor", terminated=terminated(143, "Error"))


def disruption(reason: str, message: str) -> Object:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}


def recorded(
    phase: str, executor: Object = EXECUTING, *, deleted: bool = False, **more: Any
) -> Object:
    """A pod of an attempt that had come to execute."""
    metadata: Object = {
        "name": "qiskit-job-bell-abcde",
        "creationTimestamp": "2026-01-01T11:58:00Z",
    }
    if deleted:
        metadata["deletionTimestamp"] = "2026-01-01T12:00:05Z"
    return {
        "metadata": metadata,
        "status": {
            "phase": phase,
            "initContainerStatuses": [CIRCUIT_DONE],
            "containerStatuses": [executor],
        }
        | more,
    }


def rejected(reason: str, message: str) -> Object:
    """A pod that the kubelet did not take: no container was ever looked at."""
    made = recorded("Failed", reason=reason, message=message)
    del made["status"]["initContainerStatuses"], made["status"]["containerStatuses"]
    return made


# How it is told, and the attempt's reason and message.
LOSSES = {
    "1.20, deleted, drained or preempted": (
        recorded("Running", deleted=True),
        "PodLost",
        "the pod was deleted",
    ),
    "1.20, the same after the containers have ended": (
        recorded("Failed", TOLD_TO_STOP, deleted=True),
        "PodLost",
        "the pod was deleted",
    ),
    "the container was told to stop, the pod was not": (
        recorded("Failed", TOLD_TO_STOP),
        "PodLost",
        "the stage executor was told to stop",
    ),
    "1.31, drained": (
        recorded(
            "Running",
            deleted=True,
            conditions=[disruption("EvictionByEvictionAPI", "Eviction API: evicting")],
        ),
        "Evicted",
        "Eviction API: evicting",
    ),
    "1.31, preempted": (
        recorded(
            "Running",
            deleted=True,
            conditions=[
                disruption("PreemptionByScheduler", "default-scheduler: preempting to accommodate")
            ],
        ),
        "Evicted",
        "default-scheduler: preempting to accommodate",
    ),
    "1.31, the node does not answer": (
        recorded(
            "Running",
            deleted=True,
            conditions=[
                disruption(
                    "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint"
                )
            ],
        ),
        "Evicted",
        "Taint manager: deleting due to NoExecute taint",
    ),
    "1.20, the node is short of memory": (
        recorded(
            "Failed",
            container("executor", terminated=terminated(137, "Error")),
            reason="Evicted",
            message="The node was low on resource: memory. ",
        ),
        "Evicted",
        "The node was low on resource: memory. ",
    ),
    "1.31, the node is short of disk": (
        recorded(
            "Failed",
            container("executor", terminated=terminated(137, "Error")),
            reason="Evicted",
            message="The node was low on resource: ephemeral-storage. ",
            conditions=[
                disruption(
                    "TerminationByKubelet", "The node was low on resource: ephemeral-storage. "
                )
            ],
        ),
        "Evicted",
        "The node was low on resource: ephemeral-storage. ",
    ),
    "1.21 and later, the node shuts down": (
        recorded(
            "Failed",
            TOLD_TO_STOP,
            reason="Terminated",
            message="Pod was terminated in response to imminent node shutdown.",
        ),
        "Evicted",
        "Pod was terminated in response to imminent node shutdown.",
    ),
    "the node was full by the time": (
        rejected("OutOfcpu", "Node didn't have enough resource: cpu"),
        "PodLost",
        "the node did not take the pod (OutOfcpu: Node didn't have enough resource: cpu)",
    ),
    "the node restarted": (
        recorded("Failed", container("executor", terminated=terminated(255, "Unknown"))),
        "PodLost",
        "the node lost the container of the stage executor",
    ),
    "1.31, the node restarted": (
        recorded(
            "Failed",
            container(
                "executor", terminated=terminated(137, "ContainerStatusUnknown", "not there")
            ),
        ),
        "PodLost",
        "the node lost the container of the stage executor",
    ),
}


def job(**status_: Any) -> Object:
    return {
        "metadata": {
            "name": "qiskit-job-bell",
            "creationTimestamp": "2026-01-01T11:58:00Z",
            "labels": {},
        },
        "spec": {},
        "status": status_,
    }


def job_condition(type_: str, reason: str = "BackoffLimitExceeded") -> Object:
    return {
        "type": type_,
        "status": "True",
        "reason": reason,
        "message": "Job has reached the specified backoff limit",
        "lastTransitionTime": "2026-01-01T11:59:40Z",
    }


FAILED_JOB = job(conditions=[job_condition("Failed")], failed=1)


@pytest.mark.parametrize("job_", [job(active=1), FAILED_JOB], ids=["before", "after"])
@pytest.mark.parametrize("how", LOSSES)
def test_a_loss_is_nobodys_failure_whatever_the_job_says_of_it(how: str, job_: Object) -> None:
    """Before Kubernetes 1.23 a Job replaces a pod that was deleted, later ones fail of it."""
    lost, reason, message = LOSSES[how]
    seen = underway("Running", spec=spec(execution={"maxRetries": 0}))
    started = view_run(job_, [lost], 1)
    if "did not take" in message and job_ is not FAILED_JOB:
        # It never began, so that is seen while the job is Pending, and the Job fails of it.
        return
    decision = decided(attrs.evolve(seen, runs={1: started}))
    (ended,) = decision.status.attempts
    assert (ended.reason, ended.message) == (reason, message)
    assert not ended.counted
    assert decision.status.phase == "Pending"
    assert decision.status.running_time is None
    assert reasons(decision) == ["Retrying"]


def test_a_pod_that_is_gone_when_its_job_has_failed() -> None:
    """1.31: the Job counts a pod as failed that is deleted, and by then it may not be there."""
    seen = underway("Running")
    decision = decided(attrs.evolve(seen, runs={1: view_run(FAILED_JOB, [], 1)}))
    assert decision.status.attempts[0].reason == "PodLost"


def test_a_job_that_is_about_to_fail_has_not_failed() -> None:
    """1.31 says FailureTarget while the pods are still ending."""
    assert view_run(job(conditions=[job_condition("FailureTarget")]), [], 1).failed is None


def test_a_disk_that_the_code_filled_is_its_own_doing() -> None:
    full = 'Usage of EmptyDir volume "circuit-tmp" exceeds the limit "256Mi". '
    lost = view_pod(recorded("Failed", reason="Evicted", message=full), 1)
    seen = underway("Validating", lost)
    decision = brought_to_an_end(seen, decided(seen))
    assert condition(decision, "Failed").reason == "StorageExceeded"
    assert condition(decision, "Failed").message == (
        f"the pod used more disk than it may: {full.strip()}"
    )


# --- pods and Jobs that go while the job runs ------------------------------------------------


@pytest.mark.parametrize("phase", ["Validating", "Scheduling", "Running"])
def test_a_pod_in_the_place_of_another_is_another_attempt(phase: str) -> None:
    seen = underway(phase, pod(name="second"))
    seen = attrs.evolve(seen, status=attrs.evolve(seen.status, executor_pod_name="first"))
    decision = decided(seen)
    assert decision.status.attempts[0].message == "the pod was deleted"
    assert not decision.status.attempts[0].counted
    # The one in its place would have only what was left of the timeout.
    assert decision.actions == ()
    assert followed(seen, decision).actions == (StopRuns(("qiskit-job-bell",)),)


def test_a_pod_that_had_not_begun_may_be_replaced() -> None:
    seen = underway("Pending", pod(name="second"))
    seen = attrs.evolve(seen, status=attrs.evolve(seen.status, executor_pod_name="first"))
    decision = decided(seen)
    assert decision.status.attempts[0].completion_time is None
    assert decision.status.executor_pod_name == "second"


def test_a_pod_that_is_going_before_it_began_is_waited_for() -> None:
    lost = pod(lost=(Reason.POD_LOST, "the pod was deleted"))
    assert decided(underway("Pending", lost)).status.attempts[0].completion_time is None


def test_a_result_from_the_second_pod_is_a_result() -> None:
    report = view_pod(recorded("Running"), 1)
    assert report.report is None
    seen = underway("Running", attrs.evolve(RUNNING, name="second"))
    seen = attrs.evolve(seen, status=attrs.evolve(seen.status, executor_pod_name=None))
    assert decided(seen).status.phase == "Running"


# --- stages that end by themselves ----------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "reason", "message"),
    [
        (
            Terminated(128, "StartError", "OCI runtime create failed: no such file", None),
            "StageFailed",
            "the stage circuit could not be started: OCI runtime create failed: no such file",
        ),
        (
            Terminated(1, "Error", "", None),
            "StageFailed",
            "the stage circuit ended without an outcome (Error, exit code 1)",
        ),
        (
            Terminated(137, "Error", "", None),
            "StageFailed",
            "the stage circuit ended without an outcome (Error, exit code 137)",
        ),
        (Terminated(143, "Error", "", None), "PodLost", "the stage circuit was told to stop"),
        (
            Terminated(255, "Unknown", "", None),
            "PodLost",
            "the node lost the container of the stage circuit",
        ),
    ],
)
def test_the_stage_circuit_fails_of_itself(ended: Terminated, reason: str, message: str) -> None:
    """Whatever the code does, the stage tells of it and ends with 0; so it was not the code."""
    decision = decided(underway("Validating", pod(circuit_started=NOW, circuit_ended=ended)))
    (first,) = decision.status.attempts
    assert (first.reason, first.message) == (reason, message)
    assert decision.status.phase == "Pending"


def test_an_executor_that_says_nothing_is_not_waited_for_for_ever() -> None:
    silent = attrs.evolve(RUNNING, circuit_ended=Terminated(0, "Completed", "", NOW))
    seen = underway("Validating", silent, spec=spec(execution={"timeout": "10m"}))
    bound = seconds(LIMITS.circuit_seconds) + timedelta(minutes=10) + CIRCUIT_GRACE
    ends = NOW - seconds(35) + bound
    assert decided(attrs.evolve(seen, now=ends - seconds(1))).requeue_after == seconds(1)
    late = decided(attrs.evolve(seen, now=ends))
    assert condition(late, "Failed").reason == "Timeout"
    assert condition(late, "Failed").message == (
        "the executor did not begin to execute the circuit within 16m"
    )


# --- what is shown --------------------------------------------------------------------------


def test_what_was_in_the_way_is_not_shown_when_it_no_longer_is() -> None:
    stuck = decided(underway("Pending", pod(problem=("Unschedulable", "no room"))))
    assert condition(stuck, "PodStarted").message == "no room"
    free = decided(attrs.evolve(underway("Pending", pod()), status=stuck.status))
    assert condition(free, "PodStarted").status == "False"
    assert condition(free, "PodStarted").reason == "Starting"
    assert free.status.message == "Pod qiskit-job-bell-abcde is starting"


def test_a_suspended_job_is_told_of() -> None:
    made = job()
    made["spec"]["suspend"] = True
    decision = decided(attrs.evolve(underway("Pending"), runs={1: view_run(made, [], 1)}))
    assert condition(decision, "PodStarted").reason == "JobSuspended"


def test_of_many_attempts_that_do_not_count_the_last_are_shown() -> None:
    ended = format_time(NOW - timedelta(hours=1))
    past = [
        attempt(
            number,
            completion_time=ended,
            reason="Evicted" if number % 10 else "ExecutorFailed",
            counted=number % 10 == 0,
        )
        for number in range(1, 51)
    ]
    decision = decided(observed(status=status("Pending", *past)))
    assert decision.actions == (StartAttempt(51),)
    shown = decision.status.attempts
    assert shown[-1].number == 51
    assert [each.number for each in shown if each.counted] == [10, 20, 30, 40, 50, 51]
    assert sum(not each.counted for each in shown) == SHOWN_FREE_ATTEMPTS
    assert [each.number for each in shown] == sorted(each.number for each in shown)
    # How long it waits does not depend on what is shown.
    assert retry_delay("u", past) == retry_delay("u", past[-1:])


def test_a_cancelled_attempt_says_so() -> None:
    seen = underway("Running", spec=spec(cancel=True), runs={})
    (last,) = decided(seen).status.attempts
    assert (last.reason, last.message) == ("Cancelled", "Cancelled by spec.cancel")


def test_what_waits_for_its_names_says_so() -> None:
    told = waiting(observed(status=status("Pending")), "ConfigMap x of a deleted one is there")
    found = find(told.conditions, "PodStarted")
    assert found is not None
    assert (found.status, found.reason, found.message) == (
        "False",
        "WaitingForDeletion",
        "ConfigMap x of a deleted one is there",
    )


@pytest.mark.parametrize(
    ("code", "reason", "message", "ruling"),
    [
        (403, "Forbidden", "exceeded quota: no-jobs", True),
        (400, "BadRequest", "admission webhook p denied the request: no", True),
        (500, "InternalError", 'failed calling webhook "p": no endpoints', True),
        (500, "InternalError", "etcdserver: leader changed", False),
        (429, "TooManyRequests", "later", False),
        (503, "ServiceUnavailable", "later", False),
        (401, "Unauthorized", "who?", False),
    ],
)
def test_what_the_cluster_thinks_of_it_is_told_and_a_bad_moment_is_not(
    code: int, reason: str, message: str, ruling: bool
) -> None:
    error = error_from_status({"code": code, "reason": reason, "message": message})
    assert isinstance(error, ApiError)
    assert reconciler._is_a_ruling(error) is ruling
    if isinstance(error, Forbidden):
        decision = blocked(observed(status=status("Pending")), error.reason, error.message)
        assert condition(decision, "PodStarted").message == message


# --- priority -------------------------------------------------------------------------------


async def test_urgent_jobs_are_looked_at_first() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for each in ("low", "normal", "high", "urgent"):
        queue.add(
            each, priority=reconciler._priority_of({"spec": {"execution": {"priority": each}}})
        )
    order = [await queue.get() for _ in range(4)]
    assert order == ["urgent", "high", "normal", "low"]


async def test_what_nobody_has_taken_up_does_not_wait_behind_reminders() -> None:
    queue: WorkQueue[str] = WorkQueue()
    handler = reconciler._EnqueueJobs(queue, priority=reconciler._priority_of)
    known: Object = {
        "metadata": {"namespace": "ns", "name": "known"},
        "status": {"phase": "Failed"},
    }
    handler.on_add(known, is_initial=True)
    handler.on_add({"metadata": {"namespace": "ns", "name": "new"}}, is_initial=True)
    assert [await queue.get(), await queue.get()] == ["ns/new", "ns/known"]


@pytest.mark.parametrize(("age", "wait"), [(10, 30), (600, 60), (86_400, 300)])
def test_what_waits_for_long_is_looked_at_less_often(age: float, wait: float) -> None:
    seen = underway("Pending", pod(), run={"created": NOW - seconds(age)})
    assert decided(seen).requeue_after == seconds(wait)


def test_attempts_are_as_far_apart_as_documented() -> None:
    """docs/jobs.md: 10 s, doubled each time, six minutes at most, and up to a fifth more."""
    for number in range(1, 12):
        wait = retry_delay("uid", [attempt(number)]).total_seconds()
        least = min(10 * 2 ** (number - 1), 360)
        assert least <= wait <= least * 1.2
    assert retry_delay("a", [attempt(1)]) != retry_delay("b", [attempt(1)])


def test_the_time_is_counted_from_the_end_of_the_pod() -> None:
    ended = Terminated(137, "Error", "", NOW - seconds(20))
    decision = decided(underway("Running", attrs.evolve(RUNNING, executor_ended=ended)))
    (first,) = decision.status.attempts
    assert first.completion_time is not None
    assert parse_time(first.completion_time) == NOW - seconds(20)


def test_nothing_is_made_of_a_run_without_a_pod() -> None:
    seen = observed(status=status("Running", attempt()), runs={1: run()})
    assert decided(seen).status == seen.status
    assert isinstance(pod(), PodView)
