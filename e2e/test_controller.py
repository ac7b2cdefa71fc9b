"""The controller as it is deployed: two replicas, little memory, few rights, no qiskit."""

from __future__ import annotations

import copy
import re

import pytest

from .harness import (
    SYSTEM,
    Controller,
    Kubectl,
    Object,
    as_list,
    condition,
    eventually,
    quantum_job,
    wait_phase,
)

FINISHED_JOBS = 100
MAX_MEBIBYTES = 120
ACCOUNT = f"{SYSTEM}:qiskit-controller"


def test_two_replicas_are_ready_and_one_leads(controller: Controller) -> None:
    controller.wait_ready()
    deployment = controller.kubectl.one("deployment", controller.NAME)
    assert deployment["spec"]["replicas"] == deployment["status"]["readyReplicas"] == 2
    assert controller.wait_leader() in {pod["metadata"]["name"] for pod in controller.pods()}


def test_a_disruption_budget_keeps_one_replica(controller: Controller) -> None:
    budget = controller.kubectl.one("poddisruptionbudget", controller.NAME)
    assert budget["spec"]["maxUnavailable"] == 1
    settled = eventually(
        lambda: controller.kubectl.one("poddisruptionbudget", controller.NAME)["status"],
        "the disruption budget has a status",
    )
    assert settled["expectedPods"] == 2
    assert settled["desiredHealthy"] == 1


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_every_replica_answers_its_probes(controller: Controller, path: str) -> None:
    for pod in controller.pods():
        with controller.kubectl.port_forward(f"pod/{pod['metadata']['name']}", 8081) as port:
            line = f"curl --silent --write-out ' %{{http_code}}' http://localhost:{port}{path}"
            answer = controller.kubectl.shell(line).out
        print(pod["metadata"]["name"], path, answer)
        assert answer.endswith(" 200")


def test_pods_of_the_controller_run_under_the_restricted_policy(controller: Controller) -> None:
    namespace = controller.kubectl.one("namespace", SYSTEM)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in controller.pods():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }


@pytest.mark.parametrize(
    "question",
    [
        ("get", "secrets"),
        ("list", "secrets"),
        ("watch", "secrets"),
        ("create", "secrets"),
        ("create", "pods"),
        ("delete", "pods"),
        ("create", "pods", "--subresource=exec"),
        ("create", "clusterroles"),
        ("create", "clusterrolebindings"),
        ("create", "serviceaccounts", "--subresource=token"),
        ("impersonate", "users"),
        ("get", "nodes"),
        ("create", "qiskitjobs"),
    ],
    ids=" ".join,
)
def test_the_controller_may_not(kubectl: Kubectl, question: tuple[str, ...]) -> None:
    """Not even in its own namespace."""
    assert not kubectl.within(SYSTEM).allows(ACCOUNT, *question)


def test_the_controller_may_do_its_work(kubectl: Kubectl) -> None:
    assert kubectl.allows(ACCOUNT, "create", "jobs")
    assert kubectl.allows(ACCOUNT, "update", "qiskitjobs", "--subresource=status")
    assert kubectl.within(SYSTEM).allows(ACCOUNT, "update", "leases/qiskit-controller")
    assert not kubectl.allows(ACCOUNT, "update", "leases/qiskit-controller")


def test_the_controllers_image_has_no_qiskit(controller: Controller) -> None:
    pod = controller.wait_leader()
    python = ("exec", pod, "--", "python3", "-c")
    for module in ("qiskit", "qiskit_aer", "numpy"):
        output = controller.kubectl.run(*python, f"import {module}", check=False)
        print(output.text.strip().splitlines()[-2:])
        assert output.code == 1
        assert f"ModuleNotFoundError: No module named '{module}'" in output.text
    # The same interpreter as the controller's own.
    assert "ok" in controller.kubectl(*python, "import qiskit_controller.manager; print('ok')")


# --- memory ---------------------------------------------------------------------------------


@pytest.fixture
def finished_jobs(namespace: Kubectl, controller: Controller) -> Kubectl:
    """A hundred finished QiskitJobs with everything that such ones have.

    One is run. The others are copies of it and of its Kubernetes Job, pod and ConfigMaps, made
    while no controller looks. What is approximated: the copies' Jobs want no pods
    (parallelism 0) and their pods no node (a scheduler that does not exist), so that nothing
    runs; their statuses, which are what the caches hold, are those of the original.
    """
    namespace.apply(quantum_job("model"))
    wait_phase(namespace, "model", "Completed")
    eventually(
        lambda: condition(namespace.one("job", "qiskit-job-model"), "Complete"),
        "the Kubernetes Job is Complete",
    )
    controller.kubectl("scale", controller.DEPLOYMENT, "--replicas=0")
    eventually(lambda: not controller.pods(), "the controller is stopped")
    try:
        _copy(namespace, FINISHED_JOBS - 1)
    finally:
        controller.kubectl("scale", controller.DEPLOYMENT, "--replicas=2")
        controller.wait_ready()
    return namespace


