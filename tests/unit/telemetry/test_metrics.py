from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from qiskit_controller.api.conditions import Condition
from qiskit_controller.api.qiskitjob import AttemptStatus, QiskitJobStatus, ResultsStatus
from qiskit_controller.telemetry.metrics import (
    JobMetrics,
    JobsByPhase,
    LeaderMetrics,
    QueueMetrics,
    ReconcileMetrics,
    RequestMetrics,
)

JOB: dict[str, Any] = {
    "spec": {"backend": {"type": "local_simulator"}, "execution": {"shots": 1024}}
}
NEW = QiskitJobStatus()
LOCAL = {"backend_type": "local_simulator"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def ended(phase: str, reason: str = "", attempts: int = 1, **more: Any) -> QiskitJobStatus:
    status = "True" if reason else "False"
    return QiskitJobStatus(
        phase=phase,
        start_time="2026-01-01T00:00:00Z",
        completion_time="2026-01-01T00:01:40Z",
        attempts=tuple(AttemptStatus(number=n + 1, job_name="j") for n in range(attempts)),
        conditions=(Condition(type="Failed", status=status, reason=reason),),
        **more,
    )


def test_a_completed_job_is_counted_with_its_times(registry: CollectorRegistry) -> None:
    metrics = JobMetrics(registry)
    results = ResultsStatus(execution_time=2.5, queue_time=40.0, total_time=42.5)
    for phase in ("Pending", "Validating", "Scheduling", "Running"):
        metrics.written(JOB, NEW, QiskitJobStatus(phase=phase, start_time="2026-01-01T00:00:00Z"))
    metrics.written(JOB, NEW, ended("Completed", results=results))
    value = registry.get_sample_value
    for phase in ("Pending", "Validating", "Scheduling", "Running", "Completed"):
        assert value("qiskit_job_phase_transitions_total", LOCAL | {"phase": phase}) == 1
    done = LOCAL | {"phase": "Completed"}
    assert value("qiskit_job_finished_total", done | {"reason": ""}) == 1
    assert value("qiskit_job_shots_total", LOCAL) == 1024
    assert value("qiskit_job_execution_seconds_sum", LOCAL) == 2.5
    assert value("qiskit_job_queue_seconds_sum", LOCAL) == 40.0
    assert value("qiskit_job_duration_seconds_sum", done) == 100.0
    assert value("qiskit_job_duration_seconds_count", done) == 1
    assert value("qiskit_job_attempts_sum", LOCAL) == 1


def test_a_failed_job_is_counted_by_its_reason(registry: CollectorRegistry) -> None:
    metrics = JobMetrics(registry)
    metrics.written(JOB, NEW, ended("Failed", "CircuitSyntaxError"))
    metrics.written(JOB, NEW, ended("Failed", "ExecutorFailed", attempts=4))
    metrics.written(JOB, NEW, ended("Cancelled"))
    value = registry.get_sample_value
    failed = LOCAL | {"phase": "Failed"}
    assert value("qiskit_job_finished_total", failed | {"reason": "CircuitSyntaxError"}) == 1
    assert value("qiskit_job_finished_total", failed | {"reason": "ExecutorFailed"}) == 1
    assert value("qiskit_job_finished_total", LOCAL | {"phase": "Cancelled", "reason": ""}) == 1
    assert value("qiskit_job_attempts_sum", LOCAL) == 6
    assert value("qiskit_job_attempts_bucket", LOCAL | {"le": "3.0"}) == 2
    assert value("qiskit_job_shots_total", LOCAL) is None


def test_what_has_not_ended_is_not_counted_as_finished(registry: CollectorRegistry) -> None:
    JobMetrics(registry).written(JOB, NEW, QiskitJobStatus(phase="Running"))
    names = {sample.name for family in registry.collect() for sample in family.samples}
    assert "qiskit_job_finished_total" not in names


def test_jobs_by_phase_are_counted_when_asked(registry: CollectorRegistry) -> None:
    jobs: list[dict[str, Any]] = []
    registry.register(JobsByPhase(lambda: jobs))
    value = registry.get_sample_value
    assert value("qiskit_jobs", LOCAL | {"phase": "Running"}) is None
    jobs += [JOB | {"status": {"phase": "Running"}}, JOB | {"status": {"phase": "Running"}}]
    jobs += [JOB, JOB | {"status": {}}]
    assert value("qiskit_jobs", LOCAL | {"phase": "Running"}) == 2
    assert value("qiskit_jobs", LOCAL | {"phase": "Pending"}) == 2
    assert value("qiskit_jobs", LOCAL | {"phase": "Completed"}) == 0
    jobs.clear()
    assert value("qiskit_jobs", LOCAL | {"phase": "Running"}) is None


def _all(registry: CollectorRegistry) -> None:
    """Every metric there is, with something in each."""
    JobMetrics(registry).written(JOB, NEW, ended("Completed", results=ResultsStatus()))
    registry.register(JobsByPhase(lambda: [JOB]))
    queue = QueueMetrics(registry, "qiskitjob")
    queue.depth(3)
    queue.added()
    queue.latency(0.1)
    queue.work_duration(0.2)
    queue.retried()
    queue.watch(lambda: 1.5, lambda: 0.5)
    ReconcileMetrics(registry, "qiskitjob").reconciled("success", 0.01)
    RequestMetrics(registry).request("get", "configmaps", 200, 0.01)
    LeaderMetrics(registry, "qiskit-controller").leading(True)


def test_what_is_exposed_can_be_parsed(registry: CollectorRegistry) -> None:
    _all(registry)
    families = {each.name: each for each in parse(generate_latest(registry).decode())}
    newer = {each.name: each for each in parse_open(generate_openmetrics(registry).decode())}
    for found in (families, newer):
        assert {
            "qiskit_job_attempts",
            "qiskit_job_duration_seconds",
            "qiskit_job_execution_seconds",
            "qiskit_job_finished",
            "qiskit_job_phase_transitions",
            "qiskit_job_queue_seconds",
            "qiskit_job_shots",
            "qiskit_jobs",
            "workqueue_depth",
            "controller_runtime_reconcile",
            "rest_client_requests",
            "leader_election_master_status",
        } <= set(found)
        for family in found.values():
            assert family.samples, family.name
            assert family.documentation
    sample = next(iter(families["workqueue_unfinished_work_seconds"].samples))
    assert (sample.labels, sample.value) == ({"name": "qiskitjob"}, 1.5)


def test_grep_qiskit_job_finds_jobs(registry: CollectorRegistry) -> None:
    # curl http://localhost:8080/metrics | grep qiskit_job, as the reference says
    _all(registry)
    found = [
        line for line in generate_latest(registry).decode().splitlines() if "qiskit_job" in line
    ]
    assert any(line.startswith("qiskit_job_finished_total{") for line in found)
