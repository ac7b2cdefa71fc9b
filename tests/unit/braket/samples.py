"""Circuits whose outcomes tell qubits, bits and their order apart, and how to compare counts."""

from __future__ import annotations

from collections.abc import Mapping
from math import pi

import numpy
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister, ParameterVector, QuantumRegister
from qiskit.circuit.library import QFTGate
from scipy.stats import chi2_contingency


def bell() -> QuantumCircuit:
    circuit = QuantumCircuit(2, 2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure([0, 1], [0, 1])
    return circuit


def ghz() -> QuantumCircuit:
    circuit = QuantumCircuit(5)
    circuit.h(0)
    for qubit in range(4):
        circuit.cx(qubit, qubit + 1)
    circuit.measure_all()
    return circuit


def qft() -> QuantumCircuit:
    """Phases between a Fourier transform and its inverse: no two outcomes are alike."""
    circuit = QuantumCircuit(4)
    circuit.x([0, 2])
    circuit.append(QFTGate(4), range(4))
    for qubit in range(4):
        circuit.rz(0.3 * (qubit + 1), qubit)
    circuit.append(QFTGate(4).inverse(), range(4))
    circuit.measure_all()
    return circuit


def grover() -> QuantumCircuit:
    """Two rounds for 110, the first qubit's bit being the last."""
    circuit = QuantumCircuit(3, 3)
    circuit.h(range(3))
    for _ in range(2):
        circuit.x(0)
        circuit.ccz(0, 1, 2)
        circuit.x(0)
        circuit.h(range(3))
        circuit.x(range(3))
        circuit.ccz(0, 1, 2)
        circuit.x(range(3))
        circuit.h(range(3))
    circuit.measure(range(3), range(3))
    return circuit


def ansatz() -> QuantumCircuit:
    """Layers of rotations with bound parameters, as of a VQE."""
    angles = ParameterVector("theta", 12)
    circuit = QuantumCircuit(4)
    for layer in range(3):
        for qubit in range(4):
            circuit.ry(angles[4 * layer + qubit], qubit)
        for qubit in range(3):
            circuit.cx(qubit, qubit + 1)
    circuit.measure_all()
    return circuit.assign_parameters([0.2 + 0.17 * i for i in range(12)])


def midcircuit() -> QuantumCircuit:
    """A measured qubit is used again, and another turned by the outcome; two registers."""
    first, last = ClassicalRegister(2, "first"), ClassicalRegister(2, "last")
    circuit = QuantumCircuit(QuantumRegister(2, "q"), first, last)
    circuit.ry(1.0, 0)
    circuit.ry(2.2, 1)
    circuit.measure([0, 1], [first[1], first[0]])
    with circuit.if_test((first, 2)) as otherwise:
        circuit.ry(0.6, 1)
    with otherwise:
        circuit.x(1)
    circuit.ry(2.0, 0)
    circuit.measure([0, 1], [last[1], last[0]])
    return circuit


def asymmetric() -> QuantumCircuit:
    """Known bits in three places: 1 comes from qubit 0 only, and one bit is never written."""
    circuit = QuantumCircuit(3, 4)
    circuit.x(0)
    circuit.measure([0, 1, 2], [2, 0, 3])
    return circuit


def registers() -> QuantumCircuit:
    """Two registers, filled crosswise, with a different probability of 1 for each bit."""
    low, high = ClassicalRegister(2, "low"), ClassicalRegister(3, "high")
    circuit = QuantumCircuit(QuantumRegister(2, "a"), QuantumRegister(3, "b"), low, high)
    for qubit in range(5):
        circuit.ry(pi * (qubit + 1) / 7, qubit)
    circuit.measure([3, 0, 4, 1, 2], [low[1], high[2], low[0], high[0], high[1]])
    return circuit


STATIC = {
    "bell": bell,
    "ghz": ghz,
    "qft": qft,
    "grover": grover,
    "ansatz": ansatz,
    "asymmetric": asymmetric,
    "registers": registers,
}
SAMPLES = {**STATIC, "midcircuit": midcircuit}

# So improbable that a thousand runs of all tests do not see it, and far above what a wrong
# order of bits leaves of it.
SURE = 1e-7


def agreement(some: Mapping[str, int], others: Mapping[str, int]) -> float:
    """The probability of counts that differ as much, if both are of the same distribution.

    A chi-squared test of two samples. Rare outcomes are put together, as it asks for.
    """
    outcomes = sorted({*some, *others})
    table = numpy.array([[each.get(o, 0) for o in outcomes] for each in (some, others)])
    rare = table.sum(axis=0) < 20
    table = numpy.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] == 1:
        return 1.0
    return float(chi2_contingency(table).pvalue)
