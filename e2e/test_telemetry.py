"""Where the time of a job went: traces to a collector, metrics to a Prometheus, logs to jq.

The collector is ``tests/otlp`` in the node's network. The controller is told of it for as long as
this module runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.otlp.client import Collector, Span, running

from .conftest import NAME
from .harness import (
    ROOT,
    SAMPLES,
    Controller,
    Kubectl,
    Object,
    container_pids,
    endless_job,
    eventually,
    execute,
    quantum_job,
    wait_phase,
)

sys.path.insert(0, str(ROOT / "hack"))
from localcluster import apt, binaries

GATEWAY = "10.88.0.1"
GAP = 0.1
# What explains time by being about something in particular; the others only hold them together.
FRAMES = ("QiskitJob", "phase ", "attempt", "reconcile", "stage executor", "stage source")
NEXT_TO_IT = (ROOT / "hack" / "cluster", "exec-netns", "--name", NAME, "--")


def node_address() -> str:
    """Where this process reaches the node."""
    text = execute([ROOT / "hack" / "cluster", "env", "--name", NAME]).out
    return re.search(r"QISKIT_NODE_ADDRESS=(\S+)", text)[1]  # type: ignore[index]


@pytest.fixture(scope="module")
def collector(controller: Controller) -> Iterator[Collector]:
    """A collector that the controller and its pods send to."""
    address = node_address()
    prefix = [str(each) for each in NEXT_TO_IT]
    with running(bind="0.0.0.0", outside=address, inside=GATEWAY, before=prefix) as made:
        _set_environment(
            controller,
            f"OTEL_EXPORTER_OTLP_ENDPOINT={made.endpoint}",
            "OTEL_METRIC_EXPORT_INTERVAL=2000",
        )
        try:
            yield made
        finally:
            _set_environment(
                controller, "OTEL_EXPORTER_OTLP_ENDPOINT-", "OTEL_METRIC_EXPORT_INTERVAL-"
            )


def _set_environment(controller: Controller, *changes: str) -> None:
    controller.kubectl("set", "env", controller.DEPLOYMENT, *changes)
    controller.wait_ready()
    controller.wait_leader()


@pytest.fixture(autouse=True)
def well(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did to the collector is over when it is."""
    yield
    if "collector" in request.fixturenames:
        request.getfixturevalue("collector").behave("well")


def traced(collector: Collector, job: Object) -> dict[str, Span]:
    """The whole trace of a job that is over, once it has come."""
    uid = job["metadata"]["uid"]

    def look() -> dict[str, Span] | None:
        spans = collector.spans(quantum_job_uid=uid)
        names = {each.name for each in spans.values()}
        # The root, and the reconcile that wrote the end, which is sent after it.
        root = next((each for each in spans.values() if each.name == "QiskitJob"), None)
        after = [each for each in spans.values() if each.name == "reconcile"]
        told = root and any(each.end >= root.end for each in after)
        return spans if told and "store" in names else None

    return eventually(look, "the whole trace has come", seconds=60.0)


def shown(spans: dict[str, Span]) -> str:
    """The trace as a tree, with times relative to its beginning."""
    first = min(each.start for each in spans.values())
    lines: list[str] = []

    def show(parent: str, depth: int) -> None:
        children = [each for each in spans.values() if each.parent == parent]
        for each in sorted(children, key=lambda span: (span.start, span.end)):
            times = f"{each.start - first:8.3f} {each.end - each.start:8.3f}"
            lines.append(f"{times}  {'  ' * depth}{each.name}")
            show(each.id, depth + 1)

    show(next(each.parent for each in spans.values() if each.name == "QiskitJob"), 0)
    return "\n".join(lines)


def gaps(spans: list[Span], start: float, end: float) -> list[tuple[float, float]]:
    """What none of the spans covers, as (from, length)."""
    found, reached = [], start
    for each in sorted(spans, key=lambda span: span.start):
        if each.start > reached:
            found.append((reached - start, each.start - reached))
        reached = max(reached, each.end)
    if end > reached:
        found.append((reached - start, end - reached))
    return found


