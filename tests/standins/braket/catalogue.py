"""Devices of the stand-in, in the form of GetDevice.

The forms are those of amazon-braket-schemas; gates, sizes, prices and fidelities are like those
that Amazon publishes of these devices, on fewer qubits where the real lattice is large.
"""

from __future__ import annotations

import json
from typing import Any

from braket.device_schema import DeviceActionType
from braket.devices import LocalSimulator

Json = dict[str, Any]

SV1 = "arn:aws:braket:::device/quantum-simulator/amazon/sv1"
DM1 = "arn:aws:braket:::device/quantum-simulator/amazon/dm1"
TN1 = "arn:aws:braket:::device/quantum-simulator/amazon/tn1"
FORTE = "arn:aws:braket:us-east-1::device/qpu/ionq/Forte-1"
GARNET = "arn:aws:braket:eu-north-1::device/qpu/iqm/Garnet"
ANKAA = "arn:aws:braket:us-west-1::device/qpu/rigetti/Ankaa-3"
AQUILA = "arn:aws:braket:us-east-1::device/qpu/quera/Aquila"
OLD = "arn:aws:braket:us-east-1::device/qpu/ionq/Harmony"

ALWAYS = [{"executionDay": "Everyday", "windowStartHour": "00:00:00", "windowEndHour": "23:59:59"}]
# What a device takes that is not made of native gates.
GATES = [
    *("ccnot", "cnot", "cphaseshift", "cswap", "cy", "cz", "h", "i", "iswap", "phaseshift"),
    *("prx", "rx", "ry", "rz", "s", "si", "swap", "t", "ti", "v", "vi", "x", "xx", "xy", "y"),
    *("yy", "z", "zz"),
]


def header(name: str, version: str = "1") -> Json:
    return {"name": f"braket.device_schema.{name}", "version": version}


def service(price: float, unit: str, shots: tuple[int, int], where: str) -> Json:
    return {
        "braketSchemaHeader": header("device_service_properties"),
        "executionWindows": ALWAYS,
        "shotsRange": list(shots),
        "deviceCost": {"price": price, "unit": unit},
        "deviceDocumentation": None,
        "deviceLocation": where,
        "updatedAt": "2026-09-01T00:00:00+00:00",
        "getTaskPollIntervalMillis": None,
    }


def openqasm(operations: list[str], **more: Any) -> Json:
    return {
        "braket.ir.openqasm.program": {
            "version": ["1"],
            "actionType": "braket.ir.openqasm.program",
            "supportedOperations": operations,
            "supportedResultTypes": [],
            "supportedPragmas": ["verbatim"],
            "supportPhysicalQubits": True,
            **more,
        }
    }


def simulator(arn: str, local: str, qubits: int, price: float) -> Json:
    """An on-demand simulator: the gates are those of the SDK's own."""
    action = json.loads(LocalSimulator(local).properties.action[DeviceActionType.OPENQASM].json())
    # The modifiers' classes do not survive their own JSON.
    action["supportedModifiers"] = [{"name": "ctrl"}, {"name": "negctrl"}]
    name = arn.rpartition("/")[2]
    return {
        "deviceArn": arn,
        "deviceName": name.upper(),
        "providerName": "Amazon Braket",
        "deviceType": "SIMULATOR",
        "deviceStatus": "ONLINE",
        "deviceCapabilities": {
            "braketSchemaHeader": header("simulators.gate_model_simulator_device_capabilities"),
            "service": service(price, "minute", (0, 100_000), "us-east-1"),
            "action": {"braket.ir.openqasm.program": action},
            "deviceParameters": {},
            "paradigm": {
                "braketSchemaHeader": header("simulators.gate_model_simulator_paradigm_properties"),
                "qubitCount": qubits,
            },
        },
    }


def qpu(arn: str, kind: str, price: float, shots: tuple[int, int], **more: Any) -> Json:
    provider, name = arn.split("/")[-2:]
    return {
        "deviceArn": arn,
        "deviceName": name,
        "providerName": {"ionq": "IonQ", "iqm": "IQM"}.get(provider, provider.capitalize()),
        "deviceType": "QPU",
        "deviceStatus": "ONLINE",
        "deviceCapabilities": {
            "braketSchemaHeader": header(kind),
            "service": service(price, "shot", shots, arn.split(":")[3]),
            "deviceParameters": {},
            **more,
        },
    }


