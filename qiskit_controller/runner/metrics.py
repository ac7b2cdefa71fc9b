"""The numbers of a circuit, and a hash that equal circuits share.

The hash is not that of the circuit's QPY form, which two runs of the same code need not share:
the order of a file's custom gates is that of a hash map with a random seed, and variables carry
random UUIDs. Instead the circuit is walked, and what it does goes into the hash: bits and
registers, and for each instruction its kind, its parameters, the bits it acts on, its blocks, and
its definition where that is the user's own. Names of circuits and of gates that are defined by
circuits do not count, nor do metadata and layouts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from qiskit_controller.api.qiskitjob import CircuitMetrics

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

# What tells two operations of one class apart, beside name and params; absent on most.
_ATTRIBUTES = (
    "label",
    "condition",
    "target",
    "cases_specifier",
    "ctrl_state",
    "base_op",
    "modifiers",
    "operator",
    "time",
    "tableau",
    "duration",
    "unit",
)
# What the kinds of classical expressions are made of.
_EXPRESSION = ("var", "name", "value", "op", "operand", "left", "right", "target", "index")
# The classes with which users, and QPY, make operations of their own.
_CUSTOM = ("Instruction", "Gate", "ControlledGate")


def metrics_of(circuit: QuantumCircuit) -> CircuitMetrics:
    """The metrics of a circuit without unbound parameters."""
    digest = hashlib.sha256()
    for token in _circuit(circuit):
        digest.update(token)
        digest.update(b"\0")
    return CircuitMetrics(
        qubits=circuit.num_qubits,
        clbits=circuit.num_clbits,
        depth=circuit.depth(),
        gates=circuit.size(),
        hash=digest.hexdigest(),
    )


def _circuit(circuit: QuantumCircuit) -> Iterator[bytes]:
    bits = {bit: str(n).encode() for n, bit in enumerate((*circuit.qubits, *circuit.clbits))}
    yield f"circuit {circuit.num_qubits} {circuit.num_clbits}".encode()
    yield from _value(circuit.global_phase, bits)
    for register in (*circuit.qregs, *circuit.cregs):
        yield register.name.encode()
        yield b",".join(bits[bit] for bit in register)
    for variable in circuit.iter_vars():
        yield from _value(variable, bits)
    for instruction in circuit.data:
        if instruction.is_standard_gate() and instruction.label is None:
            yield instruction.name.encode()
            for parameter in instruction.params:
                yield from _value(parameter, bits)
        else:
            yield from _operation(instruction.operation, bits)
        yield b",".join(bits[bit] for bit in (*instruction.qubits, *instruction.clbits))


def _operation(operation: Any, bits: Mapping[Any, bytes]) -> Iterator[bytes]:
    kind = type(operation).__name__
    definition = operation.definition if kind in _CUSTOM else None
    # The name of what is defined by a circuit is often that circuit's, which is a mere number.
    yield f"{kind} {operation.name if definition is None else ''}".encode()
    yield from _value(definition, bits)
    for parameter in getattr(operation, "params", ()):
        yield from _value(parameter, bits)
    for name in _ATTRIBUTES:
        value = getattr(operation, name, None)
        if value is not None:
            yield name.encode()
            yield from _value(value, bits)


def _value(value: Any, bits: Mapping[Any, bytes]) -> Iterator[bytes]:
    import numpy
    from qiskit import QuantumCircuit
    from qiskit.circuit import Bit, Operation, Register
    from qiskit.circuit.classical import expr

    if isinstance(value, float | numpy.floating):
        yield float(value).hex().encode()
    elif isinstance(value, QuantumCircuit):
        yield from _circuit(value)
    elif isinstance(value, numpy.ndarray):
        yield f"{value.dtype.str} {value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Bit):
        yield bits.get(value, b"?")
    elif isinstance(value, Register):
        yield value.name.encode()
    elif isinstance(value, Operation):
        yield from _operation(value, bits)
    elif isinstance(value, expr.Expr):
        yield f"{type(value).__name__} {value.type}".encode()
        for name in _EXPRESSION:
            if hasattr(value, name):
                yield from _value(getattr(value, name), bits)
    elif isinstance(value, UUID):
        yield b"variable"  # its name follows
    elif isinstance(value, list | tuple):
        yield f"{len(value)} of".encode()
        for each in value:
            yield from _value(each, bits)
    else:
        # Numbers, texts, None, ranges, parameters of loops, Pauli operators: what they show is
        # what they are, but for an address in memory.
        yield re.sub(r" at 0x[0-9a-f]+", "", repr(value)).encode(errors="replace")
