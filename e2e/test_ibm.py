"""IBM Quantum with real pods: the reference's example, the queue, cancelling, and lost pods.

The service is a process in the node's network (``tests/standins/ibm``), which speaks IBM's
protocol and keeps a ledger of what it was asked to run. A job's Secret names it by ``url``; all
else is as with a real account.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from tests.standins.ibm.client import Ibm
from tests.standins.ibm.client import running as ibm_running
from tests.stores.client import Servers
from tests.stores.client import running as stores_running

from .conftest import NAME
from .harness import (
    BELL,
    ROOT,
    SAMPLES,
    Cluster,
    Controller,
    Kubectl,
    Object,
    cancel,
    condition_of,
    counts_of,
    events_of,
    eventually,
    phase,
    quantum_job,
    wait_finished,
    wait_phase,
)

DEVICE = "ibm_manila"
SECRET = "ibm-quantum-credentials"


def ibm_job(name: str, code: str = BELL, **spec: Any) -> Object:
    """A QiskitJob for a device of the service."""
    given = {
        "backend": {"type": "ibm_quantum", "name": DEVICE},
        "credentials": {"secretRef": {"name": SECRET}},
        "execution": {"shots": 100},
    }
    return quantum_job(name, code, **given | spec)


@attrs.frozen
class Lab:
    """A namespace with the credentials, and the service."""

    kubectl: Kubectl
    ibm: Ibm

    def job(self, name: str) -> Object:
        return self.kubectl.one("qiskitjob", name)

    def sold(self, job: Object) -> list[dict[str, Any]]:
        """What was submitted for a QiskitJob."""
        uid = job["metadata"]["uid"]
        return [e for e in self.ibm.ledger if any(tag.startswith(uid) for tag in e["tags"])]

    def in_queue(self, name: str) -> Object:
        """Wait until the status shows the provider's job in the queue."""

        def look() -> Object | None:
            job = self.job(name)
            assert phase(job) not in ("Failed", "Completed"), job["status"].get("message")
            shown = job.get("status", {}).get("provider") or {}
            waits = shown.get("state") == "Queued" and phase(job) == "Scheduling"
            # Its place in the queue is told when it is looked at for the first time.
            return job if waits and "before it" in job["status"]["message"] else None

        return eventually(look, f"{name} waits in the queue")


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> tuple[tuple[Any, ...], str]:
    """How to run something in the node's network, and the node's address."""
    kubectl = cluster.kubectl
    server = kubectl("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
    host = re.fullmatch(r"https://(.*):\d+", server.strip()).group(1)  # type: ignore[union-attr]
    return (ROOT / "hack" / "cluster", "exec-netns", "--name", NAME, "--"), host


@pytest.fixture(scope="module")
def service(place: tuple[tuple[Any, ...], str]) -> Iterator[Ibm]:
    prefix, host = place
    with ibm_running(prefix, "0.0.0.0", host) as ibm:
        yield ibm


@pytest.fixture
def lab(namespace: Kubectl, service: Ibm) -> Iterator[Lab]:
    namespace.apply(secret(SECRET, service.secret))
    made = Lab(namespace, service)
    try:
        yield made
    finally:
        service.mend()
        service.set(held=False, keys=[service.key])
        namespace("delete", "qiskitjobs", "--all", "--timeout=180s", check=False)


def secret(name: str, values: dict[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "stringData": values,
    }


@pytest.fixture
def production(
    cluster: Cluster, place: tuple[tuple[Any, ...], str], service: Ibm
) -> Iterator[tuple[Kubectl, Servers]]:
    """The reference's namespace and bucket, as its example names them."""
    prefix, host = place
    kubectl = cluster.kubectl.within("production")
    cluster.kubectl("create", "namespace", "production")
    cluster.watched.append("production")
    with stores_running(prefix, "0.0.0.0", host) as stores:
        stores.make("s3", "quantum-results")
        kubectl.apply(
            secret(SECRET, {**stores.secret("s3"), **service.secret}),
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "grover-circuit"},
                "data": {"circuit.py": BELL},
            },
        )
        try:
            yield kubectl, stores
        finally:
            cluster.watched.remove("production")
            kubectl("delete", "qiskitjobs", "--all", "--timeout=180s", check=False)
            cluster.kubectl("delete", "namespace", "production", "--wait=false")