def check(spans: dict[str, Span], job: Object, parent: str = "") -> Span:
    """That it is one trace, whole, without a gap; returns the root."""
    print(shown(spans))
    assert len({each.trace for each in spans.values()}) == 1
    root = next(each for each in spans.values() if each.name == "QiskitJob")
    # No orphan: every parent is there but the root's own.
    orphans = [each.name for each in spans.values() if each.parent not in spans and each != root]
    assert not orphans
    assert root.parent == parent
    # The trace is found from the object.
    annotation = job["metadata"]["annotations"]["quantum.io/traceparent"]
    assert annotation == f"00-{root.trace}-{root.id}-01"
    created = _seconds(job["metadata"]["creationTimestamp"])
    assert root.start == created
    assert root.end == pytest.approx(_seconds(job["status"]["phaseHistory"][-1]["time"]), abs=1e-3)
    # The phases cover everything, and come one after the other.
    phases = [each for each in spans.values() if each.name.startswith("phase ")]
    assert all(each.parent == root.id for each in phases)
    assert gaps(phases, root.start, root.end) == []
    # So does what is in the phases and attempts, with no more than a breath between.
    leaves = [each for each in spans.values() if not each.name.startswith(FRAMES)]
    unexplained = [gap for gap in gaps(leaves, root.start, root.end) if gap[1] > GAP]
    assert unexplained == [], "nothing tells what happened then"
    return root


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def children(spans: dict[str, Span], parent: Span) -> list[Span]:
    return [each for each in spans.values() if each.parent == parent.id]


def test_the_bell_job_is_one_trace_without_a_gap(namespace: Kubectl, collector: Collector) -> None:
    namespace.apply(quantum_job("bell"))
    job = wait_phase(namespace, "bell", "Completed")
    spans = traced(collector, job)
    root = check(spans, job)
    by_name = {each.name: each for each in spans.values()}
    assert [
        by_name[f"phase {each}"].status
        for each in ("Pending", "Validating", "Scheduling", "Running")
    ] == [0, 0, 0, 0]
    executor = by_name["stage executor"]
    inside = {each.name for each in children(spans, executor)}
    before = {"start", "load", "connect to collector", "prepare", "tell controller", "check"}
    assert inside == {*before, "load backend", "transpile", "execute", "store"}
    # They nest in time as they do by name; the two clocks are one here.
    for each in children(spans, executor):
        assert executor.start <= each.start <= each.end <= executor.end, each.name
    assert by_name["attempt"].start <= executor.start
    assert executor.end <= by_name["attempt"].end <= root.end
    # Who told what.
    tellers = {each.resource["service.name"]: each for each in spans.values()}
    assert set(tellers) == {"qiskit-controller", "qiskit-runner"}
    runner = tellers["qiskit-runner"].resource
    assert runner["k8s.namespace.name"] == namespace.namespace
    assert runner["k8s.pod.name"] == job["status"]["executorPodName"]
    assert runner["k8s.container.name"] == "executor"
    assert root.attributes["quantum.backend.type"] == "local_simulator"
    assert root.attributes["quantum.backend.name"] == "aer_simulator"
    assert root.attributes["quantum.shots"] == 1024
    assert root.attributes["quantum.circuit.qubits"] == 2
    # Told once each, by the one leader there was.
    every = [each.id for each in collector.every_span() if each.trace == root.trace]
    assert len(every) == len(set(every))
    assert root.trace in namespace("describe", "qiskitjob", "bell")


def test_the_untrusted_stage_is_told_of_no_collector(
    namespace: Kubectl, collector: Collector
) -> None:
    code = (
        "import os\n"
        "told = [each for each in os.environ if 'OTEL' in each or 'TRACEPARENT' in each]\n"
        "for pid in os.listdir('/proc'):\n"
        "    try:\n"
        "        told += [pid] * (b'OTEL_' in open(f'/proc/{pid}/environ', 'rb').read())\n"
        "    except OSError:\n"
        "        pass\n"
        "assert not told, told\n"
    )
    namespace.apply(quantum_job("asking", code + quantum_job("x")["spec"]["circuit"]["code"]))
    wait_phase(namespace, "asking", "Completed")
    (pod,) = namespace.list("pods")
    (circuit,) = pod["spec"]["initContainers"]
    assert not circuit.get("env")
    (executor,) = pod["spec"]["containers"]
    environment = {each["name"]: each.get("value") for each in executor["env"]}
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == collector.endpoint
    assert not any("HEADERS" in each for each in environment)


def test_a_users_own_trace_goes_on_in_the_job(namespace: Kubectl, collector: Collector) -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    job = quantum_job("part")
    job["metadata"]["annotations"] = {"traceparent": f"00-{trace}-{span}-01"}
    namespace.apply(job)
    done = wait_phase(namespace, "part", "Completed")
    root = check(traced(collector, done), done, parent=span)
    assert root.trace == trace


