"""When to probe a QiskitBackend, and what came of it, as a pure function.

A probe is a Kubernetes Job that logs in and asks for the devices. Its answer is written into the
status first, together with the Job's UID, and then the Job is deleted; so a crash in between
counts no answer twice. Failures are asked again ever less often.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode
from datetime import datetime, timedelta
from typing import Literal

import attrs

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.conditions import Condition, find, upsert
from qiskit_controller.api.qiskitbackend import (
    DeviceStatus,
    QiskitBackendSpec,
    QiskitBackendStatus,
)
from qiskit_controller.api.quantities import (
    format_duration,
    format_time,
    parse_duration,
    parse_time,
)
from qiskit_controller.api.run import ProbeReport, Reason
from qiskit_controller.reconcilers.errands import ERRAND_TIME, LOOK_AGAIN, Errand, backoff

SHORTEST = timedelta(seconds=10)
# A provider that does not answer once may be there again in a moment.
FAILURES_TO_BE_DOWN = 3
# The newest probe's share of the availability.
NEWEST = 0.1
UNPACKED_BYTES = 4 << 20

# They run in the pod of each job, so there is nobody to ask.
IN_THE_POD = {"local_simulator": "aer_simulator", "ibm_simulator": ""}


@attrs.frozen
class Seen:
    """All that a decision is made from; `spec` is None, with `problem`, when it cannot be read."""

    generation: int
    spec: QiskitBackendSpec | None
    problem: str
    status: QiskitBackendStatus
    probe: Errand | None
    now: datetime


@attrs.frozen
class Note:
    """An Event about the QiskitBackend."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@attrs.frozen
class Decision:
    """What to write, in this order: the status, the probe's end, a new probe."""

    status: QiskitBackendStatus
    delete_probe: bool = False
    start_probe: bool = False
    notes: tuple[Note, ...] = ()
    requeue_after: timedelta | None = None


def decide(seen: Seen) -> Decision:
    """The next step for a QiskitBackend."""
    status = attrs.evolve(seen.status, observed_generation=seen.generation)
    if seen.spec is None:
        return _noted(seen, _put(seen, status, "Available", "False", "InvalidSpec", seen.problem))
    if seen.spec.type in IN_THE_POD:
        return _in_the_pod(seen, seen.spec, status)
    probe = seen.probe
    if probe is None:
        due = _next_probe(seen, seen.spec)
        if seen.now >= due:
            return Decision(status, start_probe=True, requeue_after=ERRAND_TIME)
        return Decision(status, requeue_after=due - seen.now)
    if probe.deleting:
        return Decision(status, requeue_after=LOOK_AGAIN)
    if probe.uid == seen.status.probe_uid:
        # Said already.
        return Decision(status, delete_probe=True, requeue_after=LOOK_AGAIN)
    if not probe.over:
        return _waiting(seen, status, probe)
    status = attrs.evolve(status, probe_uid=probe.uid, last_probe=format_time(seen.now))
    report = _read(probe)
    if report.reason is None:
        status = _answered(seen, seen.spec, status, report)
    else:
        status = _failed(seen, status, report.reason, report.message)
    decision = _noted(seen, status)
    return attrs.evolve(decision, delete_probe=True, requeue_after=LOOK_AGAIN)


def interval(spec: QiskitBackendSpec, failures: int) -> timedelta:
    """How long after a probe the next one is made: doubled for each failure in a row, to an hour
    at most, unless the period itself is longer."""
    try:
        period = max(parse_duration(spec.probe.interval), SHORTEST)
    except ValueError:
        period = timedelta(minutes=5)
    return backoff(period, failures)


def _next_probe(seen: Seen, spec: QiskitBackendSpec) -> datetime:
    last = seen.status.last_probe
    if last is None or seen.status.observed_generation != seen.generation:
        return seen.now
    return parse_time(last) + interval(spec, seen.status.failures)


def _in_the_pod(seen: Seen, spec: QiskitBackendSpec, status: QiskitBackendStatus) -> Decision:
    name = spec.name or IN_THE_POD[spec.type]
    if not name:
        text = f"spec.name: {spec.type} needs the name of a device to simulate"
        return _noted(seen, _put(seen, status, "Available", "False", "InvalidSpec", text))
    device = DeviceStatus(
        name=name,
        simulator=True,
        operational=True,
        dynamic=True,
        pending_jobs=0,
        availability=1.0,
    )
    status = attrs.evolve(
        status,
        operational=True,
        ready="1/1",
        pending_jobs=0,
        devices=(device,),
        last_probe=status.last_probe or format_time(seen.now),
    )
    text = "It runs in the pod of each job"
    status = _put(seen, status, "Available", "True", "RunsInThePod", text)
    return _noted(seen, _put(seen, status, "CredentialsValid", "True", "NotNeeded", text))


