"""Every way a run can end, and everything that may come over its pod: docs/endings.md.

What a wrong circuit or spec ends with is in :mod:`test_bad_input`; here are the rest of the
circuit's endings and all that only a real kubelet, scheduler and Job controller do. Jobs that
need nothing of each other are submitted together, when the first of their tests begins; the
tests that take the node or the controller away come last, and take it from all at once.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest

from .conftest import NAME, SLOW
from .harness import (
    ENDLESS,
    ENDLESS_SHOTS,
    FINISHED,
    ROOT,
    Cluster,
    Controller,
    Kubectl,
    Object,
    condition_of,
    counts_of,
    events_of,
    eventually,
    execute,
    phase,
    quantum_job,
    wait_phase,
)

# Takes long; `./hack/test extended` runs it.
pytestmark = pytest.mark.extended

# Many at a time on two cores: what they reserve is next to nothing.
LIGHT: Object = {"requests": {"cpu": "10m", "memory": "64Mi"}}
# Executes for some ten seconds, and ends.
LONG_SHOTS = 100_000
# How long the kubelet or the controller is away.
AWAY_SECONDS = 75.0 if SLOW else 30.0

LOOP = "while True:\n    pass\n"
# Its parent is process 1 of the container, which only hears what it wants to hear from inside.
STOP_PARENT = """\
import os, signal
os.kill(os.getppid(), signal.SIGSTOP)
os.kill(1, signal.SIGSTOP)
while True:
    pass
"""
UNBOUND = """\
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
qc = QuantumCircuit(1)
qc.rx(Parameter("theta"), 0)
qc.ry(Parameter("phi"), 0)
qc.measure_all()
"""
HOG = "held = [bytearray(1 << 20) for _ in range(4096)]\n"
# 2^22 outcomes, nearly all of them different: the counts are many times the state's size.
WIDE = """\
from qiskit import QuantumCircuit
qc = QuantumCircuit(22)
qc.h(range(22))
qc.measure_all()
"""
# More than the folder may hold, and time for the kubelet to look.
FILL_DISK = """\
import time
for number in range(300):
    with open(f"/tmp/{number}", "wb") as file:
        file.write(bytes(1 << 20))
