"""What Braket tells of a device, and what the controller can say of a spec by itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from braket.device_schema.standardized_gate_model_qpu_device_properties_v3 import (
    StandardizedGateModelQpuDeviceProperties as Version3,
)

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.drivers import controller_driver
from qiskit_controller.drivers.aws_braket import devices
from qiskit_controller.drivers.aws_braket.controller import DeviceArn, parse_arn
from tests.standins.braket import catalogue

WEDNESDAY = datetime(2026, 9, 30, 12, 0, tzinfo=UTC)


def window(day: str, begin: str, end: str) -> dict[str, str]:
    return {"executionDay": day, "windowStartHour": begin, "windowEndHour": end}


@pytest.mark.parametrize(
    ("windows", "opens"),
    [
        ([window("Everyday", "00:00:00", "23:59:59")], "2026-09-30 12:00"),
        ([window("Everyday", "13:00:00", "15:00:00")], "2026-09-30 13:00"),
        ([window("Everyday", "09:00:00", "11:00:00")], "2026-10-01 09:00"),
        ([window("Weekdays", "09:00:00", "11:00:00")], "2026-10-01 09:00"),
        ([window("Weekend", "09:00:00", "11:00:00")], "2026-10-03 09:00"),
        ([window("Wednesday", "09:00:00", "11:00:00")], "2026-10-07 09:00"),
        ([window("Tuesday", "22:00:00", "13:00:00")], "2026-09-30 12:00"),  # past midnight
        (
            [window("Friday", "01:00:00", "02:00:00"), window("Thursday", "03:00:00", "04:00:00")],
            "2026-10-01 03:00",
        ),
        ([window("Holidays", "01:00:00", "02:00:00")], None),
        ([], None),
    ],
)
def test_when_a_device_executes(windows: list[dict[str, str]], opens: str | None) -> None:
    found = devices.next_opening(windows, WEDNESDAY)
    assert (f"{found:%Y-%m-%d %H:%M}" if found else None) == opens


@pytest.mark.parametrize(
    ("cost", "prices"),
    [
        ({"price": 0.3, "unit": "shot"}, {"shot": Decimal("0.3")}),
        ({"price": 0.075, "unit": "minute"}, {"second": Decimal("0.00125")}),
        ({"price": 3600, "unit": "hour"}, {"second": Decimal(1)}),
        ({"price": 0.3, "unit": "task"}, {"task": Decimal("0.3")}),
        ({"price": 1, "unit": "fortnight"}, {}),
        (None, {}),
    ],
)
def test_prices(cost: object, prices: object) -> None:
    assert devices.prices_of({"deviceCost": cost}) == prices


def test_errors_of_version_3() -> None:
    def fidelity(value: float) -> dict[str, object]:
        kind = {"name": "RANDOMIZED_BENCHMARKING", "description": None}
        return {"fidelityType": kind, "fidelity": value, "unit": "fraction"}

    told = {
        "braketSchemaHeader": catalogue.header(
            "standardized_gate_model_qpu_device_properties", "3"
        ),
        "oneQubitProperties": {
            str(qubit): {"oneQubitFidelity": [fidelity(value)]}
            for qubit, value in enumerate((0.999, 0.998, 0.99))
        },
        "ReadoutFidelity": [fidelity(0.98)],
        "TwoQubitGateFidelity": [fidelity(0.97)],
    }
    Version3.parse_obj(told)  # it is of the schema
    found = devices.device_of(
        {
            "deviceArn": catalogue.FORTE,
            "deviceStatus": "ONLINE",
            "deviceType": "QPU",
            "deviceCapabilities": f'{{"standardized": {json.dumps(told)}}}',
        },
        WEDNESDAY,
    )
    assert found.single_qubit_error == pytest.approx(0.002)
    assert found.two_qubit_error == pytest.approx(0.03)
    assert found.readout_error == pytest.approx(0.02)


@pytest.mark.parametrize("capabilities", ["", "{", "[]", "null", "{}"])
def test_a_device_that_tells_nothing(capabilities: str) -> None:
    answer = {
        "deviceArn": catalogue.SV1,
        "deviceStatus": "ONLINE",
        "deviceType": "SIMULATOR",
        "deviceCapabilities": capabilities,
    }
    found = devices.device_of(answer, WEDNESDAY)
    assert not found.operational
    assert found.detail == "ONLINE, not gate-based"


@pytest.mark.parametrize(
    ("text", "number"), [("12", 12), (">4000", 4000), ("0 (1 prioritized)", 0), ("None", None)]
)
def test_numbers_of_a_queue(text: str, number: int | None) -> None:
    assert devices.queue_number(text) == number


# --- the controller half --------------------------------------------------------------------------


def problems(name: str | None) -> list[str]:
    backend = {"type": "aws_braket"} | ({} if name is None else {"name": name})
    spec = {"backend": backend, "circuit": {"source": "inline", "code": "qc = 1"}}
    return list(controller_driver("aws_braket").problems(from_wire(spec, QiskitJobSpec)))


@pytest.mark.parametrize(
    "name",
    [
        "braket_sv",
        "braket_dm",
        catalogue.SV1,
        catalogue.GARNET,
        "arn:aws-us-gov:braket:us-gov-west-1::device/qpu/ionq/Forte-1",
    ],
)
def test_names_that_may_be_devices(name: str) -> None:
    assert problems(name) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sv1", "'sv1' is neither the ARN of an Amazon Braket device, such as arn:aws:braket:::"),
        ("aer_simulator", "nor braket_sv or braket_dm"),
        ("arn:aws:s3:::bucket", "neither"),
        ("arn:aws:braket:::device/qpu/ionq/Forte-1", "without its region"),
        (catalogue.SV1 + "\n", "neither"),
    ],
)
def test_names_that_are_none(name: str | None, says: str) -> None:
    (problem,) = problems(name)
    assert problem.startswith("spec.backend.name: ")
    assert says in problem


def test_the_parts_of_an_arn() -> None:
    assert parse_arn(catalogue.GARNET) == DeviceArn("eu-north-1", True, "iqm", "Garnet")
    assert parse_arn(catalogue.SV1) == DeviceArn("", False, "amazon", "sv1")
    assert parse_arn("braket_sv") is None
