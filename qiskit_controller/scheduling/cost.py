"""What a run will use, and what that costs.

Amounts are decimal, and become cents only at the very end, always upwards: what costs something
never shows as nothing.

Sources of the formulas:

- IBM, https://quantum.cloud.ibm.com/docs/guides/estimate-job-run-time: usage is the time for which
  the QPU is locked, about ``<per sub-job overhead> + (rep_delay + <circuit length>) * <shots>``,
  in short ``2 + 0.00035 * <shots>``: two seconds, and for each shot the usual repetition delay
  of 250 microseconds and 100 for the circuit and its readout.
- Braket, https://aws.amazon.com/braket/pricing/: QPUs by task and shot; simulators by the
  duration, three seconds at least.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from decimal import ROUND_CEILING, Decimal, localcontext

import attrs

from qiskit_controller.api.billing import UNITS, BillingUnit
from qiskit_controller.scheduling.prices import Rates, Unknown

CENT = Decimal("0.01")
# More than anybody has. What a formula makes beyond it is no estimate any more.
MOST = Decimal("999999999999.99")

IBM_OVERHEAD = Decimal(2)
IBM_SHOT_TIME = timedelta(microseconds=250)
# A short circuit with its readout, and each layer of gates of a long one: two-qubit gates take 70
# to 660 nanoseconds on the devices in service, and some layers have only faster ones.
IBM_SHORT_CIRCUIT = Decimal("0.0001")
IBM_LAYER = Decimal("0.0000006")

BRAKET_LEAST_SECONDS = Decimal(3)
# Of an on-demand simulator; the service ends what takes longer.
BRAKET_MOST_SECONDS = Decimal(6 * 3600)
# Amplitudes that a state vector simulator updates in a second, roughly.
AMPLITUDES = Decimal(10) ** 9

Usage = Mapping[BillingUnit, Decimal]
Cost = Decimal | Unknown


@attrs.frozen
class Work:
    """What is to be run: a circuit as the user wrote it, so many times."""

    shots: int
    qubits: int
    depth: int
    gates: int


def expected_usage(
    backend_type: str, work: Work, *, simulator: bool = False, shot_time: timedelta | None = None
) -> Usage:
    """What a run will use of each unit that may be billed.

    Args:
        simulator: whether the device is one; Braket bills those by time.
        shot_time: the device's repetition delay; IBM's usual one where it is unknown.
    """
    counted: dict[BillingUnit, Decimal] = {"task": Decimal(1), "shot": Decimal(work.shots)}
    if backend_type == "ibm_quantum":
        return counted | {"second": _ibm_seconds(work, shot_time)}
    if backend_type == "aws_braket" and simulator:
        return counted | {"second": _simulator_seconds(work)}
    return counted


def _ibm_seconds(work: Work, shot_time: timedelta | None) -> Decimal:
    delay = _seconds(shot_time if shot_time is not None else IBM_SHOT_TIME)
    circuit = max(IBM_SHORT_CIRCUIT, work.depth * IBM_LAYER)
    return IBM_OVERHEAD + work.shots * (delay + circuit)


def _simulator_seconds(work: Work) -> Decimal:
    if work.qubits > 64:  # SV1 has 34
        return BRAKET_MOST_SECONDS
    seconds = work.gates * Decimal(2) ** work.qubits / AMPLITUDES
    return min(max(seconds, BRAKET_LEAST_SECONDS), BRAKET_MOST_SECONDS)


def _seconds(duration: timedelta) -> Decimal:
    return Decimal(duration // timedelta(microseconds=1)) / 1_000_000


def measured_usage(reported: Usage, *, shots: int | None, execution_time: float | None) -> Usage:
    """What a run has used: the provider's word, else what can be counted here."""
    if reported:
        return reported
    counted: dict[BillingUnit, Decimal] = {"task": Decimal(1)}
    if shots is not None:
        counted["shot"] = Decimal(shots)
    if execution_time is not None:
        # Of a float, what it prints as: its other digits mean nothing.
        counted["second"] = Decimal(str(round(max(execution_time, 0.0), 6)))
    return counted


def price(usage: Usage, rates: Rates | Unknown) -> Cost:
    """What the usage costs, in cents rounded up. Never negative, never a NaN."""
    if isinstance(rates, Unknown):
        return rates
    with localcontext() as context:
        context.prec = 60
        total = Decimal(0)
        for unit in UNITS:
            if not rates.prices.get(unit):
                continue
            if unit not in usage:
                return Unknown(f"{unit}s are billed, and how many it takes is not known")
            total += rates.prices[unit] * usage[unit]
        if not total.is_finite() or total < 0 or total > MOST:
            return Unknown("it is beyond all measure")
        return total.quantize(CENT, rounding=ROUND_CEILING)
