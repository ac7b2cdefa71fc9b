"""What makes a circuit fit to run.

The untrusted stage applies these rules so that a mistake is told next to the code that made it;
the executor applies them again, because nothing that stage says is a fact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qiskit_controller.api.run import Reason

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

# What the untrusted stage can say went wrong. The first are found next to the user's code...
CHILD_REASONS = frozenset(
    {
        Reason.CIRCUIT_SYNTAX_ERROR,
        Reason.CIRCUIT_IMPORT_ERROR,
        Reason.CIRCUIT_EXCEPTION,
        Reason.CIRCUIT_EXITED,
        Reason.CIRCUIT_OUT_OF_MEMORY,
        Reason.CIRCUIT_TOO_LARGE,
        Reason.CIRCUIT_INVALID,
        Reason.NO_CIRCUIT,
        Reason.AMBIGUOUS_CIRCUIT,
        Reason.NO_MEASUREMENT,
        Reason.UNBOUND_PARAMETERS,
        Reason.UNKNOWN_PARAMETERS,
        Reason.SOURCE_HASH_MISMATCH,
    }
)
# ... and these by the process that watches over it.
CIRCUIT_REASONS = CHILD_REASONS | {Reason.CIRCUIT_TIMEOUT, Reason.CIRCUIT_OUTPUT_TOO_LARGE}

# How many names a message lists before it says "and N more".
LISTED_NAMES = 20


class BadCircuit(Exception):
    """The user's circuit, or the code that makes it, cannot be run; `message` is for them."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def listed(names: list[str]) -> str:
    """Names for a message, cut where there are many."""
    more = len(names) - LISTED_NAMES
    return ", ".join(names[:LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")


def bind(circuit: QuantumCircuit, values: Mapping[str, float]) -> QuantumCircuit:
    """The circuit with its parameters replaced by numbers.

    Raises:
        BadCircuit: UnknownParameters or UnboundParameters.
    """
    names = parameter_names(circuit)
    unknown = sorted(set(values) - set(names))
    if unknown:
        has = f"its parameters are: {listed(names)}" if names else "it has no parameters"
        raise BadCircuit(
            Reason.UNKNOWN_PARAMETERS,
            f"spec.circuit.parameters: the circuit has no {listed(unknown)}; {has}",
        )
    check_bound(circuit, set(values))
    return circuit.assign_parameters(dict(values)) if values else circuit


def check_bound(circuit: QuantumCircuit, given: set[str] | None = None) -> None:
    """Every parameter has a value, or is in `given`.

    Raises:
        BadCircuit: UnboundParameters.
    """
    unbound = [name for name in parameter_names(circuit) if name not in (given or ())]
    if unbound:
        raise BadCircuit(
            Reason.UNBOUND_PARAMETERS,
            f"the circuit's parameters have no value: {listed(unbound)}; give each a number in "
            "spec.circuit.parameters or call assign_parameters()",
        )
    inputs = [str(each.name) for each in circuit.iter_input_vars()]
    if inputs:
        raise BadCircuit(
            Reason.UNBOUND_PARAMETERS,
            f"the circuit's input variables have no value: {listed(inputs)}; use add_var() with "
            "a value instead of add_input()",
        )


def parameter_names(circuit: QuantumCircuit) -> list[str]:
    """Names of the parameters without a value, elements of vectors as ``theta[0]``; sorted."""
    return [str(each.name) for each in circuit.parameters]


def check_measured(circuit: QuantumCircuit) -> None:
    """Something is measured.

    Raises:
        BadCircuit: NoMeasurement.
    """
    if not has_measurement(circuit):
        raise BadCircuit(
            Reason.NO_MEASUREMENT,
            "the circuit measures nothing, so it has no counts; "
            "call measure_all() on it, or measure() the qubits you want",
        )


def has_measurement(circuit: QuantumCircuit) -> bool:
    """Whether a qubit is measured: here, in a control flow's block or in a compound operation."""
    todo = [circuit]
    while todo:
        for instruction in todo.pop().data:
            operation = instruction.operation
            if operation.name in ("measure", "pauli_product_measurement"):
                return True
            blocks = getattr(operation, "blocks", ())
            todo.extend(blocks)
            # A compound operation that writes no classical bit measures nothing.
            if not blocks and instruction.clbits:
                definition = getattr(operation, "definition", None)
                if definition is not None:
                    todo.append(definition)
    return False