def paradigm(qubits: int, native: list[str], edges: list[tuple[int, int]] | None) -> Json:
    graph: dict[str, list[str]] = {}
    for a, b in edges or ():
        graph.setdefault(str(a), []).append(str(b))
        graph.setdefault(str(b), []).append(str(a))
    return {
        "braketSchemaHeader": header("gate_model_qpu_paradigm_properties"),
        "connectivity": {"fullyConnected": edges is None, "connectivityGraph": graph},
        "qubitCount": qubits,
        "nativeGateSet": native,
    }


def standardized(edges: list[tuple[int, int]], gate: str) -> Json:
    """Version 1; the qubits and pairs differ a little, so that one is the best."""
    qubits = sorted({each for pair in edges for each in pair})

    def one(number: int) -> Json:
        def fidelity(name: str, value: float) -> Json:
            return {
                "fidelityType": {"name": name, "description": None},
                "fidelity": value,
                "standardError": None,
            }

        time = {"value": 3e-5, "standardError": None, "unit": "S"}
        return {
            "T1": time,
            "T2": time,
            "oneQubitFidelity": [
                fidelity("RANDOMIZED_BENCHMARKING", 0.999 - number * 1e-6),
                fidelity("READOUT", 0.97 - number * 1e-6),
            ],
        }

    def two(a: int, b: int) -> Json:
        return {
            "twoQubitGateFidelity": [
                {
                    "direction": None,
                    "gateName": gate,
                    "fidelity": 0.99 - (a + b) * 1e-6,
                    "standardError": None,
                    "fidelityType": {"name": "RANDOMIZED_BENCHMARKING", "description": None},
                }
            ]
        }

    return {
        "braketSchemaHeader": header("standardized_gate_model_qpu_device_properties"),
        "oneQubitProperties": {str(each): one(each) for each in qubits},
        "twoQubitProperties": {f"{a}-{b}": two(a, b) for a, b in edges},
    }


def lattice(rows: int, columns: int, first: int) -> list[tuple[int, int]]:
    """Neighbours on a square lattice whose qubits are numbered from `first`."""
    found = []
    for row in range(rows):
        for column in range(columns):
            here = first + row * columns + column
            if column + 1 < columns:
                found.append((here, here + 1))
            if row + 1 < rows:
                found.append((here, here + columns))
    return found


def devices() -> dict[str, Json]:
    """Every device by its ARN; ``deviceCapabilities`` is an object still."""
    # IQM numbers its qubits from 1. The lattice has a hole, as real ones have.
    garnet = [pair for pair in lattice(4, 5, 1) if 13 not in pair]
    ankaa = lattice(3, 4, 0)
    found = [
        simulator(SV1, "braket_sv", 34, 0.075),
        simulator(DM1, "braket_dm", 17, 0.075),
        simulator(TN1, "braket_sv", 50, 0.275),
        qpu(
            FORTE,
            "ionq.ionq_device_capabilities",
            0.08,
            (100, 5000),
            action=openqasm(GATES),
            paradigm=paradigm(12, ["gpi", "gpi2", "zz"], None),
            provider={
                "braketSchemaHeader": header("ionq.ionq_provider_properties"),
                "fidelity": {
                    "1Q": {"mean": 0.9998},
                    "2Q": {"mean": 0.9958},
                    "spam": {"mean": 0.9948},
                },
                "timing": {"T1": 188.0, "T2": 0.95, "1Q": 1.3e-4, "2Q": 9.7e-4},
            },
        ),
        qpu(
            GARNET,
            "iqm.iqm_device_capabilities",
            0.00145,
            (1, 20_000),
            action=openqasm([*GATES, "if"]),
            paradigm=paradigm(19, ["prx", "cz"], garnet),
            standardized=standardized(garnet, "CZ"),
        ),
        qpu(
            ANKAA,
            "rigetti.rigetti_device_capabilities",
            0.0009,
            (10, 50_000),
            action=openqasm(GATES),
            paradigm=paradigm(12, ["rx", "rz", "iswap"], ankaa),
            standardized=standardized(ankaa, "ISWAP"),
        ),
        qpu(AQUILA, "quera.quera_device_capabilities", 0.01, (1, 1000), action={}, paradigm={}),
        qpu(
            OLD,
            "ionq.ionq_device_capabilities",
            0.01,
            (1, 10_000),
            action=openqasm(GATES),
            paradigm=paradigm(11, ["gpi", "gpi2", "ms"], None),
        )
        | {"deviceStatus": "RETIRED"},
    ]
    return {each["deviceArn"]: each for each in found}
