"""Which device a job runs on.

First the hard requirements: a device that fails one is out, and it is said why. What remains is
scored by four criteria, each from 0 to 1, weighted and divided by the sum of the weights:

============  ==============================================================================
cost          the lowest cost among the candidates, divided by its own; 0 when unknown
queueTime     1 / (1 + wait / 10 minutes): 1 without a queue, a half at ten minutes. Where a
              provider tells no time, a minute for each pending job; 0 when nothing is known
capability    four fifths for errors, the lowest two-qubit error among the candidates divided
              by its own (0 when unknown), and one fifth for qubits, its own number divided by
              the largest
availability  the share of the recent probes in which it took jobs
============  ==============================================================================

A device that gets better in one respect never gets a lower score, and one that gets worse never
a higher. Equal scores are decided by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Literal

import attrs

from qiskit_controller.api.quantities import format_duration, format_money
from qiskit_controller.scheduling.cost import Cost

Criterion = Literal["cost", "queueTime", "capability", "availability"]
# In the order in which the first of equals names the choice.
CRITERIA: Mapping[Criterion, str] = {
    "cost": "cost",
    "queueTime": "queue time",
    "capability": "capability",
    "availability": "availability",
}
HALF_WAIT = timedelta(minutes=10)
TIME_OF_A_JOB = timedelta(minutes=1)
ERROR_SHARE = 0.8
# Of those that were not chosen, so many are told of.
TOLD = 8


@attrs.frozen(kw_only=True)
class Candidate:
    """A device that a job might run on; None for what is not known of it.

    Attributes:
        cost: of this job there.
        detail: why it is not operational.
        dynamic: whether it measures in mid-circuit and acts on the outcome.
        error: median two-qubit gate error, 0 to 1.
        availability: share of the recent probes in which it took jobs.
    """

    name: str
    type: str
    cost: Cost
    operational: bool = True
    detail: str = ""
    simulator: bool = False
    qubits: int | None = None
    basis_gates: tuple[str, ...] = ()
    dynamic: bool | None = None
    pending_jobs: int | None = None
    queue_time: timedelta | None = None
    error: float | None = None
    availability: float = 1.0

    @property
    def wait(self) -> timedelta | None:
        """The expected wait."""
        if self.queue_time is not None:
            return self.queue_time
        return None if self.pending_jobs is None else self.pending_jobs * TIME_OF_A_JOB


@attrs.frozen(kw_only=True)
class Needs:
    """What a device must have.

    Attributes:
        name: the only one that is wanted, if one is named.
        qubits: of the circuit, or more where the user wants more.
        dynamic: whether the circuit measures in mid-circuit or acts on outcomes.
        operations: those of the circuit that no transpiler can make of other gates.
        refused: those that took no job of this one, and why.
    """

    type: str
    name: str | None = None
    qubits: int = 1
    dynamic: bool = False
    operations: tuple[str, ...] = ()
    max_error: float | None = None
    max_queue_time: timedelta | None = None
    refused: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Ranked:
    """A candidate that meets the needs, with its scores by criterion."""

    candidate: Candidate
    scores: Mapping[Criterion, float]
    total: float


@attrs.frozen
class Choice:
    """What came of choosing.

    Attributes:
        ranked: those that meet the needs, the best first.
        rejected: by name, why the others do not.
        weights: as they were applied; their sum is 1.
    """

    ranked: tuple[Ranked, ...]
    rejected: Mapping[str, str]
    weights: Mapping[Criterion, float]

    @property
    def winner(self) -> Ranked | None:
        """The best, if there is any."""
        return self.ranked[0] if self.ranked else None

    @property
    def headline(self) -> str:
        """``Selected ibm_brisbane based on cost``."""
        best = self.winner
        if best is None:
            return "No backend can run this job"
        return f"Selected {best.candidate.name} based on {CRITERIA[self.decisive]}"

    @property
    def decisive(self) -> Criterion:
        """The criterion that gave the winner most of its score."""
        best = self.winner
        scores = best.scores if best is not None else {}
        return max(CRITERIA, key=lambda each: self.weights[each] * scores.get(each, 0.0))

    @property
    def account(self) -> str:
        """The headline, the winner's score and what was against the others, for people."""
        best = self.winner
        parts = [self.headline]
        if best is not None:
            parts[0] += f" ({_described(best)})"
            losers = [f"{each.candidate.name} ({_described(each)})" for each in self.ranked[1:]]
            if losers:
                parts.append(f"Then came {_listed(losers)}")
        out = [f"{name} {why}" for name, why in sorted(self.rejected.items())]
        if out:
            parts.append(f"Out of the question: {_listed(out)}")
        return ". ".join(parts)