time.sleep(300)
"""


def job(name: str, code: str = "", *, execution: Object | None = None, **spec: Any) -> Object:
    """A QiskitJob that reserves next to nothing."""
    more = {"execution": execution} if execution else {}
    return quantum_job(name, *([code] if code else []), **{"resources": LIGHT} | more | spec)


def endless(name: str, **spec: Any) -> Object:
    """A QiskitJob that stays in Running."""
    return job(
        name, ENDLESS, execution={"shots": ENDLESS_SHOTS} | spec.pop("execution", {}), **spec
    )


def long(name: str, **spec: Any) -> Object:
    """A QiskitJob that is in Running for some ten seconds, and completes."""
    return job(name, ENDLESS, execution={"shots": LONG_SHOTS} | spec.pop("execution", {}), **spec)


# --- what is looked at ----------------------------------------------------------------------


def check_failed(kubectl: Kubectl, name: str, reason: str, message: str, attempts: int = 1) -> None:
    """The job ends in Failed, with that reason and exactly that message (a regular expression)."""
    found = wait_phase(kubectl, name, "Failed")
    for type_, status in (("Failed", "True"), ("Complete", "False")):
        condition = condition_of(found, type_)
        assert condition is not None
        assert (condition["status"], condition["reason"]) == (status, reason)
        assert re.fullmatch(message, condition["message"]), condition["message"]
    assert found["status"]["message"] == f"{reason}: {condition['message']}"
    assert found["status"]["completionTime"]
    assert len(found["status"]["attempts"]) == attempts
    assert found["status"]["attempts"][-1]["reason"] == reason
    eventually(lambda: event(kubectl, name, reason), f"an Event {reason} about {name!r}")
    description = kubectl("describe", "qiskitjob", name)
    assert "Traceback" not in description
    assert kubectl.get("configmap", f"{name}-results") is None
    assert kubectl.get("serviceaccount", f"qiskit-job-{name}") is None


def check_completed(kubectl: Kubectl, name: str, shots: int, attempts: int = 1) -> Object:
    """The job completes, with one result and that many attempts."""
    found = wait_phase(kubectl, name, "Completed")
    assert sum(counts_of(kubectl, f"{name}-results").values()) == shots
    assert len(found["status"]["attempts"]) == attempts, found["status"]["attempts"]
    assert len(job_names(kubectl, name)) <= attempts
    return found


def event(kubectl: Kubectl, name: str, reason: str) -> Object | None:
    """An Event of that reason about a QiskitJob."""
    return next((each for each in events_of(kubectl, name) if each["reason"] == reason), None)


def job_names(kubectl: Kubectl, name: str) -> set[str]:
    """The Kubernetes Jobs of a QiskitJob."""
    return {
        each["metadata"]["name"]
        for each in kubectl.list("jobs", f"--selector=quantum.io/job={name}")
    }


def wait_condition(kubectl: Kubectl, name: str, type_: str, reason: str, says: str = "") -> Object:
    """Wait until a condition has that reason and says that."""

    def look() -> Object | None:
        found = condition_of(kubectl.one("qiskitjob", name), type_)
        if found is None or found["reason"] != reason or says not in found["message"]:
            return None
        return found

    return eventually(look, f"{name!r} has the condition {type_} because of {reason}: {says}")


def pod_of(kubectl: Kubectl, name: str) -> Object | None:
    """The newest pod of a QiskitJob."""
    pods = kubectl.list("pods", f"--selector=quantum.io/job={name}")
    return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)


def cancel(kubectl: Kubectl, name: str) -> None:
    """Set spec.cancel."""
    kubectl("patch", "qiskitjob", name, "--type=merge", "-p", '{"spec":{"cancel":true}}')


def no_restarts(controller: Controller) -> None:
    """The controller has been well all the time."""
    assert set(controller.restarts().values()) == {0}


# --- processes in containers ----------------------------------------------------------------


def executor_processes(pod: Object | None) -> list[int]:
    """The executor's processes as this machine sees them, without its first one."""
    statuses = (pod or {}).get("status", {}).get("containerStatuses") or ()
    container = next((each["containerID"] for each in statuses if each.get("containerID")), "")
    bare = container.rpartition("/")[2]
    found = []
    for folder in Path("/proc").iterdir() if bare else ():
        if not folder.name.isdigit():
            continue
        try:
            of_it = bare in (folder / "cgroup").read_text()
            ids = re.search(r"^NSpid:\s+(.*)$", (folder / "status").read_text(), re.MULTILINE)
        except OSError:
            continue
        if of_it and ids and ids[1].split()[-1] != "1":
            found.append(int(folder.name))
    return found


def signal_executor(kubectl: Kubectl, name: str, number: int, known: set[str]) -> bool:
    """Signal the work in the executor of the newest pod that is not `known`; add it there."""
    pod = pod_of(kubectl, name)
    if pod is None or pod["metadata"]["name"] in known:
        return False
    processes = executor_processes(pod)
    for process in processes:
        os.kill(process, number)
    if processes:
        known.add(pod["metadata"]["name"])
    return bool(processes)


# --- jobs that need nothing of each other ---------------------------------------------------

PHASES = ("Pending", "Validating", "Scheduling", "Running")
HELD = {
    # Its pod has no node.
    "Pending": {"resources": {"requests": {"cpu": "900"}, "limits": {"cpu": "900"}}},
    "Validating": {"circuit": {"source": "inline", "code": LOOP}},
    # Stopped before it tells that it executes; see the fixture.
    "Scheduling": {},
    "Running": {},
}


def held(name: str, phase_: str) -> Object:
    """A QiskitJob that stays in a phase."""
    made = endless(name)
    made["spec"] |= HELD[phase_]
    return made


