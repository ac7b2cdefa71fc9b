"""The reference, word for word: its first complete example and every kubectl command in it.

Two departures are the design's: a Job's pods carry a suffix, so logs are read with
``kubectl logs job/qiskit-job-<name>``; and the port on this side of a port-forward is any free
one, since 8080 may be taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import attrs
import pytest
import yaml

from .harness import (
    PHASES,
    SAMPLES,
    SYSTEM,
    Cluster,
    Kubectl,
    Watch,
    condition_of,
    counts_of,
    events_of,
    eventually,
    phase,
    quantum_job,
    wait_phase,
)

# "Basic Local Simulator Job", copied from the reference.
BASIC_LOCAL_SIMULATOR_JOB = """\
apiVersion: quantum.io/v1
kind: QiskitJob
metadata:
  name: bell-state
  namespace: default
spec:
  backend:
    type: local_simulator
  
  circuit:
    source: inline
    code: |
      from qiskit import QuantumCircuit
      qc = QuantumCircuit(2, 2)
      qc.h(0)
      qc.cx(0, 1)
      qc.measure([0, 1], [0, 1])
  
  execution:
    shots: 1024
  
  output:
    type: configmap
    location: bell-state-results
"""  # noqa: W293


@attrs.frozen
class Bell:
    """The example, run while three terminals watched."""

    kubectl: Kubectl
    watched: list[str]  # kubectl get qj -w
    waited: str  # kubectl wait
    followed: list[str]  # kubectl logs -f


@pytest.fixture(scope="module")
def bell(cluster: Cluster) -> Iterator[Bell]:
    """``bell-state``, applied unchanged and Completed."""
    kubectl = cluster.kubectl
    sample = SAMPLES / "bell-state.yaml"
    kubectl("delete", "--ignore-not-found", "-f", sample)
    with kubectl.watch("qiskitjobs") as watch:
        kubectl("apply", "-f", sample)
        # Following needs a container that has started.
        eventually(lambda: watch.find(r"bell-state +Validating"), "bell-state is Validating")
        following = Watch(
            ["kubectl", "logs", "job/qiskit-job-bell-state", "-f", "--pod-running-timeout=2m"],
            kubectl.env,
        )
        waited = kubectl(
            *("wait", "--for=condition=Complete", "qiskitjob/bell-state", "--timeout=240s")
        )
        eventually(lambda: watch.find(r"bell-state +Completed"), "the watch shows the end")
        eventually(lambda: following.find(r"Completed +in"), "the log is followed to its end")
    yield Bell(kubectl, watch.lines, waited, following.stop())
    kubectl("delete", "-f", sample)


@pytest.fixture(scope="module")
def stuck_and_failed(module_namespace: Kubectl) -> Kubectl:
    """A namespace with a job that waits for a ConfigMap and one whose circuit is wrong."""
    circuit = {"source": "configmap", "configMapRef": {"name": "absent", "key": "circuit.py"}}
    module_namespace.apply(
        quantum_job("failed", "import qiskit_of_tomorrow"),
        quantum_job("stuck", circuit=circuit),
    )
    return module_namespace


# --- the example ----------------------------------------------------------------------------


def test_the_sample_is_the_references_example() -> None:
    sample = (SAMPLES / "bell-state.yaml").read_text()
    assert yaml.safe_load(sample) == yaml.safe_load(BASIC_LOCAL_SIMULATOR_JOB)
    assert [line.rstrip() for line in sample.splitlines() if not line.startswith("#")] == [
        line.rstrip() for line in BASIC_LOCAL_SIMULATOR_JOB.splitlines()
    ]


def test_phases_pass_in_order_before_the_eyes_of_a_watcher(bell: Bell) -> None:
    print(*bell.watched, sep="\n")
    seen: list[str] = []
    for line in bell.watched:
        name, *columns = line.split()
        if name == "bell-state" and columns[0] in PHASES and columns[0] not in seen[-1:]:
            seen.append(columns[0])
    assert seen == ["Pending", "Validating", "Scheduling", "Running", "Completed"]


def test_wait_for_the_condition_complete_returns(bell: Bell) -> None:
    assert "qiskitjob.quantum.io/bell-state condition met" in bell.waited


def test_counts_are_those_of_a_bell_state(bell: Bell) -> None:
    counts = counts_of(bell.kubectl, "bell-state-results")
    print(counts)
    assert sum(counts.values()) == 1024
    assert set(counts) == {"00", "11"}
    status = bell.kubectl.one("qiskitjob", "bell-state")["status"]
    assert status["results"]["counts"] == counts


def test_describe_tells_a_story_that_a_person_can_follow(bell: Bell) -> None:
    eventually(
        lambda: [
            each for each in events_of(bell.kubectl, "bell-state") if each["reason"] == "Completed"
        ],
        "the last Event is written",
    )
    text = bell.kubectl("describe", "qiskitjob", "bell-state")
    print(text)
    status, _, events = text.partition("\nEvents:\n")
    lines = [line.split(None, 4) for line in events.splitlines()[2:]]
    assert {kind for kind, *_ in lines} == {"Normal"}
    reasons = [reason for _, reason, *_ in lines]
    steps = ["Accepted", "Started", "Validating", "CircuitValid", "BackendSelected", "Running"]
    assert [each for each in reasons if each in steps] == steps
    assert reasons[-1] == "Completed"
    assert lines[-1][4].startswith("1024 shots on aer_simulator in ")
    assert all(len(message) > 10 for *_, message in lines)
    for said in ("Circuit validation successful", "results in configmap/bell-state-results"):
        assert said in status


def test_conditions_are_the_references_and_ours(bell: Bell) -> None:
    job = bell.kubectl.one("qiskitjob", "bell-state")
    found = {each["type"]: (each["status"], each["reason"]) for each in job["status"]["conditions"]}
    wanted = {
        "Validated": ("True", "CircuitValid"),
        "PodStarted": ("True", "Started"),
        "BackendSelected": ("True", "RequestedBackend"),
        "Complete": ("True", "Completed"),
        "Failed": ("False", "Completed"),
    }
    print(found)
    assert wanted.items() <= found.items()
    validated = condition_of(job, "Validated")
    assert validated is not None
    assert validated["message"] == "Circuit validation successful"
    generation = job["metadata"]["generation"]
    assert job["status"]["observedGeneration"] == generation
    assert all(each["observedGeneration"] == generation for each in job["status"]["conditions"])


def test_times_add_up(bell: Bell) -> None:
    status = bell.kubectl.one("qiskitjob", "bell-state")["status"]
    results = status["results"]
    print(results)
    assert status["startTime"] <= status["runningTime"] <= status["completionTime"]
    assert results["queueTime"] > 0
    assert 0 < results["executionTime"] < results["totalTime"]
    assert results["totalTime"] == pytest.approx(
        results["queueTime"] + results["executionTime"], abs=0.01
    )


def test_logs_show_what_ran(bell: Bell) -> None:
    text = bell.kubectl("logs", "job/qiskit-job-bell-state")
    print(text)
    for said in (
        "QiskitJob  default/bell-state",
        "Circuit    2 qubits, 2 classical bits, depth 3, 4 operations",
        "┤ H ├",
        "Executing  on aer_simulator",
        "Counts     1024 shots, 2 outcomes",
        "Stored     configmap/bell-state-results",
        "Completed",
    ):
        assert said in text


# --- kubectl Commands -----------------------------------------------------------------------


def test_create_job(bell: Bell) -> None:
    again = bell.kubectl("apply", "-f", SAMPLES / "bell-state.yaml")
    assert again.strip() == "qiskitjob.quantum.io/bell-state unchanged"


@pytest.mark.parametrize(
    "command",
    ["get qiskitjobs", "get qiskitjobs -A", "get qj", "get quantum", "get qiskitjob bell-state"],
)
def test_list_jobs(bell: Bell, command: str) -> None:
    text = bell.kubectl(*command.split())
    print(text)
    header, *rows = text.splitlines()
    columns = ["NAME", "PHASE", "BACKEND", "SHOTS", "COST", "AGE"]
    assert header.split() == ["NAMESPACE"] * ("-A" in command) + columns
    row = next(line.split() for line in rows if "bell-state" in line)
    # Of a category with several kinds, kubectl names the kind of each.
    assert row[-6].removeprefix("qiskitjob.quantum.io/") == "bell-state"
    assert row[-5:-1] == ["Completed", "aer_simulator", "1024", "$0.00"]


def test_list_jobs_wide(bell: Bell) -> None:
    header, row = bell.kubectl("get", "qiskitjob", "bell-state", "-o", "wide").splitlines()
    print(header, row, sep="\n")
    assert header.split()[-2:] == ["LOCATION", "MESSAGE"]
    assert re.search(r"configmap/bell-state-results +1024 shots on aer_simulator in ", row)


def test_list_jobs_in_watch_mode(bell: Bell) -> None:
    assert bell.watched[0].split() == ["NAME", "PHASE", "BACKEND", "SHOTS", "COST", "AGE"]


def test_describe_job(bell: Bell) -> None:
    assert "Name:         bell-state" in bell.kubectl("describe", "qiskitjob", "bell-state")


def test_get_job_status(bell: Bell) -> None:
    line = "kubectl get qiskitjob bell-state -o jsonpath='{.status.phase}'"
    assert bell.kubectl.shell(line).out == "Completed"


def test_get_job_results(bell: Bell) -> None:
    stored = yaml.safe_load(bell.kubectl("get", "configmap", "bell-state-results", "-o", "yaml"))
    print(*stored["data"])
    owner = bell.kubectl.one("qiskitjob", "bell-state")
    assert [each["uid"] for each in stored["metadata"]["ownerReferences"]] == [
        owner["metadata"]["uid"]
    ]
    line = "kubectl get configmap bell-state-results -o jsonpath='{.data.counts}'"
    counts = json.loads(bell.kubectl.shell(line).out)
    assert sum(counts.values()) == 1024
    documents = [value for key, value in stored["data"].items() if key != "counts"]
    assert any(json.loads(each)["counts"] == counts for each in documents)


def test_watch_job_logs(bell: Bell) -> None:
    """Followed from before its container had begun to its end."""
    print(*bell.followed, sep="\n")
    assert any(line.startswith("QiskitJob  default/bell-state") for line in bell.followed)
    assert bell.followed[-1].startswith("Completed")


def test_delete_job(stuck_and_failed: Kubectl) -> None:
    stuck_and_failed.apply(quantum_job("gone", execution={"shots": 1}))
    wait_phase(stuck_and_failed, "gone", "Completed")
    text = stuck_and_failed("delete", "qiskitjob", "gone", "--timeout=120s")
    assert 'qiskitjob.quantum.io "gone" deleted' in text
    assert stuck_and_failed.get("qiskitjob", "gone") is None


# --- Status and Monitoring ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "printed"),
    [
        ("{.status.phase}", r"Completed"),
        ("{.status.conditions[*].type}", r"Validated .*\bBackendSelected .*\bComplete Failed"),
        ("{.status.cost}", r"\$0\.00"),
    ],
)
def test_check_progress_conditions_and_cost(bell: Bell, path: str, printed: str) -> None:
    text = bell.kubectl.shell(f"kubectl get qiskitjob bell-state -o jsonpath='{path}'").out
    print(text)
    assert re.fullmatch(printed, text)


def test_view_metrics(bell: Bell) -> None:
    """Both replicas know how many jobs there are; which one answers is the Service's choice."""
    system = bell.kubectl.within(SYSTEM)
    with system.port_forward("svc/qiskit-operator-metrics", 8080) as port:
        line = f"curl --silent http://localhost:{port}/metrics | grep qiskit_job"
        text = system.shell(line).out
    print(*[each for each in text.splitlines() if not each.startswith("#")], sep="\n")
    sample = r'^qiskit_jobs\{backend_type="local_simulator",phase="Completed"\} ([\d.]+)$'
    found = re.search(sample, text, re.MULTILINE)
    assert found is not None
    assert float(found[1]) >= 1
    assert "# TYPE qiskit_job_duration_seconds histogram" in text


