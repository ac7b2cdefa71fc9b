"""The state machine, one transition at a time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import attrs
import pytest

from qiskit_controller.api.conditions import MAX_MESSAGE, find
from qiskit_controller.api.qiskitjob import AttemptStatus, SourceStatus
from qiskit_controller.api.quantities import format_time, parse_time
from qiskit_controller.api.run import Reason, Report, Retry, StoredResult
from qiskit_controller.reconcilers.qiskitjob.decision import (
    POD_PATIENCE,
    RECHECK,
    AddFinalizer,
    CleanUp,
    DeleteJob,
    RemoveFinalizer,
    Start,
    StartAttempt,
    StopRuns,
    blocked,
    refuse,
    retry_delay,
)
from qiskit_controller.reconcilers.qiskitjob.observed import (
    Observed,
    PodView,
    Source,
    SourceMissing,
    Terminated,
    ToFetch,
)

from . import kubelet
from .support import (
    CODE,
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

SOURCE = Source("circuit.py", CODE)
REPORT = Report(
    attempt=1,
    circuit_metrics=kubelet.METRICS,
    backend="aer_simulator",
    started=format_time(NOW - seconds(20)),
    execution_time=0.25,
    shots=1024,
    counts=kubelet.COUNTS,
    outcomes=2,
    stored=StoredResult(location="configmap/bell-results", size=100, sha256="d" * 64),
)


def ended(code: int = 0, reason: str = "Completed", ago: float = 1) -> Terminated:
    return Terminated(code, reason, "", NOW - seconds(ago))


VALIDATING = pod(circuit_started=NOW - seconds(30))
VALIDATED = attrs.evolve(VALIDATING, circuit_ended=ended(), executor_started=NOW - seconds(20))
DONE = attrs.evolve(VALIDATED, executor_ended=ended(), report=REPORT)


def failed(reason: Reason, message: str = "that is why", **report: Any) -> PodView:
    """A pod whose executor reported a failure."""
    said = Report(attempt=1, reason=reason, message=message, **report)
    return attrs.evolve(VALIDATED, executor_ended=ended(1, "Error"), report=said)


# --- the way of a job that succeeds -----------------------------------------------------------


def test_a_new_job_is_accepted() -> None:
    decision = decided(observed(finalized=False))
    assert decision.status.phase == "Pending"
    assert decision.status.start_time == format_time(NOW)
    assert decision.status.observed_generation == 1
    assert decision.actions == (AddFinalizer(),)
    assert reasons(decision) == ["Accepted"]
    assert decision.requeue_after == timedelta(0)


def test_nothing_is_started_before_deletion_would_wait_for_us() -> None:
    decision = decided(observed(status=status(), source=SOURCE, finalized=False))
    assert decision.actions == (AddFinalizer(),)
    assert decision.requeue_after == timedelta(0)
    assert decision.status == status()


def test_a_sound_job_is_started() -> None:
    decision = decided(observed(status=status(), source=SOURCE))
    assert decision.actions == (Start(SOURCE),)
    assert decision.status.phase == "Pending"
    assert decision.status.attempts == (
        AttemptStatus(number=1, job_name="qiskit-job-bell", start_time=format_time(NOW)),
    )
    assert decision.status.source == SourceStatus(sha256=SOURCE.sha256)
    assert condition(decision, "Validated").status == "Unknown"
    assert reasons(decision) == ["Started"]
    assert decision.requeue_after == POD_PATIENCE


def test_code_that_the_pod_fetches_has_no_hash_yet() -> None:
    decision = decided(observed(status=status(), source=ToFetch("circuit.py")))
    assert decision.actions == (Start(ToFetch("circuit.py")),)
    assert decision.status.source is None


def test_a_missing_source_is_waited_for_by_name() -> None:
    missing = SourceMissing("ConfigMapNotFound", "ConfigMap 'circuits' does not exist")
    first = decided(observed(status=status(), source=missing))
    assert first.actions == ()
    assert first.status.phase == "Pending"
    found = condition(first, "Validated")
    assert (found.status, found.reason, found.message) == (
        "False",
        "ConfigMapNotFound",
        "ConfigMap 'circuits' does not exist",
    )
    assert reasons(first) == ["ConfigMapNotFound"]
    assert first.requeue_after == RECHECK
    again = decided(observed(status=first.status, source=missing, now=NOW + seconds(30)))
    assert again.status == first.status
    assert again.events == ()


def test_a_long_explanation_is_one_event_and_not_one_each_time() -> None:
    missing = SourceMissing("ConfigMapKeyNotFound", "x" * (2 * MAX_MESSAGE))
    first = decided(observed(status=status(), source=missing))
    assert len(condition(first, "Validated").message) == MAX_MESSAGE
    again = decided(observed(status=first.status, source=missing))
    assert (again.status, again.events) == (first.status, ())


def test_it_waits_for_the_pod_to_appear_and_to_start() -> None:
    for pod_ in (None, pod()):
        seen = underway("Pending", pod_)
        decision = decided(seen)
        assert (decision.actions, decision.events) == ((), ())
        assert decision.status.phase == "Pending"
        assert decision.requeue_after is not None
        assert decision.requeue_after <= RECHECK


def test_validating_begins_with_the_circuits_container() -> None:
    decision = decided(underway("Pending", VALIDATING))
    assert decision.status.phase == "Validating"
    assert condition(decision, "PodStarted").status == "True"
    assert decision.status.executor_pod_name == VALIDATING.name
    assert reasons(decision) == ["Validating"]
    assert decision.requeue_after == timedelta(0)


def test_the_circuit_is_valid_when_the_executor_says_so() -> None:
    waiting = decided(underway("Validating", VALIDATED))
    assert waiting.status.phase == "Validating"
    decision = decided(underway("Validating", VALIDATED, progress=kubelet.progress(1, "Validated")))
    assert decision.status.phase == "Scheduling"
    assert decision.status.circuit_metrics == kubelet.METRICS
    assert decision.status.backend == "aer_simulator"
    assert condition(decision, "Validated").reason == "CircuitValid"
    assert condition(decision, "Validated").message == "Circuit validation successful"
    assert condition(decision, "BackendSelected").status == "True"
    assert reasons(decision) == ["CircuitValid", "BackendSelected"]


def test_running_begins_when_it_executes() -> None:
    waiting = decided(underway("Scheduling", VALIDATED, progress=kubelet.progress(1, "Validated")))
    assert waiting.status.phase == "Scheduling"
    decision = decided(underway("Scheduling", VALIDATED, progress=kubelet.progress(1, "Executing")))
    assert decision.status.phase == "Running"
    assert decision.status.running_time == format_time(NOW)
    assert reasons(decision) == ["Running"]


def test_it_is_completed_by_the_report() -> None:
    decision = decided(underway("Running", DONE))
    assert decision.status.phase == "Completed"
    assert decision.status.completion_time == format_time(NOW)
    assert decision.status.results_location == "configmap/bell-results"
    assert decision.status.cost == "$0.00"
    results = decision.status.results
    assert results is not None
    assert results.counts == kubelet.COUNTS
    assert not results.counts_truncated
    assert (results.queue_time, results.execution_time, results.total_time) == (70.0, 0.25, 70.25)
    assert (results.sha256, results.size) == ("d" * 64, 100)
    (only,) = decision.status.attempts
    assert (only.completion_time, only.reason) == (format_time(NOW - seconds(1)), None)
    assert condition(decision, "Complete").status == "True"
    assert condition(decision, "Failed").status == "False"
    assert decision.actions == (CleanUp(output_unused=False),)
    assert reasons(decision) == ["Completed"]


def test_counts_that_did_not_fit_are_said_to_be_missing() -> None:
    report = attrs.evolve(REPORT, outcomes=5000)
    decision = decided(underway("Running", attrs.evolve(DONE, report=report)))
    assert decision.status.results is not None
    assert decision.status.results.counts_truncated
    assert decision.status.results.outcomes == 5000


def test_a_pod_that_was_faster_than_us_still_passes_every_phase() -> None:
    phases = []
    seen = underway("Pending", DONE, run={"complete": True, "ended": NOW})
    for _ in range(10):
        decision = decided(seen)
        phases.append(decision.status.phase)
        assert decision.events or decision.status == seen.status
        seen = attrs.evolve(seen, status=decision.status)
        if decision.requeue_after != timedelta(0):
            break
    assert phases == ["Validating", "Scheduling", "Running", "Completed"]


# --- while it waits ---------------------------------------------------------------------------


def test_why_the_pod_does_not_start_is_shown_while_it_lasts() -> None:
    seen = underway("Pending", pod(problem=("Unschedulable", "no node has room")))
    stuck = decided(seen)
    assert stuck.status.phase == "Pending"
    found = condition(stuck, "PodStarted")
    assert (found.status, found.reason) == ("False", "Unschedulable")
    assert stuck.status.message == "Unschedulable: no node has room"
    again = decided(attrs.evolve(seen, status=stuck.status, now=NOW + seconds(10)))
    assert again.status == stuck.status
    moving = decided(attrs.evolve(seen, status=stuck.status, runs={1: run(pod=VALIDATING)}))
    assert condition(moving, "PodStarted").status == "True"
    assert moving.status.message == "Validating the circuit"


@pytest.mark.parametrize("phase", ["Pending", "Validating", "Scheduling", "Running"])
def test_a_problem_that_has_passed_is_not_shown_for_ever(phase: str) -> None:
    # The pod of a later attempt, or one that the Job put in the place of a deleted one.
    seen = underway(phase, pod(problem=("ImagePullBackOff", "no such image")))
    stuck = decided(seen)
    assert condition(stuck, "PodStarted").status == "False"
    begun = pod(source_started=NOW) if phase == "Pending" else VALIDATED
    going_on = decided(attrs.evolve(seen, status=stuck.status, runs={1: run(pod=begun)}))
    assert condition(going_on, "PodStarted").status == "True"
    assert "ImagePullBackOff" not in (going_on.status.message or "")


def test_a_job_without_a_pod_tells_why() -> None:
    told = {"no_pod": ("PodCreationFailed", "exceeded quota: pods")}
    decision = decided(underway("Pending", None, run=told))
    assert condition(decision, "PodStarted").message == "exceeded quota: pods"


def test_a_reason_that_is_no_word_is_not_made_one() -> None:
    decision = decided(underway("Pending", pod(problem=("two words", "m"))))
    assert condition(decision, "PodStarted").reason == "PodWaiting"


def test_a_job_that_is_not_there_is_made_again() -> None:
    seen = observed(status=status("Pending", attempt()), source=SOURCE)
    decision = decided(seen)
    assert decision.actions == (StartAttempt(1),)
    assert decision.status == seen.status
    assert decision.requeue_after == POD_PATIENCE


@pytest.mark.parametrize("phase", ["Validating", "Scheduling", "Running"])
def test_a_job_that_is_deleted_while_it_runs_is_an_attempt_that_was_lost(phase: str) -> None:
    decision = decided(observed(status=status(phase, attempt()), source=SOURCE))
    assert decision.status.phase == "Pending"
    assert decision.status.attempts[0].reason == "PodLost"
    assert not decision.status.attempts[0].counted
    assert decision.actions == ()


def test_the_name_that_the_job_really_has_is_shown() -> None:
    decision = decided(underway("Pending", VALIDATING, run={"job_name": "qiskit-job-bell-uid"}))
    assert decision.status.attempts[-1].job_name == "qiskit-job-bell-uid"


def test_a_change_after_the_start_is_reported_once_and_until_it_is_taken_back() -> None:
    seen = underway("Running", VALIDATED, spec_changed=["spec.execution"])
    first = decided(seen)
    found = condition(first, "SpecChangeIgnored")
    assert (found.status, found.reason) == ("True", "AlreadyStarted")
    assert found.message.startswith("spec.execution changed after the job had started")
    assert reasons(first) == ["SpecChangeIgnored"]
    again = decided(attrs.evolve(seen, status=first.status))
    assert (again.status, again.events) == (first.status, ())
    reverted = decided(attrs.evolve(seen, status=first.status, spec_changed=()))
    assert condition(reverted, "SpecChangeIgnored").status == "False"
    assert reverted.events == ()


def test_a_job_that_the_server_does_not_let_us_make_is_tried_again() -> None:
    seen = observed(status=status(observed_generation=None), source=SOURCE)
    decision = blocked(seen, "Forbidden", "exceeded quota: jobs")
    assert decision.status.phase == "Pending"
    assert decision.status.observed_generation == 1
    assert condition(decision, "PodStarted").message == "exceeded quota: jobs"
    assert decision.status.message == "Forbidden: exceeded quota: jobs"
    assert reasons(decision) == ["Forbidden"]
    assert decision.requeue_after == RECHECK
    again = blocked(attrs.evolve(seen, status=decision.status), "Forbidden", "exceeded quota: jobs")
    assert (again.status, again.events) == (decision.status, ())


# --- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"problems": ["spec.output.location: required if type is s3"]}, "InvalidSpec"),
        ({"spec": None, "problems": ["spec.backend: is required"]}, "InvalidSpec"),
        ({"unsupported": "spec.output.type: 'gcs' is not supported"}, "Unsupported"),
        ({"spec": spec(circuit={"source": "inline", "code": "qc = 1", "sha256": "0" * 64})}, None),
    ],
)
def test_a_job_that_cannot_be_started_fails(changes: dict[str, Any], reason: str | None) -> None:
    decision = decided(observed(status=status(), source=SOURCE, **changes))
    reason = reason or "SourceHashMismatch"
    assert decision.status.phase == "Failed"
    assert condition(decision, "Failed").reason == reason
    assert condition(decision, "Validated").status == "False"
    assert condition(decision, "Complete").status == "False"
    assert decision.status.message == f"{reason}: {condition(decision, 'Failed').message}"
    assert decision.status.completion_time == format_time(NOW)
    assert reasons(decision) == [reason]
    assert not any(isinstance(each, Start | StartAttempt) for each in decision.actions)


@pytest.mark.parametrize("reason", [each for each in Reason if each.retry is Retry.NEVER])
@pytest.mark.parametrize("phase", ["Pending", "Validating", "Scheduling", "Running"])
def test_a_permanent_failure_is_final_at_once(phase: str, reason: Reason) -> None:
    decision = decided(underway(phase, failed(reason)))
    assert decision.status.phase == "Failed"
    found = condition(decision, "Failed")
    assert (found.status, found.reason, found.message) == ("True", reason, "that is why")
    assert condition(decision, "Complete").status == "False"
    (only,) = decision.status.attempts
    assert (only.reason, only.message) == (reason, "that is why")
    assert only.completion_time == format_time(NOW - seconds(1))
    assert decision.actions == (CleanUp(output_unused=True),)
    assert reasons(decision) == [reason]


@pytest.mark.parametrize("reason", [each for each in Reason if each.retry is Retry.COUNTED])
def test_a_failure_that_may_pass_is_retried_as_often_as_allowed(reason: Reason) -> None:
    seen = underway("Running", failed(reason), spec=spec(execution={"maxRetries": 1}))
    first = decided(seen)
    assert first.status.phase == "Pending"
    assert first.status.running_time is None
    assert first.status.completion_time is None
    assert first.actions == ()
    assert first.status.attempts[0].counted
    assert reasons(first) == ["Retrying"]
    assert first.events[0].message.endswith("(retry 1 of 1)")
    assert find(first.status.conditions, "Failed") is None
    number = status("Running", first.status.attempts[0], attempt(2))
    report = attrs.evolve(failed(reason).report or REPORT, attempt=2)
    second = attrs.evolve(
        seen, status=number, runs={2: run(2, pod=attrs.evolve(failed(reason), report=report))}
    )
    last = decided(second)
    assert last.status.phase == "Failed"
    assert condition(last, "Failed").message == "that is why (attempt 2 of 2, the last)"


def test_without_retries_the_first_failure_is_the_last() -> None:
    seen = underway(
        "Running", failed(Reason.EXECUTOR_FAILED), spec=spec(execution={"maxRetries": 0})
    )
    decision = decided(seen)
    assert decision.status.phase == "Failed"
    assert condition(decision, "Failed").message == "that is why"


LOST: dict[str, tuple[PodView | None, dict[str, Any]]] = {
    "evicted": (attrs.evolve(VALIDATED, lost=(Reason.EVICTED, "low on memory")), {}),
    "deleted": (
        attrs.evolve(VALIDATED, lost=(Reason.POD_LOST, "the pod was deleted")),
        {"failed": ("BackoffLimitExceeded", "limit")},
    ),
    "told to stop": (attrs.evolve(VALIDATED, executor_ended=ended(143, "Error")), {}),
    "told to stop while validating": (
        attrs.evolve(VALIDATING, circuit_ended=ended(143, "Error")),
        {},
    ),
    "gone with its node": (
        None,
        {"failed": ("BackoffLimitExceeded", "limit"), "ended": NOW - POD_PATIENCE},
    ),
    "gone before its report was read": (None, {"complete": True, "ended": NOW - POD_PATIENCE}),
}


@pytest.mark.parametrize("how", LOST)
@pytest.mark.parametrize("phase", ["Validating", "Scheduling", "Running"])
def test_losing_the_pod_is_not_the_jobs_failure(phase: str, how: str) -> None:
    pod_, run_ = LOST[how]
    used = [
        attempt(n, completion_time=format_time(NOW), reason="Evicted", counted=False)
        for n in range(1, 9)
    ]
    seen = underway(
        phase,
        pod_,
        run=run_,
        spec=spec(execution={"maxRetries": 0}),
        status=status(phase, *used, attempt(9)),
    )
    seen = attrs.evolve(seen, runs={9: attrs.evolve(seen.runs[1], attempt=9)})
    decision = decided(seen)
    assert decision.status.phase == "Pending"
    assert not decision.status.attempts[-1].counted
    assert decision.status.attempts[-1].reason in ("PodLost", "Evicted")
    assert "retry" not in decision.events[0].message


def test_the_pods_last_word_may_come_after_the_jobs() -> None:
    # Two watches: the Job is known to have failed, the pod is still known as running.
    seen = underway(
        "Running", VALIDATED, run={"failed": ("BackoffLimitExceeded", "limit"), "ended": NOW}
    )
    waiting = decided(seen)
    assert waiting.status.phase == "Running"
    assert waiting.requeue_after == POD_PATIENCE
    told = attrs.evolve(
        seen, runs={1: attrs.evolve(seen.runs[1], pod=failed(Reason.OUTPUT_CONFLICT))}
    )
    assert condition(decided(told), "Failed").reason == "OutputConflict"
    never = decided(attrs.evolve(seen, now=NOW + POD_PATIENCE))
    assert never.status.attempts[0].reason == "PodLost"


@pytest.mark.parametrize(
    ("pod_", "reason"),
    [
        (attrs.evolve(VALIDATED, executor_ended=ended(137, "OOMKilled")), "OutOfMemory"),
        (attrs.evolve(VALIDATING, circuit_ended=ended(137, "OOMKilled")), "CircuitOutOfMemory"),
        (pod(source_started=NOW, source_ended=ended(137, "OOMKilled")), "OutOfMemory"),
    ],
)
def test_what_the_kubelet_says_of_a_container_is_translated(pod_: PodView, reason: str) -> None:
    for phase in ("Pending", "Validating"):
        decision = decided(underway(phase, pod_))
        assert decision.status.phase == "Failed"
        assert condition(decision, "Failed").reason == reason
        # The Job stays, so that its log can be read.
        assert decision.actions == (CleanUp(output_unused=True),)


def test_an_executor_without_a_report_is_retried() -> None:
    dead = attrs.evolve(VALIDATED, executor_ended=ended(137, "Error"))
    decision = decided(underway("Running", dead))
    assert decision.status.attempts[0].reason == "ExecutorFailed"
    assert decision.status.attempts[0].message == (
        "the executor ended without a report (Error, exit code 137)"
    )
    assert decision.status.phase == "Pending"


def test_a_failure_after_validation_leaves_the_circuit_valid() -> None:
    said = failed(Reason.OUTPUT_CONFLICT, circuit_metrics=kubelet.METRICS)
    early = decided(underway("Pending", said))
    assert condition(early, "Validated").status == "True"
    assert early.status.circuit_metrics == kubelet.METRICS
    started = decided(observed(status=status(), source=SOURCE)).status
    seen = underway("Validating", failed(Reason.NO_CIRCUIT))
    bad = decided(attrs.evolve(seen, status=attrs.evolve(started, phase="Validating")))
    found = condition(bad, "Validated")
    assert (found.status, found.reason) == ("False", "NoCircuit")


# --- time -------------------------------------------------------------------------------------


def test_timeout_counts_from_running() -> None:
    seen = underway("Running", VALIDATED, spec=spec(execution={"timeout": "45s"}))
    in_time = decided(seen)
    assert in_time.status.phase == "Running"
    # Ten seconds more than the executor gives itself.
    assert in_time.requeue_after == seconds(25)
    late = decided(attrs.evolve(seen, now=NOW + seconds(25)))
    assert condition(late, "Failed").reason == "Timeout"
    assert "spec.execution.timeout (45s)" in condition(late, "Failed").message
    assert brought_to_an_end(attrs.evolve(seen, now=NOW + seconds(25)), late).actions == (
        CleanUp(output_unused=True),
    )


@pytest.mark.parametrize("phase", ["Pending", "Scheduling"])
def test_waiting_is_not_executing(phase: str) -> None:
    seen = underway(phase, VALIDATED, spec=spec(execution={"timeout": "1s"}))
    assert decided(attrs.evolve(seen, now=NOW + seconds(10_000))).status.phase != "Failed"


def test_a_result_in_time_is_a_result_also_when_we_are_late() -> None:
    seen = underway("Running", DONE, spec=spec(execution={"timeout": "45s"}))
    late = decided(attrs.evolve(seen, now=NOW + seconds(10_000)))
    assert late.status.phase == "Completed"


def test_code_that_got_the_better_of_its_own_limit_is_stopped() -> None:
    seen = underway("Validating", VALIDATING)
    assert decided(attrs.evolve(seen, now=NOW + seconds(329))).status.phase == "Validating"
    late = decided(attrs.evolve(seen, now=NOW + seconds(330)))
    assert condition(late, "Failed").reason == "CircuitTimeout"
    brought_to_an_end(attrs.evolve(seen, now=NOW + seconds(330)), late)


def test_fetching_that_hangs_is_stopped() -> None:
    seen = underway("Pending", pod(source_started=NOW - seconds(30)))
    waiting = decided(seen)
    assert waiting.status.phase == "Pending"
    late = decided(attrs.evolve(seen, now=NOW + seconds(500)))
    assert late.status.attempts[0].reason == "SourceUnavailable"
    assert late.actions == ()
    assert followed(seen, late).actions == (StopRuns(("qiskit-job-bell",)),)


# --- retries ----------------------------------------------------------------------------------


def ended_attempts(number: int) -> tuple[AttemptStatus, ...]:
    return tuple(
        attempt(n, completion_time=format_time(NOW), reason="ExecutorFailed")
        for n in range(1, number + 1)
    )


@pytest.mark.parametrize("uid", ["uid-1", "0f6b0a5c-7c2f-4f0e-9d7c-1f6f0a5c7c2f", "x"])
def test_attempts_are_spaced_as_documented(uid: str) -> None:
    for number in range(1, 40):
        plain = min(10 * 2 ** (number - 1), 360)
        delay = retry_delay(uid, ended_attempts(number))
        assert seconds(plain) <= delay <= seconds(plain * 1.2)
        assert delay == retry_delay(uid, ended_attempts(number))


def test_the_spread_differs_between_jobs() -> None:
    assert len({retry_delay(f"uid-{n}", ended_attempts(1)) for n in range(50)}) > 20


def test_the_next_attempt_begins_when_it_is_due_and_not_before() -> None:
    seen = observed(status=status("Pending", *ended_attempts(2)), source=SOURCE)
    delay = retry_delay("uid-1", ended_attempts(2))
    early = decided(attrs.evolve(seen, now=NOW + delay - seconds(1)))
    assert early.status == seen.status
    assert early.actions == ()
    assert early.requeue_after == seconds(1)
    due = decided(attrs.evolve(seen, now=NOW + delay))
    assert due.actions == (StartAttempt(3),)
    assert [each.number for each in due.status.attempts] == [1, 2, 3]
    assert due.status.attempts[-1].job_name == "qiskit-job-bell-3"
    assert reasons(due) == ["Started"]


def test_the_wait_counts_from_the_end_of_the_pod_and_not_from_our_notice() -> None:
    noticed = underway("Running", attrs.evolve(VALIDATED, executor_ended=ended(1, "Error", ago=9)))
    first = decided(noticed)
    assert first.status.attempts[0].completion_time == format_time(NOW - seconds(9))
    then = decided(attrs.evolve(noticed, status=first.status, now=NOW + seconds(4)))
    assert then.actions == (StartAttempt(2),)


# --- cancel, delete, time to live -------------------------------------------------------------

CANCEL = spec(cancel=True)


def test_cancelling_before_the_start() -> None:
    for source in (SOURCE, None, SourceMissing("ConfigMapNotFound", "m")):
        decision = decided(observed(status=status(), source=source, spec=CANCEL))
        assert decision.status.phase == "Cancelled"
        assert not any(isinstance(each, Start) for each in decision.actions)


@pytest.mark.parametrize("phase", ["Pending", "Validating", "Scheduling", "Running"])
def test_cancelling_waits_until_the_pod_has_ended(phase: str) -> None:
    seen = underway(phase, VALIDATED, spec=CANCEL)
    stopping = decided(seen)
    assert stopping.status.phase == phase
    assert stopping.actions == (StopRuns(("qiskit-job-bell",)),)
    assert reasons(stopping) == ["Cancelling"]
    going = attrs.evolve(seen.runs[1], deleting=True)
    again = decided(attrs.evolve(seen, status=stopping.status, runs={1: going}))
    assert (again.status, again.actions, again.events) == (stopping.status, (), ())
    gone = decided(attrs.evolve(seen, status=stopping.status, runs={}))
    assert gone.status.phase == "Cancelled"
    assert condition(gone, "Cancelled").status == "True"
    assert condition(gone, "Complete").status == "False"
    assert find(gone.status.conditions, "Failed") is None
    assert gone.status.attempts[0].completion_time is not None
    assert gone.actions == (CleanUp(output_unused=True),)
    assert reasons(gone) == ["Cancelled"]


def test_cancelling_between_attempts() -> None:
    seen = observed(status=status("Pending", *ended_attempts(1)), source=SOURCE, spec=CANCEL)
    decision = decided(attrs.evolve(seen, now=NOW + seconds(1000)))
    assert decision.status.phase == "Cancelled"
    assert decision.status.attempts == seen.status.attempts


@pytest.mark.parametrize("phase", ["Completed", "Failed", "Cancelled"])
def test_what_has_ended_stays_as_it_is(phase: str) -> None:
    done = status(
        phase, attempt(completion_time=format_time(NOW)), completion_time=format_time(NOW)
    )
    for changes in ({}, {"spec": CANCEL}, {"spec": None, "problems": ["x"]}, {"source": SOURCE}):
        decision = decided(observed(status=done, **changes))
        assert decision.status == done
        assert (decision.actions, decision.events) == ((), ())
        assert decision.requeue_after is None


@pytest.mark.parametrize("phase", ["Completed", "Failed", "Cancelled"])
def test_a_job_that_was_overlooked_is_stopped_after_the_end(phase: str) -> None:
    done = status(
        phase, attempt(completion_time=format_time(NOW)), completion_time=format_time(NOW)
    )
    decision = decided(observed(status=done, runs={1: run(pod=VALIDATED)}))
    assert decision.actions == (StopRuns(("qiskit-job-bell",)),)
    ended_runs = (
        run(pod=DONE),
        run(failed=("BackoffLimitExceeded", "limit")),
        run(complete=True),
        run(pod=attrs.evolve(VALIDATING, circuit_ended=ended(1))),
    )
    for over in ended_runs:
        assert decided(observed(status=done, runs={1: over})).actions == ()


def test_only_the_time_to_live_ends_the_life_of_what_has_ended() -> None:
    done = status("Completed", attempt(), completion_time=format_time(NOW))
    mortal = observed(status=done, spec=spec(ttlSecondsAfterFinished=60))
    early = decided(attrs.evolve(mortal, now=NOW + seconds(59)))
    assert (early.actions, early.requeue_after) == ((), seconds(1))
    assert decided(attrs.evolve(mortal, now=NOW + seconds(60))).actions == (DeleteJob(),)
    at_once = observed(status=done, spec=spec(ttlSecondsAfterFinished=0))
    assert decided(at_once).actions == (DeleteJob(),)


def test_deletion_waits_for_jobs_and_pods() -> None:
    for phase in (None, "Pending", "Running", "Completed"):
        seen = observed(status=status(phase, attempt()), deleting=True)
        with_run = decided(attrs.evolve(seen, runs={1: run(pod=VALIDATED)}, pods_left=1))
        assert with_run.actions == (StopRuns(("qiskit-job-bell",)),)
        assert with_run.requeue_after == RECHECK
        going = decided(attrs.evolve(seen, runs={1: run(deleting=True)}, pods_left=1))
        assert going.actions == ()
        with_pod = decided(attrs.evolve(seen, pods_left=1))
        assert (with_pod.actions, with_pod.requeue_after) == ((), RECHECK)
        assert decided(seen).actions == (RemoveFinalizer(),)
        assert decided(seen).status == seen.status


def test_a_deletion_that_does_not_wait_for_us_is_none_of_our_business() -> None:
    seen = observed(deleting=True, finalized=False, runs={1: run(pod=VALIDATED)})
    assert decided(seen).actions == ()


# --- refusals ---------------------------------------------------------------------------------


def test_a_refusal_fails_the_job_and_takes_back_what_was_made() -> None:
    seen = observed(status=status(observed_generation=None), source=SOURCE, generation=2)
    decision = refuse(seen, Reason.OUTPUT_CONFLICT, "ConfigMap 'x' belongs to someone else")
    assert decision.status.phase == "Failed"
    assert decision.status.observed_generation == 2
    assert condition(decision, "Failed").reason == "OutputConflict"
    assert decision.actions == (CleanUp(output_unused=True),)
    assert reasons(decision) == ["OutputConflict"]


def test_a_refusal_later_on_does_not_make_the_circuit_invalid() -> None:
    valid = decided(
        underway("Validating", VALIDATED, progress=kubelet.progress(1, "Validated"))
    ).status
    decision = refuse(observed(status=valid), Reason.EXECUTOR_FAILED, "the input was deleted")
    assert condition(decision, "Validated").status == "True"
    assert decision.status.attempts[0].completion_time == format_time(NOW)


# --- in general -------------------------------------------------------------------------------

SITUATIONS: dict[str, Observed] = {
    "new": observed(),
    "accepted": observed(status=status(), source=SOURCE),
    "unreadable": observed(status=status(), spec=None, problems=["spec: is required"]),
    "source missing": observed(status=status(), source=SourceMissing("ConfigMapNotFound", "m")),
    "unschedulable": underway("Pending", pod(problem=("Unschedulable", "m"))),
    "validating": underway("Pending", VALIDATING),
    "scheduling": underway("Validating", VALIDATED, progress=kubelet.progress(1, "Validated")),
    "running": underway("Scheduling", VALIDATED, progress=kubelet.progress(1, "Executing")),
    "completed": underway("Running", DONE),
    "failed": underway("Running", failed(Reason.OUTPUT_CONFLICT)),
    "retrying": underway("Running", failed(Reason.EXECUTOR_FAILED)),
    "cancelled": observed(status=status("Running", attempt()), spec=CANCEL),
    "changed": underway("Running", VALIDATED, spec_changed=["spec.execution"]),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_observed_generation_is_that_of_the_object(name: str) -> None:
    decision = decided(attrs.evolve(SITUATIONS[name], generation=7))
    assert decision.status.observed_generation == 7
    for each in decision.status.conditions:
        assert each.observed_generation == 7


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_decision_taken_twice_is_the_same(name: str) -> None:
    seen = SITUATIONS[name]
    assert decided(seen) == decided(seen)
    later = attrs.evolve(seen, now=NOW + seconds(0.4))
    assert decided(later).status.phase == decided(seen).status.phase


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_new_phase_comes_with_an_event(name: str) -> None:
    seen = SITUATIONS[name]
    decision = decided(seen)
    if decision.status.phase != seen.status.phase:
        assert decision.events
    for event in decision.events:
        assert event.reason.isalnum()
        assert event.message


def test_times_are_of_the_form_that_kubernetes_has() -> None:
    decision = decided(underway("Running", DONE))
    for text in (decision.status.completion_time, decision.status.attempts[0].completion_time):
        assert text is not None
        assert parse_time(text).microsecond == 0
        assert text.endswith("Z")


# --- ends that cross each other ---------------------------------------------------------------


def test_a_result_that_is_stored_is_not_cancelled() -> None:
    wanted = attrs.evolve(spec(), cancel=True)
    assert decided(underway("Running", DONE, spec=wanted)).status.phase == "Completed"
    assert decided(underway("Running", VALIDATED, spec=wanted)).actions == (
        StopRuns(("qiskit-job-bell",)),
    )


@pytest.mark.parametrize("end", ["cancelled", "refused"])
def test_what_was_waited_for_is_not_announced_any_more(end: str) -> None:
    seen = observed(
        status=status("Pending"), source=SourceMissing("ConfigMapNotFound", "it goes on when ...")
    )
    waiting = decided(seen)
    assert condition(waiting, "Validated").reason == "ConfigMapNotFound"
    seen = attrs.evolve(seen, status=waiting.status)
    if end == "cancelled":
        decision = decided(attrs.evolve(seen, spec=attrs.evolve(spec(), cancel=True)))
        assert condition(decision, "Validated").reason == "Cancelled"
    else:
        decision = refuse(seen, Reason.OUTPUT_CONFLICT, "somebody else's")
        assert condition(decision, "Validated").reason == "OutputConflict"
    assert condition(decision, "Validated").status == "False"
