"""What the spec asks for arrives in the pod."""

from __future__ import annotations

import pytest

from .harness import Kubectl, eventually, quantum_job

VALUES = {"low": 100, "normal": 1000, "high": 10_000, "urgent": 100_000}
# The reference's own example.
RESOURCES = {
    "requests": {"cpu": "500m", "memory": "1Gi"},
    "limits": {"cpu": "2000m", "memory": "4Gi"},
}


@pytest.fixture(scope="module")
def jobs(module_namespace: Kubectl) -> Kubectl:
    """One job for each priority; they need not run for this."""
    module_namespace.apply(
        *(
            quantum_job(name, execution={"priority": name}, resources=RESOURCES)
            for name in VALUES
            if name != "normal"
        ),
        quantum_job("normal"),
    )
    return module_namespace


def pod_of(kubectl: Kubectl, name: str) -> dict:
    """The pod of a job, as soon as there is one."""
    selector = f"--selector=quantum.io/job={name}"
    return eventually(lambda: kubectl.list("pods", selector), f"there is a pod of {name!r}")[0]


@pytest.mark.parametrize("priority", VALUES)
def test_priority_becomes_the_pods_priority_class(jobs: Kubectl, priority: str) -> None:
    spec = pod_of(jobs, priority)["spec"]
    assert spec["priorityClassName"] == f"qiskit-{priority}"
    assert spec["priority"] == VALUES[priority]
    assert spec["preemptionPolicy"] == "Never"


def test_resources_are_those_of_the_spec(jobs: Kubectl) -> None:
    spec = pod_of(jobs, "urgent")["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        assert container["resources"] == {
            "requests": {"cpu": "500m", "memory": "1Gi"},
            "limits": {"cpu": "2", "memory": "4Gi"},
        }


def test_resources_have_defaults(jobs: Kubectl) -> None:
    spec = pod_of(jobs, "normal")["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        assert container["resources"] == {
            "requests": {"cpu": "250m", "memory": "512Mi"},
            "limits": {"cpu": "2", "memory": "1Gi"},
        }


def test_pods_run_under_the_restricted_policy(jobs: Kubectl) -> None:
    """The rules of the Pod Security Standard "restricted", and no token for user code."""
    spec = pod_of(jobs, "normal")["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*spec["initContainers"], *spec["containers"]):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
    (circuit,) = spec["initContainers"]
    assert {mount["name"] for mount in circuit["volumeMounts"]} == {
        *("input", "work", "circuit-tmp", "circuit-shm")
    }
    assert "env" not in circuit
    assert "envFrom" not in circuit