def test_the_trace_survives_the_death_of_the_leader(
    namespace: Kubectl, controller: Controller, collector: Collector
) -> None:
    """Half-way: the job is running, and the leader is killed; another sees it end."""
    controller.wait_ready()
    leader = controller.wait_leader()
    # Some 15 seconds on two cores: longer than half of what taking over takes.
    slow = "import time\ntime.sleep(8)\n" + quantum_job("x")["spec"]["circuit"]["code"]
    namespace.apply(quantum_job("bell", slow))
    wait_phase(namespace, "bell", "Validating")
    (status,) = controller.kubectl.one("pod", leader)["status"]["containerStatuses"]
    (pid,) = container_pids(status["containerID"])
    os.kill(pid, signal.SIGKILL)
    killed = time.time()
    job = wait_phase(namespace, "bell", "Completed")
    spans = traced(collector, job)
    root = check(spans, job)
    tellers = {
        each.resource["service.instance.id"]
        for each in spans.values()
        if each.resource["service.name"] == "qiskit-controller"
    }
    print(f"told by {tellers}; the leader was killed {killed - root.start:.1f} s after creation")
    assert len(tellers) == 2, "both leaders told of it"
    assert root.start < killed < root.end
    names = [each.name for each in spans.values() if not each.name.startswith("reconcile")]
    assert names.count("QiskitJob") == names.count("attempt") == names.count("phase Pending") == 1
    controller.wait_ready()


@pytest.mark.extended
def test_retries_are_siblings_and_failures_are_errors(
    namespace: Kubectl, collector: Collector
) -> None:
    namespace.apply(endless_job("lost"))
    wait_phase(namespace, "lost", "Running")
    (pod,) = namespace.list("pods")
    namespace("delete", "pod", pod["metadata"]["name"], "--wait=false")
    eventually(
        lambda: len(namespace.one("qiskitjob", "lost")["status"]["attempts"]) > 1,
        "there is a second attempt",
    )
    uid = wait_phase(namespace, "lost", "Running")["metadata"]["uid"]
    namespace("patch", "qiskitjob", "lost", "--type=merge", "-p", '{"spec":{"cancel":true}}')
    wait_phase(namespace, "lost", "Cancelled")

    def look() -> dict[str, Span] | None:
        found = collector.spans(quantum_job_uid=uid)
        return found if any(each.name == "QiskitJob" for each in found.values()) else None

    spans = eventually(look, "the trace has come")
    print(shown(spans))
    root = next(each for each in spans.values() if each.name == "QiskitJob")
    attempts = sorted(
        (each for each in children(spans, root) if each.name == "attempt"),
        key=lambda span: span.start,
    )
    assert [each.attributes["quantum.attempt"] for each in attempts] == [1, 2]
    first, second = attempts
    assert (first.status, first.attributes["error.type"]) == (2, "PodLost")
    assert second.status == root.status == 0, "to be cancelled is no failure"
    (waited,) = (each for each in children(spans, root) if each.name == "retry back-off")
    assert first.end <= waited.start <= waited.end <= second.start
    assert not [each.name for each in spans.values() if each.parent not in spans and each != root]


def test_a_mistake_of_the_users_is_an_error_of_the_trace(
    namespace: Kubectl, collector: Collector
) -> None:
    namespace.apply(quantum_job("wrong", "this is no Python"))
    job = wait_phase(namespace, "wrong", "Failed")

    def look() -> Span | None:
        found = collector.spans(quantum_job_uid=job["metadata"]["uid"]).values()
        return next((each for each in found if each.name == "QiskitJob"), None)

    root = eventually(look, "the root has come")
    assert root.status == 2
    assert root.attributes["error.type"] == "CircuitSyntaxError"


