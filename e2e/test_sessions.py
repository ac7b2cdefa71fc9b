"""Sessions of IBM Quantum with real pods: the reference's example, turns, expiry, by hand.

The service is the one of ``test_ibm.py``; its ledger says what was submitted, in which session and
when.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.standins.ibm.client import Ibm
from tests.unit.runner.source_servers import git

from .conftest import NAME
from .harness import (
    ROOT,
    SAMPLES,
    Cluster,
    Kubectl,
    Object,
    condition,
    condition_of,
    events_of,
    eventually,
    phase,
    wait_finished,
    wait_phase,
)
from .test_ibm import DEVICE, SECRET, Lab, ibm_job, lab, place, secret, service

__all__ = ["lab", "place", "service"]  # fixtures

# The node as pods see it; the deployment under test allows it as a source.
GATEWAY = "10.88.0.1"
# The executor's, which a volume of the node has to let in.
EXECUTOR_USER = 65532
# H2 in two qubits, as the reference's repository may have it: one ansatz of a VQE, measured.
H2 = """\
from qiskit import QuantumCircuit
theta = -0.2237
qc = QuantumCircuit(2)
qc.x(0)
qc.ry(theta, 1)
qc.cx(1, 0)
qc.measure_all()
"""


def in_session(name: str, session: str = "shared-device", **spec: Any) -> Object:
    given = {"session": {"name": session}, "execution": {"shots": 10, "optimizationLevel": 0}}
    return ibm_job(name, **given | spec)


def by_hand(name: str = "shared-device", **spec: Any) -> Object:
    return {
        "apiVersion": "quantum.io/v1",
        "kind": "QiskitSession",
        "metadata": {"name": name},
        "spec": {
            "backend": {"name": DEVICE},
            "credentials": {"secretRef": {"name": SECRET}},
            "maxTime": 600,
            **spec,
        },
    }


def session_of(kubectl: Kubectl, name: str = "shared-device") -> Object:
    return kubectl.one("qiskitsession", name)


def wait_session(kubectl: Kubectl, phase_: str, name: str = "shared-device") -> Object:
    def look() -> Object | None:
        found = session_of(kubectl, name)
        return found if phase(found) == phase_ else None

    return eventually(look, f"session {name} is {phase_}")


def told(kubectl: Kubectl, name: str) -> list[str]:
    """The reasons of the Events about a QiskitSession."""
    selector = f"--field-selector=involvedObject.kind=QiskitSession,involvedObject.name={name}"
    return [each["reason"] for each in kubectl.list("events", selector)]


@pytest.fixture
def sessions(lab: Lab) -> Iterator[Lab]:
    try:
        yield lab
    finally:
        lab.ibm.set(held=False)
        lab.kubectl("delete", "qiskitjobs", "--all", "--timeout=180s", check=False)
        lab.kubectl("delete", "qiskitsessions", "--all", "--timeout=180s", check=False)


@pytest.fixture
def research(
    cluster: Cluster, service: Ibm, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Kubectl, str, Path]]:
    """The reference's namespace, claim, Secret and repository: kubectl, the URL, the volume."""
    kubectl = cluster.kubectl.within("research")
    cluster.kubectl("create", "namespace", "research")
    cluster.watched.append("research")
    folder = tmp_path_factory.mktemp("research")
    volume = folder / "volume"
    volume.mkdir()
    os.chown(volume, EXECUTOR_USER, EXECUTOR_USER)
    for each in (folder, *folder.parents):
        if each.stat().st_mode & 0o005 != 0o005 and each != Path("/"):
            each.chmod(each.stat().st_mode | 0o055)
    servers = subprocess.Popen(
        [
            *(ROOT / "hack" / "cluster", "exec-netns", "--name", NAME, "--"),
            *(sys.executable, "-m", "tests.unit.runner.source_servers", GATEWAY, folder / "git"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert servers.stdout is not None
    try:
        said = json.loads(servers.stdout.readline())
        work = folder / "work"
        git("clone", "--quiet", said["repository"], work, cwd=folder)
        git("checkout", "--quiet", "-B", "main", cwd=work)
        (work / "vqe").mkdir()
        (work / "vqe" / "h2_molecule.py").write_text(H2)
        git("add", ".", cwd=work)
        git("commit", "--quiet", "-m", "H2", cwd=work)
        git("push", "--quiet", said["repository"], "HEAD:refs/heads/main", cwd=work)
        shared = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
        room = {"storage": "1Gi"}
        kubectl.apply(
            secret(SECRET, service.secret),
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "quantum-results-pvc"},
                "spec": {**shared, "volumeName": "research", "resources": {"requests": room}},
            },
        )
        cluster.kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": "research"},
                "spec": {
                    **shared,
                    "capacity": room,
                    "hostPath": {"path": str(volume)},
                    "claimRef": {"namespace": "research", "name": "quantum-results-pvc"},
                    "persistentVolumeReclaimPolicy": "Retain",
                },
            }
        )
        yield kubectl, f"{said['web']}/git/quantum.git", volume
    finally:
        servers.terminate()
        servers.wait(20)
        cluster.watched.remove("research")
        kubectl("delete", "qiskitjobs", "--all", "--timeout=180s", check=False)
        kubectl("delete", "qiskitsessions", "--all", "--timeout=180s", check=False)
        cluster.kubectl("delete", "namespace", "research", "--wait=false")
        cluster.kubectl("delete", "persistentvolume", "research", "--wait=false", check=False)


