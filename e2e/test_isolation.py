"""The security model: user code shares a container with no credential."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .harness import (
    Kubectl,
    cancel,
    condition_of,
    endless_job,
    eventually,
    phase,
    quantum_job,
    wait_finished,
    wait_phase,
)

CIRCUITS = Path(__file__).parent / "circuits"
# What every signed token begins with: {"alg":
TOKEN = "eyJhbGciOi"


@pytest.fixture(scope="module")
def hostile(module_namespace: Kubectl) -> Kubectl:
    """A namespace in which hostile circuits run, and one that is merely long."""
    module_namespace.apply(
        endless_job("endless"),
        *(
            quantum_job(name, (CIRCUITS / f"{name}.py").read_text())
            for name in ("intruder", "forger", "lurker")
        ),
    )
    return module_namespace


def all_logs(kubectl: Kubectl, name: str) -> str:
    """What both stages of a job printed."""
    return kubectl("logs", f"job/qiskit-job-{name}", "--all-containers", "--tail=-1")


def test_the_executors_account_may_fill_two_configmaps_and_nothing_else(hostile: Kubectl) -> None:
    wait_phase(hostile, "endless", "Running")
    account = f"{hostile.namespace}:qiskit-job-endless"
    text = hostile("auth", "can-i", "--list", f"--as=system:serviceaccount:{account}")
    print(text)
    rows = [re.split(r"\s{2,}|(?<=\])\s+", line.strip()) for line in text.splitlines()[1:]]
    # Rows about URLs that are no resources begin with an empty column. Of resources, those
    # that tell an account about itself are everyone's.
    resources = [
        row for row in rows if not row[0].startswith("[") and ".authorization." not in row[0]
    ]
    allowed = set()
    for resource, _, names, verbs in resources:
        for name in names.strip("[]").split() or ["any"]:
            for verb in verbs.strip("[]").split():
                allowed.add((resource, name, verb))
    assert allowed == {
        ("configmaps", name, verb)
        for name in ("qiskit-job-endless-record", "endless-results")
        for verb in ("get", "patch")
    }
    # The list is what the server says of itself; these are its decisions.
    assert hostile.allows(account, "patch", "configmap/endless-results")
    for question in (
        ("get", "secrets"),
        ("list", "configmaps"),
        ("get", "configmap/qiskit-job-endless-input"),
        ("delete", "configmap/endless-results"),
        ("create", "pods"),
        ("get", "pods"),
        ("get", "qiskitjobs"),
        ("create", "serviceaccounts", "--subresource=token"),
    ):
        assert not hostile.allows(account, *question), question
    cancel(hostile, "endless")  # the others may have its CPU


def test_an_intruder_finds_nothing_usable(hostile: Kubectl) -> None:
    job = wait_phase(hostile, "intruder", "Completed")
    text = hostile("logs", "job/qiskit-job-intruder", "-c", "circuit", "--tail=-1")
    print(text)
    checks = re.search(r"^checks: (.*)$", text, re.MULTILINE)
    assert checks is not None
    names = checks[1].split()
    (outcome,) = job["status"]["results"]["counts"]
    # Qiskit writes the highest bit first.
    found = [name for name, bit in zip(names, reversed(outcome), strict=True) if bit == "1"]
    assert found == [], [line for line in text.splitlines() if line.startswith("FOUND")]
    # It did knock on the right doors.
    assert re.search(r"^API server \S+/secrets: 40[13]$", text, re.MULTILINE)
    assert "/proc/1/environ: unreadable" in text
    assert "looked into /quantum/input" in text
    assert "can write to /quantum/work" in text


def test_links_to_the_executors_token_lead_nowhere(hostile: Kubectl) -> None:
    job = wait_phase(hostile, "forger", "Failed")
    failed = condition_of(job, "Failed")
    assert failed is not None
    print(failed["message"])
    assert failed["reason"] == "CircuitInvalid"
    assert "circuit.qpy" in failed["message"]


def test_a_process_left_behind_changes_nothing(hostile: Kubectl) -> None:
    """It may spoil its own circuit, and no more."""

    def ended() -> dict[str, object] | None:
        job = hostile.one("qiskitjob", "lurker")
        return job if phase(job) in ("Completed", "Failed") else None

    job = eventually(ended, "the lurker has ended")
    if phase(job) == "Completed":
        assert job["status"]["results"]["counts"] == {"1": 1024}
    else:
        failed = condition_of(job, "Failed")
        assert failed is not None
        assert failed["reason"] == "CircuitInvalid"


def test_no_token_has_been_told_to_anyone(hostile: Kubectl) -> None:
    cancel(hostile, "endless")
    for name in wait_finished(hostile):
        if name != "endless":
            assert TOKEN not in all_logs(hostile, name)
    assert TOKEN not in hostile("get", "qiskitjobs,pods,configmaps,events", "-o", "yaml")


def test_what_a_running_job_needed_is_gone_when_it_has_finished(hostile: Kubectl) -> None:
    wait_finished(hostile)
    left = hostile.names("serviceaccounts,roles,rolebindings")
    assert left == {"serviceaccount/default"}