@pytest.mark.parametrize(
    "how",
    ["hang", *(pytest.param(each, marks=pytest.mark.extended) for each in ("refuse", "drop"))],
)
def test_losing_the_collector_delays_no_job(
    namespace: Kubectl, collector: Collector, controller: Controller, how: str
) -> None:
    collector.behave(how)
    before = collector.requests()
    restarts = controller.restarts()
    namespace.apply(quantum_job("bell"))
    job = wait_phase(namespace, "bell", "Completed")
    (pod,) = namespace.list("pods")
    (executor,) = pod["status"]["containerStatuses"]
    report = json.loads(executor["state"]["terminated"]["message"])
    ended, finished = report["ended"], executor["state"]["terminated"]["finishedAt"]
    late = _seconds(finished) - _seconds(ended)
    total = _seconds(job["status"]["phaseHistory"][-1]["time"]) - _seconds(
        job["metadata"]["creationTimestamp"]
    )
    print(f"{how}: the executor's process ended {late:.2f} s after its work; {total:.1f} s in all")
    assert collector.requests() > before, "it was tried"
    # One second for the last words, an interpreter that ends on a busy machine; the SDK's own
    # patience is ten seconds for a request and thirty for its end.
    assert late < 6.0
    assert controller.restarts() == restarts


def test_metrics_are_pushed_as_they_are_shown(namespace: Kubectl, collector: Collector) -> None:
    namespace.apply(quantum_job("bell"))
    wait_phase(namespace, "bell", "Completed")

    def look() -> Object | None:
        found = [each for each in collector.metrics() if each["name"] == "qiskit_job_shots_total"]
        return found[-1] if found else None

    pushed = eventually(look, "shots are pushed")
    (point,) = pushed["sum"]["dataPoints"]
    assert pushed["sum"]["isMonotonic"]
    assert point["asDouble"] >= 1024
    assert point["attributes"] == [
        {"key": "backend_type", "value": {"stringValue": "local_simulator"}}
    ]


def test_telling_takes_little_memory(controller: Controller, collector: Collector) -> None:
    leader = controller.wait_leader()
    status = controller.kubectl("exec", leader, "--", "cat", "/proc/1/status")
    resident = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert resident is not None
    mebibytes = int(resident[1]) / 1024
    print(f"{leader}, which has sent traces and metrics: VmRSS {mebibytes:.1f} MiB")
    assert mebibytes < 120


# --- metrics --------------------------------------------------------------------------------


def test_the_samples_are_counted_and_prometheus_shows_it(
    namespace: Kubectl, controller: Controller, tmp_path: Path
) -> None:
    """A leader that has just begun counts from zero: two good jobs, and one that fails."""
    controller.kubectl("rollout", "restart", controller.DEPLOYMENT)
    controller.wait_ready()
    leader = controller.wait_leader()
    for sample in ("bell-state.yaml", "descriptive-name.yaml"):
        for each in yaml.safe_load_all((SAMPLES / sample).read_text()):
            each["metadata"].pop("namespace", None)
            namespace.apply(each)
    namespace.apply(quantum_job("wrong", "this is no Python"))
    names = [job["metadata"]["name"] for job in namespace.list("qiskitjobs")]
    for name in names:
        wait_phase(namespace, name, "Failed" if name == "wrong" else "Completed")
    shots = sum(
        job["spec"]["execution"]["shots"]
        for job in namespace.list("qiskitjobs")
        if job["metadata"]["name"] != "wrong"
    )
    with prometheus(controller, tmp_path) as ask:
        eventually(lambda: len(ask("up == 1")) == 2, "both replicas are scraped")
        wanted = {
            'qiskit_job_finished_total{phase="Completed"}': 2.0,
            'qiskit_job_finished_total{phase="Failed",reason="CircuitSyntaxError"}': 1.0,
            "sum(qiskit_job_shots_total)": float(shots),
            'qiskit_job_phase_transitions_total{phase="Running"}': 2.0,
            "qiskit_job_execution_seconds_count": 2.0,
            "sum(qiskit_job_cost_usd_total)": 0.0,
            f'leader_election_master_status{{pod="{leader}"}}': 1.0,
            "sum(leader_election_master_status)": 1.0,
        }
        for query, value in wanted.items():
            found = eventually(lambda query=query: ask(query), f"Prometheus knows {query}")
            print(query, found)
            assert list(found.values()) == [value], query
        # Every query of the dashboard is understood, and about metrics that there are.
        for query in dashboard_queries():
            ask(query)
        known = ask('count by (__name__) ({job="qiskit-operator-metrics"})')
        used = set(
            re.findall(
                r"\b(?:qiskit|workqueue|controller_runtime|rest_client|leader|"
                r"reflector|process)_[a-z_]+",
                " ".join(dashboard_queries()),
            )
        )
        there = {re.search(r'__name__="([^"]+)"', each)[1] for each in known}  # type: ignore[index]
        # Retries and the like have no series before there is one.
        assert used - there <= {"qiskit_job_retries_total"}
    with controller.kubectl.port_forward("svc/qiskit-operator-metrics", 8080) as port:
        line = f"curl --silent http://localhost:{port}/metrics"
        text = controller.kubectl.shell(line).out
        assert "qiskit_job" in controller.kubectl.shell(f"{line} | grep qiskit_job").out
    promtool = binaries.prometheus() / "promtool"
    checked = execute([promtool, "check", "metrics"], stdin=text, check=False)
    print(checked.text)
    assert (checked.code, checked.text.strip()) == (0, "")