def test_the_reference_s_hardware_example(
    production: tuple[Kubectl, Servers], service: Ibm
) -> None:
    """Unchanged; only the Secret has the service's url, and keys for the bucket."""
    kubectl, stores = production
    kubectl("apply", "-f", SAMPLES / "hardware-job.yaml")
    job = wait_phase(kubectl, "hardware-job", "Completed")
    content = stores.get("s3", "quantum-results", "production/hardware-job/results.json")
    assert content is not None
    stored = json.loads(content)
    assert set(stored["counts"]) == {"00", "11"}
    assert sum(stored["counts"].values()) == 8192
    assert stored["backend"] == "ibm_brisbane"
    assert stored["transpiled"]["optimizationLevel"] == 3
    assert "ecr" in stored["transpiled"]["ops"]
    status = job["status"]
    (sold,) = (each for each in service.ledger if f"{job['metadata']['uid']}-1" in each["tags"])
    assert status["provider"]["jobId"] == sold["id"]
    assert status["provider"]["state"] == "Done"
    assert status["backend"] == "ibm_brisbane"
    assert "SpecWarning" not in {each["type"] for each in status["conditions"]}
    logs = kubectl("logs", "job/qiskit-job-hardware-job")
    assert sold["id"] in logs
    assert service.key not in logs
    assert service.key not in json.dumps(job)


def test_cancelling_while_it_waits(lab: Lab) -> None:
    lab.ibm.set(held=True)
    lab.kubectl.apply(ibm_job("unwanted"))
    job = lab.in_queue("unwanted")
    shown = job["status"]["provider"]
    assert shown["jobId"] in lab.ibm.jobs
    assert shown["queuePosition"] >= 0
    assert shown["estimatedStart"]
    cancel(lab.kubectl, "unwanted")
    job = wait_phase(lab.kubectl, "unwanted", "Cancelled")
    assert lab.ibm.jobs[shown["jobId"]]["status"] == "Cancelled"
    assert job["status"]["provider"]["cancellation"] == "Done"
    reasons = [each["reason"] for each in events_of(lab.kubectl, "unwanted")]
    assert "CancelledAtProvider" in reasons
    eventually(
        lambda: lab.kubectl.get("job", "qiskit-job-unwanted-cancel") is None,
        "the Job that cancelled is gone",
    )


def test_a_wrong_key(lab: Lab) -> None:
    lab.kubectl.apply(secret("wrong", {**lab.ibm.secret, "api-key": "nobody-s-key"}))
    lab.kubectl.apply(ibm_job("denied", credentials={"secretRef": {"name": "wrong"}}))
    job = wait_phase(lab.kubectl, "denied", "Failed")
    failed = condition_of(job, "Failed")
    assert failed is not None
    assert failed["reason"] == "BackendDenied"
    assert "spec.credentials.secretRef" in failed["message"]
    assert len(job["status"]["attempts"]) == 1
    assert not lab.sold(job)
    assert "nobody-s-key" not in json.dumps(job) + lab.kubectl("logs", "job/qiskit-job-denied")


def test_a_simulated_device(lab: Lab) -> None:
    backend = {"type": "ibm_simulator", "name": DEVICE}
    lab.kubectl.create(
        [
            quantum_job(
                name,
                backend=backend,
                execution={"shots": 4096, "seedSimulator": 5},
                output={"type": "configmap", "location": f"{name}-results"},
            )
            for name in ("one", "two")
        ]
    )
    jobs = wait_finished(lab.kubectl)
    assert {phase(each) for each in jobs.values()} == {"Completed"}
    counts = counts_of(lab.kubectl, "one-results")
    assert counts == counts_of(lab.kubectl, "two-results")
    assert set(counts) == {"00", "01", "10", "11"}
    assert 0.8 < (counts["00"] + counts["11"]) / 4096 < 0.999


@pytest.mark.extended
def test_a_pod_is_lost_while_it_waits(lab: Lab) -> None:
    lab.ibm.set(held=True)
    lab.kubectl.apply(ibm_job("patient", execution={"shots": 100, "maxRetries": 0}))
    first = lab.in_queue("patient")
    pod = first["status"]["executorPodName"]
    lab.kubectl("delete", "pod", pod, "--grace-period=0", "--force")
    eventually(
        lambda: len(lab.job("patient")["status"]["attempts"]) == 2, "there is a second attempt"
    )
    second = lab.in_queue("patient")
    assert second["status"]["executorPodName"] != pod
    assert second["status"]["provider"]["jobId"] == first["status"]["provider"]["jobId"]
    lab.ibm.set(held=False)
    job = wait_phase(lab.kubectl, "patient", "Completed")
    assert len(lab.sold(job)) == 1
    assert [each["counted"] for each in job["status"]["attempts"]] == [False, True]