@attrs.define
class Killer:
    """Kills the executor of a job whenever there is one, as a broken node might."""

    kubectl: Kubectl
    name: str
    killed: set[str] = attrs.field(factory=set)
    _stop: threading.Event = attrs.field(factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(30)

    def _work(self) -> None:
        while not self._stop.wait(0.5):
            found = self.kubectl.get("qiskitjob", self.name)
            if phase(found) == "Running":
                signal_executor(self.kubectl, self.name, signal.SIGKILL, self.killed)


@attrs.frozen
class Submitted:
    """The jobs of this module that run side by side."""

    kubectl: Kubectl
    quota: Kubectl
    killer: Killer


@pytest.fixture(scope="module")
def submitted(cluster: Cluster, module_namespace: Kubectl) -> Iterator[Submitted]:
    """Everything that needs nothing of each other."""
    kubectl = module_namespace
    killer = Killer(kubectl, "flaky")
    with cluster.namespace("endings-quota") as quota:
        quota.apply(
            {
                "apiVersion": "v1",
                "kind": "ResourceQuota",
                "metadata": {"name": "no-pods"},
                "spec": {"hard": {"pods": "0"}},
            }
        )
        quota.apply(job("quota"))
        kubectl.apply(
            endless("flaky", execution={"maxRetries": 2}),
            job("stopper", STOP_PARENT),
            job("unbound", UNBOUND),
            job("fills-disk", FILL_DISK),
            endless("too-slow", execution={"timeout": "5s"}),
            job("hog-circuit", HOG, resources=LIGHT | {"limits": {"memory": "400Mi"}}),
            job(
                "hog-executor",
                WIDE,
                execution={"shots": 3_000_000},
                resources=LIGHT | {"limits": {"memory": "420Mi"}},
            ),
            job("brief", ttlSecondsAfterFinished=3),
        )
        killer.start()
        try:
            yield Submitted(kubectl, quota, killer)
        finally:
            killer.stop()


def test_unbound_parameters(submitted: Submitted) -> None:
    check_failed(
        submitted.kubectl,
        "unbound",
        "UnboundParameters",
        r"the circuit's parameters have no value: phi, theta; give each a number in "
        r"spec\.circuit\.parameters or call assign_parameters\(\)",
    )


def test_out_of_memory_in_the_circuits_code(submitted: Submitted) -> None:
    check_failed(
        submitted.kubectl,
        "hog-circuit",
        "CircuitOutOfMemory",
        r"circuit\.py(, line 1)?: .*raise spec\.resources\.limits\.memory or use less",
    )


def test_out_of_memory_in_the_executor(submitted: Submitted) -> None:
    check_failed(
        submitted.kubectl,
        "hog-executor",
        "OutOfMemory",
        r"the executor (needed more memory than its limit; raise "
        r"spec\.resources\.limits\.memory or use fewer qubits"
        r"|ran out of memory; raise spec\.resources\.limits\.memory)",
    )


def test_timeout_while_running(submitted: Submitted) -> None:
    check_failed(
        submitted.kubectl,
        "too-slow",
        "Timeout",
        r"execution took longer than spec\.execution\.timeout \(5s\)",
    )
    found = submitted.kubectl.one("qiskitjob", "too-slow")
    ran = seconds_between(found["status"]["runningTime"], found["status"]["completionTime"])
    assert ran >= 4
    told = submitted.kubectl("logs", "job/qiskit-job-too-slow")
    assert "Executing  on aer_simulator" in told
    assert "Failed     Timeout: execution took longer than" in told


def test_timeout_while_validating_with_a_parent_that_was_to_be_stopped(
    submitted: Submitted,
) -> None:
    check_failed(
        submitted.kubectl,
        "stopper",
        "CircuitTimeout",
        r"circuit\.py, line [45]: the code was still running after 40 s, which is the limit for "
        r"making a circuit",
    )


def test_a_disk_that_is_filled(submitted: Submitted) -> None:
    check_failed(
        submitted.kubectl,
        "fills-disk",
        "StorageExceeded",
        r"the pod used more disk than it may: Usage of EmptyDir volume \"circuit-tmp\" exceeds "
        r"the limit \"256Mi\"\.",
    )


def test_a_quota_that_leaves_no_room_for_the_pod(submitted: Submitted) -> None:
    quota = submitted.quota
    told = wait_condition(quota, "quota", "PodStarted", "PodCreationFailed", "exceeded quota")
    assert "no-pods" in told["message"]
    assert phase(quota.one("qiskitjob", "quota")) == "Pending"
    quota("delete", "resourcequota", "no-pods")
    # The Job controller comes back to it after up to a minute.
    check_completed(quota, "quota", 1024)
    started = condition_of(quota.one("qiskitjob", "quota"), "PodStarted")
    assert started is not None
    assert started["status"] == "True"


def test_a_time_to_live_that_is_over(submitted: Submitted) -> None:
    kubectl = submitted.kubectl
    eventually(lambda: kubectl.get("qiskitjob", "brief") is None, "it is deleted by itself")
    eventually(lambda: not left_of(kubectl, "brief"), "and nothing of it is left")


# --- cancelling and deleting ----------------------------------------------------------------


@pytest.fixture(scope="module")
def ended(submitted: Submitted) -> Kubectl:
    """For each phase a job that was cancelled in it, and one that was deleted."""
    kubectl = submitted.kubectl
    waiting = {f"{verb}-{each.lower()}": each for verb in ("cancel", "delete") for each in PHASES}
    kubectl.apply(*(held(name, each) for name, each in waiting.items()))
    stopped: dict[str, set[str]] = {name: set() for name in waiting if "scheduling" in name}

    def end_what_is_there() -> bool:
        for name, known in stopped.items():
            if not known and signal_executor(kubectl, name, signal.SIGSTOP, known):
                tell_validated(kubectl, name)
        found = {each["metadata"]["name"]: phase(each) for each in kubectl.list("qiskitjobs")}
        for name, wanted in list(waiting.items()):
            assert found.get(name) not in FINISHED, f"QiskitJob {name!r} is {found[name]}"
            if found.get(name) == wanted and pod_of(kubectl, name):
                del waiting[name]
                if name.startswith("cancel"):
                    cancel(kubectl, name)
                else:
                    kubectl("delete", "qiskitjob", name, "--wait=false")
        return not waiting

    eventually(end_what_is_there, "each is in its phase", every=0.05)
    return kubectl


def tell_validated(kubectl: Kubectl, name: str) -> None:
    """What an executor tells before its backend has a place for it.

    It was stopped before it could, and now takes as long as a provider's queue.
    """
    told = {
        "attempt": 1,
        "stage": "Validated",
        "circuitMetrics": {"qubits": 4, "clbits": 4, "depth": 40, "gates": 160},
    }
    patch = json.dumps({"data": {"progress-1": json.dumps(told)}})
    record = f"qiskit-job-{name}-record"
    kubectl("patch", "configmap", record, "--type=merge", "-p", patch)


@pytest.mark.parametrize("phase_", PHASES)
def test_cancelling(ended: Kubectl, phase_: str) -> None:
    kubectl, name = ended, f"cancel-{phase_.lower()}"
    found = wait_phase(kubectl, name, "Cancelled")
    condition = condition_of(found, "Cancelled")
    assert condition is not None
    assert (condition["status"], condition["reason"]) == ("True", "Cancelled")
    assert condition["message"] == found["status"]["message"] == "Cancelled by spec.cancel"
    complete = condition_of(found, "Complete")
    assert complete is not None
    assert (complete["status"], complete["reason"]) == ("False", "Cancelled")
    assert found["status"]["attempts"][0]["reason"] == "Cancelled"
    # It has ended by then, and goes.
    eventually(lambda: pod_of(kubectl, name) is None, "its pod is gone")
    assert kubectl.get("configmap", f"{name}-results") is None


@pytest.mark.parametrize("phase_", PHASES)
def test_deleting(ended: Kubectl, phase_: str) -> None:
    kubectl, name = ended, f"delete-{phase_.lower()}"
    eventually(lambda: kubectl.get("qiskitjob", name) is None, f"{name} is gone")
    # The finalizer has held it until these had gone.
    assert kubectl.list("jobs,pods", f"--selector=quantum.io/job={name}") == []
    eventually(lambda: not left_of(kubectl, name), f"nothing is left of {name}")


# --- pods that go away ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def bereaved(submitted: Submitted) -> Kubectl:
    """Jobs whose pod is taken away while they run."""
    kubectl = submitted.kubectl
    kubectl.apply(long("pod-deleted"), long("pod-evicted"), long("job-deleted"))
    lost = {}
    for name, take in (
        ("pod-deleted", lambda pod: kubectl("delete", "pod", pod, "--wait=false")),
        ("pod-evicted", lambda pod: evict(kubectl, pod)),
        ("job-deleted", lambda _: kubectl("delete", "job", "qiskit-job-job-deleted")),
    ):
        wait_phase(kubectl, name, "Running")
        pod = pod_of(kubectl, name)
        assert pod is not None
        lost[name] = pod["metadata"]["name"]
        take(lost[name])
    return kubectl


def evict(kubectl: Kubectl, pod: str) -> None:
    """What ``kubectl drain`` does to each pod of a node."""
    path = f"/api/v1/namespaces/{kubectl.namespace}/pods/{pod}/eviction"
    body = (
        '{"apiVersion":"policy/v1beta1","kind":"Eviction","metadata":'
        f'{{"name":"{pod}","namespace":"{kubectl.namespace}"}}}}'
    )
    kubectl("create", "--raw", path, "-f", "-", stdin=body)


@pytest.mark.parametrize(
    ("name", "reasons", "message"),
    [
        ("pod-deleted", {"PodLost"}, "the pod was deleted"),
        # Kubernetes 1.26 and later mark the pod with why it is deleted.
        ("pod-evicted", {"PodLost", "Evicted"}, "the pod was deleted|Eviction API: evicting"),
        ("job-deleted", {"PodLost"}, ".*was deleted"),
    ],
)
def test_a_pod_that_is_taken_away(
    bereaved: Kubectl, name: str, reasons: set[str], message: str
) -> None:
    found = check_completed(bereaved, name, LONG_SHOTS, attempts=2)
    lost, done = found["status"]["attempts"]
    assert lost["reason"] in reasons
    assert re.fullmatch(message, lost["message"]), lost["message"]
    assert lost["counted"] is False
    assert "reason" not in done
    assert seconds_between(lost["completionTime"], done["startTime"]) >= 10
    retrying = event(bereaved, name, "Retrying")
    assert retrying is not None
    assert retrying["message"].startswith(f"{lost['reason']}: ")


# --- retries --------------------------------------------------------------------------------


def test_a_failure_that_may_pass_but_never_does(submitted: Submitted) -> None:
    kubectl = submitted.kubectl
    check_failed(
        kubectl,
        "flaky",
        "ExecutorFailed",
        r"the executor was ended by the signal SIGKILL \(attempt 3 of 3, the last\)",
        attempts=3,
    )
    attempts = kubectl.one("qiskitjob", "flaky")["status"]["attempts"]
    assert [each["number"] for each in attempts] == [1, 2, 3]
    assert all(each["reason"] == "ExecutorFailed" and each["counted"] for each in attempts)
    assert [each["jobName"] for each in attempts] == [
        "qiskit-job-flaky",
        "qiskit-job-flaky-2",
        "qiskit-job-flaky-3",
    ]
    for number, (before, after) in enumerate(pairwise(attempts)):
        waited = seconds_between(before["completionTime"], after["startTime"])
        print(f"attempt {after['number']} began {waited:.0f} s after the end of the one before")
        least = 10 * 2**number
        # Times are of whole seconds, and the machine may be busy.
        assert least <= waited <= least * 1.2 + 6
    # No pod but those three, ever.
    assert len(submitted.killer.killed) == 3
    assert job_names(kubectl, "flaky") == {each["jobName"] for each in attempts}
    retries = [each for each in events_of(kubectl, "flaky") if each["reason"] == "Retrying"]
    assert sorted(re.findall(r"\(retry \d of 2\)", " ".join(e["message"] for e in retries))) == [
        "(retry 1 of 2)",
        "(retry 2 of 2)",
    ]


# --- the node -------------------------------------------------------------------------------


@pytest.fixture
def cordoned(kubectl: Kubectl, submitted: Submitted) -> Iterator[Callable[[], None]]:
    """A node that takes no pods, until the value is called."""
    node = kubectl.list("nodes")[0]["metadata"]["name"]
    kubectl("cordon", node)
    try:
        yield lambda: print(kubectl("uncordon", node))
    finally:
        kubectl("uncordon", node)


def test_no_node_then_no_image_then_completed(
    submitted: Submitted, cordoned: Callable[[], None]
) -> None:
    kubectl = submitted.kubectl
    resources = {
        "requests": {"cpu": "20m", "memory": "200Mi"},
        "limits": {"cpu": "1", "memory": "900Mi"},
    }
    kubectl.apply(job("homeless", resources=resources, execution={"priority": "high"}))
    kubectl.apply(job("imageless"))
    for name in ("homeless", "imageless"):
        told = wait_condition(kubectl, name, "PodStarted", "Unschedulable")
        assert told["message"].startswith("0/1 nodes are available"), told["message"]
    assert kubectl.one("qiskitjob", "homeless")["status"]["message"].startswith(
        "Unschedulable: 0/1"
    )
    pod = pod_of(kubectl, "homeless")
    assert pod is not None
    for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
        assert container["resources"] == resources
    assert pod["spec"]["priorityClassName"] == "qiskit-high"
    assert pod["spec"]["priority"] == 10_000

    pod = pod_of(kubectl, "imageless")
    assert pod is not None
    image = pod["spec"]["initContainers"][0]["image"]
    set_image(kubectl, pod, "localhost:1/none:missing")
    cordoned()
    check_completed(kubectl, "homeless", 1024)
    eventually(
        lambda: (
            (condition_of(kubectl.one("qiskitjob", "imageless"), "PodStarted") or {}).get("reason")
            in ("ErrImagePull", "ImagePullBackOff")
        ),
        "it tells that the image cannot be pulled",
    )
    assert phase(kubectl.one("qiskitjob", "imageless")) == "Pending"
    assert "localhost:1/none:missing" in kubectl("describe", "qiskitjob", "imageless")
    set_image(kubectl, pod, image)
    check_completed(kubectl, "imageless", 1024)


def set_image(kubectl: Kubectl, pod: Object, image: str) -> None:
    """Give a pod's first container another image."""
    patch = f'[{{"op":"replace","path":"/spec/initContainers/0/image","value":"{image}"}}]'
    kubectl("patch", "pod", pod["metadata"]["name"], "--type=json", "-p", patch)


def test_a_priority_class_that_is_missing(submitted: Submitted) -> None:
    kubectl = submitted.kubectl
    kubectl("delete", "priorityclass", "qiskit-low")
    try:
        kubectl.apply(job("classless", execution={"priority": "low"}))
        told = wait_condition(kubectl, "classless", "PodStarted", "PodCreationFailed", "qiskit-low")
        assert "no PriorityClass with name qiskit-low was found" in told["message"]
    finally:
        kubectl("apply", "-f", ROOT / "manifests" / "manager" / "priority_classes.yaml")
    check_completed(kubectl, "classless", 1024)


def test_a_pod_that_is_preempted(submitted: Submitted, kubectl: Kubectl) -> None:
    mine = submitted.kubectl
    room = free_cpu(kubectl)
    mine.apply(long("preempted", resources={"requests": {"cpu": f"{room - 50}m"}}))
    wait_phase(mine, "preempted", "Running")
    pod = pod_of(mine, "preempted")
    assert pod is not None
    mine.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "endings-bully"},
            "value": 1_000_000,
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "bully"},
            "spec": {
                "priorityClassName": "endings-bully",
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "sleep",
                        "image": pod["spec"]["containers"][0]["image"],
                        "command": ["sleep", "600"],
                        "resources": {"requests": {"cpu": f"{room - 60}m"}},
                    }
                ],
            },
        },
    )
    try:
        wait_condition(mine, "preempted", "PodStarted", "Unschedulable", "Insufficient cpu")
    finally:
        mine("delete", "pod/bully", "priorityclass/endings-bully", "--now")
    found = check_completed(mine, "preempted", LONG_SHOTS, attempts=2)
    assert found["status"]["attempts"][0]["reason"] in ("PodLost", "Evicted")
    assert found["status"]["attempts"][0]["counted"] is False


