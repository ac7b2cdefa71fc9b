"""What is asked of the Amazon Braket SDK. Importing this takes seconds: it brings the simulators.

The SDK's simulators compile their kernels for larger circuits with numba, which keeps them in a
folder that can be written: here the container's ``/tmp``.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

# Before numba is imported. It refuses to work without a place for its cache.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / "numba"))

from braket.aws import AwsDevice, AwsDeviceType, AwsSession
from braket.device_schema import DeviceActionType
from braket.devices import LocalSimulator
from braket.ir.openqasm import Program
from braket.task_result import GateModelTaskResult
from braket.tasks import GateModelQuantumTaskResult
from qiskit.circuit import ControlledGate
from qiskit.transpiler import Target
from qiskit_braket_provider.providers.target import (
    aws_device_to_target,
    local_simulator_to_target,
)

from qiskit_controller.drivers.aws_braket.circuits import Shape
from qiskit_controller.drivers.aws_braket.service import Account

__all__ = [
    "AwsDevice",
    "GateModelQuantumTaskResult",
    "LocalSimulator",
    "Program",
    "Session",
    "local_shape",
    "read_result",
    "shape_of",
]


class Session(AwsSession):  # type: ignore[misc]  # the SDK publishes no types
    """The SDK's session, on an account's clients: its own would not know the Secret's endpoint."""

    def __init__(self, account: Account) -> None:
        super().__init__(
            boto_session=account.session,
            # Once: of a request that is repeated, nobody can tell any more what the first came to.
            braket_client=account.client("braket", tries=1),
            default_bucket=account.credentials.get("results-bucket"),
        )
        self._account = account

    @property
    def s3_client(self) -> Any:
        """For making sure of the default bucket."""
        return self._account.client("s3")

    @property
    def sts_client(self) -> Any:
        """For whose account it is."""
        return self._account.client("sts")


def shape_of(device: AwsDevice) -> Shape:
    """What a gate-based device takes.

    Raises:
        OSError: a QPU's calibrations, which are at an address of their own, cannot be read.
    """
    action = device.properties.action[DeviceActionType.OPENQASM]
    operations = frozenset(action.supportedOperations)
    with warnings.catch_warnings():
        # Of qubits that a calibration does not know.
        warnings.simplefilter("ignore")
        target = aws_device_to_target(device)
    qpu = device.type == AwsDeviceType.QPU
    return Shape(
        name=device.name,
        target=target,
        operations=operations,
        labels=tuple(sorted(device.topology_graph.nodes)) if qpu else None,
        dynamic="if" in {each.lower() for each in operations},
    )


# Controlled gates that Braket has itself; all others are written with the modifier ctrl.
_CONTROLLED = frozenset({"ccx", "cp", "cswap", "cx", "cy", "cz"})


def _without_modifiers(found: Target) -> Target:
    """The target without gates for which a modifier has to be written.

    The density matrix simulator (amazon-braket-default-simulator 1.41) writes beyond its arrays
    for such as ``ctrl @ cz``: the process dies, or what it computes is wrong.
    """
    made = Target(description=found.description, num_qubits=found.num_qubits)
    for name in found.operation_names:
        operation = found.operation_from_name(name)
        if name in _CONTROLLED or not isinstance(operation, ControlledGate):
            made.add_instruction(operation, name=name)
    return made


def local_shape(simulator: LocalSimulator, name: str) -> Shape:
    """What a simulator of the SDK takes. It knows more of OpenQASM than its properties tell."""
    action = simulator.properties.action[DeviceActionType.OPENQASM]
    return Shape(
        name=name,
        target=_without_modifiers(local_simulator_to_target(simulator)),
        operations=frozenset(action.supportedOperations),
        dynamic=True,
    )


def read_result(text: str) -> tuple[GateModelQuantumTaskResult, Any]:
    """A ``results.json`` of a gate-based task, and its metadata.

    Raises:
        ValueError: it is none.
    """
    parsed = GateModelTaskResult.parse_raw(text)
    GateModelQuantumTaskResult.cast_result_types(parsed)
    return GateModelQuantumTaskResult.from_object(parsed), parsed.additionalMetadata