# --- Troubleshooting ------------------------------------------------------------------------


def test_job_stuck_in_pending(stuck_and_failed: Kubectl) -> None:
    missing = "ConfigMap 'absent', named by spec.circuit.configMapRef, does not exist"
    eventually(lambda: "ConfigMapNotFound" in stuck_and_failed("get", "events"), "the wait is told")
    text = stuck_and_failed("describe", "qiskitjob", "stuck")
    print(text)
    assert re.search(r"Phase: +Pending", text)
    assert re.search(rf"Warning +ConfigMapNotFound .*{re.escape(missing)}", text)
    line = f"kubectl get events --sort-by='.lastTimestamp' -n {stuck_and_failed.namespace}"
    events = stuck_and_failed.shell(line).out
    print(events)
    assert re.search(rf"Warning +ConfigMapNotFound +qiskitjob/stuck +{re.escape(missing)}", events)


def test_events_sort_by_their_last_timestamp(stuck_and_failed: Kubectl) -> None:
    wait_phase(stuck_and_failed, "failed", "Failed")
    eventually(lambda: "CircuitImportError" in stuck_and_failed("get", "events"), "the end is told")
    rows = stuck_and_failed(
        *("get", "events", "--sort-by=.lastTimestamp", "-o"),
        "jsonpath={range .items[*]}{.involvedObject.kind}/{.involvedObject.name}|"
        '{.lastTimestamp}|{.reason}{"\\n"}{end}',
    ).splitlines()
    # The scheduler's own, about pods, have none, so that they come first.
    ours = [row.split("|") for row in rows if row.startswith("QiskitJob/")]
    print(*ours, sep="\n")
    times = [time for _, time, _ in ours]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", time) for time in times)
    assert times == sorted(times)
    told = [reason for name, _, reason in ours if name == "QiskitJob/failed"]
    assert {"Accepted", "Started", "Validating"} <= set(told)
    assert told[-1] == "CircuitImportError"


