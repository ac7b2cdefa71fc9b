"""The trace of a QiskitJob on a real API server: where it is kept, and that it costs no write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import attrs
import pytest
from prometheus_client import CollectorRegistry

from qiskit_controller.api.quantities import parse_time
from qiskit_controller.kube.client import JOBS, Client
from qiskit_controller.reconcilers.qiskitjob.reconciler import QISKITJOBS
from qiskit_controller.reconcilers.qiskitjob.tracing import JobTracer, stage_span
from qiskit_controller.telemetry.metrics import RequestMetrics
from qiskit_controller.telemetry.trace import ANNOTATION, Span, parse, trace_of
from tests.integration.conftest import ApiServer

from .cluster import Cluster, Replica, Watcher, eventually, qiskitjob

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@attrs.define
class Collected:
    """Takes spans."""

    spans: list[Span] = attrs.field(factory=list)

    def send(self, spans: Sequence[Span]) -> None:
        self.spans += spans

    def sampled(self, trace_id: str) -> bool:
        return True

    async def root(self) -> Span:
        """The job's own span.

        It is sent after the last write, which a watch tells of earlier, and after it the
        reconcile that wrote.
        """

        async def told() -> bool:
            ended = [each.end for each in self.named("QiskitJob")]
            return any(each.end >= end for end in ended for each in self.named("reconcile"))

        await eventually(told, "the end of the trace is told")
        (found,) = self.named("QiskitJob")
        return found

    def named(self, name: str) -> list[Span]:
        return [each for each in self.spans if each.name == name]


@pytest.fixture
async def collected(cluster: Cluster, apiserver: ApiServer) -> AsyncIterator[Collected]:
    """What a controller that works, and has a collector, sends."""
    found = Collected()
    # Its requests are counted, as the manager has them counted: that is how they are known.
    metrics = RequestMetrics(CollectorRegistry())
    async with await Client.connect(str(apiserver.kubeconfig), metrics=metrics) as client:
        replica = Replica(client, cluster.namespace)
        replica.reconciler.tracer = JobTracer(found)
        replica.reconciler.settings = attrs.evolve(
            replica.reconciler.settings,
            telemetry={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
        )
        async with replica:
            yield found


async def test_the_trace_is_on_the_object_from_the_first_write_on(
    cluster: Cluster, watcher: Watcher, collected: Collected
) -> None:
    await cluster.client.create(QISKITJOBS, qiskitjob(), cluster.namespace)
    done = await watcher.finished("bell")
    trace = trace_of(done["metadata"])
    assert parse(done["metadata"]["annotations"][ANNOTATION]) == trace.root
    # With the finalizer, in one write: no state has one without the other.
    for state in watcher.states["bell"]:
        metadata = state["metadata"]
        assert bool(metadata.get("finalizers")) == (ANNOTATION in metadata.get("annotations", {}))
    # What the phases' spans are made of.
    history = done["status"]["phaseHistory"]
    assert [each["phase"] for each in history] == [
        *("Pending", "Validating", "Scheduling", "Running", "Completed")
    ]
    times = [parse_time(each["time"]) for each in history]
    assert times == sorted(times)
    assert len(set(times)) == len(times), "they have fractions of a second"
    root = await collected.root()
    assert root.end == times[-1]
    assert {each.context.trace_id for each in collected.spans} == {trace.trace_id}
    # Every write is in the trace, but that of the Events.
    written = {each.name for each in collected.spans if each.parent != trace.root}
    assert written >= {
        *("patch qiskitjobs", "update qiskitjobs", "create configmaps", "create jobs"),
        *("create roles", "create rolebindings", "create serviceaccounts", "delete roles"),
    }


async def test_the_pod_is_told_of_the_trace_and_the_untrusted_stage_is_not(
    cluster: Cluster, watcher: Watcher, collected: Collected
) -> None:
    await cluster.client.create(QISKITJOBS, qiskitjob(), cluster.namespace)
    done = await watcher.finished("bell")
    job = await cluster.client.get(JOBS, "qiskit-job-bell", cluster.namespace)
    pod = job["spec"]["template"]["spec"]
    (circuit,) = pod["initContainers"]
    assert "env" not in circuit
    (executor,) = pod["containers"]
    env = {each["name"]: each.get("value") for each in executor["env"]}
    trace = trace_of(done["metadata"])
    assert env["TRACEPARENT"] == str(stage_span(trace, 1, "executor"))
    assert env["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"
    assert f"k8s.namespace.name={cluster.namespace}" in (env["OTEL_RESOURCE_ATTRIBUTES"] or "")
    # The span that the pod's own are children of.
    await collected.root()
    (stage,) = collected.named("stage executor")
    assert stage.context == stage_span(trace, 1, "executor")


async def test_a_users_trace_goes_on(
    cluster: Cluster, watcher: Watcher, collected: Collected
) -> None:
    job = qiskitjob()
    job["metadata"]["annotations"] = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    await cluster.client.create(QISKITJOBS, job, cluster.namespace)
    done = await watcher.finished("bell")
    assert done["metadata"]["annotations"]["traceparent"] == f"00-{TRACE}-{SPAN}-01"
    root = await collected.root()
    assert root.parent is not None
    assert (root.parent.trace_id, root.parent.span_id) == (TRACE, SPAN)
    assert root.context.trace_id == TRACE


async def test_without_a_collector_the_trace_is_named_all_the_same(
    cluster: Cluster, watcher: Watcher, replica: Replica
) -> None:
    await cluster.client.create(QISKITJOBS, qiskitjob(), cluster.namespace)
    done = await watcher.finished("bell")
    assert parse(done["metadata"]["annotations"][ANNOTATION]) == trace_of(done["metadata"]).root
    job = await cluster.client.get(JOBS, "qiskit-job-bell", cluster.namespace)
    (executor,) = job["spec"]["template"]["spec"]["containers"]
    names = {each["name"] for each in executor["env"]}
    assert "TRACEPARENT" in names, "for the logs"
    assert not any(each.startswith("OTEL_") for each in names)
