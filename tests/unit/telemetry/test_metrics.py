from __future__ import annotations

from typing import Any

import attrs
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from qiskit_controller.api.conditions import Condition
from qiskit_controller.api.qiskitjob import (
    AttemptStatus,
    PhaseChange,
    QiskitJobStatus,
    ResultsStatus,
)
from qiskit_controller.telemetry.metrics import (
    BackendsUp,
    Budgets,
    JobMetrics,
    JobsByPhase,
    LeaderMetrics,
    QueueFamilies,
    QueueMetrics,
    ReconcileFamilies,
    ReconcileMetrics,
    RequestMetrics,
    SessionsByPhase,
    WatchMetrics,
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


def retrying(reason: str = "PodLost") -> QiskitJobStatus:
    over = AttemptStatus(
        number=1, job_name="j", completion_time="2026-01-01T00:00:30Z", reason=reason
    )
    return QiskitJobStatus(phase="Pending", attempts=(over,))


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


def test_sessions_are_counted_by_phase(registry: CollectorRegistry) -> None:
    sessions = [{"status": {"phase": "Active"}}, {"status": {"phase": "Active"}}, {}]
    registry.register(SessionsByPhase(lambda: sessions))
    value = registry.get_sample_value
    assert value("qiskit_sessions", {"phase": "Active"}) == 2
    assert value("qiskit_sessions", {"phase": "Pending"}) == 1
    assert value("qiskit_sessions", {"phase": "Closed"}) == 0


def everything(registry: CollectorRegistry) -> None:
    """Every metric there is, with something in each."""
    history = tuple(
        PhaseChange(phase=phase, time=f"2026-01-01T00:00:0{n}.5Z")
        for n, phase in enumerate(("Running", "Completed"))
    )
    done = ended("Completed", results=ResultsStatus(), cost="$1.50", phase_history=history)
    metrics = JobMetrics(registry)
    metrics.written(JOB, NEW, done)
    metrics.written(JOB, NEW, retrying())
    watches = WatchMetrics(registry, "pods")
    watches.listed(3, 0.1)
    watches.watch_opened()
    watches.event(0.5)
    watches.watch_ended(0.1, 0)
    registry.register(JobsByPhase(lambda: [JOB]))
    registry.register(SessionsByPhase(lambda: [{}]))
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
    registry.register(Budgets(lambda: [BUDGET]))
    registry.register(BackendsUp(lambda: [BACKEND]))


BUDGET = {
    "metadata": {"namespace": "ns", "name": "team"},
    "spec": {"limit": "$10.00"},
    "status": {"spent": "$7.50", "reserved": "$1.00", "forecast": "$9.00"},
}
BACKEND = {
    "metadata": {"namespace": "ns", "name": "ibm"},
    "spec": {"type": "ibm_quantum"},
    "status": {
        "devices": [
            {"name": "ibm_fez", "operational": True, "pendingJobs": 3},
            {"name": "ibm_torino", "operational": False},
        ]
    },
}


def test_budgets_and_backends_are_read_when_asked(registry: CollectorRegistry) -> None:
    new = {"metadata": {"namespace": "ns", "name": "new"}, "spec": {"limit": "soon"}}
    registry.register(Budgets(lambda: [BUDGET, new]))
    registry.register(BackendsUp(lambda: [BACKEND, new]))
    team = {"namespace": "ns", "budget": "team"}
    amounts = {
        name: registry.get_sample_value(f"qiskit_budget_{name}_dollars", team)
        for name in ("limit", "spent", "reserved", "forecast")
    }
    assert amounts == {"limit": 10.0, "spent": 7.5, "reserved": 1.0, "forecast": 9.0}
    device = {"namespace": "ns", "backend": "ibm", "device": "ibm_fez"}
    assert registry.get_sample_value("qiskit_backend_up", device) == 1
    assert registry.get_sample_value("qiskit_backend_pending_jobs", device) == 3
    device["device"] = "ibm_torino"
    assert registry.get_sample_value("qiskit_backend_up", device) == 0
    assert registry.get_sample_value("qiskit_backend_pending_jobs", device) is None


def test_several_queues_share_their_metrics(registry: CollectorRegistry) -> None:
    queues, reconciles = QueueFamilies(registry), ReconcileFamilies(registry)
    for name in ("one", "other"):
        QueueMetrics(registry, name, queues).depth(2)
        ReconcileMetrics(registry, name, reconciles).reconciled("success", 0.1)
        assert registry.get_sample_value("workqueue_depth", {"name": name}) == 2


def test_what_is_exposed_can_be_parsed(registry: CollectorRegistry) -> None:
    everything(registry)
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
    everything(registry)
    found = [
        line for line in generate_latest(registry).decode().splitlines() if "qiskit_job" in line
    ]
    assert any(line.startswith("qiskit_job_finished_total{") for line in found)


def test_a_retry_is_counted_once_and_by_its_reason(registry: CollectorRegistry) -> None:
    metrics = JobMetrics(registry)
    metrics.written(JOB, NEW, retrying())
    metrics.written(JOB, retrying(), retrying())
    metrics.written(JOB, NEW, retrying("AWordOfSomebodyElses"))
    value = registry.get_sample_value
    assert value("qiskit_job_retries_total", LOCAL | {"reason": "PodLost"}) == 1
    assert value("qiskit_job_retries_total", LOCAL | {"reason": "other"}) == 1
    # The attempt that a job ended with was not retried.
    last = attrs.evolve(retrying(), phase="Failed", completion_time="2026-01-01T00:01:00Z")
    metrics.written(JOB, NEW, last)
    assert value("qiskit_job_retries_total", LOCAL | {"reason": "PodLost"}) == 1


def test_cost_is_counted_once_when_the_job_has_ended(registry: CollectorRegistry) -> None:
    metrics = JobMetrics(registry)
    value = registry.get_sample_value
    running = QiskitJobStatus(phase="Running", results=ResultsStatus(), cost="$2.25")
    metrics.written(JOB, NEW, running)
    assert value("qiskit_job_cost_usd_total", LOCAL) is None
    done = ended("Completed", results=ResultsStatus(), cost="$2.25")
    metrics.written(JOB, running, done)
    metrics.written(JOB, done, attrs.evolve(done, message="again"))
    assert value("qiskit_job_cost_usd_total", LOCAL) == 2.25
    # What never ran cost nothing, whatever it was going to.
    metrics.written(JOB, NEW, ended("Failed", "BackendRefused", cost="$9.00"))
    assert value("qiskit_job_cost_usd_total", LOCAL) == 2.25


def test_the_time_in_a_phase_is_counted_when_it_is_left(registry: CollectorRegistry) -> None:
    metrics = JobMetrics(registry)
    history = (
        PhaseChange(phase="Pending", time="2026-01-01T00:00:00.250000Z"),
        PhaseChange(phase="Validating", time="2026-01-01T00:00:02.750000Z"),
    )
    new = QiskitJobStatus(phase="Validating", phase_history=history)
    metrics.written(JOB, QiskitJobStatus(phase="Pending"), new)
    metrics.written(JOB, new, attrs.evolve(new, message="still"))
    sum_ = registry.get_sample_value("qiskit_job_phase_seconds_sum", LOCAL | {"phase": "Pending"})
    assert sum_ == 2.5


def test_what_users_write_makes_no_time_series(registry: CollectorRegistry) -> None:
    metrics = JobMetrics(registry)
    for number in range(1000):
        job = {"spec": {"backend": {"type": f"type-{number}"}}}
        metrics.written(job, NEW, ended("Failed", f"Reason{number}"))
        metrics.written(job, NEW, retrying(f"Reason{number}"))
    for family in registry.collect():
        series = {tuple(sorted(each.labels.items())) for each in family.samples}
        assert len(series) < 30, family.name


def test_lists_and_watches_of_all_informers_are_one_family(registry: CollectorRegistry) -> None:
    pods, jobs = WatchMetrics(registry, "pods"), WatchMetrics(registry, "jobs")
    pods.listed(10, 0.5)
    jobs.listed(3, 0.1)
    pods.watch_opened()
    pods.watch_ended(300.0, 7)
    pods.watch_opened()
    pods.watch_ended(0.1, 0)
    pods.event(3.5)
    pods.event(None)
    value = registry.get_sample_value
    for name in ("pods", "jobs"):
        assert value("reflector_lists_total", {"name": name}) == 1
    assert value("reflector_watches_total", {"name": "pods"}) == 2
    assert value("reflector_watches_total", {"name": "jobs"}) == 0
    assert value("reflector_short_watches_total", {"name": "pods"}) == 1
    assert value("reflector_items_per_list_sum", {"name": "pods"}) == 10
    assert value("qiskit_watch_event_lag_seconds_sum", {"name": "pods"}) == 3.5
    assert value("qiskit_watch_event_lag_seconds_count", {"name": "pods"}) == 1