def test_validation_failures(stuck_and_failed: Kubectl) -> None:
    wait_phase(stuck_and_failed, "failed", "Failed")
    logs = stuck_and_failed("logs", "job/qiskit-job-failed")
    print(logs)
    said = "circuit.py, line 1: ModuleNotFoundError: No module named 'qiskit_of_tomorrow'"
    assert f"Failed     CircuitImportError: {said}" in logs
    line = (
        "kubectl get qiskitjob failed -o jsonpath='{.status.conditions}' "
        f"-n {stuck_and_failed.namespace}"
    )
    conditions = {each["type"]: each for each in json.loads(stuck_and_failed.shell(line).out)}
    for type_, status in (("Validated", "False"), ("Failed", "True"), ("Complete", "False")):
        assert conditions[type_]["status"] == status
        assert conditions[type_]["reason"] == "CircuitImportError"
        assert conditions[type_]["message"].startswith(said)


# --- and beside the reference ---------------------------------------------------------------


def test_explain_reads_like_the_reference(kubectl: Kubectl) -> None:
    text = kubectl("explain", "qiskitjob.spec.execution")
    print(text)
    words = " ".join(text.split())
    for field, doc in (
        ("shots <integer>", "Number of circuit executions"),
        ("optimizationLevel <integer>", "Transpiler optimization level (0-3)"),
        ("priority <string>", "Job priority:"),
        ("timeout <string>", "Maximum execution time"),
        ("maxRetries <integer>", "Maximum retry attempts"),
    ):
        assert field in words
        assert doc in words
    assert "Circuit source: inline, configmap, url or git" in " ".join(
        kubectl("explain", "qj.spec.circuit").split()
    )


def test_samples_for_the_local_simulator_run(module_namespace: Kubectl) -> None:
    """All of them at once; the others are at least accepted by the API server."""
    local, remote = [], []
    for file in sorted(SAMPLES.glob("*.yaml")):
        for each in yaml.safe_load_all(file.read_text()):
            if not each or each["kind"] == "Kustomization":
                continue
            each["metadata"]["namespace"] = module_namespace.namespace
            backend = each["spec"]["backend"]["type"] if each["kind"] == "QiskitJob" else ""
            (local if backend in ("", "local_simulator") else remote).append(each)
    print("run:", *(each["metadata"]["name"] for each in local))
    print("accepted:", *(each["metadata"]["name"] for each in remote))
    if remote:
        module_namespace("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(remote))
    module_namespace.apply(*local)
    for each in local:
        if each["kind"] != "QiskitJob":
            continue
        job = wait_phase(module_namespace, each["metadata"]["name"], "Completed")
        shots = each["spec"].get("execution", {}).get("shots", 1024)
        assert sum(job["status"]["results"]["counts"].values()) == shots
        assert phase(job) == "Completed"
