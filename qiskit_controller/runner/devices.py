"""What an account's devices are, asked through a driver: for a job, and for a QiskitBackend."""

from __future__ import annotations

import json
import os
import time
import zlib
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import attrs

from qiskit_controller.api.billing import format_amounts
from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.qiskitbackend import DeviceStatus
from qiskit_controller.api.run import (
    MAX_REPORT_BYTES,
    PROBE_ENV,
    Plan,
    ProbeReport,
    ProbeRequest,
    Reason,
)
from qiskit_controller.drivers import NoDriver, RunFailed, placed, runner_driver
from qiskit_controller.drivers.remote import Device, RemoteDriver, Unavailable
from qiskit_controller.runner import story
from qiskit_controller.runner.hostile import MESSAGE_CHARACTERS, clean
from qiskit_controller.runner.plan import plan_of_backend
from qiskit_controller.runner.pod import Paths

T = TypeVar("T")

FIRST_WAIT = timedelta(seconds=2)
LONGEST_WAIT = timedelta(minutes=5)
# One probe of a QiskitBackend; the controller comes back later.
PROBE_PATIENCE = timedelta(minutes=2)


def ask(plan: Plan, credentials: Path, name: str | None = None) -> tuple[DeviceStatus, ...]:
    """The devices of an account, once.

    Args:
        credentials: the folder with the Secret's keys.
        name: only the device of that name.

    Raises:
        RunFailed: the credentials are missing or refused.
        Unavailable: the provider does not answer.
        NoDriver: the type has no driver.
    """
    driver = placed(runner_driver(plan.spec.backend.type), plan)
    if not isinstance(driver, RemoteDriver):
        return (_in_the_pod(plan),)
    return tuple(status_of(each) for each in driver.connect(plan, credentials).devices(name))


def _in_the_pod(plan: Plan) -> DeviceStatus:
    """What runs in this process has no account to ask."""
    name = plan.spec.backend.name or plan.spec.backend.type
    return DeviceStatus(name=name, simulator=True, operational=True, dynamic=True, pending_jobs=0)


def ask_patiently(
    plan: Plan,
    credentials: Path,
    name: str | None = None,
    *,
    patience: timedelta,
    waiting: Callable[[str], None] = story.say,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[DeviceStatus, ...]:
    """The same, asked again while the provider does not answer.

    Args:
        patience: after which it is given up.
        waiting: told, for people, that there was no answer.

    Raises:
        Unavailable: it did not answer within that time.
    """
    return patiently(
        lambda: ask(plan, credentials, name), patience=patience, waiting=waiting, sleep=sleep
    )


def patiently(
    ask: Callable[[], T],
    *,
    patience: timedelta,
    waiting: Callable[[str], None] = story.say,
    sleep: Callable[[float], None] = time.sleep,
    again: Callable[[Unavailable], bool] = lambda _: True,
) -> T:
    """What `ask` returns, asked again while the provider does not answer.

    Args:
        patience: after which it is given up.
        waiting: told, for people, that there was no answer.
        again: whether it may be asked again.

    Raises:
        Unavailable: it did not answer within that time, or may not be asked again.
    """
    begun, waited, wait = time.monotonic(), timedelta(0), FIRST_WAIT
    while True:
        try:
            return ask()
        except Unavailable as error:
            pause = max(error.retry_after or timedelta(0), wait)
            # A question may take longer than the pauses.
            passed = max(waited, timedelta(seconds=time.monotonic() - begun))
            if passed + pause > patience or not again(error):
                raise
            waiting(f"{clean(error.message, MESSAGE_CHARACTERS)}; asking again")
        sleep(pause.total_seconds())
        waited, wait = waited + pause, min(wait * 2, LONGEST_WAIT)


def status_of(device: Device) -> DeviceStatus:
    """A device as the API shows it."""

    def seconds(duration: timedelta | None) -> float | None:
        return None if duration is None else duration.total_seconds()

    return DeviceStatus(
        name=device.name,
        simulator=device.simulator,
        operational=device.operational,
        detail=clean(device.detail, MESSAGE_CHARACTERS),
        qubits=device.qubits,
        basis_gates=tuple(device.basis_gates),
        dynamic=device.dynamic,
        pending_jobs=device.pending_jobs,
        queue_time=seconds(device.queue_time),
        single_qubit_error=device.single_qubit_error,
        two_qubit_error=device.two_qubit_error,
        readout_error=device.readout_error,
        shot_time=seconds(device.shot_time),
        prices=format_amounts(device.prices),
    )


def run_probe(paths: Paths) -> int:
    """The command ``qiskit-runner probe``: asks, and leaves a ProbeReport as its last word."""
    request = from_wire(json.loads(os.environ[PROBE_ENV]), ProbeRequest)
    report = _probe(request, paths)
    story.say(
        f"Probed     {len(report.devices)} devices"
        if report.reason is None
        else f"Failed     {report.reason}: {report.message}"
    )
    paths.termination_log.write_text(encode_probe(report))
    return 0 if report.reason is None else 1


def _probe(request: ProbeRequest, paths: Paths) -> ProbeReport:
    plan = plan_of_backend(request.backend)
    try:
        devices = ask_patiently(
            plan, paths.credentials, request.backend.name, patience=PROBE_PATIENCE
        )
    except RunFailed as error:
        return ProbeReport(reason=error.reason, message=clean(error.message, MESSAGE_CHARACTERS))
    except Unavailable as error:
        message = clean(error.message, MESSAGE_CHARACTERS)
        return ProbeReport(reason=Reason.BACKEND_UNAVAILABLE, message=message)
    except NoDriver as error:
        return ProbeReport(reason=Reason.UNSUPPORTED, message=f"spec.type: {error}")
    return ProbeReport(devices=devices)


def encode_probe(report: ProbeReport, limit: int = MAX_REPORT_BYTES) -> str:
    """The report as at most `limit` bytes of JSON: as it is, else compressed, else without the
    names of gates, else with as many devices as fit."""
    plain = json.dumps(to_wire(report), separators=(",", ":"))
    if len(plain.encode()) <= limit:
        return plain
    brief = [attrs.evolve(each, basis_gates=()) for each in report.devices]
    attempts: list[Sequence[DeviceStatus]] = [report.devices, brief]
    attempts += [brief[:number] for number in range(len(brief) - 1, 0, -1)]
    for devices in attempts:
        left_out = len(report.devices) - len(devices)
        content = json.dumps(to_wire(tuple(devices)), separators=(",", ":")).encode()
        packed = b64encode(zlib.compress(content, 9)).decode()
        made = attrs.evolve(report, devices=(), packed=packed, left_out=left_out)
        text = json.dumps(to_wire(made), separators=(",", ":"))
        if len(text.encode()) <= limit:
            return text
    raise ValueError("a report without devices is short")
