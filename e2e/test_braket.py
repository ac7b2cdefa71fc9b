"""QiskitJobs on Amazon Braket with real pods: the SDK's simulators and the service's stand-in.

The stand-in (``tests/standins/braket``) is in the node's network. All jobs of this module are
submitted at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from tests.standins.braket.catalogue import ANKAA, FORTE, GARNET, SV1
from tests.standins.braket.client import Standin, running

from .conftest import NAME
from .harness import (
    BELL,
    ROOT,
    Kubectl,
    Object,
    cancel,
    condition_of,
    eventually,
    phase,
    quantum_job,
    wait_phase,
)

# Takes long; `./hack/test extended` runs it.
pytestmark = pytest.mark.extended

# Acts on an outcome: the last bit is the first one's opposite.
FEEDBACK = """\
from qiskit import QuantumCircuit
qc = QuantumCircuit(2, 2)
qc.h(0)
qc.measure(0, 0)
with qc.if_test((qc.clbits[0], 0)):
    qc.x(1)
qc.measure(1, 1)
"""
# The SDK is large.
MEMORY = {"limits": {"memory": "1536Mi"}}
NOWHERE = "arn:aws:braket:us-east-1::device/qpu/ionq/Nowhere"
LOST = [f"lost-{number}" for number in range(4)]


@attrs.frozen
class Lab:
    """The namespace and the stand-in."""

    kubectl: Kubectl
    standin: Standin

    def job(self, name: str) -> Object:
        return self.kubectl.one("qiskitjob", name)

    def tasks(self, name: str) -> list[dict[str, Any]]:
        """The tasks of a QiskitJob at the service."""
        return self.standin.tasks(self.job(name)["metadata"]["uid"])

    def wait_queued(self, name: str) -> Object:
        """The job as soon as its task is in the queue, and its status says so."""

        def look() -> Object | None:
            job = self.job(name)
            provider = job.get("status", {}).get("provider") or {}
            return job if provider.get("state") == "Queued" and provider.get("jobId") else None

        return eventually(look, f"QiskitJob {name!r} is in the queue")


def on_braket(name: str, device: str, code: str = BELL, **spec: Any) -> Object:
    return quantum_job(
        name,
        code,
        **{
            "backend": {"type": "aws_braket", "name": device},
            "credentials": {"secretRef": {"name": "aws"}},
            "execution": {"shots": 200},
            "resources": MEMORY,
            **spec,
        },
    )


@pytest.fixture(scope="module")
def lab(module_namespace: Kubectl) -> Iterator[Lab]:
    kubectl = module_namespace
    server = kubectl("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
    # Of the node: reached from here and from pods alike.
    host = re.fullmatch(r"https://(.*):\d+", server.strip()).group(1)  # type: ignore[union-attr]
    prefix = (ROOT / "hack" / "cluster", "exec-netns", "--name", NAME, "--")
    with running(prefix, "0.0.0.0", host) as standin:
        # Tasks there wait until a test lets them run.
        standin.device(ANKAA, hold=True)
        secrets = {
            "aws": standin.secret(),
            "wrong": standin.secret(**{"secret-access-key": "not-the-secret-of-this-key"}),
        }
        kubectl.apply(
            *(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": name},
                    "stringData": values,
                }
                for name, values in secrets.items()
            )
        )
        wrong = {"credentials": {"secretRef": {"name": "wrong"}}}
        kubectl.create(
            [
                on_braket("queued", ANKAA),
                on_braket("deleted", ANKAA),
                *(on_braket(name, ANKAA) for name in LOST),
                quantum_job(
                    "local",
                    FEEDBACK,
                    backend={"type": "aws_braket", "name": "braket_sv"},
                    resources=MEMORY,
                ),
                on_braket("simulator", SV1),
                on_braket("qpu", GARNET),
                on_braket("refused", FORTE, FEEDBACK),
                on_braket("nowhere", NOWHERE),
                on_braket("wrong-key", SV1, **wrong),
            ]
        )
        try:
            yield Lab(kubectl, standin)
        finally:
            kubectl("delete", "qiskitjobs", "--all", "--timeout=180s")


def test_on_the_sdks_simulator_without_an_account(lab: Lab) -> None:
    job = wait_phase(lab.kubectl, "local", "Completed")
    assert set(job["status"]["results"]["counts"]) == {"10", "01"}
    assert job["status"]["backend"] == "braket_sv"
    assert "provider" not in job["status"]


@pytest.mark.parametrize(("name", "device"), [("simulator", SV1), ("qpu", GARNET)])
def test_on_a_device_of_the_service(lab: Lab, name: str, device: str) -> None:
    job = wait_phase(lab.kubectl, name, "Completed")
    counts = job["status"]["results"]["counts"]
    assert set(counts) == {"00", "11"}
    assert sum(counts.values()) == 200
    (task,) = lab.tasks(name)
    assert task["deviceArn"] == device == job["status"]["backend"]
    assert job["status"]["provider"]["jobId"] == task["quantumTaskArn"]
    assert job["status"]["provider"]["state"] == "Done"
    assert task["tags"]["quantum.io/job"] == name


def test_a_device_that_the_account_cannot_see(lab: Lab) -> None:
    job = wait_phase(lab.kubectl, "nowhere", "Failed")
    failed = condition_of(job, "Failed")
    assert failed is not None
    assert failed["reason"] == "BackendRefused"
    assert f"this account sees no device {NOWHERE}; it sees " in failed["message"]
    for visible in (SV1, FORTE, GARNET, ANKAA):
        assert visible in failed["message"]


def test_a_wrong_key(lab: Lab) -> None:
    job = wait_phase(lab.kubectl, "wrong-key", "Failed")
    failed = condition_of(job, "Failed")
    assert failed is not None
    assert failed["reason"] == "BackendDenied"
    assert "InvalidSignatureException" in failed["message"]
    assert len(job["status"]["attempts"]) == 1


def test_a_circuit_that_the_device_does_not_take(lab: Lab) -> None:
    job = wait_phase(lab.kubectl, "refused", "Failed")
    assert "Forte-1 measures at the end only" in job["status"]["message"]
    assert not lab.tasks("refused")


def test_a_job_in_the_queue_and_its_cancelling(lab: Lab) -> None:
    job = lab.wait_queued("queued")
    assert job["status"]["provider"]["queuePosition"] >= 0
    assert phase(job) == "Scheduling"
    cancel(lab.kubectl, "queued")
    wait_phase(lab.kubectl, "queued", "Cancelled")
    (task,) = lab.tasks("queued")
    assert task["status"] == "CANCELLED"
    assert task["executions"] == 0


def test_deleting_cancels_at_the_service(lab: Lab) -> None:
    uid = lab.wait_queued("deleted")["metadata"]["uid"]
    lab.kubectl("delete", "qiskitjob", "deleted", "--timeout=180s")
    (task,) = lab.standin.tasks(uid)
    assert task["status"] == "CANCELLED"
    assert task["executions"] == 0


def test_lost_pods_do_not_submit_again(lab: Lab) -> None:
    """Each job loses its pod while its task waits; one of them twice."""
    for name in LOST:
        lab.wait_queued(name)
    for name in (*LOST, LOST[0]):
        before = lab.job(name)["status"].get("executorPodName")
        lab.kubectl("delete", "pod", before, "--wait=false")
        eventually(
            lambda name=name, before=before: (  # type: ignore[misc]
                lab.job(name)["status"].get("executorPodName") not in (None, before)
            ),
            f"QiskitJob {name!r} has another pod",
        )
    lab.standin.device(ANKAA, hold=False)
    for name in LOST:
        job = wait_phase(lab.kubectl, name, "Completed")
        assert len(job["status"]["attempts"]) >= 2
        assert {each.get("reason") for each in job["status"]["attempts"]} <= {
            None,
            "PodLost",
            "Evicted",
        }
        (task,) = lab.tasks(name)
        assert task["executions"] == 1
        assert len(lab.standin.requests(job["metadata"]["uid"])) == 1