def test_the_reference_s_session_example(research: tuple[Kubectl, str, Path], service: Ibm) -> None:
    """Every field as it is there, but for the repository's URL, as that one does not exist; and
    the Secret has the service's url."""
    kubectl, repository, volume = research
    job = yaml.safe_load((SAMPLES / "vqe-optimization.yaml").read_text())
    job["spec"]["circuit"]["gitRef"]["repository"] = repository
    kubectl.apply(job)
    done = wait_phase(kubectl, "vqe-optimization", "Completed")
    status = done["status"]
    (sold,) = (e for e in service.ledger if f"{done['metadata']['uid']}-1" in e["tags"])
    assert status["session"]["name"] == "vqe-session"
    assert status["session"]["id"] == sold["session"]
    at_ibm = service.sessions[sold["session"]]
    assert (at_ibm["mode"], at_ibm["max_ttl"]) == ("dedicated", 3600)
    assert at_ibm["backend_name"] == sold["backend"] == status["backend"]
    selected = condition_of(done, "BackendSelected")
    assert selected is not None
    assert selected["reason"] == "OptimalBackend"
    assert "based on cost" in selected["message"]
    assert condition(done, "SessionReady") == "True"
    assert sum(status["results"]["counts"].values()) == 4096
    stored = list(volume.rglob("*.pickle")) + list(volume.rglob("*.pkl"))
    assert stored, [str(each) for each in volume.rglob("*")]
    assert pickle.loads(stored[0].read_bytes())
    session = session_of(kubectl, "vqe-session")
    assert phase(session) == "Active"
    assert session["spec"]["backend"]["name"] == status["backend"]
    assert session["metadata"]["annotations"]["quantum.io/made-for"] == "vqe-optimization"
    shown = kubectl("get", "qiskitsessions")
    print(shown)
    heads = shown.splitlines()[0].split()
    assert heads == ["NAME", "PHASE", "MODE", "DEVICE", "RUNNING", "WAITING", "EXPIRES", "AGE"]
    kubectl("delete", "qiskitsession", "vqe-session", "--timeout=120s")
    assert service.sessions[sold["session"]]["state"] == "closed"
    assert service.key not in json.dumps(done) + json.dumps(session)


@pytest.mark.extended
def test_five_jobs_run_in_one_session_by_priority(sessions: Lab) -> None:
    kubectl = sessions.kubectl
    sessions.ibm.set(held=True)
    kubectl.apply(by_hand())
    kubectl("wait", "--for=condition=Ready", "qiskitsession/shared-device", "--timeout=120s")
    for name in ("first", "second"):
        kubectl.apply(in_session(name))
        sessions.in_queue(name)
    priorities = {"a": "low", "b": "normal", "c": "urgent", "d": "high", "e": "normal"}
    for name, priority in priorities.items():
        given = {"shots": 10, "optimizationLevel": 0, "priority": priority}
        kubectl.apply(in_session(name, execution=given))
        time.sleep(1.1)  # Kubernetes tells the age of things in whole seconds.

    def all_wait() -> bool:
        jobs = session_of(kubectl)["status"]["jobs"]
        return (jobs["waiting"], jobs["running"]) == (5, 2)

    eventually(all_wait, "five wait for their turn")
    waiting = condition_of(sessions.job("a"), "SessionReady")
    assert waiting is not None
    assert waiting["reason"] == "WaitingForTurn"
    assert "by priority" in waiting["message"]
    sessions.ibm.set(held=False)
    jobs = wait_finished(kubectl)
    assert {phase(each) for each in jobs.values()} == {"Completed"}
    order = {tag: n for n, each in enumerate(sessions.ibm.ledger) for tag in each["tags"]}
    entered = sorted(jobs, key=lambda name: order[f"{jobs[name]['metadata']['uid']}-1"])
    assert entered == ["first", "second", "c", "d", "b", "e", "a"]
    sold = [sessions.sold(each) for each in jobs.values()]
    assert {len(each) for each in sold} == {1}
    (session_id,) = {each["session"] for (each,) in sold}
    status = session_of(kubectl)["status"]
    assert (status["sessionId"], status["openings"]) == (session_id, 1)
    eventually(lambda: session_of(kubectl)["status"]["jobs"]["finished"] == 7, "all have left")


