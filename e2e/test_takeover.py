"""Two replicas, one leader: what becomes of jobs in flight when the leader goes."""

from __future__ import annotations

import os
import signal
from collections import Counter

from .harness import (
    BELL,
    Controller,
    Kubectl,
    Takeover,
    Watch,
    container_pids,
    counts_of,
    eventually,
    phase,
    quantum_job,
    takeovers,
    wait_finished,
)

JOBS = 20
SHOTS = 100
TAKEOVER_SECONDS = 3.0
ROLLOUTS = 3


def watch_creations(kubectl: Kubectl, kind: str) -> Watch:
    """Every object of a kind that appears from now on, as ``name uid``; "-" tells a deletion."""
    return kubectl.watch(
        *(kind, "--output-watch-events", "-o"),
        'jsonpath={.type} {.object.metadata.name} {.object.metadata.uid}{"\\n"}',
    )


def created(lines: list[str]) -> Counter[str]:
    """How many objects of each name there have been."""
    seen = {(name, uid) for type_, name, uid in map(str.split, lines) if type_ == "ADDED"}
    return Counter(name for name, _ in seen)


def test_twenty_jobs_survive_the_death_of_the_leader(
    namespace: Kubectl, controller: Controller
) -> None:
    controller.wait_ready()
    leader = controller.wait_leader()
    names = [f"bell-{number:02}" for number in range(JOBS)]
    # All of them wait for the same ConfigMap, and so begin at the same time.
    circuit = {"source": "configmap", "configMapRef": {"name": "bell", "key": "circuit.py"}}
    execution = {"shots": SHOTS}
    namespace.apply(*(quantum_job(each, circuit=circuit, execution=execution) for each in names))
    eventually(
        lambda: [phase(job) for job in namespace.list("qiskitjobs")] == ["Pending"] * JOBS,
        "all jobs are Pending",
    )
    (status,) = controller.kubectl.one("pod", leader)["status"]["containerStatuses"]
    (pid,) = container_pids(status["containerID"])
    with (
        controller.watch_lease() as lease,
        watch_creations(namespace, "jobs") as jobs,
        watch_creations(namespace, "pods") as pods,
    ):
        namespace("create", "configmap", "bell", f"--from-literal=circuit.py={BELL}")
        eventually(lambda: jobs.lines, "the first Kubernetes Job is there", every=0.01)
        os.kill(pid, signal.SIGKILL)
        print(
            f"killed the leader {leader} with {JOBS} jobs in flight, "
            f"{sum(created(jobs.lines).values())} Kubernetes Jobs made, "
            f"{Counter(phase(job) for job in namespace.list('qiskitjobs'))}"
        )
        finished = wait_finished(namespace, seconds=420.0)
        new = controller.wait_leader()
    changes = takeovers(lease.lines)
    for change in changes:
        print(f"{change.new} took over {change.seconds:.2f} s after {change.old} last renewed")
    assert changes, "the lease changed hands"
    assert changes[0].old == leader
    assert changes[0].new != leader, "the other replica took over"
    assert new != leader or len(changes) > 1

    assert {name: phase(job) for name, job in finished.items()} == dict.fromkeys(names, "Completed")
    print("Kubernetes Jobs created:", sum(created(jobs.lines).values()))
    assert created(jobs.lines) == Counter(f"qiskit-job-{name}" for name in names)
    pods_by_job = Counter(name.rpartition("-")[0] for name in created(pods.lines).elements())
    assert pods_by_job == Counter(f"qiskit-job-{name}" for name in names)
    results = namespace.names("configmaps")
    for name, job in finished.items():
        assert len(job["status"]["attempts"]) == 1
        assert f"configmap/{name}-results" in results
        counts = counts_of(namespace, f"{name}-results")
        assert counts == job["status"]["results"]["counts"]
        assert sum(counts.values()) == SHOTS
    controller.wait_ready()


def test_a_rollout_hands_over_in_no_time(namespace: Kubectl, controller: Controller) -> None:
    """The leader that goes gives the lease back, and the next one takes it.

    A machine that is too busy to let the leader renew its lease makes it lose the lease in the
    middle of the rollout; that is another story, so such a rollout is done again.
    """
    for number in range(ROLLOUTS):
        changes = roll_out(namespace, controller, f"round-{number}")
        assert changes, "the lease changed hands"
        if all(change.released for change in changes):
            break
    assert all(change.released for change in changes)
    assert all(change.seconds < TAKEOVER_SECONDS for change in changes)
    finished = wait_finished(namespace)
    assert {phase(job) for job in finished.values()} == {"Completed"}
    assert all(len(job["status"]["attempts"]) == 1 for job in finished.values())
    assert namespace.names("jobs") == {f"job.batch/qiskit-job-{name}" for name in finished}


def roll_out(namespace: Kubectl, controller: Controller, prefix: str) -> list[Takeover]:
    """Restart the controller with three jobs in flight; every change of leaders."""
    controller.wait_ready()
    before = controller.wait_leader()
    with controller.watch_lease() as lease:
        namespace.apply(*(quantum_job(f"{prefix}-{number}") for number in range(3)))
        controller.kubectl("rollout", "restart", controller.DEPLOYMENT)
        controller.wait_ready()
        assert controller.wait_leader() != before
    changes = takeovers(lease.lines)
    for change in changes:
        how = "its release" if change.released else "the last renewal"
        print(f"{change.new} acquired the lease {change.seconds:.3f} s after {how} by {change.old}")
    return changes