def free_cpu(kubectl: Kubectl) -> int:
    """Thousandths of a CPU that no pod of the node has reserved."""
    node = kubectl.list("nodes")[0]
    free = _milli(node["status"]["allocatable"]["cpu"])
    for pod in kubectl.list("pods", "--all-namespaces"):
        if pod["status"].get("phase") in ("Succeeded", "Failed"):
            continue
        containers = [
            sum(_milli(each["resources"].get("requests", {}).get("cpu", "0")) for each in of_kind)
            for of_kind in (pod["spec"]["containers"], pod["spec"].get("initContainers", ()))
        ]
        free -= max(containers)
    return free


def _milli(quantity: str) -> int:
    return int(quantity[:-1]) if quantity.endswith("m") else int(quantity) * 1000


@pytest.fixture
def kubelet(submitted: Submitted) -> Iterator[Callable[[str], None]]:
    """Stops and starts the node's kubelet; started again at the end."""

    def do(verb: str) -> None:
        execute([ROOT / "hack" / "cluster", verb, "--name", NAME, "kubelet"])

    try:
        yield do
    finally:
        do("start")


def test_a_kubelet_that_is_stopped_and_a_controller_that_is_down(
    submitted: Submitted, controller: Controller, kubelet: Callable[[str], None]
) -> None:
    """Both for a while, one after the other, with jobs in every state."""
    kubectl = submitted.kubectl
    no_restarts(controller)
    # The kubelet: a job that goes on without it, and one whose pod is taken away meanwhile, as
    # the controller manager does when a node does not answer for five minutes.
    kubectl.apply(long("unwatched"), long("node-lost"))
    wait_phase(kubectl, "unwatched", "Running")
    wait_phase(kubectl, "node-lost", "Running")
    taken = pod_of(kubectl, "node-lost")
    assert taken is not None
    kubelet("stop")
    stopped = time.monotonic()
    kubectl("delete", "pod", taken["metadata"]["name"], "--wait=false")
    found = eventually(
        lambda: second_attempt(kubectl, "node-lost"), "another attempt of the lost one"
    )
    assert found["status"]["attempts"][0]["reason"] == "PodLost"
    time.sleep(max(0.0, stopped + AWAY_SECONDS - time.monotonic()))
    assert phase(kubectl.one("qiskitjob", "unwatched")) == "Running"
    kubelet("start")
    check_completed(kubectl, "unwatched", LONG_SHOTS, attempts=1)
    check_completed(kubectl, "node-lost", LONG_SHOTS, attempts=2)

    # The controller.
    kubectl.apply(
        *(long(f"orphan-{number}") for number in range(2)),
        *(job(f"orphan-{number}") for number in range(2, 5)),
    )
    wait_phase(kubectl, "orphan-0", "Running")
    scale(controller, 0)
    gone = time.monotonic()
    kubectl.apply(job("foundling"))
    time.sleep(max(0.0, gone + AWAY_SECONDS - time.monotonic()))
    assert phase(kubectl.one("qiskitjob", "foundling")) == ""
    scale(controller, 2)
    for number in range(5):
        check_completed(kubectl, f"orphan-{number}", LONG_SHOTS if number < 2 else 1024)
    check_completed(kubectl, "foundling", 1024)


