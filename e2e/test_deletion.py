"""Deleting a QiskitJob while it runs: nothing of it is left."""

from __future__ import annotations

import time

from .harness import (
    OWNED_KINDS,
    Cluster,
    Kubectl,
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


def test_deleting_a_running_job_leaves_nothing_behind(namespace: Kubectl) -> None:
    # The root certificate comes a moment after the namespace.
    eventually(lambda: namespace.get("configmap", "kube-root-ca.crt"), "the namespace is complete")
    before = everything(namespace)
    namespace.apply(endless_job("endless"))
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


def test_cancelling_a_running_job_ends_its_pod_and_keeps_the_record(namespace: Kubectl) -> None:
    namespace.apply(endless_job("endless"))
    wait_phase(namespace, "endless", "Running")
    namespace(*("patch", "qiskitjob", "endless", "--type=merge", "-p", '{"spec":{"cancel":true}}'))
    job = wait_phase(namespace, "endless", "Cancelled")
    assert job["status"]["completionTime"]
    eventually(lambda: namespace.names("pods") == set(), "the pod is gone", seconds=60)
    assert namespace.get("serviceaccount", "qiskit-job-endless") is None


def test_a_namespace_with_a_running_job_can_be_deleted(cluster: Cluster) -> None:
    """Nothing can be created in it any more; the finalizer goes all the same."""
    with cluster.namespace("short-lived") as namespace:
        namespace.apply(quantum_job("asleep", "import time\ntime.sleep(3600)\n"))
        wait_phase(namespace, "asleep", "Validating")
        begun = time.monotonic()
    eventually(
        lambda: cluster.kubectl.get("namespace", namespace.namespace) is None,
        "the namespace is gone",
    )
    print(f"the namespace was gone after {time.monotonic() - begun:.1f} s")