@pytest.mark.extended
def test_deleting_while_it_waits_and_the_pod_is_gone(lab: Lab, controller: Controller) -> None:
    lab.ibm.set(held=True)
    lab.kubectl.apply(ibm_job("forgotten"))
    job = lab.in_queue("forgotten")
    lab.kubectl("delete", "job", "qiskit-job-forgotten", "--wait=false")
    lab.kubectl("delete", "qiskitjob", "forgotten", "--timeout=120s")
    (sold,) = lab.sold(job)
    assert lab.ibm.jobs[sold["id"]]["status"] == "Cancelled"
    assert "job.batch/qiskit-job-forgotten-cancel" not in lab.kubectl.names("jobs")


@pytest.mark.extended
def test_what_cannot_be_cancelled_is_let_go_with_a_warning(lab: Lab) -> None:
    lab.ibm.set(held=True)
    lab.kubectl.apply(ibm_job("stranded"))
    job = lab.in_queue("stranded")
    lab.kubectl("delete", "secret", SECRET)
    # Five tries, each later than the one before.
    lab.kubectl("delete", "qiskitjob", "stranded", "--timeout=580s", seconds=590)
    warnings = [each for each in events_of(lab.kubectl, "stranded") if each["type"] == "Warning"]
    (told,) = (each for each in warnings if each["reason"] == "NotCancelledAtProvider")
    assert job["status"]["provider"]["jobId"] in told["message"]
    assert "api-key" in told["message"]


@pytest.mark.extended
@pytest.mark.timeout(900)
def test_each_is_submitted_once_while_pods_and_controllers_are_killed(
    lab: Lab, controller: Controller
) -> None:
    """Of executors alone, there are many more in tests/unit/runner/test_exactly_once.py."""
    fate = random.Random(8)
    lab.ibm.set(queue_seconds=5, listing_lag=2)
    for n in range(3):
        lab.ibm.fault("POST", "/jobs$", (0, 502, 503)[n], times=1, after=True)
    names = [f"job-{n}" for n in range(8)]
    bits = "qc = QuantumCircuit(3, 3)\n" + "[qc.x(i) for i in range(3) if {} >> i & 1]\n"
    lab.kubectl.create(
        [
            ibm_job(
                name,
                "from qiskit import QuantumCircuit\n"
                + bits.format(n)
                + "qc.measure(range(3), range(3))\n",
                execution={"shots": 10, "maxRetries": 5, "optimizationLevel": 0},
            )
            for n, name in enumerate(names)
        ]
    )
    deadline = time.monotonic() + 840
    kills = 0
    while True:
        jobs = {each["metadata"]["name"]: each for each in lab.kubectl.list("qiskitjobs")}
        if all(phase(each) in ("Completed", "Failed") for each in jobs.values()):
            break
        assert time.monotonic() < deadline, {k: phase(v) for k, v in jobs.items()}
        pods = [
            each["metadata"]["name"]
            for each in lab.kubectl.list("pods")
            if each["status"].get("phase") == "Running"
        ]
        if pods and kills < 12 and fate.random() < 0.5:
            kills += 1
            pod = fate.choice(pods)
            lab.kubectl("delete", "pod", pod, "--grace-period=0", "--force", check=False)
        if kills in (4, 8) and (leader := controller.leader()):
            kills += 1
            controller.kubectl("delete", "pod", leader, "--grace-period=0", "--force")
        time.sleep(1.5)
    assert {name: phase(each) for name, each in jobs.items()} == dict.fromkeys(names, "Completed")
    tags = Counter(
        tag
        for each in jobs.values()
        for sold in lab.sold(each)
        for tag in sold["tags"]
        if tag != "qiskit-controller"
    )
    assert tags == Counter({f"{each['metadata']['uid']}-1": 1 for each in jobs.values()})
    for n, name in enumerate(names):
        assert jobs[name]["status"]["results"]["counts"] == {f"{n:03b}": 10}
    assert kills > 5
    controller.wait_ready()
