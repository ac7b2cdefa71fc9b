"""Budgets: periods by the wall clock, and money that is neither lost nor counted twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from qiskit_controller.api.qiskitbudget import (
    BudgetSelector,
    QiskitBudgetSpec,
    QiskitBudgetStatus,
    Reservation,
)
from qiskit_controller.api.qiskitjob import BudgetSpec
from qiskit_controller.api.quantities import format_money, format_time, parse_money, parse_time
from qiskit_controller.scheduling import budgets
from qiskit_controller.scheduling.budgets import OverBudget

NOON = datetime(2026, 3, 28, 12, tzinfo=UTC)


def spec(limit: str = "$10.00", **more: Any) -> QiskitBudgetSpec:
    return QiskitBudgetSpec(limit=limit, **more)


def claim(uid: str, amount: str = "$1.00") -> Reservation:
    return Reservation(uid=uid, job=f"job-{uid}", amount=amount, since=format_time(NOON))


def fresh(given_spec: QiskitBudgetSpec, now: datetime = NOON) -> QiskitBudgetStatus:
    return budgets.roll(given_spec, QiskitBudgetStatus(), now, NOON)


@pytest.mark.parametrize(
    ("period", "zone", "now", "start", "end"),
    [
        ("monthly", "UTC", "2026-02-28T23:59:59Z", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"),
        ("monthly", "UTC", "2026-12-31T23:00:00Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        # In Auckland it is March already.
        (
            "monthly",
            "Pacific/Auckland",
            "2026-02-28T12:00:00Z",
            "2026-02-28T11:00:00Z",
            "2026-03-31T11:00:00Z",
        ),
        # A day of 23 hours, and a week with one.
        (
            "daily",
            "Europe/Berlin",
            "2026-03-29T12:00:00Z",
            "2026-03-28T23:00:00Z",
            "2026-03-29T22:00:00Z",
        ),
        (
            "weekly",
            "Europe/Berlin",
            "2026-03-29T12:00:00Z",
            "2026-03-22T23:00:00Z",
            "2026-03-29T22:00:00Z",
        ),
        ("weekly", "UTC", "2026-03-23T00:00:00Z", "2026-03-23T00:00:00Z", "2026-03-30T00:00:00Z"),
        ("total", "UTC", "2030-01-01T00:00:00Z", "2026-03-28T12:00:00Z", None),
    ],
)
def test_windows(period: Any, zone: str, now: str, start: str, end: str | None) -> None:
    made = budgets.window_at(spec(period=period, time_zone=zone), parse_time(now), NOON)
    assert (made.start, made.end) == (start, end)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "/etc/passwd", "x\0y"])
def test_a_time_zone_that_is_none(zone: str) -> None:
    with pytest.raises(ValueError, match=r"spec\.timeZone: there is no time zone"):
        budgets.window_at(spec(time_zone=zone), NOON, NOON)


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
    st.sampled_from(["daily", "weekly", "monthly"]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Kathmandu"]),
)
def test_windows_follow_each_other_without_a_gap(now: datetime, period: Any, zone: str) -> None:
    of = spec(period=period, time_zone=zone)
    one = budgets.window_at(of, now, NOON)
    assert one.end is not None
    assert parse_time(one.start) <= now.replace(microsecond=0) < parse_time(one.end)
    following = budgets.window_at(of, parse_time(one.end), NOON)
    assert following.start == one.end
    last = budgets.window_at(of, parse_time(one.end) - timedelta(seconds=1), NOON)
    assert last == one


def test_ten_fit_and_the_eleventh_does_not() -> None:
    of, status = spec(), fresh(spec())
    for n in range(10):
        status = budgets.reserve("team", of, status, claim(str(n)))
    with pytest.raises(OverBudget) as refused:
        budgets.reserve("team", of, status, claim("11", "$0.01"))
    assert str(refused.value) == (
        "Estimated cost $0.01 exceeds the $0.00 that remain of QiskitBudget team ($10.00 monthly)"
    )
    # What costs nothing is always let in, and so is what is in already.
    budgets.reserve("team", of, status, claim("12", "$0.00"))
    assert budgets.reserve("team", of, status, claim("3")).reservations[-1].uid == "3"
    status = budgets.settle(status, "0", Decimal("0.40"), NOON)
    assert budgets.spent(status) == Decimal("0.40")
    budgets.reserve("team", of, status, claim("13", "$0.60"))


def test_a_charge_counts_once_and_in_the_period_in_which_the_job_ended() -> None:
    of = spec(period="monthly")
    status = budgets.reserve("team", of, fresh(of), claim("a", "$4.00"))
    status = budgets.reserve("team", of, status, claim("b", "$3.00"))
    april = datetime(2026, 4, 1, tzinfo=UTC)
    status = budgets.roll(of, status, april, NOON)
    assert budgets.spent(status) == 0
    assert budgets.reserved(status) == 7
    # It ended in March, and only in April did anybody look.
    status = budgets.settle(status, "a", Decimal("3.50"), april - timedelta(seconds=1))
    status = budgets.settle(status, "b", None, april)
    for uid in ("a", "b", "c"):
        assert budgets.settle(status, uid, Decimal(9), april) == status
    assert [each.spent for each in status.history] == ["$3.50"]
    assert status.window is not None
    assert (status.window.spent, status.window.jobs) == ("$3.00", 1)


def test_another_kind_of_period_takes_over_what_was_charged_in_it() -> None:
    daily, monthly = spec(period="daily"), spec(period="monthly")
    status = fresh(daily)
    for day in range(3):
        now = NOON + timedelta(days=day)
        status = budgets.roll(daily, status, now, NOON)
        status = budgets.reserve("team", daily, status, claim(str(day)))
        status = budgets.settle(status, str(day), None, now)
    now = NOON + timedelta(days=2)  # March the 30th
    status = budgets.roll(monthly, status, now, NOON)
    assert (budgets.spent(status), status.history) == (3, ())
    status = budgets.roll(daily, status, now, NOON)
    assert budgets.spent(status) == 3
    assert budgets.spent(budgets.roll(monthly, status, now, NOON)) == 3


def test_forecast_and_summary() -> None:
    of = spec("$100.00", period="monthly")
    status = budgets.reserve("team", of, fresh(of), claim("a", "$31.00"))
    status = budgets.settle(status, "a", None, NOON)
    noon = datetime(2026, 3, 16, 12, tzinfo=UTC)  # half of March
    assert budgets.forecast(status, noon) == Decimal("62.00")
    status = budgets.reserve("team", of, status, claim("b"))
    shown = budgets.summarise(of, status, noon)
    assert (shown.spent, shown.reserved, shown.remaining, shown.forecast) == (
        "$31.00",
        "$1.00",
        "$68.00",
        "$62.00",
    )
    less = budgets.summarise(spec("$20.00"), status, noon)
    assert less.remaining == "-$12.00"
    first = datetime(2026, 3, 1, 0, 5, tzinfo=UTC)
    assert budgets.forecast(status, first) == Decimal("32.00")


def test_thresholds_are_told_of_once() -> None:
    of = spec(alert_thresholds=(1.0, 0.5, 0.8))
    status = fresh(of)
    assert budgets.thresholds_reached(of, status) == ()
    status = budgets.reserve("team", of, status, claim("a", "$8.00"))
    assert budgets.thresholds_reached(of, status) == (0.5, 0.8)
    told = attrs.evolve(status, alerted=(0.5, 0.8))
    assert budgets.thresholds_reached(of, told) == ()
    april = datetime(2026, 4, 2, tzinfo=UTC)
    assert budgets.thresholds_reached(of, budgets.roll(of, told, april, NOON)) == (0.5, 0.8)


@pytest.mark.parametrize(
    ("selector", "job", "falls"),
    [
        (None, None, True),
        (BudgetSelector(), BudgetSpec(cost_center="x"), True),
        (BudgetSelector(cost_center="x"), BudgetSpec(cost_center="x", project="p"), True),
        (BudgetSelector(cost_center="x"), BudgetSpec(cost_center="y"), False),
        (BudgetSelector(cost_center="x"), None, False),
        (BudgetSelector(cost_center="x", project="p"), BudgetSpec(cost_center="x"), False),
    ],
)
def test_which_jobs_a_budget_is_for(
    selector: BudgetSelector | None, job: BudgetSpec | None, falls: bool
) -> None:
    assert budgets.matches(selector, job) is falls


class Books(RuleBasedStateMachine):
    """Any order of reserving, settling (also twice) and time passing: the books balance."""

    open_ = Bundle("open")

    @initialize(limit=st.integers(0, 5000), period=st.sampled_from(["daily", "monthly", "total"]))
    def start(self, limit: int, period: Any) -> None:
        self.spec = spec(format_money(Decimal(limit) / 100), period=period)
        self.now = NOON
        self.status = fresh(self.spec)
        self.charged = Decimal(0)
        self.claims: dict[str, Decimal] = {}
        self.number = 0

    @rule(target=open_, cents=st.integers(0, 2000))
    def reserve(self, cents: int) -> str:
        self.number += 1
        uid, amount = str(self.number), Decimal(cents) / 100
        try:
            self.status = budgets.reserve(
                "b", self.spec, self.status, claim(uid, format_money(amount))
            )
        except OverBudget:
            left = parse_money(self.spec.limit) - budgets.spent(self.status)
            assert amount > max(left - sum(self.claims.values()), Decimal(0))
        else:
            self.claims[uid] = amount
        return uid

    @rule(uid=consumes(open_), share=st.none() | st.integers(0, 100), again=st.booleans())
    def settle(self, uid: str, share: int | None, again: bool) -> None:
        held = self.claims.pop(uid, None)
        base = Decimal(5) if held is None else held
        cost = None if share is None else base * share / 100
        cost = None if cost is None else cost.quantize(Decimal("0.01"))
        for _ in range(2 if again else 1):
            self.status = budgets.settle(self.status, uid, cost, self.now)
        if held is not None:
            self.charged += held if cost is None else cost

    @rule(hours=st.integers(1, 40))
    def wait(self, hours: int) -> None:
        self.now += timedelta(hours=hours)
        self.status = budgets.roll(self.spec, self.status, self.now, NOON)

    @invariant()
    def balanced(self) -> None:
        if not hasattr(self, "status"):
            return
        windows = [self.status.window, *self.status.history]
        total = sum((parse_money(each.spent) for each in windows if each), Decimal(0))
        if len(self.status.history) < budgets.HISTORY:
            assert total == self.charged
        assert budgets.reserved(self.status) == sum(self.claims.values(), Decimal(0))
        used = budgets.spent(self.status) + budgets.reserved(self.status)
        assert used <= parse_money(self.spec.limit)
        assert budgets.forecast(self.status, self.now) >= used


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
