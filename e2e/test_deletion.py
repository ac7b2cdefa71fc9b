"""Deleting or cancelling a QiskitJob while it runs: nothing of it is left that should not be."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import attrs
import pytest

from .harness import (
    OWNED_KINDS,
    Cluster,
    Kubectl,
    cancel,
    endless_job,
    eventually,
    quantum_job,
    wait_phase,
)


def everything(kubectl: Kubectl) -> set[str]:
    """All there is in the namespace. Events are records of what was; they expire by themselves."""
    kinds = kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
    wanted = ",".join(kind for kind in kinds if not kind.startswith("events"))
    return kubectl.names(wanted)


@attrs.frozen
class Running:
    """Three jobs in a namespace each, started together.

    Attributes:
        before: all that was in the first one's namespace before the job.
        doomed: this namespace is being deleted while its job runs.
    """

    deleted: Kubectl
    before: set[str]
    cancelled: Kubectl
    doomed: Kubectl


@pytest.fixture(scope="module")
def running(cluster: Cluster) -> Iterator[Running]:
    """Jobs that do not end by themselves."""
    with contextlib.ExitStack() as stack:
        deleted, cancelled, doomed = (
            stack.enter_context(cluster.namespace(each))
            for each in ("deleted", "cancelled", "doomed")
        )
        # The root certificate comes a moment after the namespace.
        eventually(
            lambda: deleted.get("configmap", "kube-root-ca.crt"), "the namespace is complete"
        )
        before = everything(deleted)
        deleted.apply(endless_job("endless"))
        cancelled.apply(endless_job("endless"))
        doomed.apply(quantum_job("asleep", "import time\ntime.sleep(3600)\n"))
        wait_phase(doomed, "asleep", "Validating")
        # It takes Kubernetes half a minute, in which the other tests have theirs.
        doomed("delete", "namespace", doomed.namespace, "--wait=false")
        yield Running(deleted, before, cancelled, doomed)


def test_deleting_a_running_job_leaves_nothing_behind(running: Running) -> None:
    namespace, before = running.deleted, running.before
    wait_phase(namespace, "endless", "Running")
    there = namespace.names(OWNED_KINDS) - before
    print("while it runs:", *sorted(there))
    assert {name for name in there if not name.startswith("pod/")} == {
        "job.batch/qiskit-job-endless",
        "configmap/qiskit-job-endless-input",
        "configmap/qiskit-job-endless-record",
        "configmap/endless-results",
        "serviceaccount/qiskit-job-endless",
        "role.rbac.authorization.k8s.io/qiskit-job-endless",
        "rolebinding.rbac.authorization.k8s.io/qiskit-job-endless",
    }
    assert sum(name.startswith("pod/qiskit-job-endless-") for name in there) == 1

    begun = time.monotonic()
    namespace("delete", "qiskitjob", "endless", "--timeout=120s")
    print(f"kubectl delete returned after {time.monotonic() - begun:.1f} s")
    # The finalizer held it until these were gone.
    assert namespace.names("jobs,pods") == set()
    eventually(lambda: everything(namespace) == before, "nothing is left", seconds=60)
    print("afterwards:", *sorted(everything(namespace)))


def test_cancelling_a_running_job_ends_its_pod_and_keeps_the_record(running: Running) -> None:
    namespace = running.cancelled
    wait_phase(namespace, "endless", "Running")
    cancel(namespace, "endless")
    job = wait_phase(namespace, "endless", "Cancelled")
    assert job["status"]["completionTime"]
    eventually(lambda: namespace.names("pods") == set(), "the pod is gone", seconds=60)
    assert namespace.get("serviceaccount", "qiskit-job-endless") is None


def test_a_namespace_with_a_running_job_can_be_deleted(running: Running) -> None:
    """Nothing can be created in it any more; the finalizer goes all the same."""
    begun = time.monotonic()
    eventually(
        lambda: running.doomed.get("namespace", running.doomed.namespace) is None,
        "the namespace is gone",
        seconds=120,
    )
    print(f"the namespace was gone after another {time.monotonic() - begun:.1f} s")
