"""Where a job runs and what it costs, from QiskitBackends of both vendors."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.qiskitbackend import DeviceStatus
from qiskit_controller.api.qiskitjob import (
    CircuitMetrics,
    CostStatus,
    QiskitJobSpec,
)
from qiskit_controller.api.run import Assignment, Progress, Reason, Report
from qiskit_controller.reconcilers.qiskitjob import assigning, decision
from qiskit_controller.reconcilers.qiskitjob.assigning import (
    Market,
    Offer,
    Refusal,
    Waiting,
    fall_back,
    propose,
)
from qiskit_controller.scheduling.prices import Tariff, shipped

from .support import (
    attempt,
    condition,
    decided,
    observed,
    pod,
    reasons,
    run,
    seconds,
    spec,
    status,
    underway,
)

EXAMPLES = Path(__file__).parents[1] / "api" / "examples"
TARIFF = Tariff(shipped())
VALIDATED = Progress(
    attempt=1,
    stage="Validated",
    circuit_metrics=CircuitMetrics(qubits=4, clbits=4, depth=20, gates=60),
)


def ibm(name: str, delay: float, queue: float, error: float, up: float) -> Offer:
    device = DeviceStatus(
        name=name,
        operational=True,
        qubits=127 if name == "ibm_brisbane" else 156,
        dynamic=True,
        queue_time=queue,
        two_qubit_error=error,
        shot_time=delay,
        availability=up,
    )
    return Offer(type="ibm_quantum", device=device)


def braket(name: str, qubits: int, pending: int, error: float, up: float) -> Offer:
    device = DeviceStatus(
        name=name,
        operational=True,
        qubits=qubits,
        dynamic=False,
        pending_jobs=pending,
        two_qubit_error=error,
        availability=up,
    )
    return Offer(type="aws_braket", device=device)


# Cheapest, quickest, best, most reliable: each another one of the three of IBM.
BRISBANE = ibm("ibm_brisbane", 0.0002, 7200, 0.008, 0.95)
FEZ = ibm("ibm_fez", 0.0005, 60, 0.004, 0.90)
MARRAKESH = ibm("ibm_marrakesh", 0.0003, 2400, 0.0022, 0.99)
GARNET = braket("Garnet", 20, 2, 0.006, 0.97)
ANKAA = braket("Ankaa-3", 84, 9, 0.012, 0.92)
FIVE = (BRISBANE, FEZ, MARRAKESH, GARNET, ANKAA)


def market(*offers: Offer, **more: Any) -> Market:
    return Market(offers=offers or FIVE, tariff=TARIFF, **more)


def remote(backend_type: str = "ibm_quantum", **more: Any) -> QiskitJobSpec:
    return spec(backend={"type": backend_type}, **more)


def chosen(given: QiskitJobSpec, of: Market, progress: Progress = VALIDATED) -> Assignment:
    found = propose(given, of, progress)
    assert isinstance(found, Assignment), found
    return found


def example(name: str) -> QiskitJobSpec:
    wire = yaml.safe_load((EXAMPLES / name).read_text())
    return from_wire(wire["spec"], QiskitJobSpec)


def test_the_cost_optimised_example_selects_as_its_weights_say() -> None:
    given = example("cost-optimized-with-session.yaml")
    found = chosen(given, market())
    assert (found.name, found.type, found.number) == ("ibm_brisbane", "ibm_quantum", 1)
    assert found.reason == "OptimalBackend"
    assert found.message.startswith("Selected ibm_brisbane based on cost (score 0.87, $5.17")
    assert "Garnet is of type aws_braket, not ibm_quantum" in found.message
    assert "ibm_fez (score 0." in found.message
    # 2 + 4096 * (0.0002 + 0.0001) at 1.60, upwards to the cent.
    assert found.costs.estimated == "$5.17"
    assert found.costs.prices == {"second": "1.60"}
    assert found.costs.price_source.startswith("price book of 2026-")


@pytest.mark.parametrize(
    ("weight", "ibm_best", "braket_best"),
    [
        ("cost", "ibm_brisbane", "Ankaa-3"),
        ("queueTime", "ibm_fez", "Garnet"),
        ("capability", "ibm_marrakesh", "Garnet"),
        ("availability", "ibm_marrakesh", "Garnet"),
    ],
)
def test_a_weight_alone_picks_the_best_of_each_vendor(
    weight: str, ibm_best: str, braket_best: str
) -> None:
    selection = {"weights": {weight: 1.0}}
    for backend_type, best in (("ibm_quantum", ibm_best), ("aws_braket", braket_best)):
        found = chosen(remote(backend_type, backendSelection=selection), market())
        assert found.name == best


def test_a_named_backend_is_taken_and_priced() -> None:
    given = spec(backend={"type": "aws_braket", "name": "Garnet"})
    found = chosen(given, market())
    assert (found.name, found.reason) == ("Garnet", "RequestedBackend")
    assert found.message == "Selected Garnet as requested by spec.backend"
    assert found.costs.estimated == "$1.79"


def test_a_device_that_is_named_is_not_waited_for_here() -> None:
    down = attrs.evolve(
        GARNET, device=attrs.evolve(GARNET.device, operational=False, detail="maintenance")
    )
    given = spec(backend={"type": "aws_braket", "name": "Garnet"})
    assert chosen(given, market(down)).name == "Garnet"
    none = market(braket("another", 20, 0, 0.1, 1.0))
    assert isinstance(propose(given, none, VALIDATED), Refusal)


def test_the_message_of_the_reference() -> None:
    own = {"task": Decimal(15)}
    offer = Offer(type="ibm_quantum", device=BRISBANE.device, own=own)  # type: ignore[arg-type]
    given = remote(budget={"maxCost": "$10.00"})
    assert propose(given, market(offer), VALIDATED) == Refusal(
        Reason.BUDGET_EXCEEDED, "Estimated cost $15.00 exceeds budget $10.00", over=True
    )


def test_a_backend_within_the_budget_is_preferred_to_a_better_one() -> None:
    given = remote(budget={"maxCost": "$3.75"}, backendSelection={"weights": {"capability": 1.0}})
    assert chosen(given, market()).name == "ibm_brisbane"
    assert "ibm_marrakesh costs $3.86" in chosen(given, market()).message


def test_an_unknown_price_fails_a_job_that_has_a_budget() -> None:
    nova = braket("Nova-9000", 1000, 0, 0.001, 1.0)
    given = remote("aws_braket", budget={"maxCost": "$10.00"})
    refusal = propose(given, market(nova), VALIDATED)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.COST_UNKNOWN
    assert refusal.message.startswith(
        "the job has a budget and its cost is unknown: no price is known for Nova-9000"
    )
    # ... also where the budget is a QiskitBudget; unless it opts out, or there is none.
    assert isinstance(
        propose(remote("aws_braket"), market(nova, budgets=("team",)), VALIDATED), Refusal
    )
    lenient = remote("aws_braket", budget={"maxCost": "$10.00", "allowUnknownCost": True})
    for each in (lenient, remote("aws_braket")):
        found = chosen(each, market(nova))
        assert found.costs.estimated == "Unknown"
        assert found.costs.note
        assert assigning.shown(found.costs) == "Unknown"
        ended = assigning.closed(found.costs, None, begun=True)
        assert ended.charged == "Unknown"


def test_waiting_for_what_is_down_and_refusing_what_is_never_there() -> None:
    down = attrs.evolve(
        GARNET, device=attrs.evolve(GARNET.device, operational=False, detail="maintenance")
    )
    waiting = propose(remote("aws_braket"), market(down), VALIDATED)
    assert isinstance(waiting, Waiting)
    assert waiting.reason == "NoBackendAvailable"
    assert "Garnet is not operational (maintenance)" in waiting.message
    large = attrs.evolve(VALIDATED, circuit_metrics=CircuitMetrics(qubits=500))
    refusal = propose(remote("aws_braket"), market(), large)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.NO_BACKEND
    assert "Garnet has 20 qubits of 500" in refusal.message
    none = Market(offers=(), tariff=TARIFF)
    assert propose(remote(), none, VALIDATED) == Refusal(
        Reason.NO_BACKEND, "there is no backend of type ibm_quantum that this job may use"
    )
    soon = attrs.evolve(none, expected=True)
    away = attrs.evolve(VALIDATED, waiting="no answer; asking again")
    assert propose(remote(), soon, away) == Waiting(
        "BackendsUnknown",
        "Waiting to learn which backends there are for a backend of type ibm_quantum: no answer; "
        "asking again",
    )


def test_an_assignment_stands_until_it_is_refused_or_its_backend_goes_down() -> None:
    given = remote(backendSelection={"weights": {"cost": 1.0}})
    first = chosen(given, market())
    assert propose(given, market(assignment=first), VALIDATED) is None
    gone = attrs.evolve(
        BRISBANE, device=attrs.evolve(BRISBANE.device, operational=False, detail="maintenance")
    )
    offers = (gone, FEZ, MARRAKESH)
    # Nobody has taken it up yet.
    second = chosen(given, market(*offers, assignment=first))
    assert (second.name, second.number) == ("ibm_marrakesh", 2)
    # It was taken up: perhaps something is submitted there already.
    taken = attrs.evolve(VALIDATED, assignment=1)
    assert propose(given, market(*offers, assignment=first), taken) is None
    # The executor itself says that nothing is.
    refused = attrs.evolve(VALIDATED, refused={"ibm_brisbane": "takes no jobs"})
    third = chosen(given, market(assignment=first), refused)
    assert (third.name, third.number) == ("ibm_marrakesh", 2)
    assert "ibm_brisbane takes no jobs" in third.message


def test_the_fallback() -> None:
    given = remote(backendSelection={"fallbackToSimulator": True})
    found = fall_back(given, market(), "Estimated cost $15.00 exceeds budget $10.00")
    assert found is not None
    assert (found.type, found.name, found.costs.estimated) == (
        "local_simulator",
        "aer_simulator",
        "$0.00",
    )
    assert fall_back(remote(), market(), "x") is None
    local = spec(backendSelection={"fallbackToSimulator": True})
    assert fall_back(local, market(), "x") is None


def report(**more: Any) -> Report:
    return Report(attempt=1, shots=1000, execution_time=2.5, **more)


@pytest.mark.parametrize(
    ("prices", "told", "actual"),
    [
        ({"second": "1.60"}, {"second": "4"}, "$6.40"),
        ({"second": "1.60"}, {}, "$4.00"),
        ({"task": "0.30", "shot": "0.00145"}, {}, "$1.75"),
        ({"task": "0.30", "shot": "0.00145"}, {"shot": "NaN"}, "$1.75"),
        ({}, {"second": "4"}, "$0.00"),
    ],
)
def test_the_actual_cost_by_the_prices_of_the_choice(
    prices: dict[str, str], told: dict[str, str], actual: str
) -> None:
    costs = CostStatus(estimated="$9.00", prices=prices)
    ended = assigning.closed(costs, report(usage=told), begun=True)
    assert (ended.estimated, ended.actual, ended.charged) == ("$9.00", actual, actual)
    assert assigning.shown(ended) == actual


def test_without_figures_a_run_that_began_is_charged_as_estimated() -> None:
    costs = CostStatus(estimated="$9.00", prices={"second": "1.60"})
    assert assigning.closed(costs, None, begun=True).charged == "$9.00"
    assert assigning.closed(costs, None, begun=False).charged == "$0.00"
    odd = assigning.closed(costs, report(usage={"task": "1"}), begun=True)
    assert (odd.actual, odd.charged) == ("Unknown", "$9.00")


# --- in the job's own state machine ---------------------------------------------------------


def selecting(phase: str = "Scheduling", of: Market | None = None, **more: Any) -> Any:
    given = {
        "spec": remote(budget={"maxCost": "$10.00", "alertThreshold": 0.3}),
        "selects": True,
        "market": of or market(),
        "progress": VALIDATED,
    }
    return underway(phase, pod(executor_started=observed().now), **given | more)


def test_after_validation_a_backend_is_selected() -> None:
    made = decided(selecting("Validating"))
    assert made.status.phase == "Scheduling"
    assert made.status.message == "Selecting a backend"
    assert reasons(made) == ["CircuitValid"]
    made = decided(selecting())
    (action,) = made.actions
    assert isinstance(action, decision.Assign)
    assert condition(made, "BackendSelected").reason == "OptimalBackend"
    assert made.status.backend == action.assignment.name
    assert made.status.cost == action.assignment.costs.estimated
    assert reasons(made) == ["BackendSelected", "BudgetThreshold"]
    assert "is above 30% of the budget $10.00" in made.events[1].message


def test_what_a_crash_kept_from_being_shown_is_shown_and_not_made_again() -> None:
    first = chosen(remote(), market())
    made = decided(selecting(of=market(assignment=first)))
    assert made.actions == ()
    assert made.status.backend == first.name
    shown = attrs.evolve(selecting(of=market(assignment=first)), status=made.status)
    assert decided(shown).events == ()
    # Also when the executor was quicker than the next controller.
    running = attrs.evolve(VALIDATED, stage="Executing", assignment=1, backend=first.name)
    made = decided(selecting(of=market(assignment=first), progress=running))
    assert made.status.backend == first.name
    following = attrs.evolve(
        selecting(of=market(assignment=first), progress=running), status=made.status
    )
    assert decided(following).status.phase == "Running"


def test_too_dear_ends_the_job_and_its_pod() -> None:
    own = {"task": Decimal(15)}
    dear = market(Offer(type="ibm_quantum", device=FEZ.device, own=own))  # type: ignore[arg-type]
    made = decided(selecting(of=dear))
    # The verdict first; then the pod ends; then the job.
    assert condition(made, "Failed").reason == "BudgetExceeded"
    exceeded = condition(made, "BudgetExceeded")
    assert (exceeded.status, exceeded.message) == (
        "True",
        "Estimated cost $15.00 exceeds budget $10.00",
    )
    ending = attrs.evolve(selecting(of=dear), status=made.status)
    stopping = decided(ending)
    assert any(isinstance(each, decision.StopRuns) for each in stopping.actions)
    ended = decided(attrs.evolve(ending, runs={}))
    assert ended.status.phase == "Failed"
    assert condition(ended, "Failed").message == "Estimated cost $15.00 exceeds budget $10.00"
    assert ended.status.attempts[-1].reason == "BudgetExceeded"
    assert reasons(ended) == ["BudgetExceeded"]


def test_too_dear_falls_back_to_the_simulator_and_says_so() -> None:
    own = {"task": Decimal(15)}
    dear = market(Offer(type="ibm_quantum", device=FEZ.device, own=own))  # type: ignore[arg-type]
    lenient = remote(budget={"maxCost": "$10.00"}, backendSelection={"fallbackToSimulator": True})
    made = decided(selecting(of=dear, spec=lenient))
    assert made.status.phase == "Scheduling"
    (action,) = made.actions
    assert isinstance(action, decision.Assign)
    assert action.assignment.type == "local_simulator"
    assert condition(made, "BudgetExceeded").reason == "FallbackToSimulator"
    assert condition(made, "BudgetExceeded").message == (
        "Estimated cost $15.00 exceeds budget $10.00"
    )
    assert condition(made, "BackendSelected").reason == "SimulatorFallback"
    assert reasons(made) == ["BudgetExceeded", "BackendSelected"]
    # What a QiskitBudget refuses goes the same way.
    refused = decision.over_budget(selecting(of=dear, spec=lenient), "there is nothing left")
    assert condition(refused, "BudgetExceeded").message == "there is nothing left"
    failing = decision.over_budget(selecting(of=dear), "nothing left")
    assert condition(failing, "Failed").reason == "BudgetExceeded"


def test_waiting_is_told_once() -> None:
    none = Market(offers=(), tariff=TARIFF, expected=True)
    made = decided(selecting(of=none))
    assert condition(made, "BackendSelected").status == "False"
    assert reasons(made) == ["BackendsUnknown"]
    assert made.requeue_after is not None
    again = attrs.evolve(selecting(of=none), status=made.status)
    assert decided(again).events == ()


@pytest.mark.parametrize("phase", ["Scheduling", "Running"])
def test_a_cancelled_job_is_charged_only_if_it_ran(phase: str) -> None:
    ended = status(
        phase,
        attempt(completion_time="2026-01-01T11:59:00Z"),
        costs=CostStatus(estimated="$9.00"),
    )
    given = attrs.evolve(remote(), cancel=True)
    made = decided(observed(spec=given, status=ended, runs={1: run(failed=("a", "b"))}))
    assert made.status.phase == "Cancelled"
    expected = "$9.00" if phase == "Running" else "$0.00"
    assert made.status.costs is not None
    assert made.status.costs.charged == expected


def test_the_fields_of_time_are_durations() -> None:
    hurried = remote(backendSelection={"requirements": {"maxQueueTime": "30m"}})
    waiting = propose(hurried, market(BRISBANE), VALIDATED)
    assert isinstance(waiting, Waiting)
    assert "has a wait of 2h, above 30m" in waiting.message
    assert seconds(1) == timedelta(seconds=1)


@pytest.mark.parametrize("backend_type", ["ibm_quantum", "aws_braket"])
def test_dynamic_circuits_need_a_device_for_them(backend_type: str) -> None:
    dynamic = attrs.evolve(VALIDATED, dynamic=True)
    found = propose(remote(backend_type), market(), dynamic)
    if backend_type == "ibm_quantum":
        assert isinstance(found, Assignment)
    else:
        assert isinstance(found, Refusal)
        assert "Garnet does not measure in mid-circuit" in found.message
