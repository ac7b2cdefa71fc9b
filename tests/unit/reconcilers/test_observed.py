from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from qiskit_controller.api.run import Reason
from qiskit_controller.reconcilers.qiskitjob.observed import PodView, Run, view_pod, view_run

from . import kubelet
from .kubelet import pod_status, running, terminated, waiting
from .support import NOW, seconds

Object = dict[str, Any]


def pod_object(status: Object, name: str = "p", created: int = 0, **metadata: Any) -> Object:
    at = f"2026-01-01T11:00:{created:02}Z"
    return {"metadata": {"name": name, "creationTimestamp": at} | metadata, "status": status}


def view(status: Object, attempt: int = 1, **metadata: Any) -> PodView:
    return view_pod(pod_object(status, **metadata), attempt)


def job_view(*pods: Object, status: Object | None = None, **metadata: Any) -> Run:
    job = {
        "metadata": {"name": "qiskit-job-bell", "creationTimestamp": "2026-01-01T11:00:00Z"}
        | metadata,
        "status": status or {},
    }
    return view_run(job, pods, 1)


def test_a_pod_that_was_only_just_made() -> None:
    for status in ({}, {"phase": "Pending"}, pod_status()):
        made = datetime(2026, 1, 1, 11, tzinfo=UTC)
        assert view(status) == PodView(name="p", created=made)
        assert not view(status).over


def test_the_stages_of_a_pod() -> None:
    begun = view(pod_status(running(NOW)))
    assert (begun.circuit_started, begun.circuit_ended) == (NOW, None)
    between = view(pod_status(terminated(NOW), waiting()))
    assert between.circuit_ended is not None
    assert between.circuit_ended.exit_code == 0
    assert between.executor_started is None
    later = NOW + seconds(5)
    executing = view(pod_status(terminated(NOW), running(later)))
    assert executing.executor_started == later
    assert executing.executor_ended is None
    assert not executing.over
    ended = view(pod_status(terminated(NOW), terminated(later, message=kubelet.success(1, NOW))))
    assert ended.executor_ended is not None
    assert ended.executor_ended.finished == later
    assert ended.over


def test_a_stage_that_fails_ends_the_pod() -> None:
    killed = view(pod_status(terminated(NOW, 137, "OOMKilled")))
    assert killed.circuit_ended is not None
    assert killed.circuit_ended.reason == "OOMKilled"
    assert killed.over
    assert view(pod_status(source=terminated(NOW, 1))).over
    assert not view(pod_status(source=terminated(NOW, 0))).over


def test_the_report_is_read() -> None:
    message = kubelet.success(1, NOW)
    report = view(pod_status(terminated(NOW), terminated(NOW, message=message))).report
    assert report is not None
    assert report.reason is None
    assert report.counts == kubelet.COUNTS


@pytest.mark.parametrize(
    "message",
    [
        "",
        "OCI runtime create failed: no such file",
        kubelet.success(1, NOW)[:-20],
        "[" * 4096,
        '{"attempt": "one"}',
        '{"attempt": 1, "reason": "NoReasonOfOurs"}',
        "[]",
        "null",
        # A success that the status cannot be made from.
        '{"attempt": 1}',
        kubelet.success(1, NOW, circuit_metrics=None),
        kubelet.success(1, NOW, started=None),
        kubelet.success(1, NOW, started="yesterday"),
        kubelet.success(1, NOW, started="2026-01-01T00:00:00"),
        # Of another attempt.
        kubelet.success(2, NOW),
        kubelet.failure(2, Reason.NO_CIRCUIT),
    ],
)
def test_what_is_no_report_of_this_attempt_is_none(message: str) -> None:
    pod = view(pod_status(terminated(NOW), terminated(NOW, message=message)))
    assert pod.executor_ended is not None
    assert pod.report is None


def test_what_keeps_a_pod_from_starting() -> None:
    assert view(kubelet.unschedulable("no room")).problem == ("Unschedulable", "no room")
    pulling = pod_status(waiting("ImagePullBackOff", "Back-off pulling image"))
    assert view(pulling).problem == ("ImagePullBackOff", "Back-off pulling image")
    config = pod_status(terminated(NOW), waiting("CreateContainerConfigError", "secret not found"))
    assert view(config).problem == ("CreateContainerConfigError", "secret not found")


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_an_ordinary_wait_is_no_problem(reason: str) -> None:
    assert view(pod_status(waiting(reason))).problem is None


def test_a_pod_is_idle_between_its_node_and_its_first_container() -> None:
    assert view(pod_status(start=NOW)).idle_since == NOW
    assert view(pod_status(running(NOW), start=NOW)).idle_since is None
    assert view(pod_status()).idle_since is None


@pytest.mark.parametrize(
    ("status", "metadata", "lost"),
    [
        (kubelet.evicted("low on memory"), {}, (Reason.EVICTED, "low on memory")),
        (
            pod_status(conditions={"DisruptionTarget": ("True", "EvictionByEvictionAPI", "drain")}),
            {},
            (Reason.EVICTED, "drain"),
        ),
        (
            pod_status(conditions={"DisruptionTarget": ("True", "PreemptionByScheduler", "")}),
            {},
            (Reason.EVICTED, "PreemptionByScheduler"),
        ),
        (pod_status(reason="Shutdown"), {}, (Reason.EVICTED, "the pod was ended: Shutdown")),
        (pod_status(reason="NodeLost"), {}, (Reason.POD_LOST, "the node was lost")),
        (
            pod_status(running(NOW)),
            {"deletionTimestamp": "2026-01-01T11:01:00Z"},
            (Reason.POD_LOST, "the pod was deleted"),
        ),
        (pod_status(conditions={"DisruptionTarget": ("False", "x", "y")}), {}, None),
        (pod_status(running(NOW)), {}, None),
    ],
)
def test_a_pod_is_lost(status: Object, metadata: Object, lost: tuple[Reason, str] | None) -> None:
    assert view(status, **metadata).lost == lost


def test_the_jobs_own_conditions() -> None:
    assert (job_view().failed, job_view().complete, job_view().ended) == (None, False, None)
    failed = job_view(status=kubelet.failed_job(NOW))
    assert failed.failed == ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
    assert (failed.complete, failed.ended) == (False, NOW)
    complete = job_view(status=kubelet.complete_job(NOW))
    assert (complete.failed, complete.complete, complete.ended) == (None, True, NOW)
    suspended = {"conditions": [kubelet.job_condition("Suspended", NOW)]}
    assert job_view(status=suspended).ended is None
    unsure = {"conditions": [kubelet.job_condition("Failed", NOW) | {"status": "False"}]}
    assert job_view(status=unsure).failed is None
    assert job_view(deletionTimestamp="2026-01-01T11:01:00Z").deleting


def test_the_newest_pod_that_is_not_going_counts() -> None:
    old = pod_object({}, "old", 1)
    new = pod_object({}, "new", 2)
    going = pod_object({}, "going", 3, deletionTimestamp="2026-01-01T11:01:00Z")
    seen = job_view(new, old, going).pod
    assert seen is not None
    assert seen.name == "new"
    only = job_view(going).pod
    assert only is not None
    assert only.name == "going"
    assert job_view().pod is None
