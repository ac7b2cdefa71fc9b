"""What Amazon Braket tells of a device, as plain values.

``deviceCapabilities`` of GetDevice is JSON, of which amazon-braket-schemas
(``braket.device_schema``) is the definition. It is read here as it comes: a device that is newer
than the installed schemas is still listed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from statistics import median
from typing import Any

from qiskit_controller.drivers import BillingUnit
from qiskit_controller.drivers.remote import Device

OPENQASM = "braket.ir.openqasm.program"

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_DAYS: Mapping[str, frozenset[int]] = {
    "Everyday": frozenset(range(7)),
    "Weekdays": frozenset(range(5)),
    "Weekend": frozenset((5, 6)),
    **{name: frozenset((number,)) for number, name in enumerate(_WEEKDAYS)},
}
# deviceCost of DeviceServiceProperties: a price and its unit.
_SECONDS: Mapping[str, int] = {"second": 1, "minute": 60, "hour": 3600}


def capabilities_of(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """``deviceCapabilities`` of an answer of GetDevice; empty where it is no JSON object."""
    try:
        found = json.loads(answer.get("deviceCapabilities") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def openqasm_of(capabilities: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How it takes OpenQASM; None for one that is not gate-based."""
    actions = capabilities.get("action") or {}
    found = actions.get(OPENQASM)
    return found if isinstance(found, dict) else None


def device_of(answer: Mapping[str, Any], now: datetime) -> Device:
    """A device, from an answer of GetDevice."""
    capabilities = capabilities_of(answer)
    action = openqasm_of(capabilities)
    service = capabilities.get("service") or {}
    status = str(answer["deviceStatus"])
    operational, detail = status == "ONLINE", status
    if action is None:
        operational, detail = False, f"{status}, not gate-based"
    elif operational:
        opens = next_opening(service.get("executionWindows") or (), now)
        if opens is not None and opens > now:
            detail = f"{status}, executes from {opens:%Y-%m-%d %H:%M} UTC"
    paradigm = capabilities.get("paradigm") or {}
    operations = tuple(str(each) for each in (action or {}).get("supportedOperations") or ())
    errors = _errors(capabilities)
    return Device(
        name=str(answer["deviceArn"]),
        simulator=answer["deviceType"] == "SIMULATOR",
        operational=operational,
        detail=detail,
        qubits=_integer(paradigm.get("qubitCount")),
        basis_gates=tuple(str(each) for each in paradigm.get("nativeGateSet") or operations),
        dynamic="if" in {each.lower() for each in operations},
        pending_jobs=_queue(answer.get("deviceQueueInfo") or ()),
        single_qubit_error=errors["one"],
        two_qubit_error=errors["two"],
        readout_error=errors["readout"],
        prices=prices_of(service),
    )


def prices_of(service: Mapping[str, Any]) -> dict[BillingUnit, Decimal]:
    """US dollars by unit, as far as the device tells."""
    cost = service.get("deviceCost") or {}
    price, unit = cost.get("price"), str(cost.get("unit", "")).lower().rstrip("s")
    if price is None:
        return {}
    amount = Decimal(str(price))
    if unit in _SECONDS:
        return {"second": amount / _SECONDS[unit]}
    if unit == "task":
        return {"task": amount}
    return {"shot": amount} if unit == "shot" else {}


def shots_range(service: Mapping[str, Any]) -> tuple[int, int] | None:
    """The fewest and the most shots of a task, where the device tells."""
    found = service.get("shotsRange")
    if not isinstance(found, (list, tuple)) or len(found) != 2:
        return None
    return int(found[0]), int(found[1])


def next_opening(windows: Iterable[Mapping[str, Any]], now: datetime) -> datetime | None:
    """When it executes: `now` inside of a window, else when the next one opens.

    Args:
        windows: ``executionWindows`` of DeviceServiceProperties: days and hours in UTC.

    Returns:
        None where it tells of no window.
    """
    now = now.astimezone(UTC)
    found: list[datetime] = []
    for window in windows:
        days = _DAYS.get(str(window.get("executionDay")), frozenset())
        begin, end = _hour(window.get("windowStartHour")), _hour(window.get("windowEndHour"))
        if begin is None or end is None:
            continue
        # From yesterday, as a window may go past midnight.
        for ahead in range(-1, 8):
            day = (now + timedelta(days=ahead)).date()
            if day.weekday() not in days:
                continue
            opens = datetime.combine(day, begin, UTC)
            closes = datetime.combine(day, end, UTC)
            if closes <= opens:
                closes += timedelta(days=1)
            if closes > now:
                found.append(max(opens, now))
                break
    return min(found, default=None)


def _hour(value: object) -> time | None:
    try:
        return time.fromisoformat(str(value)).replace(tzinfo=None)
    except ValueError:
        return None


def queue_number(text: object) -> int | None:
    """A number as Braket writes it: ``12``, or ``>4000`` for more than it counts."""
    found = re.search(r"\d+", str(text))
    return int(found[0]) if found else None


def _queue(queues: Iterable[Mapping[str, Any]]) -> int | None:
    sizes = [
        queue_number(each.get("queueSize"))
        for each in queues
        if each.get("queue") == "QUANTUM_TASKS_QUEUE"
    ]
    known = [each for each in sizes if each is not None]
    return sum(known) if known else None


def _integer(value: object) -> int | None:
    return int(value) if isinstance(value, (int, float)) else None


# --- errors -------------------------------------------------------------------------------------


def _errors(capabilities: Mapping[str, Any]) -> dict[str, float | None]:
    """Medians over the qubits and pairs of the standardized properties, versions 1 to 3.

    Of each qubit the worst fidelity that is told counts, as for a transpiler.
    """
    standardized = capabilities.get("standardized") or {}
    one: list[float] = []
    readout: list[float] = []
    for properties in (standardized.get("oneQubitProperties") or {}).values():
        gates: list[float] = []
        reads: list[float] = []
        for each in properties.get("oneQubitFidelity") or ():
            name = str((each.get("fidelityType") or {}).get("name", "")).lower()
            # READOUT_ERROR_0_TO_1 and its like tell the same as READOUT, in another way.
            if "readout_error" not in name:
                (reads if name == "readout" else gates).append(1 - float(each["fidelity"]))
        one += [max(gates)] if gates else []
        readout += [max(reads)] if reads else []
    two = list(_two_qubit(standardized))
    readout += _fidelities(standardized.get("ReadoutFidelity"))
    provider = (capabilities.get("provider") or {}).get("fidelity") or {}
    return {
        "one": _median(one or _mean(provider, "1Q")),
        "two": _median(two or _mean(provider, "2Q")),
        "readout": _median(readout or _mean(provider, "spam")),
    }


def _two_qubit(standardized: Mapping[str, Any]) -> Iterator[float]:
    for properties in (standardized.get("twoQubitProperties") or {}).values():
        gates = _fidelities(properties.get("twoQubitGateFidelity"))
        if gates:
            # Of several native gates, the transpiler takes the better one.
            yield min(gates)
    yield from _fidelities(standardized.get("TwoQubitGateFidelity"))


def _fidelities(found: Iterable[Mapping[str, Any]] | None) -> list[float]:
    return [1 - float(each["fidelity"]) for each in found or ()]


def _mean(provider: Mapping[str, Any], key: str) -> list[float]:
    mean = (provider.get(key) or {}).get("mean")
    return [] if mean is None else [1 - float(mean)]


def _median(errors: list[float]) -> float | None:
    # Without what floating point adds to 1 - 0.999.
    return round(median(errors), 9) if errors else None