def choose(
    candidates: Sequence[Candidate], needs: Needs, weights: Mapping[Criterion, float] | None = None
) -> Choice:
    """The devices in the order in which the job should want them.

    Args:
        weights: they need not add up to 1; where none is above zero, all count the same.
    """
    applied = _normalised(weights or {})
    rejected: dict[str, str] = {}
    eligible: list[Candidate] = []
    for candidate in candidates:
        why = _lacks(candidate, needs)
        if why is None:
            eligible.append(candidate)
        else:
            rejected[candidate.name] = why
    ranked = []
    for candidate in eligible:
        scores = _scores(candidate, eligible)
        total = sum(applied[each] * scores[each] for each in CRITERIA)
        ranked.append(Ranked(candidate, scores, total))
    ranked.sort(key=lambda each: (-round(each.total, 9), each.candidate.name))
    return Choice(tuple(ranked), rejected, applied)


def _normalised(weights: Mapping[Criterion, float]) -> dict[Criterion, float]:
    given = {each: max(0.0, weights.get(each, 0.0)) for each in CRITERIA}
    total = sum(given.values())
    if total <= 0:
        return dict.fromkeys(CRITERIA, 1 / len(CRITERIA))
    return {each: weight / total for each, weight in given.items()}


def _lacks(candidate: Candidate, needs: Needs) -> str | None:
    """Why it cannot be, continuing its name; None when it can."""
    if candidate.type != needs.type:
        return f"is of type {candidate.type}, not {needs.type}"
    if needs.name is not None and candidate.name != needs.name:
        return f"is not {needs.name}, which the job names"
    if candidate.name in needs.refused:
        return needs.refused[candidate.name]
    if not candidate.operational:
        return f"is not operational{f' ({candidate.detail})' if candidate.detail else ''}"
    if candidate.qubits is not None and candidate.qubits < needs.qubits:
        return f"has {candidate.qubits} qubits of {needs.qubits}"
    if needs.dynamic and candidate.dynamic is False:
        return "does not measure in mid-circuit"
    if candidate.basis_gates and not candidate.dynamic:
        for operation in needs.operations:
            if operation not in candidate.basis_gates:
                return f"has no {operation}"
    return _beyond_limits(candidate, needs)


def _beyond_limits(candidate: Candidate, needs: Needs) -> str | None:
    # What the user sets a limit to has to be known, but a simulator without noise has no errors.
    if needs.max_error is not None and not (candidate.simulator and candidate.error is None):
        if candidate.error is None:
            return "does not tell its errors"
        if candidate.error > needs.max_error:
            return f"has a two-qubit error of {candidate.error:.2g}, above {needs.max_error:g}"
    if needs.max_queue_time is not None:
        if candidate.wait is None:
            return "does not tell its queue"
        if candidate.wait > needs.max_queue_time:
            return (
                f"has a wait of {format_duration(candidate.wait)}, above "
                f"{format_duration(needs.max_queue_time)}"
            )
    return None


def _scores(candidate: Candidate, among: Sequence[Candidate]) -> dict[Criterion, float]:
    return {
        "cost": _cost_score(candidate, among),
        "queueTime": _queue_score(candidate),
        "capability": _capability_score(candidate, among),
        "availability": min(max(candidate.availability, 0.0), 1.0),
    }


def _cost_score(candidate: Candidate, among: Sequence[Candidate]) -> float:
    if not isinstance(candidate.cost, Decimal):
        return 0.0
    lowest = min(each.cost for each in among if isinstance(each.cost, Decimal))
    return 1.0 if candidate.cost == lowest else float(lowest / candidate.cost)


def _queue_score(candidate: Candidate) -> float:
    return 0.0 if candidate.wait is None else 1 / (1 + max(candidate.wait / HALF_WAIT, 0.0))


def _capability_score(candidate: Candidate, among: Sequence[Candidate]) -> float:
    error = _error(candidate)
    errors = 0.0
    if error is not None:
        lowest = min(each for each in map(_error, among) if each is not None)
        errors = 1.0 if error == lowest else lowest / error
    # A simulator that tells no size is limited by memory alone, like the largest of them.
    largest = max((each.qubits or 0 for each in among), default=0)
    own = largest if candidate.qubits is None and candidate.simulator else candidate.qubits or 0
    return ERROR_SHARE * errors + (1 - ERROR_SHARE) * (own / largest if largest else 1.0)


def _error(candidate: Candidate) -> float | None:
    if candidate.error is None and candidate.simulator:
        return 0.0
    return candidate.error


def _described(ranked: Ranked) -> str:
    cost = ranked.candidate.cost
    shown = format_money(cost) if isinstance(cost, Decimal) else "unknown cost"
    scores = ", ".join(f"{CRITERIA[each]} {ranked.scores[each]:.2f}" for each in CRITERIA)
    return f"score {ranked.total:.2f}, {shown}: {scores}"


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - TOLD
    return "; ".join(texts[:TOLD]) + (f"; and {more} more" if more > 0 else "")
