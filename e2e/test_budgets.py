"""Budgets and prices with real pods. What a run of Aer costs is the namespace's own affair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from .harness import (
    BELL,
    Controller,
    Kubectl,
    Object,
    condition_of,
    events_of,
    eventually,
    phase,
    quantum_job,
    wait_finished,
    wait_phase,
)

CIRCUIT = {"source": "configmap", "configMapRef": {"name": "bell", "key": "circuit.py"}}


def budget(limit: str, **spec: Any) -> Object:
    return {
        "apiVersion": "quantum.io/v1",
        "kind": "QiskitBudget",
        "metadata": {"name": "team"},
        "spec": {"limit": limit, **spec},
    }


def backend(price: str, _name: str = "local", **spec: Any) -> Object:
    return {
        "apiVersion": "quantum.io/v1",
        "kind": "QiskitBackend",
        "metadata": {"name": _name},
        "spec": {"type": "local_simulator", "pricing": {"perTask": price}, **spec},
    }


def settled(namespace: Kubectl) -> Object:
    """The budget's status once nothing is reserved any more."""

    def look() -> Object | None:
        status: Object = namespace.one("qiskitbudget", "team").get("status") or {}
        return status if status and not status.get("reservations") else None

    return eventually(look, "every reservation is settled")


def race(namespace: Kubectl, jobs: int, fit: int, seconds: float, cpu: str = "20m") -> None:
    """All of the jobs wait for the same ConfigMap, and so begin at the same time.

    Args:
        cpu: what each pod asks for, and so how many the node runs side by side.
    """
    namespace.apply(budget(f"${fit}.00"), backend("$1.00"))
    names = [f"q{number:03}" for number in range(jobs)]
    resources = {"requests": {"cpu": cpu, "memory": "64Mi"}}
    namespace.create(quantum_job(each, circuit=CIRCUIT, resources=resources) for each in names)
    eventually(
        lambda: len([1 for job in namespace.list("qiskitjobs") if phase(job) == "Pending"]) == jobs,
        "all jobs are Pending",
    )
    namespace("create", "configmap", "bell", f"--from-literal=circuit.py={BELL}")
    # To list a hundred jobs takes a good part of a second of the machine that they need.
    finished = wait_finished(namespace, seconds=seconds, every=jobs / 20)
    by_phase = Counter(map(phase, finished.values()))
    print(f"{jobs} jobs against a budget for {fit}: {by_phase}")
    assert by_phase == {"Completed": fit, "Failed": jobs - fit}
    for name, job in finished.items():
        if phase(job) == "Completed":
            assert job["status"]["cost"] == "$1.00", name
        else:
            exceeded = condition_of(job, "BudgetExceeded")
            assert exceeded is not None, name
            assert "that remain of QiskitBudget team" in exceeded["message"]
    books = settled(namespace)
    charged = sum(
        Decimal(job["status"].get("costs", {}).get("charged", "$0.00").removeprefix("$"))
        for job in finished.values()
    )
    assert Decimal(books["spent"].removeprefix("$")) == charged == fit
    assert books["remaining"] == "$0.00"


def test_a_budget_for_four_lets_four_of_twelve_through(namespace: Kubectl) -> None:
    race(namespace, jobs=12, fit=4, seconds=300)
    print(namespace("get", "qiskitbudgets"))
    header, row = namespace("get", "qiskitbudgets").splitlines()
    assert header.split() == [
        "NAME",
        "PERIOD",
        "LIMIT",
        "SPENT",
        "RESERVED",
        "REMAINING",
        "AGE",
    ]
    assert row.split()[:6] == ["team", "monthly", "$4.00", "$4.00", "$0.00", "$0.00"]
    alerts = [
        each
        for each in namespace.list("events")
        if each["involvedObject"]["kind"] == "QiskitBudget"
    ]
    assert {each["reason"] for each in alerts} >= {"BudgetExhausted"}
    # What was charged stays charged when the jobs go.
    namespace("delete", "qiskitjobs", "--all")
    assert settled(namespace)["spent"] == "$4.00"


@pytest.fixture(scope="module")
def time_for_a_hundred(controller: Controller) -> Iterator[None]:
    """A hundred pods that import Qiskit at once take longer than the tests' limit on circuits."""

    def allow(seconds: int) -> None:
        setting = f"QISKIT_CIRCUIT_TIMEOUT={seconds}"
        controller.kubectl("set", "env", controller.DEPLOYMENT, setting)
        controller.wait_ready()
        controller.wait_leader()

    allow(1200)
    yield
    allow(40)


@pytest.mark.extended
@pytest.mark.usefixtures("time_for_a_hundred")
@pytest.mark.parametrize("race_number", range(1, 21))
def test_a_budget_for_ten_lets_ten_of_a_hundred_through(
    namespace: Kubectl, race_number: int
) -> None:
    print(f"race {race_number} of 20")
    race(namespace, jobs=100, fit=10, seconds=1500, cpu="100m")


def test_the_message_of_the_reference(namespace: Kubectl) -> None:
    namespace.apply(backend("$15.00"))
    eventually(
        lambda: (namespace.one("qiskitbackend", "local").get("status") or {}).get("operational"),
        "the backend is known",
    )
    namespace.apply(quantum_job("dear", budget={"maxCost": "$10.00"}))
    job = wait_phase(namespace, "dear", "Failed")
    shown = namespace(
        *("get", "qiskitjob", "dear", "-o"),
        'jsonpath={.status.conditions[?(@.type=="BudgetExceeded")].message}',
    )
    assert shown == "Estimated cost $15.00 exceeds budget $10.00"
    exceeded = condition_of(job, "BudgetExceeded")
    assert exceeded is not None
    assert exceeded["status"] == "True"
    failed = condition_of(job, "Failed")
    assert failed is not None
    assert failed["reason"] == "BudgetExceeded"
    assert [each["reason"] for each in events_of(namespace, "dear")][-1] == "BudgetExceeded"
    eventually(
        lambda: (
            not [
                pod
                for pod in namespace.list("pods")
                if pod["status"]["phase"] in ("Pending", "Running")
            ]
        ),
        "its pod has ended",
    )


def test_selection_among_simulators_by_cost(namespace: Kubectl) -> None:
    cheap = backend("$1.00", "cheap", name="aer_simulator_stabilizer")
    dear = backend("$2.00", "dear", name="aer_simulator_statevector")
    namespace.apply(cheap, dear)
    eventually(
        lambda: all(
            (each.get("status") or {}).get("operational")
            for each in namespace.list("qiskitbackends")
        ),
        "both backends are known",
    )
    namespace.apply(quantum_job("job", backendSelection={"weights": {"cost": 0.8}}))
    job = wait_phase(namespace, "job", "Completed")
    selected = condition_of(job, "BackendSelected")
    assert selected is not None
    assert (selected["status"], selected["reason"]) == ("True", "OptimalBackend")
    assert selected["message"].startswith("Selected aer_simulator_stabilizer based on cost")
    assert "aer_simulator_statevector (score 0.50, $2.00" in selected["message"]
    assert job["status"]["backend"] == "aer_simulator_stabilizer"
    assert job["status"]["cost"] == "$1.00"
    told = [each["message"] for each in events_of(namespace, "job")]
    assert selected["message"][:100] in "".join(told)
    log = namespace("logs", "job/qiskit-job-job")
    assert "Selected   aer_simulator_stabilizer" in log
    print(namespace("get", "qiskitbackends"))