def _copy(kubectl: Kubectl, number: int) -> None:
    model = kubectl.one("qiskitjob", "model")
    job = kubectl.one("job", "qiskit-job-model")
    (pod,) = kubectl.list("pods")
    maps = [kubectl.one("configmap", name) for name in ("qiskit-job-model-input", "model-results")]
    names = [f"copy-{each:03}" for each in range(number)]

    owners = _create(kubectl, [_copied(model, name) for name in names], model)
    for name, owner in zip(names, owners, strict=True):
        owner["status"] = _renamed(model["status"], name)
    jobs = [_owned(job, name, owner) for name, owner in zip(names, owners, strict=True)]
    for each in jobs:
        each["spec"] = {
            "parallelism": 0,
            "backoffLimit": 0,
            "template": _renamed(each["spec"]["template"], ""),
        }
        each["spec"]["template"]["metadata"].pop("labels")
    jobs = _create(kubectl, jobs, job)
    pods = []
    for name, owner, made in zip(names, owners, jobs, strict=True):
        each = _owned(pod, name, owner)
        each["metadata"]["ownerReferences"][0] |= {
            "uid": made["metadata"]["uid"],
            "name": made["metadata"]["name"],
        }
        each["spec"].pop("nodeName")
        each["spec"].pop("priority", None)
        each["spec"] |= {"schedulerName": "none", "serviceAccountName": "default"}
        pods.append(each)
    _create(kubectl, pods, pod)
    kubectl.create(
        _owned(each, name, owner)
        for name, owner in zip(names, owners, strict=True)
        for each in maps
    )


def _create(kubectl: Kubectl, objects: list[Object], model: Object) -> list[Object]:
    """Create objects and give each the model's status."""
    made = kubectl.create(objects)
    with_status = []
    for each in made:
        name = re.sub("^qiskit-job-|-[a-z0-9]{5}$", "", each["metadata"]["name"])
        with_status.append({**each, "status": _renamed(model["status"], name)})
    kubectl("replace", "--subresource=status", "-f", "-", stdin=as_list(with_status))
    return made


def _copied(model: Object, name: str) -> Object:
    copied = _renamed(copy.deepcopy(model), name)
    for field in ("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation"):
        copied["metadata"].pop(field, None)
    copied.pop("status", None)
    return copied


def _owned(model: Object, name: str, owner: Object) -> Object:
    owned = _copied(model, name)
    metadata = owned["metadata"]
    metadata["labels"]["quantum.io/job-uid"] = owner["metadata"]["uid"]
    metadata["labels"].pop("controller-uid", None)
    metadata["ownerReferences"][0]["uid"] = owner["metadata"]["uid"]
    return owned


def _renamed(value, name):
    """A JSON value in which "model" has become `name`, where it stands for the job."""
    if isinstance(value, dict):
        return {key: _renamed(each, name) for key, each in value.items()}
    if isinstance(value, list):
        return [_renamed(each, name) for each in value]
    if isinstance(value, str) and name:
        return re.sub(r"\bmodel\b", name, value)
    return copy.deepcopy(value)


def test_a_hundred_finished_jobs_fit_in_little_memory(
    finished_jobs: Kubectl, controller: Controller
) -> None:
    leader = controller.wait_leader()
    with controller.kubectl.port_forward(f"pod/{leader}", 8080) as port:

        def samples() -> dict[str, float] | None:
            """The leader's metrics, once it has looked at every job."""
            text = controller.kubectl.shell(f"curl --silent http://localhost:{port}/metrics").out
            found = dict(
                line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")
            )
            values = {name: float(value) for name, value in found.items()}
            looked = values[
                'controller_runtime_reconcile_total{controller="qiskitjob",result="success"}'
            ]
            return values if looked >= FINISHED_JOBS else None

        metrics = eventually(samples, "the leader has reconciled every job")
    completed = metrics['qiskit_jobs{backend_type="local_simulator",phase="Completed"}']
    status = controller.kubectl("exec", leader, "--", "cat", "/proc/1/status")
    resident = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert resident is not None
    mebibytes = int(resident[1]) / 1024
    exported = metrics["process_resident_memory_bytes"] / 2**20
    print(
        f"{completed:.0f} completed QiskitJobs in cache: VmRSS {mebibytes:.1f} MiB, "
        f"process_resident_memory_bytes {exported:.1f} MiB"
    )
    assert completed >= FINISHED_JOBS
    assert mebibytes < MAX_MEBIBYTES
    assert exported < MAX_MEBIBYTES
    # Looking changed nothing: they were, and are, finished, and no pod was started.
    assert len(finished_jobs.list("jobs")) == FINISHED_JOBS
