"""Metrics in Prometheus' format: jobs, and the machinery under client-go's names."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qiskit_controller.api.conditions import find
from qiskit_controller.api.qiskitjob import BACKEND_TYPES, Phase, QiskitJobStatus
from qiskit_controller.api.qiskitsession import SessionPhase
from qiskit_controller.api.quantities import parse_money, parse_time
from qiskit_controller.api.run import Reason
from qiskit_controller.telemetry.trace import note_call, note_wait

# No gauges <name>_created beside each counter: they are not in Prometheus' own form, and double
# what is scraped.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations

_REASONS = frozenset(each.value for each in Reason)
_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 4 * 3600, 24 * 3600)
# Work in the queue and reconciles are much shorter than jobs; client-go's own buckets.
_FAST = (1e-3, 1e-2, 0.1, 1, 10)


class JobMetrics:
    """What becomes of jobs; counted when the status that says so has been written."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._finished = Counter(
            "qiskit_job_finished_total",
            "QiskitJobs that reached a final phase.",
            ("backend_type", "phase", "reason"),
            registry=registry,
        )
        self._transitions = Counter(
            "qiskit_job_phase_transitions_total",
            "Phases that QiskitJobs entered.",
            ("backend_type", "phase"),
            registry=registry,
        )
        self._shots = Counter(
            "qiskit_job_shots_total",
            "Shots of completed QiskitJobs.",
            ("backend_type",),
            registry=registry,
        )
        self._attempts = Histogram(
            "qiskit_job_attempts",
            "Attempts that finished QiskitJobs had taken.",
            ("backend_type",),
            buckets=(1, 2, 3, 5, 10),
            registry=registry,
        )
        self._total = Histogram(
            "qiskit_job_duration_seconds",
            "From the start to the end of finished QiskitJobs.",
            ("backend_type", "phase"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._execution = Histogram(
            "qiskit_job_execution_seconds",
            "Executing, for completed QiskitJobs.",
            ("backend_type",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = Histogram(
            "qiskit_job_queue_seconds",
            "Waiting before executing, for completed QiskitJobs.",
            ("backend_type",),
            buckets=_SECONDS,
            registry=registry,
        )

        self._cost = Counter(
            "qiskit_job_cost_usd_total",
            "Cost of finished QiskitJobs that have run, in US dollars.",
            ("backend_type",),
            registry=registry,
        )
        self._retries = Counter(
            "qiskit_job_retries_total",
            "Attempts that failed and were followed by another, by why they failed.",
            ("backend_type", "reason"),
            registry=registry,
        )
        self._phases = Histogram(
            "qiskit_job_phase_seconds",
            "Time that QiskitJobs spent in a phase before they left it.",
            ("backend_type", "phase"),
            buckets=_SECONDS,
            registry=registry,
        )

    def written(self, job: Mapping[str, Any], old: QiskitJobStatus, new: QiskitJobStatus) -> None:
        """Count what a new status says and the old one did not."""
        backend_type = _backend_type(job)
        before = {each.number for each in old.attempts if each.completion_time}
        for each in new.attempts if new.completion_time is None else ():
            if each.reason and each.completion_time and each.number not in before:
                self._retries.labels(backend_type, _reason(each.reason)).inc()
        if new.phase != old.phase:
            self._left(backend_type, new)
            self._entered(job, backend_type, new)

    def _left(self, backend_type: str, status: QiskitJobStatus) -> None:
        if len(status.phase_history) > 1:
            left, entered = status.phase_history[-2:]
            took = parse_time(entered.time) - parse_time(left.time)
            self._phases.labels(backend_type, left.phase).observe(max(0.0, took.total_seconds()))

    def _entered(self, job: Mapping[str, Any], backend_type: str, status: QiskitJobStatus) -> None:
        self._transitions.labels(backend_type, status.phase).inc()
        if status.completion_time is None:
            return
        failed = find(status.conditions, "Failed")
        reason = _reason(failed.reason) if failed is not None and failed.status == "True" else ""
        self._finished.labels(backend_type, status.phase, reason).inc()
        self._attempts.labels(backend_type).observe(len(status.attempts))
        if status.start_time is not None:
            took = parse_time(status.completion_time) - parse_time(status.start_time)
            self._total.labels(backend_type, status.phase).observe(took.total_seconds())
        if status.results is not None and status.cost is not None:
            with contextlib.suppress(ValueError):
                self._cost.labels(backend_type).inc(float(parse_money(status.cost)))
        if status.results is not None:
            shots = job["spec"].get("execution", {}).get("shots", 0)
            self._shots.labels(backend_type).inc(shots)
            self._execution.labels(backend_type).observe(status.results.execution_time or 0.0)
            self._queue.labels(backend_type).observe(status.results.queue_time or 0.0)


def _backend_type(job: Mapping[str, Any]) -> str:
    """One of few words: what users write must not make time series."""
    given = job.get("spec", {}).get("backend", {}).get("type")
    return given if given in _backend_types() else "other"


@functools.cache
def _backend_types() -> frozenset[str]:
    """Ours, and those of drivers that are installed beside us."""
    installed = entry_points(group="qiskit_controller.drivers")
    return frozenset({*BACKEND_TYPES, *(each.name for each in installed)})


def _reason(given: str) -> str:
    return given if given in _REASONS else "other"


class JobsByPhase(Collector):
    """How many QiskitJobs are in each phase, counted in the cache when asked."""

    def __init__(self, jobs: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._jobs = jobs

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's Collector."""
        tally = Tally(
            (_backend_type(job), job.get("status", {}).get("phase") or "Pending")
            for job in self._jobs()
        )
        family = GaugeMetricFamily(
            "qiskit_jobs", "QiskitJobs by phase.", labels=("backend_type", "phase")
        )
        for backend_type in sorted({backend_type for backend_type, _ in tally}):
            for phase in get_args(Phase):
                family.add_metric((backend_type, phase), tally[backend_type, phase])
        yield family


class SessionsByPhase(Collector):
    """How many QiskitSessions are in each phase, counted in the cache when asked."""

    def __init__(self, sessions: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's Collector."""
        tally = Tally(
            (each.get("status") or {}).get("phase") or "Pending" for each in self._sessions()
        )
        family = GaugeMetricFamily("qiskit_sessions", "QiskitSessions by phase.", labels=("phase",))
        for phase in get_args(SessionPhase):
            family.add_metric((phase,), tally[phase])
        yield family


class Budgets(Collector):
    """What QiskitBudgets allow and have spent, read in the cache when asked."""

    _AMOUNTS: tuple[tuple[str, str], ...] = (
        ("spent", "Charged in this period."),
        ("reserved", "What jobs under way may cost."),
        ("forecast", "What this period will cost if it goes on as it began."),
    )

    def __init__(self, budgets: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._budgets = budgets

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's Collector."""
        found = list(self._budgets())
        yield self._family("limit", "What may be spent in a period.", found, "spec")
        for name, doc in self._AMOUNTS:
            yield self._family(name, doc, found, "status")

    def _family(self, name: str, doc: str, found: Iterable[Mapping[str, Any]], part: str) -> Metric:
        labels = ("namespace", "budget")
        family = GaugeMetricFamily(f"qiskit_budget_{name}_dollars", doc, labels=labels)
        for each in found:
            text = (each.get(part) or {}).get(name)
            try:
                amount = parse_money(text or "")
            except ValueError:
                continue  # Not looked at yet, or a spec that is refused.
            metadata = each["metadata"]
            family.add_metric((metadata["namespace"], metadata["name"]), float(amount))
        return family


class BackendsUp(Collector):
    """Whether the devices of QiskitBackends take jobs, read in the cache when asked."""

    def __init__(self, backends: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._backends = backends

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client's Collector."""
        labels = ("namespace", "backend", "device")
        up = GaugeMetricFamily("qiskit_backend_up", "1 if the device takes jobs.", labels=labels)
        pending = GaugeMetricFamily(
            "qiskit_backend_pending_jobs", "Jobs in the device's queue.", labels=labels
        )
        for each in self._backends():
            metadata = each["metadata"]
            for device in (each.get("status") or {}).get("devices") or ():
                values = (metadata["namespace"], metadata["name"], device["name"])
                up.add_metric(values, float(bool(device.get("operational"))))
                if device.get("pendingJobs") is not None:
                    pending.add_metric(values, device["pendingJobs"])
        yield up
        yield pending


class QueueFamilies:
    """The metrics of all work queues, under client-go's names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.depth = Gauge("workqueue_depth", "Keys that wait.", ("name",), registry=registry)
        self.adds = Counter("workqueue_adds_total", "Keys added.", ("name",), registry=registry)
        self.retries = Counter(
            "workqueue_retries_total", "Keys retried.", ("name",), registry=registry
        )
        self.latency = Histogram(
            "workqueue_queue_duration_seconds",
            "From adding a key to working on it.",
            ("name",),
            buckets=_FAST,
            registry=registry,
        )
        self.work = Histogram(
            "workqueue_work_duration_seconds",
            "Working on a key.",
            ("name",),
            buckets=_FAST,
            registry=registry,
        )
        self.unfinished = Gauge(
            "workqueue_unfinished_work_seconds",
            "Work under way, all of it together.",
            ("name",),
            registry=registry,
        )
        self.longest = Gauge(
            "workqueue_longest_running_processor_seconds",
            "The key that has been worked on for longest.",
            ("name",),
            registry=registry,
        )


class QueueMetrics:
    """A work queue's own account.

    Args:
        families: of the registry, where there is more than one queue.
    """

    def __init__(
        self, registry: CollectorRegistry, name: str, families: QueueFamilies | None = None
    ) -> None:
        families = families or QueueFamilies(registry)
        self._depth = families.depth.labels(name)
        self._adds = families.adds.labels(name)
        self._retries = families.retries.labels(name)
        self._latency = families.latency.labels(name)
        self._work = families.work.labels(name)
        self._unfinished = families.unfinished.labels(name)
        self._longest = families.longest.labels(name)

    def depth(self, depth: int) -> None:
        """See :class:`qiskit_controller.kube.queue.QueueMetrics`."""
        self._depth.set(depth)

    def added(self) -> None:
        """See :class:`qiskit_controller.kube.queue.QueueMetrics`."""
        self._adds.inc()

    def latency(self, seconds: float) -> None:
        """See :class:`qiskit_controller.kube.queue.QueueMetrics`."""
        self._latency.observe(seconds)
        note_wait(seconds)

    def work_duration(self, seconds: float) -> None:
        """See :class:`qiskit_controller.kube.queue.QueueMetrics`."""
        self._work.observe(seconds)

    def retried(self) -> None:
        """See :class:`qiskit_controller.kube.queue.QueueMetrics`."""
        self._retries.inc()

    def watch(self, unfinished: Callable[[], float], longest: Callable[[], float]) -> None:
        """Ask for what only the queue knows whenever metrics are read."""
        self._unfinished.set_function(unfinished)
        self._longest.set_function(longest)


class ReconcileFamilies:
    """The metrics of all reconcilers, under controller-runtime's names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.total = Counter(
            "controller_runtime_reconcile_total",
            "Reconciles.",
            ("controller", "result"),
            registry=registry,
        )
        self.seconds = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Time of a reconcile.",
            ("controller",),
            buckets=_FAST,
            registry=registry,
        )


class ReconcileMetrics:
    """One reconciler's, by outcome.

    Args:
        families: of the registry, where there is more than one reconciler.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        controller: str,
        families: ReconcileFamilies | None = None,
    ) -> None:
        self._controller = controller
        self._families = families or ReconcileFamilies(registry)

    def reconciled(self, outcome: str, seconds: float) -> None:
        """See :class:`qiskit_controller.kube.controller.ControllerMetrics`."""
        self._families.total.labels(self._controller, outcome).inc()
        self._families.seconds.labels(self._controller).observe(seconds)


class RequestMetrics:
    """Requests to the API server, under client-go's names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._total = Counter(
            "rest_client_requests_total",
            "Requests to the API server.",
            ("verb", "resource", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "rest_client_request_duration_seconds",
            "Time of a request to the API server.",
            ("verb",),
            buckets=_FAST,
            registry=registry,
        )

    def request(self, verb: str, resource: str, status: int, seconds: float) -> None:
        """See :class:`qiskit_controller.kube.client.ClientMetrics`."""
        note_call(verb, resource, status, seconds)
        self._total.labels(verb, resource, str(status)).inc()
        self._seconds.labels(verb).observe(seconds)


class WatchMetrics:
    """Lists and watches, under the names that client-go's reflectors had, and their lag."""

    def __init__(self, registry: CollectorRegistry, name: str) -> None:
        made = _watch_metrics(registry)
        self._lists, self._list_seconds, self._items = (each.labels(name) for each in made[:3])
        self._watches, self._watch_seconds = (each.labels(name) for each in made[3:5])
        self._short, self._lag = (each.labels(name) for each in made[5:])

    def listed(self, items: int, seconds: float) -> None:
        """See :class:`qiskit_controller.kube.reflector.ReflectorMetrics`."""
        self._lists.inc()
        self._list_seconds.observe(seconds)
        self._items.observe(items)

    def watch_opened(self) -> None:
        """See :class:`qiskit_controller.kube.reflector.ReflectorMetrics`."""
        self._watches.inc()

    def watch_ended(self, seconds: float, events: int) -> None:
        """See :class:`qiskit_controller.kube.reflector.ReflectorMetrics`."""
        self._watch_seconds.observe(seconds)
        if seconds < 1 and not events:
            self._short.inc()

    def event(self, lag: float | None) -> None:
        """See :class:`qiskit_controller.kube.reflector.ReflectorMetrics`."""
        if lag is not None:
            self._lag.observe(lag)


@functools.cache
def _watch_metrics(registry: CollectorRegistry) -> tuple[Any, ...]:
    """One family each for all the informers of a process."""
    of_all: dict[str, Any] = {"labelnames": ("name",), "registry": registry}
    return (
        Counter("reflector_lists_total", "Lists done; all but the first are relists.", **of_all),
        Histogram("reflector_list_duration_seconds", "Time of a list.", buckets=_FAST, **of_all),
        Histogram(
            "reflector_items_per_list",
            "Objects in a list.",
            buckets=(0, 10, 100, 1000, 10_000),
            **of_all,
        ),
        Counter("reflector_watches_total", "Watches opened; each is a reconnect.", **of_all),
        Histogram(
            "reflector_watch_duration_seconds",
            "Time that a watch was open.",
            buckets=(1, 10, 60, 300, 600, 900),
            **of_all,
        ),
        Counter("reflector_short_watches_total", "Watches that ended at once and empty.", **of_all),
        Histogram(
            "qiskit_watch_event_lag_seconds",
            "From a change on the API server, told in whole seconds, to its event here.",
            buckets=(1, 2, 3, 5, 10, 30, 60),
            **of_all,
        ),
    )


class LeaderMetrics:
    """Whether this replica leads, under client-go's name."""

    def __init__(self, registry: CollectorRegistry, name: str) -> None:
        self._gauge = Gauge(
            "leader_election_master_status",
            "1 on the replica that leads, else 0.",
            ("name",),
            registry=registry,
        ).labels(name)

    def leading(self, leading: bool) -> None:
        """See :class:`qiskit_controller.kube.leaderelection.LeaderMetrics`."""
        self._gauge.set(int(leading))