def _waiting(seen: Seen, status: QiskitBackendStatus, probe: Errand) -> Decision:
    if probe.problem:
        known = find(status.conditions, "CredentialsValid")
        value = known.status if known is not None else "Unknown"
        status = _put(seen, status, "CredentialsValid", value, "ProbeWaiting", probe.problem)
        if find(status.conditions, "Available") is None:
            status = _put(seen, status, "Available", "Unknown", "ProbeWaiting", probe.problem)
    decision = _noted(seen, status)
    return attrs.evolve(decision, requeue_after=LOOK_AGAIN)


def _read(probe: Errand) -> ProbeReport:
    try:
        report = from_wire(json.loads(probe.message), ProbeReport)
        if report.packed:
            unpacker = zlib.decompressobj()
            content = unpacker.decompress(b64decode(report.packed), UNPACKED_BYTES)
            if unpacker.unconsumed_tail:
                raise ValueError("the list of devices is too long")
            report = attrs.evolve(
                report, devices=from_wire(json.loads(content), tuple[DeviceStatus, ...]), packed=""
            )
        return report
    except (ValueError, zlib.error, RecursionError):
        told = probe.problem or probe.message.strip()[:200] or "it left no report"
        return ProbeReport(reason=Reason.STAGE_FAILED, message=f"the probe failed: {told}")


def _answered(
    seen: Seen, spec: QiskitBackendSpec, status: QiskitBackendStatus, report: ProbeReport
) -> QiskitBackendStatus:
    before = {each.name: each.availability for each in seen.status.devices}
    devices = tuple(
        attrs.evolve(each, availability=_availability(before.get(each.name), each.operational))
        for each in sorted(report.devices, key=lambda each: each.name)
    )
    status = attrs.evolve(status, devices=devices, failures=0)
    status = _summed(status)
    status = _put(
        seen, status, "CredentialsValid", "True", "LoggedIn", "The account could be logged in to"
    )
    if not devices:
        what = f"device {spec.name}" if spec.name else "device"
        text = f"The account has no {what}"
        return _put(seen, status, "Available", "False", "NoDevices", text)
    if status.operational:
        text = f"{status.ready} devices take jobs"
        if report.left_out:
            text += f"; {report.left_out} more did not fit into the report"
        return _put(seen, status, "Available", "True", "Operational", text)
    why = "; ".join(f"{each.name} {each.detail}".rstrip() for each in devices[:8])
    text = f"No device takes jobs: {why}"
    return _put(seen, status, "Available", "False", "NotOperational", text)


def _availability(before: float | None, operational: bool) -> float:
    now = 1.0 if operational else 0.0
    return now if before is None else round(before * (1 - NEWEST) + now * NEWEST, 4)


def _failed(
    seen: Seen, status: QiskitBackendStatus, reason: Reason, message: str
) -> QiskitBackendStatus:
    failures = seen.status.failures + 1
    status = attrs.evolve(status, failures=failures)
    # Of the drivers' own list: what no repetition mends.
    refused = str(reason) == "BackendDenied"
    value: Literal["False", "Unknown"] = "False" if refused else "Unknown"
    status = _put(seen, status, "CredentialsValid", value, str(reason), message)
    if refused or failures >= FAILURES_TO_BE_DOWN:
        devices = tuple(
            attrs.evolve(
                each,
                operational=False,
                detail=message[:200],
                availability=_availability(each.availability, False),
            )
            for each in status.devices
        )
        status = _summed(attrs.evolve(status, devices=devices))
        return _put(seen, status, "Available", "False", str(reason), message)
    wait = format_duration(interval(seen.spec, failures)) if seen.spec else ""
    text = f"{message}; asking again in {wait}"
    return _put(seen, status, "Available", "Unknown", str(reason), text)


def _summed(status: QiskitBackendStatus) -> QiskitBackendStatus:
    up = [each for each in status.devices if each.operational]
    queues = [each.pending_jobs for each in up if each.pending_jobs is not None]
    return attrs.evolve(
        status,
        operational=bool(up),
        ready=f"{len(up)}/{len(status.devices)}",
        qubits=max((each.qubits or 0 for each in status.devices), default=0) or None,
        pending_jobs=min(queues, default=None),
    )


def _put(
    seen: Seen,
    status: QiskitBackendStatus,
    type_: str,
    value: Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
) -> QiskitBackendStatus:
    condition = Condition(
        type=type_,
        status=value,
        reason=reason,
        message=message,
        observed_generation=seen.generation,
    )
    return attrs.evolve(status, conditions=upsert(status.conditions, condition, seen.now))


def _noted(seen: Seen, status: QiskitBackendStatus) -> Decision:
    """The decision to write the status, with an Event for each condition that is news."""
    notes = []
    for condition in status.conditions:
        old = find(seen.status.conditions, condition.type)
        if old is not None and (old.status, old.reason) == (condition.status, condition.reason):
            continue
        bad = condition.status == "False" or condition.reason == "ProbeWaiting"
        if bad or (old is not None and old.status == "False"):
            kind: Literal["Normal", "Warning"] = "Warning" if bad else "Normal"
            notes.append(Note(kind, condition.reason, condition.message))
    return Decision(status, notes=tuple(notes))
