"""The hash of a circuit: equal for equal circuits, in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from qiskit import QuantumCircuit
from qiskit.circuit.classical import expr

from qiskit_controller.runner.metrics import metrics_of

from .support import REPOSITORY, bell


def test_numbers() -> None:
    metrics = metrics_of(bell())
    assert (metrics.qubits, metrics.clbits, metrics.depth, metrics.gates) == (2, 2, 3, 4)
    assert len(metrics.hash) == 64


def test_names_and_metadata_do_not_count() -> None:
    other = bell()
    other.name, other.metadata = "another", {"x": 1}
    assert metrics_of(other) == metrics_of(bell())


def test_the_hash_is_the_same_in_every_process() -> None:
    code = (
        "from tests.unit.runner.support import everything\n"
        "from qiskit_controller.runner.metrics import metrics_of\n"
        "print(metrics_of(everything()).hash)\n"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(hashes) == 1


def test_a_name_that_is_a_number_does_not_count() -> None:
    hashes = set()
    for _ in range(2):
        part = QuantumCircuit(1)  # its name counts the circuits of the process
        part.x(0)
        circuit = bell()
        circuit.append(part.to_gate(), [0])
        hashes.add(metrics_of(circuit).hash)
    assert len(hashes) == 1


def _body(angle: float) -> QuantumCircuit:
    body = QuantumCircuit(1, name="mine")
    body.rx(angle, 0)
    return body


# Pairs that differ in one thing.
def _angle(circuit: QuantumCircuit, second: bool) -> None:
    circuit.rx(0.1 + 1e-16 if not second else 0.2, 0)


def _qubit(circuit: QuantumCircuit, second: bool) -> None:
    circuit.x(int(second))


def _order(circuit: QuantumCircuit, second: bool) -> None:
    circuit.cx(*((1, 0) if second else (0, 1)))


def _definition(circuit: QuantumCircuit, second: bool) -> None:
    circuit.append(_body(0.2 if second else 0.1).to_gate(), [0])


def _block(circuit: QuantumCircuit, second: bool) -> None:
    with circuit.if_test((circuit.clbits[0], 1)):
        circuit.rx(0.2 if second else 0.1, 0)


def _condition(circuit: QuantumCircuit, second: bool) -> None:
    with circuit.if_test(expr.lift(circuit.clbits[int(second)])):
        circuit.x(0)


def _control(circuit: QuantumCircuit, second: bool) -> None:
    circuit.append(_body(0.1).to_gate().control(1, ctrl_state=int(second)), [0, 1])


def _loop(circuit: QuantumCircuit, second: bool) -> None:
    with circuit.for_loop(range(3 if second else 2)):
        circuit.x(0)


def _phase(circuit: QuantumCircuit, second: bool) -> None:
    circuit.global_phase = 0.5 if second else 0.25


@pytest.mark.parametrize(
    "change",
    [_angle, _qubit, _order, _definition, _block, _condition, _control, _loop, _phase],
)
def test_what_a_circuit_does_counts(change: Callable[[QuantumCircuit, bool], None]) -> None:
    hashes = []
    for second in (False, False, True):
        circuit = bell()
        change(circuit, second)
        hashes.append(metrics_of(circuit).hash)
    assert hashes[0] == hashes[1] != hashes[2]
