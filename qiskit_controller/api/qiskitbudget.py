"""The QiskitBudget: how much the QiskitJobs of a namespace may cost, and what they have cost.

Its status is the durable record of the money: a reservation for each job that may still cost
something, and what has been charged in each window. Both are changed in one write over the
version that was read, so no two jobs can take the same dollar, and a charge is in it once.
"""

from __future__ import annotations

from typing import Literal

import attrs

from qiskit_controller.api.conditions import Condition
from qiskit_controller.api.fields import field
from qiskit_controller.api.quantities import MONEY_PATTERN

KIND = "QiskitBudget"
PLURAL = "qiskitbudgets"

Period = Literal["daily", "weekly", "monthly", "total"]


@attrs.frozen
class BudgetSelector:
    """Which jobs a budget is for; all that is given has to match."""

    cost_center: str | None = field(
        "spec.budget.costCenter of the jobs.", default=None, max_length=253
    )
    project: str | None = field("spec.budget.project of the jobs.", default=None, max_length=253)


@attrs.frozen
class QiskitBudgetSpec:
    """What may be spent."""

    limit: str = field(
        'What may be spent in each period, in US dollars (e.g. "$1000.00").',
        pattern=MONEY_PATTERN,
        max_length=32,
    )
    period: Period = field(
        "When spending begins anew: daily, weekly (on Monday), monthly, or never (total).",
        default="monthly",
    )
    time_zone: str = field(
        "Time zone in which days begin, by its IANA name (e.g. Europe/Berlin).",
        default="UTC",
        min_length=1,
        max_length=64,
    )
    selector: BudgetSelector | None = field(
        "Jobs of this namespace that the budget is for; every job when absent.", default=None
    )
    alert_thresholds: tuple[float, ...] = field(
        "Shares of the limit at which an alert is sent, once in each period.",
        default=(0.8, 1.0),
        max_items=16,
    )


@attrs.frozen
class Reservation:
    """What a job may still cost; it counts as if it were spent."""

    uid: str = field("UID of the QiskitJob.")
    job: str = field("Its name.")
    amount: str = field("In US dollars.")
    since: str = field("When it was made.", format="date-time")


@attrs.frozen
class WindowStatus:
    """A period of the budget."""

    start: str = field("When it began.", format="date-time")
    end: str | None = field("When it ends; never when absent.", default=None, format="date-time")
    spent: str = field("What was charged in it, in US dollars.", default="$0.00")
    jobs: int = field("Number of jobs that were charged.", default=0, format="int64")


@attrs.frozen
class QiskitBudgetStatus:
    """What was spent. Only the controller writes it."""

    spent: str | None = field("Charged in this period, in US dollars.", default=None)
    reserved: str | None = field("What jobs that have not ended may cost.", default=None)
    remaining: str | None = field("What is left for further jobs.", default=None)
    forecast: str | None = field(
        "What this period will cost if it goes on as it began.", default=None
    )
    conditions: tuple[Condition, ...] = field(
        "Ready: the budget is enforced. Exceeded: nothing remains.",
        default=(),
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    observed_generation: int | None = field(
        "The metadata.generation that this status is about.", default=None, format="int64"
    )
    window: WindowStatus | None = field("The period that is.", default=None)
    history: tuple[WindowStatus, ...] = field("Periods before, the latest first.", default=())
    reservations: tuple[Reservation, ...] = field(
        "What jobs that have not ended may cost, each.",
        default=(),
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uid"]},
    )
    alerted: tuple[float, ...] = field("Thresholds that were told of in this period.", default=())


@attrs.frozen
class QiskitBudget:
    """QiskitBudget limits what QiskitJobs may cost."""

    spec: QiskitBudgetSpec = field("What may be spent, when, by which jobs.")
    status: QiskitBudgetStatus = field("What was spent.", factory=QiskitBudgetStatus)