def second_attempt(kubectl: Kubectl, name: str) -> Object | None:
    """The job, once it has two attempts."""
    found = kubectl.one("qiskitjob", name)
    return found if len(found["status"]["attempts"]) == 2 else None


def scale(controller: Controller, replicas: int) -> None:
    """Take the controller away, or bring it back."""
    controller.kubectl("scale", controller.DEPLOYMENT, f"--replicas={replicas}")
    if replicas:
        controller.wait_ready()
    else:
        eventually(lambda: not controller.pods(), "the controller is gone")


def test_afterwards_everything_can_be_deleted(submitted: Submitted, controller: Controller) -> None:
    kubectl = submitted.kubectl
    submitted.killer.stop()
    no_restarts(controller)
    for pod in controller.pods():
        assert "Traceback" not in controller.kubectl("logs", pod["metadata"]["name"])
    kubectl("delete", "qiskitjobs", "--all", "--timeout=240s")
    assert kubectl.list("jobs,pods", "--selector=app.kubernetes.io/name=qiskit-job") == []
    kinds = "configmaps,serviceaccounts,roles,rolebindings"
    eventually(
        lambda: not kubectl.list(kinds, "--selector=app.kubernetes.io/name=qiskit-job"),
        "nothing is left",
    )


# --- small things ---------------------------------------------------------------------------


def left_of(kubectl: Kubectl, name: str) -> list[Object]:
    """What still belongs to a QiskitJob that is gone."""
    kinds = "jobs,pods,configmaps,serviceaccounts,roles,rolebindings"
    return kubectl.list(kinds, f"--selector=quantum.io/job={name}")


def seconds_between(earlier: str, later: str) -> float:
    """Between two of Kubernetes' times."""
    first, second = (
        datetime.fromisoformat(each.replace("Z", "+00:00")).astimezone(UTC)
        for each in (earlier, later)
    )
    return (second - first).total_seconds()
