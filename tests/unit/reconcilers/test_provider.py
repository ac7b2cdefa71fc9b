"""What the status tells of a provider's job, and the pod that cancels it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import attrs
import pytest

from qiskit_controller.api import names
from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.qiskitjob import ProviderStatus
from qiskit_controller.api.quantities import format_time
from qiskit_controller.api.run import (
    JobIdentity,
    Plan,
    PlannedSource,
    Progress,
    Reason,
    Submission,
    submission_key,
)
from qiskit_controller.drivers.ibm_quantum.controller import IbmQuantum
from qiskit_controller.reconcilers.qiskitjob import provider, reconciler
from qiskit_controller.reconcilers.qiskitjob.decision import StartCancel, StopCancel
from qiskit_controller.reconcilers.qiskitjob.manifests import (
    Settings,
    cancelling_job,
    kubernetes_job,
)
from qiskit_controller.reconcilers.qiskitjob.observed import (
    Canceller,
    Source,
    newest_submission,
    view_canceller,
)

from . import kubelet
from .support import (
    CODE,
    NOW,
    attempt,
    condition,
    decided,
    observed,
    pod,
    reasons,
    seconds,
    spec,
    status,
    underway,
)

CONTROLLER_HALF = IbmQuantum()
EXECUTING = pod(circuit_started=NOW - seconds(40), executor_started=NOW - seconds(35))
QUEUED = Submission(
    ticket=1,
    attempt=1,
    id="abc",
    backend="ibm_brisbane",
    state="Queued",
    queue_position=7,
    estimated_start="2026-01-01T13:00:00Z",
)


def waiting(text: str = "") -> Progress:
    return Progress(attempt=1, stage="Validated", circuit_metrics=kubelet.METRICS, waiting=text)


def test_the_queue_is_shown_while_it_is_waited() -> None:
    decision = decided(underway("Scheduling", EXECUTING, submission=QUEUED, progress=waiting()))
    assert decision.status.phase == "Scheduling"
    assert decision.status.provider == ProviderStatus(
        submission=1,
        job_id="abc",
        state="Queued",
        queue_position=7,
        estimated_start="2026-01-01T13:00:00Z",
    )
    assert decision.status.message == (
        "Job abc is in the queue of ibm_brisbane, 7 before it, estimated start 2026-01-01T13:00:00Z"
    )


def test_a_provider_that_does_not_answer_is_told_once() -> None:
    seen = underway("Scheduling", EXECUTING, progress=waiting("no route to host"))
    decision = decided(seen)
    assert condition(decision, "ProviderAvailable").status == "False"
    assert decision.status.message == "aer_simulator: no route to host"
    assert reasons(decision) == ["NoAnswer"]
    again = decided(
        underway("Scheduling", EXECUTING, status=decision.status, progress=seen.progress)
    )
    assert reasons(again) == []
    answers = decided(underway("Scheduling", EXECUTING, status=decision.status, progress=waiting()))
    assert condition(answers, "ProviderAvailable").status == "True"
    assert reasons(answers) == ["ProviderAnswers"]


def test_timeout_counts_from_when_the_provider_began() -> None:
    since = format_time(NOW - timedelta(minutes=50))
    running = Submission(ticket=1, attempt=2, id="abc", state="Running", executing=since)
    executing = Progress(
        attempt=2, stage="Executing", circuit_metrics=kubelet.METRICS, backend="ibm_brisbane"
    )
    decision = decided(underway("Scheduling", EXECUTING, submission=running, progress=executing))
    assert decision.status.phase == "Running"
    assert decision.status.running_time == since


def test_a_result_that_is_paid_is_waited_for_beyond_the_timeout() -> None:
    old = status("Running", attempt(), running_time=format_time(NOW - timedelta(hours=5)))
    for state, phase in (("Running", "Running"), ("Done", "Running")):
        told = Submission(ticket=1, attempt=1, id="abc", state=state)  # type: ignore[arg-type]
        decision = decided(underway("Running", EXECUTING, status=old, submission=told))
        assert decision.status.phase == phase
        failed = [each for each in decision.status.conditions if each.type == "Failed"]
        assert bool(failed) == (state == "Running"), state


@pytest.mark.parametrize(
    ("ends", "number"),
    [
        ([], 1),
        (["PodLost", "ExecutorFailed", "BackendUnavailable", None], 1),
        (["ProviderJobFailed", "PodLost"], 2),
        (["ProviderJobFailed", "ProviderJobFailed"], 3),
    ],
)
def test_a_ticket_is_new_only_after_the_provider_s_job_has_failed(
    ends: list[str | None], number: int
) -> None:
    attempts = [attempt(n, reason=reason) for n, reason in enumerate(ends, 1)]
    assert provider.ticket(attempts) == number


def cancelled(canceller: Canceller | None = None, **changes: Any) -> Any:
    """A job that is to be cancelled and whose pods have ended."""
    given: dict[str, Any] = {
        "spec": spec(cancel=True),
        "submission": QUEUED,
        "canceller": canceller,
        "runs": {},
        "pods_left": 0,
    }
    return underway("Scheduling", None, **given | changes)


def requested(minutes: float = 0) -> Any:
    held = ProviderStatus(
        submission=1,
        job_id="abc",
        state="Queued",
        cancellation="Requested",
        cancel_time=format_time(NOW - timedelta(minutes=minutes)),
    )
    return status("Scheduling", attempt(), provider=held)


def test_cancelling_goes_step_by_step() -> None:
    first = decided(cancelled())
    assert reasons(first) == ["CancellingAtProvider"]
    assert first.status.provider is not None
    assert first.status.provider.cancellation == "Requested"
    assert decided(cancelled(status=first.status)).actions == (StartCancel(1, "abc"),)
    name = names.cancel_name("bell")
    waits = decided(cancelled(Canceller(name), status=first.status))
    assert (waits.actions, waits.status) == ((), first.status)
    done = decided(
        cancelled(Canceller(name, complete=True, said="job abc: Cancelled"), status=first.status)
    )
    assert reasons(done) == ["CancelledAtProvider"]
    assert done.events[0].message == "Cancelled at the provider: job abc: Cancelled"
    swept = decided(cancelled(Canceller(name, complete=True), status=done.status))
    assert swept.actions == (StopCancel(name),)
    last = decided(cancelled(status=done.status))
    assert last.status.phase == "Cancelled"


@pytest.mark.parametrize(
    ("canceller", "minutes"),
    [
        (Canceller("c", failed="BackoffLimitExceeded", said="the key is not accepted"), 1),
        (None, 31),
        (Canceller("c"), 31),
    ],
)
def test_what_cannot_be_cancelled_is_given_up_with_a_warning(
    canceller: Canceller | None, minutes: float
) -> None:
    decision = decided(cancelled(canceller, status=requested(minutes)))
    assert reasons(decision) == ["NotCancelledAtProvider"]
    (event,) = decision.events
    assert event.type == "Warning"
    assert "job abc" in event.message
    if canceller is not None and canceller.said:
        assert "the key is not accepted" in event.message
    assert decision.status.provider is not None
    assert decision.status.provider.cancellation == "Abandoned"


def test_nothing_is_cancelled_where_nothing_can_have_been_submitted() -> None:
    decision = decided(cancelled(submission=None))
    assert decision.status.phase == "Cancelled"


@pytest.mark.parametrize("state", ["Done", "Failed", "Cancelled"])
def test_nothing_is_cancelled_that_is_over(state: Any) -> None:
    over = Submission(ticket=1, attempt=1, id="abc", state=state)
    assert decided(cancelled(submission=over)).status.phase == "Cancelled"


def test_the_newest_submission_counts() -> None:
    data = {
        submission_key(n): json.dumps({"ticket": n, "attempt": n, "id": f"job-{n}"})
        for n in (1, 2, 10)
    } | {"progress-1": "{}", "submission-11": "nonsense"}
    found = newest_submission({"data": data})
    assert found is not None
    assert found.id == "job-10"
    assert newest_submission({}) is None


def test_what_has_no_effect_is_said_when_the_job_starts() -> None:
    legacy = spec(backend={"type": "ibm_quantum", "hub": "ibm-q", "project": "main"})
    told = CONTROLLER_HALF.warnings(legacy)
    seen = observed(status=status("Pending"), source=Source("circuit.py", CODE), warnings=told)
    decision = decided(seen)
    warned = condition(decision, "SpecWarning")
    assert "spec.backend.hub, spec.backend.project" in warned.message
    assert "spec.backend.instance" in warned.message
    assert reasons(decision) == ["Started", "FieldsIgnored"]
    assert not CONTROLLER_HALF.warnings(spec(backend={"type": "ibm_quantum"}))


def test_the_shell_asks_the_driver_for_warnings() -> None:
    wire = to_wire(spec(backend={"type": "ibm_quantum", "group": "open"}))
    judged = reconciler._judge("bell", wire, lambda _: None)
    assert "spec.backend.group" in judged.warnings[0]
    assert judged.problems == [
        "spec.credentials.secretRef: name a Secret with the key api-key, an IBM Cloud API key; "
        "ibm_simulator runs without one"
    ]
    assert not reconciler._judge("bell", to_wire(spec()), lambda _: None).warnings


# --- the Job ----------------------------------------------------------------------------------

PLAN = Plan(
    job=JobIdentity(namespace="ns", name="bell", uid="uid-1"),
    spec=spec(
        backend={"type": "ibm_quantum", "name": "ibm_brisbane"},
        credentials={"secretRef": {"name": "ibm"}},
        output={"type": "pvc", "location": "claim"},
    ),
    source=PlannedSource(file="circuit.py", sha256="0" * 64),
    record="qiskit-job-bell-record",
    output_location="claim",
)


def job() -> dict[str, Any]:
    return cancelling_job(PLAN, Settings(runner_image="r"), 2, "abc", tries=5, seconds=1800)


def test_the_pod_that_cancels_has_the_credentials_and_nothing_else() -> None:
    made = job()
    assert made["spec"]["backoffLimit"] == 4
    assert made["spec"]["activeDeadlineSeconds"] == 1800
    assert "ownerReferences" not in made["metadata"]
    assert made["metadata"]["labels"][names.UID_LABEL] == "uid-1"
    assert names.ATTEMPT_LABEL not in made["metadata"]["labels"]
    assert names.CANCEL_LABEL in made["spec"]["template"]["metadata"]["labels"]
    inside = made["spec"]["template"]["spec"]
    assert "initContainers" not in inside
    assert "serviceAccountName" not in inside
    assert inside["automountServiceAccountToken"] is False
    assert {each["name"] for each in inside["volumes"]} == {"executor-tmp", "credentials"}
    (container,) = inside["containers"]
    assert container["command"] == ["qiskit-runner", "cancel"]
    assert {each["name"] for each in container["volumeMounts"]} == {"executor-tmp", "credentials"}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    env = {each["name"]: each["value"] for each in container["env"]}
    plan = from_wire(json.loads(env["QUANTUM_PLAN"]), Plan)
    assert plan.spec.circuit.code is None, "the code is not needed, and may be large"
    assert plan.spec.backend == PLAN.spec.backend
    assert (env["QUANTUM_TICKET"], env["QUANTUM_PROVIDER_JOB"]) == ("2", "abc")


def test_at_amazon_a_secret_need_not_have_keys() -> None:
    """The pod that cancels has the identity that the namespace gives."""
    backend = attrs.evolve(PLAN.spec.backend, type="aws_braket")
    plan = attrs.evolve(PLAN, spec=attrs.evolve(PLAN.spec, backend=backend))
    wanted = cancelling_job(plan, Settings(runner_image="r"), 2, "abc", tries=5, seconds=1800)
    inside = wanted["spec"]["template"]["spec"]
    assert inside["serviceAccountName"] == "qiskit-job-bell"


def test_the_secret_may_be_gone_and_the_pod_runs_all_the_same() -> None:
    volumes = job()["spec"]["template"]["spec"]["volumes"]
    (secret,) = (each["secret"] for each in volumes if "secret" in each)
    assert secret == {"secretName": "ibm", "defaultMode": 0o400, "optional": True}


def test_the_executor_is_told_its_ticket() -> None:
    made = kubernetes_job(PLAN, 3, Settings(runner_image="r"), ticket=2, provider_job="abc")
    (executor,) = made["spec"]["template"]["spec"]["containers"]
    env = {each["name"]: each["value"] for each in executor["env"]}
    assert env == {
        "QUANTUM_ATTEMPT": "3",
        "QUANTUM_TICKET": "2",
        "QUANTUM_PROVIDER_JOB": "abc",
    }


def test_what_the_pod_said_is_read() -> None:
    said = kubelet.failure(1, Reason.BACKEND_DENIED, "the key is not accepted")
    pods = [
        {
            "metadata": {"creationTimestamp": f"2026-01-01T12:00:0{n}Z"},
            "status": {
                "containerStatuses": [
                    {"name": "cancel", "state": kubelet.terminated(NOW, 1, message=text)}
                ]
            },
        }
        for n, text in ((2, said), (1, "OOM"))
    ]
    failed = {**job(), "status": kubelet.failed_job(NOW)}
    view = view_canceller(failed, pods)
    assert (view.complete, view.said) == (False, "the key is not accepted")
    assert view.failed
    assert view_canceller({**job(), "status": kubelet.complete_job(NOW)}, []).complete
