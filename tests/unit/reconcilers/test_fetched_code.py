"""Code that the pod fetches: what is decided from the stage's report, and the pod that has it."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.qiskitjob import SourceStatus
from qiskit_controller.api.run import (
    COMMIT_ENV,
    SHA256_ENV,
    JobIdentity,
    Limits,
    Plan,
    PlannedSource,
    Reason,
    SourceReport,
)
from qiskit_controller.reconcilers.qiskitjob.decision import StopRuns
from qiskit_controller.reconcilers.qiskitjob.manifests import (
    Settings,
    input_config_map,
    kubernetes_job,
)
from qiskit_controller.reconcilers.qiskitjob.observed import (
    PodView,
    Terminated,
    ToFetch,
    view_pod,
)

from .support import NOW, condition, decided, pod, reasons, seconds, spec, underway

GIT = {
    "source": "git",
    "gitRef": {"repository": "https://example.org/x.git", "path": "a/bell.py"},
}
FETCHED = SourceReport(sha256="1" * 64, size=10, commit="2" * 40)


def after_fetching(
    report: SourceReport | None, code: int = 0, reason: str = "Completed"
) -> PodView:
    return pod(
        source_started=NOW - seconds(3),
        source_ended=Terminated(
            exit_code=code, reason=reason, message="", finished=NOW - seconds(1)
        ),
        source_report=report,
    )


def test_what_was_fetched_is_in_the_status() -> None:
    decision = decided(underway("Pending", after_fetching(FETCHED)))
    assert decision.status.source == SourceStatus(sha256="1" * 64, commit="2" * 40)


def test_what_was_fetched_is_told_when_it_is_validated() -> None:
    started = attrs.evolve(after_fetching(FETCHED), circuit_started=NOW)
    decision = decided(underway("Pending", started))
    assert decision.status.phase == "Validating"
    assert [note.reason for note in decision.events] == ["SourceFetched", "Validating"]
    assert "commit 2222" in decision.events[0].message


@pytest.mark.parametrize("reason", [each for each in Reason if "Source" in each or "Git" in each])
def test_a_failure_to_fetch_is_the_attempts(reason: Reason) -> None:
    seen = underway("Pending", after_fetching(SourceReport(reason=reason, message="why"), 1))
    decision = decided(seen)
    if reason.retry.value == "never":
        assert decision.status.phase == "Failed"
        assert condition(decision, "Failed").reason == reason.value
        assert decision.status.message == f"{reason}: why"
    else:
        assert decision.status.phase == "Pending"
        assert "Retrying" in reasons(decision)
    assert decision.status.attempts[-1].reason == reason.value
    # The log says why, so the Job stays.
    assert not any(isinstance(each, StopRuns) for each in decision.actions)


def test_a_stage_without_a_report() -> None:
    decision = decided(underway("Pending", after_fetching(None, 1, "Error")))
    assert decision.status.attempts[-1].reason == "SourceFailed"
    decision = decided(underway("Pending", after_fetching(None, 137, "OOMKilled")))
    assert condition(decision, "Failed").reason == "OutOfMemory"


def test_a_pod_in_the_place_of_another_must_have_found_the_same() -> None:
    other = attrs.evolve(FETCHED, sha256="3" * 64)
    seen = underway("Pending", after_fetching(other))
    seen = attrs.evolve(
        seen, status=attrs.evolve(seen.status, source=SourceStatus(sha256="1" * 64))
    )
    decision = decided(seen)
    assert decision.status.attempts[-1].reason == "PodLost"
    assert decision.status.source == SourceStatus(sha256="1" * 64)


def test_the_report_is_the_termination_message() -> None:
    def view(message: str) -> PodView:
        ended = {"exitCode": 0, "message": message, "startedAt": "2026-01-01T12:00:00Z"}
        container = {"name": "source", "state": {"terminated": ended}}
        status = {"initContainerStatuses": [container]}
        metadata = {"name": "p", "creationTimestamp": "2026-01-01T12:00:00Z"}
        return view_pod({"metadata": metadata, "status": status}, 1)

    assert view(json.dumps(to_wire(FETCHED))).source_report == FETCHED
    assert view("OCI runtime error").source_report is None


# --- The pod ----------------------------------------------------------------------------------


def plan(**changes: Any) -> Plan:
    return Plan(
        job=JobIdentity(namespace="ns", name="bell", uid="uid-1"),
        spec=spec(circuit=GIT, **changes),
        source=PlannedSource(file="bell.py", fetched=True),
        record="record",
        output_location="results",
        limits=Limits(),
    )


def containers(plan_: Plan, fetched: SourceStatus | None = None) -> dict[str, Any]:
    job = kubernetes_job(plan_, 1, Settings(runner_image="runner"), fetched)
    pod_spec = job["spec"]["template"]["spec"]
    found = {each["name"]: each for each in (*pod_spec["initContainers"], *pod_spec["containers"])}
    assert next(iter(found)) == "source"
    return found | {"volumes": {each["name"]: each for each in pod_spec["volumes"]}}


def mounts(container: Any) -> dict[str, bool]:
    """Whether it may write there, by volume."""
    return {each["name"]: not each.get("readOnly", False) for each in container["volumeMounts"]}


def test_only_the_first_stage_may_write_the_code() -> None:
    found = containers(plan())
    assert mounts(found["source"]) == {"input": False, "source": True, "source-tmp": True}
    for name in ("circuit", "executor"):
        assert mounts(found[name])["source"] is False
        assert "source-tmp" not in mounts(found[name])
    assert found["source"]["env"] == []


def test_only_the_first_stage_has_the_git_credentials() -> None:
    found = containers(plan(credentials={"gitSecretRef": {"name": "deploy-key"}}))
    assert mounts(found["source"])["git"] is False
    for name in ("circuit", "executor"):
        assert "git" not in mounts(found[name])
    secret = found["volumes"]["git"]["secret"]
    assert secret == {"secretName": "deploy-key", "defaultMode": 0o400}


def test_a_later_attempt_is_told_what_to_fetch() -> None:
    found = containers(plan(), SourceStatus(sha256="1" * 64, commit="2" * 40))
    assert found["source"]["env"] == [
        {"name": COMMIT_ENV, "value": "2" * 40},
        {"name": SHA256_ENV, "value": "1" * 64},
    ]


def test_the_input_holds_no_code() -> None:
    config_map = input_config_map(plan(), ToFetch("bell.py"))
    assert list(config_map["data"]) == ["plan.json"]
    assert "binaryData" not in config_map
