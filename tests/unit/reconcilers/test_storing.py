"""After the circuit has run: counts at once, attempts that only store, nothing run twice."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import attrs
import pytest

from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.quantities import format_time
from qiskit_controller.api.run import (
    STORE_ENV,
    JobIdentity,
    KeptResult,
    Plan,
    PlannedSource,
    Progress,
    Reason,
    Report,
    StoredResult,
    progress_key,
    result_key,
)
from qiskit_controller.reconcilers.qiskitjob import manifests
from qiskit_controller.reconcilers.qiskitjob.decision import (
    STORING_PATIENCE,
    CleanUp,
    StartAttempt,
    refuse,
)
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings
from qiskit_controller.reconcilers.qiskitjob.observed import Observed, Terminated, kept_progress

from .kubelet import METRICS
from .support import (
    NOW,
    attempt,
    brought_to_an_end,
    condition,
    decided,
    observed,
    pod,
    reasons,
    run,
    seconds,
    spec,
    status,
    underway,
)

COUNTS = {"00": 500, "11": 524}
RAN = Report(
    attempt=1,
    message="1024 shots",
    backend="aer_simulator",
    started="2026-01-01T11:59:30.000000+00:00",
    execution_time=0.25,
    shots=1024,
    counts=COUNTS,
    outcomes=2,
)
KEPT = KeptResult(file="results.json", size=10, sha256="d" * 64)
EXECUTED = Progress(
    attempt=1, stage="Executed", circuit_metrics=METRICS, backend="aer_simulator", report=RAN
)
WITH_RESULT = attrs.evolve(EXECUTED, kept=KEPT)
AT_WORK = pod(executor_started=NOW - seconds(40))


def failed(reason: Reason, attempt_: int = 1) -> Any:
    report = attrs.evolve(RAN, attempt=attempt_, reason=reason, message="that is why")
    ended = Terminated(1, "Error", "", NOW - seconds(1))
    return pod(executor_started=NOW - seconds(40), executor_ended=ended, report=report)


def storing(attempts: int = 2, pod_: Any = None, **changes: Any) -> Observed:
    """A job whose circuit has run in attempt 1; the last attempt only stores."""
    every = [
        attempt(n, completion_time=None if n == attempts else format_time(NOW - seconds(50)))
        for n in range(1, attempts + 1)
    ]
    given = {
        "status": status("Running", *every),
        "runs": {attempts: run(attempts, pod=pod_)},
        "progress": WITH_RESULT,
    }
    return observed(**given | changes)


def test_counts_are_there_as_soon_as_it_has_run() -> None:
    seen = underway("Running", AT_WORK, progress=WITH_RESULT)
    decision = decided(seen)
    assert decision.status.phase == "Running"
    assert decision.status.results is not None
    assert decision.status.results.counts == COUNTS
    assert decision.status.results_location is None
    assert decision.status.message == "1024 shots on aer_simulator; storing the results"
    stored = condition(decision, "ResultsStored")
    assert (stored.status, stored.reason) == ("Unknown", "Storing")
    assert reasons(decision) == ["Executed"]
    # And that is told once.
    again = decided(attrs.evolve(seen, status=decision.status))
    assert again.status == decision.status
    assert again.events == ()


def test_it_is_stored() -> None:
    where = StoredResult(location="s3://b/results.json", size=10, sha256="d" * 64)
    report = attrs.evolve(RAN, attempt=2, stored=where)
    before = decided(storing(pod_=AT_WORK)).status
    decision = decided(
        storing(
            pod_=pod(executor_started=NOW, report=report),
            status=attrs.evolve(before, executor_pod_name=None),
        )
    )
    assert decision.status.phase == "Completed"
    stored = condition(decision, "ResultsStored")
    assert (stored.status, stored.reason) == ("True", "Stored")
    assert stored.message == f"s3://b/results.json, 10 bytes, SHA-256 {'d' * 64}"
    assert decision.actions == (CleanUp(output_unused=False),)


def test_a_failure_to_store_leaves_the_job_running() -> None:
    seen = underway("Running", failed(Reason.OUTPUT_UNAVAILABLE), progress=WITH_RESULT)
    decision = decided(seen)
    assert decision.status.phase == "Running"
    assert decision.status.running_time == seen.status.running_time
    assert decision.status.results is not None
    stored = condition(decision, "ResultsStored")
    assert (stored.status, stored.reason) == ("False", "OutputUnavailable")
    assert "trying again" in (decision.status.message or "")
    later = attrs.evolve(seen, status=decision.status, now=NOW + seconds(3600))
    following = decided(later)
    assert following.actions == (StartAttempt(2),)
    assert "only stores" in (following.status.message or "")
    # The pod of the next attempt has another name, and that is as it should be.
    assert following.status.executor_pod_name is None


@pytest.mark.parametrize("phase", ["Pending", "Validating", "Scheduling"])
def test_what_was_faster_than_we_looked_is_shown_step_by_step(phase: str) -> None:
    seen = underway(phase, failed(Reason.OUTPUT_UNAVAILABLE), progress=WITH_RESULT)
    phases = []
    for _ in range(5):
        decision = decided(seen)
        phases.append(decision.status.phase)
        seen = attrs.evolve(seen, status=decision.status)
        if decision.status.attempts[-1].completion_time:
            break
    order = ["Validating", "Scheduling", "Running", "Running"]
    assert phases == order[len(order) - len(phases) :]


def test_a_lost_pod_after_it_has_run_is_no_loss() -> None:
    lost = pod(executor_started=NOW, lost=(Reason.POD_LOST, "the pod was deleted"))
    decision = decided(underway("Running", lost, progress=WITH_RESULT))
    assert decision.status.phase == "Running"
    assert decision.status.attempts[-1].counted is False
    assert decision.status.results is not None


def test_what_was_not_kept_has_to_run_again_if_the_pod_is_lost() -> None:
    lost = pod(executor_started=NOW, lost=(Reason.POD_LOST, "the pod was deleted"))
    shown = decided(underway("Running", AT_WORK, progress=EXECUTED)).status
    seen = underway("Running", lost, progress=EXECUTED, status=shown)
    decision = decided(seen)
    assert decision.status.phase == "Pending"
    assert decision.status.results is None, "the next run has counts of its own"


@pytest.mark.parametrize("reason", [Reason.OUTPUT_CONFLICT, Reason.OUTPUT_TOO_LARGE])
def test_the_end_keeps_counts_and_result(reason: Reason) -> None:
    decision = decided(underway("Running", failed(reason), progress=WITH_RESULT))
    assert decision.status.phase == "Failed"
    assert decision.status.results is not None
    assert decision.status.results.counts == COUNTS
    assert condition(decision, "ResultsStored").status == "False"
    assert decision.actions[-1] == CleanUp(output_unused=True, keep_record=True)


def test_the_last_attempt_at_storing() -> None:
    seen = storing(5, failed(Reason.OUTPUT_DENIED, 5))
    decision = decided(seen)
    assert decision.status.phase == "Failed"
    assert decision.actions[-1] == CleanUp(output_unused=True, keep_record=True)


def test_a_refusal_keeps_the_result_too() -> None:
    seen = storing(pod_=AT_WORK)
    decision = refuse(seen, Reason.OUTPUT_CONFLICT, "somebody else's")
    assert brought_to_an_end(seen, decision).actions == (
        CleanUp(output_unused=True, keep_record=True),
    )


def test_a_failure_before_it_ran() -> None:
    report = Report(attempt=1, reason=Reason.OUTPUT_NOT_FOUND, message="no bucket")
    seen = underway("Scheduling", pod(executor_started=NOW, report=report))
    decision = decided(seen)
    assert decision.status.phase == "Pending"
    assert decision.status.results is None
    assert condition(decision, "ResultsStored").reason == "OutputNotFound"


def test_the_timeout_is_about_executing() -> None:
    late = {"now": NOW + timedelta(hours=2)}
    executing = attrs.evolve(EXECUTED, stage="Executing", report=None)
    ended = decided(underway("Running", AT_WORK, progress=executing, **late))
    assert ended.status.message is not None
    assert ended.status.message.startswith("Timeout: ")
    goes_on = decided(underway("Running", AT_WORK, progress=WITH_RESULT, **late))
    assert goes_on.status.phase == "Running"
    assert goes_on.status.attempts[-1].completion_time is None


@pytest.mark.parametrize("attempts", [1, 2])
def test_storing_does_not_take_forever(attempts: int) -> None:
    seen = storing(attempts, AT_WORK)
    seen = attrs.evolve(seen, status=decided(seen).status)
    begun = NOW if attempts == 1 else NOW - seconds(60)
    just_before = attrs.evolve(seen, now=begun + STORING_PATIENCE - seconds(1))
    decision = decided(just_before)
    assert decision.status.attempts[-1].completion_time is None
    assert decision.requeue_after == seconds(1)
    decision = decided(attrs.evolve(seen, now=begun + STORING_PATIENCE))
    assert decision.status.attempts[-1].reason == "OutputUnavailable"


def test_which_attempt_has_kept_a_result() -> None:
    def record(*attempts: Progress, kept: tuple[int, ...] = ()) -> dict[str, Any]:
        packed = base64.b64encode(b"x").decode()
        return {
            "data": {progress_key(a.attempt): json.dumps(to_wire(a)) for a in attempts},
            "binaryData": {result_key(n): packed for n in kept},
        }

    second = Progress(attempt=2, stage="Executing", circuit_metrics=METRICS)
    assert kept_progress({}, 3) is None
    assert kept_progress(record(EXECUTED), 3) is None
    assert kept_progress(record(WITH_RESULT, second), 3) is None, "without the result itself"
    found = kept_progress(record(WITH_RESULT, second, kept=(1,)), 3)
    assert found == WITH_RESULT
    broken = record(WITH_RESULT, kept=(1,))
    broken["data"][progress_key(1)] = "{"
    assert kept_progress(broken, 1) is None


# --- pods ----------------------------------------------------------------------------------------


def plan(**output: Any) -> Plan:
    return Plan(
        job=JobIdentity(namespace="ns", name="bell", uid="uid-1"),
        spec=spec(
            output=output,
            credentials={"secretRef": {"name": "keys"}, "gitSecretRef": {"name": "git-keys"}},
        ),
        source=PlannedSource(file="circuit.py"),
        record="qiskit-job-bell-record",
        output_location=output.get("location", "bell-results"),
    )


def mounts(container: dict[str, Any]) -> set[str]:
    return {each["name"] for each in container["volumeMounts"]}


@pytest.mark.parametrize("kind", ["pvc", "s3"])
def test_only_the_executor_sees_volume_and_credentials(kind: str) -> None:
    location = "claim" if kind == "pvc" else "s3://b/f"
    job = manifests.kubernetes_job(
        plan(type=kind, location=location), 1, Settings(runner_image="image")
    )
    template = job["spec"]["template"]
    (circuit,) = template["spec"]["initContainers"]
    (executor,) = template["spec"]["containers"]
    private = {"credentials"} | ({"storage"} if kind == "pvc" else set())
    assert private <= mounts(executor)
    assert not (private | {"token"}) & mounts(circuit)
    volumes = {each["name"]: each for each in template["spec"]["volumes"]}
    assert volumes["credentials"]["secret"] == {"secretName": "keys", "defaultMode": 0o400}
    if kind == "pvc":
        assert volumes["storage"]["persistentVolumeClaim"] == {"claimName": "claim"}
    skipped = template["metadata"]["annotations"]["eks.amazonaws.com/skip-containers"]
    assert "circuit" in skipped.split(",")
    assert "executor" not in skipped


def test_a_pod_that_only_stores() -> None:
    job = manifests.kubernetes_job(
        plan(type="s3", location="s3://b/f"), 3, Settings(runner_image="image"), kept_by=1
    )
    pod_spec = job["spec"]["template"]["spec"]
    assert "initContainers" not in pod_spec
    (executor,) = pod_spec["containers"]
    assert {"name": STORE_ENV, "value": "1"} in executor["env"]
    names = {each["name"] for each in pod_spec["volumes"]}
    assert names == mounts(executor) == {"input", "executor-tmp", "token", "credentials"}


def test_an_identity_of_the_namespace() -> None:
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x", "quantum.io/job": "forged"}
    account = manifests.service_account(plan(type="s3", location="s3://b"), role)
    assert account["metadata"]["annotations"] == {
        "eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x",
        "quantum.io/job": "bell",
    }


@pytest.mark.parametrize(
    ("backend", "output", "wants"),
    [
        ("local_simulator", "configmap", False),
        ("local_simulator", "s3", True),
        ("ibm_quantum", "configmap", False),
        ("aws_braket", "configmap", True),
    ],
)
def test_who_wants_an_identity(backend: str, output: str, wants: bool) -> None:
    location = {"location": "s3://b/f"} if output == "s3" else {}
    spec = plan(type=output, **location).spec
    spec = attrs.evolve(spec, backend=attrs.evolve(spec.backend, type=backend))
    assert manifests.wants_identity(spec) is wants


def test_the_record_has_more_room_for_counts_than_the_report() -> None:
    short = attrs.evolve(RAN, counts={"11": 524}, circuit_metrics=METRICS)
    seen = underway("Running", pod(executor_started=NOW, report=short), progress=WITH_RESULT)
    done = decided(seen)
    assert done.status.phase == "Completed"
    assert done.status.results is not None
    assert done.status.results.counts == COUNTS
    assert not done.status.results.counts_truncated


def test_the_time_for_storing_is_counted_for_each_run() -> None:
    seen = underway("Running", AT_WORK, progress=attrs.evolve(WITH_RESULT, kept=None))
    storing_ = decided(seen)
    assert condition(storing_, "ResultsStored").reason == "Storing"
    lost = attrs.evolve(AT_WORK, lost=(Reason.EVICTED, "the node was drained"))
    seen = attrs.evolve(seen, status=storing_.status, runs={1: run(1, pod=lost)})
    again = decided(seen)
    assert again.status.phase == "Pending"
    assert again.status.results is None
    # Not left as it was: the next run's time would be counted from there.
    assert condition(again, "ResultsStored").status == "False"
    assert condition(again, "ResultsStored").reason == "Evicted"
