"""The arithmetic of a budget: windows, reservations, charges, a forecast, alerts.

All functions take a :class:`QiskitBudgetStatus` and return the next one; whoever writes it does
so over the version that was read. Then none of them can be raced:

- A job is admitted by :func:`reserve`: its amount counts from that write on.
- What it has cost is charged by :func:`settle`, in the same write that ends its reservation. A
  charge without a reservation does nothing, so that settling again, after a crash or by a
  second controller, never charges twice; and a reservation stays until it is settled, so that no
  charge is lost.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from decimal import ROUND_CEILING, Decimal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import attrs

from qiskit_controller.api.qiskitbudget import (
    BudgetSelector,
    QiskitBudgetSpec,
    QiskitBudgetStatus,
    Reservation,
    WindowStatus,
)
from qiskit_controller.api.qiskitjob import BudgetSpec
from qiskit_controller.api.quantities import format_money, format_time, parse_money, parse_time
from qiskit_controller.scheduling.cost import CENT

HISTORY = 24
# Of a period that has only just begun, nothing is foretold.
LEAST_SHARE = Decimal("0.01")


class OverBudget(Exception):
    """A reservation does not fit; the message says by how much, for people."""


def matches(selector: BudgetSelector | None, budget: BudgetSpec | None) -> bool:
    """Whether a job falls under a budget."""
    wanted = selector or BudgetSelector()
    given = budget or BudgetSpec()
    return wanted.cost_center in (None, given.cost_center) and wanted.project in (
        None,
        given.project,
    )


# --- windows --------------------------------------------------------------------------------


def zone_of(spec: QiskitBudgetSpec) -> tzinfo:
    """The budget's time zone.

    Raises:
        ValueError: there is none of that name.
    """
    if spec.time_zone == "UTC":  # also where there is no database of time zones
        return UTC
    try:
        return ZoneInfo(spec.time_zone)
    # Not only the first: a name with odd characters makes others.
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"spec.timeZone: there is no time zone {spec.time_zone!r}; write for example "
            "Europe/Berlin"
        ) from None


def window_at(spec: QiskitBudgetSpec, now: datetime, created: datetime) -> WindowStatus:
    """The period that `now` is in. It begins at midnight of the budget's time zone.

    Args:
        created: when a budget without periods began.

    Raises:
        ValueError: the time zone is none.
    """
    zone = zone_of(spec)
    if spec.period == "total":
        return WindowStatus(start=format_time(created))
    local = now.astimezone(zone)
    first = datetime(local.year, local.month, local.day, tzinfo=zone)
    if spec.period == "daily":
        # Not 24 hours: two days in a year have others.
        after = _midnight(first, 1)
    elif spec.period == "weekly":
        first = _midnight(first, -first.weekday())
        after = _midnight(first, 7)
    else:
        first = first.replace(day=1)
        after = _midnight(first, 32).replace(day=1)
    return WindowStatus(start=format_time(first), end=format_time(after))


def _midnight(day: datetime, days: int) -> datetime:
    # Arithmetic within a zone is on the wall clock, and so is midnight.
    return day + timedelta(days=days)


def roll(
    spec: QiskitBudgetSpec, status: QiskitBudgetStatus, now: datetime, created: datetime
) -> QiskitBudgetStatus:
    """The status with the period that is.

    What was charged moves into the history with its period. Where the kind of period was
    changed, what was charged in periods that overlap the new one goes over into it.

    Raises:
        ValueError: the time zone is none.
    """
    window = window_at(spec, now, created)
    old = status.window
    if old is not None and (old.start, old.end) == (window.start, window.end):
        return status
    before = (old, *status.history) if old is not None else ()
    overlapping = [each for each in before if _overlap(each, window)]
    window = attrs.evolve(
        window,
        spent=format_money(sum((parse_money(each.spent) for each in overlapping), Decimal(0))),
        jobs=sum(each.jobs for each in overlapping),
    )
    kept = tuple(each for each in before if each not in overlapping)
    return attrs.evolve(status, window=window, history=kept[:HISTORY], alerted=())


def _overlap(one: WindowStatus, other: WindowStatus) -> bool:
    before = one.end is not None and parse_time(one.end) <= parse_time(other.start)
    after = other.end is not None and parse_time(other.end) <= parse_time(one.start)
    return not before and not after


# --- money ----------------------------------------------------------------------------------


def spent(status: QiskitBudgetStatus) -> Decimal:
    """What was charged in the period that is."""
    return parse_money(status.window.spent) if status.window else Decimal(0)


def reserved(status: QiskitBudgetStatus, but: str = "") -> Decimal:
    """What all jobs under way may cost, but that with the UID `but`."""
    return sum(
        (parse_money(each.amount) for each in status.reservations if each.uid != but), Decimal(0)
    )


def reserve(
    name: str, spec: QiskitBudgetSpec, status: QiskitBudgetStatus, claim: Reservation
) -> QiskitBudgetStatus:
    """The status with a reservation; one that the job had before is replaced.

    Raises:
        OverBudget: there is not so much left.
    """
    amount, limit = parse_money(claim.amount), parse_money(spec.limit)
    left = limit - spent(status) - reserved(status, but=claim.uid)
    # Nothing fits always, also where more was spent than there was.
    if amount > max(left, Decimal(0)):
        raise OverBudget(
            f"Estimated cost {claim.amount} exceeds the {format_money(max(left, Decimal(0)))} "
            f"that remain of QiskitBudget {name} ({format_money(limit)}{_each(spec)})"
        )
    old = next((each for each in status.reservations if each.uid == claim.uid), None)
    if old is not None:
        claim = attrs.evolve(claim, since=old.since)
    others = tuple(each for each in status.reservations if each.uid != claim.uid)
    return attrs.evolve(status, reservations=(*others, claim))


def settle(
    status: QiskitBudgetStatus, uid: str, amount: Decimal | None, ended: datetime
) -> QiskitBudgetStatus:
    """The status with the job's reservation turned into a charge; without one, as it was.

    Args:
        amount: what the job has cost; None charges what was reserved.
        ended: when the job ended, which decides the period that is charged.
    """
    claim = next((each for each in status.reservations if each.uid == uid), None)
    if claim is None:
        return status
    others = tuple(each for each in status.reservations if each.uid != uid)
    status = attrs.evolve(status, reservations=others)
    charge = parse_money(claim.amount) if amount is None else amount
    if charge == 0 or status.window is None:
        return status
    if ended < parse_time(status.window.start):
        for number, past in enumerate(status.history):
            if ended >= parse_time(past.start):
                charged = _charge(past, charge)
                history = (*status.history[:number], charged, *status.history[number + 1 :])
                return attrs.evolve(status, history=history)
    return attrs.evolve(status, window=_charge(status.window, charge))


def _charge(window: WindowStatus, amount: Decimal) -> WindowStatus:
    total = parse_money(window.spent) + amount
    return attrs.evolve(window, spent=format_money(total), jobs=window.jobs + 1)


def _each(spec: QiskitBudgetSpec) -> str:
    return "" if spec.period == "total" else f" {spec.period}"


# --- what is shown --------------------------------------------------------------------------


def summarise(
    spec: QiskitBudgetSpec, status: QiskitBudgetStatus, now: datetime
) -> QiskitBudgetStatus:
    """The status with its sums."""
    charged, waiting = spent(status), reserved(status)
    left = parse_money(spec.limit) - charged - waiting
    return attrs.evolve(
        status,
        spent=format_money(charged),
        reserved=format_money(waiting),
        remaining=f"-{format_money(-left)}" if left < 0 else format_money(left),
        forecast=format_money(forecast(status, now)),
    )


def forecast(status: QiskitBudgetStatus, now: datetime) -> Decimal:
    """What the period will cost: as much a day as until now, and at least what is known of."""
    known = spent(status) + reserved(status)
    window = status.window
    if window is None or window.end is None:
        return known
    start, end = parse_time(window.start), parse_time(window.end)
    share = Decimal((now - start) // timedelta(seconds=1)) / Decimal(
        (end - start) // timedelta(seconds=1)
    )
    if share < LEAST_SHARE:
        return known
    pace = (spent(status) / min(share, Decimal(1))).quantize(CENT, rounding=ROUND_CEILING)
    return max(known, pace)


def thresholds_reached(spec: QiskitBudgetSpec, status: QiskitBudgetStatus) -> tuple[float, ...]:
    """The thresholds that nobody was told of yet in this period, the lowest first."""
    used, limit = spent(status) + reserved(status), parse_money(spec.limit)
    return tuple(
        each
        for each in sorted(set(spec.alert_thresholds))
        if each not in status.alerted and used > 0 and used >= Decimal(str(each)) * limit
    )


def next_change(status: QiskitBudgetStatus, now: datetime) -> timedelta:
    """When to look again, though nothing happens: at the end of the period, and every hour for
    the forecast."""
    hour = timedelta(hours=1)
    if status.window is None or status.window.end is None:
        return hour
    left = parse_time(status.window.end) - now.astimezone(UTC)
    return min(max(left, timedelta(seconds=1)), hour)
