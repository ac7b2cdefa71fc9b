"""Where a job runs and what that costs, decided from plain values.

The executor has validated the circuit and waits. What there is to choose from is the
:class:`Market`; the answer is an :class:`Assignment`, which is reserved for in every budget, then
written into the job's record, and only then shown in its status. Whatever is crashed between,
the next look finds the assignment in the record, and shows that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal

import attrs

from qiskit_controller.api.billing import (
    UNITS,
    UNKNOWN,
    BillingUnit,
    format_amounts,
    parse_amounts,
)
from qiskit_controller.api.qiskitbackend import DeviceStatus
from qiskit_controller.api.qiskitjob import CostStatus, QiskitJobSpec
from qiskit_controller.api.quantities import format_money, parse_duration, parse_money
from qiskit_controller.api.run import REQUESTED, Assignment, Progress, Reason, Report
from qiskit_controller.scheduling.cost import (
    Cost,
    Usage,
    Work,
    expected_usage,
    measured_usage,
    price,
)
from qiskit_controller.scheduling.prices import Rates, Tariff, Unknown
from qiskit_controller.scheduling.selection import (
    Candidate,
    Choice,
    Criterion,
    Needs,
    choose,
)

SIMULATOR = "local_simulator"
SIMULATOR_NAME = "aer_simulator"


@attrs.frozen(kw_only=True)
class Offer:
    """A device that the job could be given to.

    Attributes:
        own: what the QiskitBackend says that it costs; None where it says nothing.
        plan: the account's plan, where the QiskitBackend names one.
    """

    type: str
    device: DeviceStatus
    own: Mapping[BillingUnit, Decimal] | None = None
    plan: str | None = None


@attrs.frozen(kw_only=True)
class Market:
    """What there is to choose from, and what was chosen.

    Attributes:
        offers: the devices; those of QiskitBackends, or of the job's own credentials.
        expected: whether there will be devices that have not been told of yet.
        budgets: the QiskitBudgets that the job falls under.
        assignment: what the record has.
        version: the record's resourceVersion.
    """

    offers: Sequence[Offer]
    tariff: Tariff
    expected: bool = False
    budgets: tuple[str, ...] = ()
    assignment: Assignment | None = None
    version: str = ""


@attrs.frozen
class Waiting:
    """Nothing can be chosen yet; for people."""

    reason: str
    message: str


@attrs.frozen
class Refusal:
    """Nothing can be chosen at all.

    Attributes:
        over: whether it is for the money, so that a simulator might do instead.
    """

    reason: Reason
    message: str
    over: bool = False


@attrs.frozen
class _Priced:
    offer: Offer
    usage: Usage
    rates: Rates | Unknown
    cost: Cost


def propose(
    spec: QiskitJobSpec, market: Market, progress: Progress
) -> Assignment | Waiting | Refusal | None:
    """The assignment to make now, or None while the one in the record stands."""
    current = market.assignment
    refused = dict(progress.refused)
    if current is not None and current.name not in refused:
        if progress.assignment == current.number:
            return None
        down = _went_down(current, market)
        if down is None:
            return None
        refused[current.name] = down
    number = current.number + 1 if current is not None else 1
    priced = {each.device.name: _price(each, spec, market, progress) for each in market.offers}
    needs = _needs(spec, progress, refused)
    candidates = [_candidate(each) for each in priced.values()]
    if spec.backend.name is not None:
        # Who names a device waits for it in its own queue, as its provider has it.
        candidates = [attrs.evolve(each, operational=True) for each in candidates]
    choice = choose(candidates, needs, _weights(spec))
    if choice.winner is None:
        return _none_fits(spec, market, needs, choice, progress.waiting)
    refusal = _too_dear(spec, market, choice)
    if isinstance(refusal, Refusal):
        return refusal
    choice = refusal
    assert choice.winner is not None  # noqa: S101 - _too_dear leaves one, or refuses
    chosen = priced[choice.winner.candidate.name]
    named = spec.backend.name is not None
    return Assignment(
        number=number,
        type=chosen.offer.type,
        name=chosen.offer.device.name,
        reason=REQUESTED if named else "OptimalBackend",
        message=(
            f"Selected {chosen.offer.device.name} as requested by spec.backend"
            if named
            else choice.account
        ),
        costs=_costs(chosen),
    )


def fall_back(spec: QiskitJobSpec, market: Market, verdict: str) -> Assignment | None:
    """The simulator, for a job that would cost too much and may be given to one.

    Args:
        verdict: why the job's own backend is too dear, for people.
    """
    selection = spec.backend_selection
    if selection is None or not selection.fallback_to_simulator or spec.backend.type == SIMULATOR:
        return None
    if market.assignment is not None and market.assignment.type == SIMULATOR:
        return None
    number = market.assignment.number + 1 if market.assignment is not None else 1
    return Assignment(
        number=number,
        type=SIMULATOR,
        name=SIMULATOR_NAME,
        reason="SimulatorFallback",
        message=f"Selected {SIMULATOR_NAME} as spec.backendSelection.fallbackToSimulator asks: "
        f"{verdict}",
        costs=CostStatus(estimated=format_money(Decimal(0)), price_source="runs in the cluster"),
        exceeded=verdict,
    )


def amount_of(costs: CostStatus) -> Decimal:
    """What is reserved for it; of what nobody knows, nothing."""
    return Decimal(0) if costs.estimated in ("", UNKNOWN) else parse_money(costs.estimated)


def closed(costs: CostStatus, report: Report | None, *, begun: bool) -> CostStatus:
    """The costs of a job that has ended.

    Args:
        report: of the attempt that ran, where one did.
        begun: whether the backend had begun to execute, as far as is known.
    """
    if report is not None and report.shots is not None:
        usage = measured_usage(
            _amounts(report.usage), shots=report.shots, execution_time=report.execution_time
        )
        rates: Rates | Unknown = (
            Unknown(costs.note)
            if costs.estimated == UNKNOWN
            else Rates(_amounts(costs.prices), costs.price_source)
        )
        actual = price(usage, rates)
        known = not isinstance(actual, Unknown)
        shown = _shown(actual)
        return attrs.evolve(
            costs,
            actual=shown,
            charged=shown if known else costs.estimated,
            usage=format_amounts(usage),
        )
    nothing = format_money(Decimal(0))
    # A run that began is charged as it was estimated: what it was billed, nobody said.
    return attrs.evolve(costs, charged=costs.estimated if begun else nothing)


def shown(costs: CostStatus) -> str:
    """``status.cost``: what is known best."""
    return costs.actual or costs.charged or costs.estimated


def _amounts(given: Mapping[str, str]) -> dict[BillingUnit, Decimal]:
    try:
        return parse_amounts(given)
    except ValueError:
        # Of a driver of somebody else's; then what can be counted here is what counts.
        return {}


def _shown(cost: Cost) -> str:
    return UNKNOWN if isinstance(cost, Unknown) else format_money(cost)


def _went_down(current: Assignment, market: Market) -> str | None:
    """Why a backend that was chosen, but not taken up yet, cannot be used any more."""
    for offer in market.offers:
        if offer.device.name == current.name and offer.type == current.type:
            if offer.device.operational:
                return None
            detail = f" ({offer.device.detail})" if offer.device.detail else ""
            return f"is not operational{detail}"
    return None


def _price(offer: Offer, spec: QiskitJobSpec, market: Market, progress: Progress) -> _Priced:
    device, metrics = offer.device, progress.circuit_metrics
    work = Work(spec.execution.shots, metrics.qubits, metrics.depth, metrics.gates)
    shot_time = None if device.shot_time is None else timedelta(seconds=device.shot_time)
    usage = expected_usage(offer.type, work, simulator=device.simulator, shot_time=shot_time)
    rates = market.tariff.rates(
        offer.type, device.name, own=offer.own, told=_amounts(device.prices), plan=offer.plan
    )
    return _Priced(offer, usage, rates, price(usage, rates))


def _candidate(priced: _Priced) -> Candidate:
    device = priced.offer.device
    return Candidate(
        name=device.name,
        type=priced.offer.type,
        cost=priced.cost,
        operational=device.operational,
        detail=device.detail,
        simulator=device.simulator,
        qubits=device.qubits,
        basis_gates=device.basis_gates,
        dynamic=device.dynamic,
        pending_jobs=device.pending_jobs,
        queue_time=None if device.queue_time is None else timedelta(seconds=device.queue_time),
        error=device.two_qubit_error,
        availability=1.0 if device.availability is None else device.availability,
    )


def _needs(spec: QiskitJobSpec, progress: Progress, refused: Mapping[str, str]) -> Needs:
    asked = spec.backend_selection.requirements if spec.backend_selection else None
    queue = asked.max_queue_time if asked else None
    # Whether a device that is named takes the circuit, its own driver tells, and what to do.
    named = spec.backend.name is not None
    return Needs(
        type=spec.backend.type,
        name=spec.backend.name,
        qubits=max(
            0 if named else progress.circuit_metrics.qubits,
            (asked.min_qubits or 0) if asked else 0,
        ),
        dynamic=progress.dynamic and not named,
        operations=() if named else progress.operations,
        max_error=asked.max_error if asked else None,
        max_queue_time=parse_duration(queue) if queue else None,
        refused=refused,
    )


def _weights(spec: QiskitJobSpec) -> dict[Criterion, float]:
    given = spec.backend_selection.weights if spec.backend_selection else None
    if given is None:
        return {}
    return {
        "cost": given.cost or 0.0,
        "queueTime": given.queue_time or 0.0,
        "capability": given.capability or 0.0,
        "availability": given.availability or 0.0,
    }


def _none_fits(
    spec: QiskitJobSpec, market: Market, needs: Needs, choice: Choice, waiting: str
) -> Waiting | Refusal:
    """Whether to wait for a device that would do, were it up and idle."""
    whom = spec.backend.name or f"a backend of type {spec.backend.type}"
    if not market.offers:
        if market.expected:
            text = f"Waiting to learn which backends there are for {whom}"
            return Waiting("BackendsUnknown", f"{text}: {waiting}" if waiting else text)
        what = spec.backend.name or f"backend of type {spec.backend.type}"
        return Refusal(Reason.NO_BACKEND, f"there is no {what} that this job may use")
    patient = attrs.evolve(needs, max_queue_time=None, refused={})
    idle = [
        attrs.evolve(
            _candidate(_Priced(each, {}, Unknown(""), Unknown(""))), operational=True, detail=""
        )
        for each in market.offers
    ]
    if choose(idle, patient).winner is None:
        return Refusal(Reason.NO_BACKEND, choice.account)
    return Waiting("NoBackendAvailable", f"Waiting for {whom}. {choice.account}")


def _too_dear(spec: QiskitJobSpec, market: Market, choice: Choice) -> Choice | Refusal:
    """The choice among those within ``budget.maxCost``, or why there is none."""
    budget = spec.budget
    most = parse_money(budget.max_cost) if budget and budget.max_cost else None
    limited = most is not None or bool(market.budgets)
    if not limited:
        return choice
    lenient = budget is not None and budget.allow_unknown_cost
    rejected, kept = dict(choice.rejected), []
    costs: list[Decimal] = []
    why = ""
    for each in choice.ranked:
        cost = each.candidate.cost
        if isinstance(cost, Unknown):
            if lenient:
                kept.append(each)
            else:
                why = why or cost.why
                rejected[each.candidate.name] = f"has an unknown cost ({cost.why})"
        elif most is not None and cost > most:
            costs.append(cost)
            rejected[each.candidate.name] = f"costs {format_money(cost)}"
        else:
            kept.append(each)
    if kept:
        return attrs.evolve(choice, ranked=tuple(kept), rejected=rejected)
    if costs and most is not None:
        return Refusal(
            Reason.BUDGET_EXCEEDED,
            f"Estimated cost {format_money(min(costs))} exceeds budget {format_money(most)}",
            over=True,
        )
    return Refusal(
        Reason.COST_UNKNOWN,
        f"the job has a budget and its cost is unknown: {why}, or set spec.budget.allowUnknownCost",
    )


def _costs(priced: _Priced) -> CostStatus:
    usage = {each: priced.usage[each] for each in UNITS if each in priced.usage}
    if isinstance(priced.cost, Unknown) or isinstance(priced.rates, Unknown):
        note = priced.cost.why if isinstance(priced.cost, Unknown) else ""
        return CostStatus(estimated=UNKNOWN, usage=format_amounts(usage), note=note)
    return CostStatus(
        estimated=format_money(priced.cost),
        usage=format_amounts(usage),
        prices=format_amounts(priced.rates.prices),
        price_source=priced.rates.source,
    )