@pytest.mark.extended
def test_one_that_expires_while_jobs_wait(sessions: Lab) -> None:
    kubectl = sessions.kubectl
    # Its time counts from its first job on.
    kubectl.apply(by_hand(maxTime=75), in_session("first"))
    wait_phase(kubectl, "first", "Completed")
    sessions.ibm.set(held=True)
    for name in ("inside", "behind"):
        kubectl.apply(in_session(name))
        sessions.in_queue(name)
    kubectl.apply(in_session("outside"))

    def waits() -> bool:
        ready = condition_of(sessions.job("outside"), "SessionReady")
        return ready is not None and ready["reason"] == "WaitingForTurn"

    eventually(waits, "one waits for its turn")
    session_id = session_of(kubectl)["status"]["sessionId"]
    for name in ("inside", "behind", "outside"):
        job = wait_phase(kubectl, name, "Failed")
        failed = condition_of(job, "Failed")
        assert failed is not None
        assert failed["reason"] == "SessionClosed"
        assert session_id in failed["message"]
    assert "reached its maxTime of 75 s at " in failed["message"]
    for name in ("inside", "behind"):
        assert len(sessions.sold(sessions.job(name))) == 1
    assert not sessions.sold(sessions.job("outside"))
    closed = wait_session(kubectl, "Closed")
    assert condition(closed, "Ready") == "False"
    assert float(closed["status"]["usage"]) > 0
    warnings = [each for each in events_of(kubectl, "outside") if each["type"] == "Warning"]
    assert "SessionClosed" in {each["reason"] for each in warnings}
    assert "Expired" in told(kubectl, "shared-device")
    # Who names it later is told what to do.
    kubectl.apply(in_session("late"))
    failed = condition_of(wait_phase(kubectl, "late", "Failed"), "Failed")
    assert failed is not None
    assert "delete QiskitSession shared-device and apply it again" in failed["message"]


@pytest.mark.extended
def test_a_session_by_hand(sessions: Lab) -> None:
    kubectl = sessions.kubectl
    kubectl.apply(by_hand(mode="shared", ttl="10s"))
    kubectl("wait", "--for=condition=Ready", "qiskitsession/shared-device", "--timeout=120s")
    wide = kubectl("get", "qs", "-o", "wide")
    print(wide)
    status = session_of(kubectl)["status"]
    assert status["sessionId"] in wide
    assert sessions.ibm.sessions[status["sessionId"]]["mode"] == "batch"
    text = kubectl("describe", "qiskitsession", "shared-device")
    print(text)
    for each in ("Opened", status["sessionId"], DEVICE):
        assert each in text
    assert sessions.ibm.key not in text
    words = " ".join(kubectl("explain", "qiskitsession.spec").split())
    print(words)
    for each in ("maxTime <integer>", "mode <string>", "ttl <string>", "Where the session is"):
        assert each in words
    # Without a job it is closed, and opens again for the next.
    closed = wait_session(kubectl, "Closed")
    assert condition_of(closed, "Ready") is not None
    assert sessions.ibm.sessions[status["sessionId"]]["state"] == "closed"
    kubectl.apply(in_session("next"))
    job = wait_phase(kubectl, "next", "Completed")
    again = session_of(kubectl)["status"]
    assert again["openings"] == 2
    assert job["status"]["session"]["id"] != status["sessionId"]


@pytest.mark.extended
def test_deleting_one_in_the_foreground_and_without_its_secret(sessions: Lab) -> None:
    kubectl = sessions.kubectl
    kubectl.apply(by_hand("one"), by_hand("two"))
    for name in ("one", "two"):
        kubectl("wait", "--for=condition=Ready", f"qiskitsession/{name}", "--timeout=120s")
    ids = {name: session_of(kubectl, name)["status"]["sessionId"] for name in ("one", "two")}
    kubectl("delete", "qiskitsession", "one", "--cascade=foreground", "--timeout=120s")
    assert sessions.ibm.sessions[ids["one"]]["state"] == "closed"
    eventually(
        lambda: "job.batch/qiskit-session-one" not in kubectl.names("jobs"), "its Job is gone"
    )
    sessions.ibm.set(keys=[])
    kubectl("delete", "qiskitsession", "two", "--timeout=180s")
    sessions.ibm.set(keys=[sessions.ibm.key])
    assert sessions.ibm.sessions[ids["two"]]["state"] != "closed"
    assert "NotClosedAtProvider" in told(kubectl, "two")


@pytest.mark.extended
def test_a_session_with_a_wrong_key(sessions: Lab) -> None:
    kubectl = sessions.kubectl
    kubectl.apply(secret("wrong", {**sessions.ibm.secret, "api-key": "nobody-s-key"}))
    given = {"credentials": {"secretRef": {"name": "wrong"}}}
    kubectl.apply(by_hand("denied", **given))
    failed = wait_session(kubectl, "Failed", "denied")
    assert condition(failed, "CredentialsValid") == "False"
    assert "nobody-s-key" not in json.dumps(failed)