def dashboard_queries() -> list[str]:
    """What the Grafana dashboard asks."""
    folder = ROOT / "manifests" / "components" / "monitoring"
    dashboard = json.loads((folder / "dashboard.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return [each.replace("$__rate_interval", "1m") for each in found]


@contextlib.contextmanager
def prometheus(controller: Controller, folder: Path) -> Iterator[Any]:
    """A Prometheus in the node's network that scrapes the replicas as a ServiceMonitor says."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # Debian's Prometheus cannot ask Kubernetes for what there is to scrape. So it is told what a
    # ServiceMonitor would lead to: the ports of that name in the Service's Endpoints.
    endpoints = controller.kubectl.one("endpoints", "qiskit-operator-metrics")
    targets = [
        {
            "targets": [f"{address['ip']}:{each['port']}"],
            "labels": {"pod": address["targetRef"]["name"]},
        }
        for subset in endpoints["subsets"]
        for each in subset["ports"]
        if each["name"] == "metrics"
        for address in subset["addresses"]
    ]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "qiskit-operator-metrics",
                "static_configs": targets,
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        *NEXT_TO_IT,
        binaries.prometheus() / "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=0.0.0.0:{port}",
    ]
    log = (folder / "prometheus.log").open("w")
    process = subprocess.Popen([str(each) for each in command], stdout=log, stderr=log)
    address = f"http://{node_address()}:{port}"

    def ask(query: str) -> dict[str, float]:
        """The value of each series that the query finds, by its labels."""
        url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            data = json.load(answer)["data"]
        if data["resultType"] == "scalar":
            return {"": float(data["result"][1])}
        return {
            ",".join(f'{name}="{value}"' for name, value in sorted(each["metric"].items())): float(
                each["value"][1]
            )
            for each in data["result"]
        }

    def ready() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{address}/-/ready", timeout=5).status == 200
        return False

    try:
        eventually(ready, "Prometheus is ready")
        yield ask
    finally:
        process.terminate()
        process.wait(30)
        log.close()


# --- logs -----------------------------------------------------------------------------------


def test_one_filter_tells_a_jobs_story(namespace: Kubectl, controller: Controller) -> None:
    """The filter is the one in docs/telemetry.md, word for word."""
    apt.ensure_installed(["jq"], "read logs")
    text = (ROOT / "docs" / "telemetry.md").read_text()
    line = re.search(r"^\$ (\(?kubectl logs .*jq .*)$", text, re.MULTILINE)[1]  # type: ignore[index]
    namespace.apply(quantum_job("bell"), quantum_job("other"))
    job = wait_phase(namespace, "bell", "Completed")
    wait_phase(namespace, "other", "Completed")
    assert "default/bell" in line
    out = controller.kubectl.shell(line.replace("default/bell", f"{namespace.namespace}/bell")).out
    print(out)
    told = [json.loads(each) for each in out.splitlines()]
    phases = [each["phase"] for each in told if each["event"] == "phase"]
    assert phases == ["Pending", "Validating", "Scheduling", "Running", "Completed"]
    uid = job["metadata"]["uid"]
    trace = job["metadata"]["annotations"]["quantum.io/traceparent"].split("-")[1]
    for each in told:
        assert each["job"] == f"{namespace.namespace}/bell"
        assert each["uid"] == uid
        assert each["trace_id"] == trace
        assert re.fullmatch("[0-9a-f]{8}", each["reconcile_id"])
    assert [each["timestamp"] for each in told] == sorted(each["timestamp"] for each in told)
    # Everything a controller writes is JSON.
    for pod in controller.pods():
        for each in controller.kubectl("logs", pod["metadata"]["name"]).splitlines():
            assert {"event", "level", "timestamp", "logger"} <= set(json.loads(each))
