"""From Qiskit's circuits to Braket's programs, and from Braket's measurements to Qiskit's counts.

What Braket runs is OpenQASM 3 with one register of classical bits. A result is a table with a row
for each shot. Its columns are in Braket's order, so the program, which comes back with the
result, is asked which classical bit each belongs to. A pod that finds the task of an earlier one
then needs to know nothing of how that one had laid out its qubits.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from qiskit_controller.api.run import Plan, Reason
from qiskit_controller.drivers import RunFailed
from qiskit_controller.drivers.local_simulator.runner import without_ibms_plugins

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from qiskit import QuantumCircuit
    from qiskit.transpiler import Target

_BRANCH = "if_else"
_LOOPS = frozenset({"while_loop", "for_loop", "switch_case", "break_loop", "continue_loop"})
# Nothing happens to the qubit.
_IDLE = frozenset({"barrier", "delay"})
_REGISTER = re.compile(r"^bit\[(\d+)\] \w+(?: = .*)?;", re.MULTILINE)
_MEASURE = re.compile(r"^\s*\w+\[(\d+)\] = measure (?:\$(\d+)|\w+\[(\d+)\]);", re.MULTILINE)


@attrs.frozen(kw_only=True)
class Shape:
    """What a device takes, as far as a circuit is concerned.

    Attributes:
        name: for people.
        target: its gates and, for a QPU, between which qubits.
        labels: for a QPU the device's own numbers of the target's qubits.
        operations: the device's own names of what a program may say.
        dynamic: whether it measures in mid-circuit and acts on the outcome.
    """

    name: str
    target: Target
    operations: Collection[str]
    labels: tuple[int, ...] | None = None
    dynamic: bool = False

    @property
    def qubits(self) -> int:
        """How many it has."""
        return int(self.target.num_qubits)


def is_dynamic(circuit: QuantumCircuit) -> bool:
    """Whether anything happens to a qubit after its measurement, or depends on an outcome."""
    measured: set[Any] = set()
    for each in circuit.data:
        name = each.operation.name
        if name in _IDLE:
            continue
        if name == "reset" or hasattr(each.operation, "blocks"):
            return True
        if not measured.isdisjoint(each.qubits):
            return True
        if name == "measure":
            measured.update(each.qubits)
    return False


def seed_of(plan: Plan) -> int:
    """The transpiler's seed: what is asked for, or one that belongs to the QiskitJob.

    So that each of its attempts makes the same of the same, as far as the device allows.
    """
    asked = plan.spec.execution.seed_simulator
    if asked is not None:
        return asked
    digest = hashlib.sha256(plan.job.uid.encode()).digest()
    # 31 bits, as spec.execution.seedSimulator has.
    return int.from_bytes(digest[:4], "big") >> 1


def prepare(circuit: QuantumCircuit, shape: Shape, plan: Plan) -> QuantumCircuit:
    """The circuit in the device's own gates and, on a QPU, on its qubits.

    Raises:
        RunFailed: the device does not take it, and why.
    """
    from qiskit.transpiler import generate_preset_pass_manager

    circuit = _simplified(circuit, shape)
    _check(circuit, shape)
    dynamic = is_dynamic(circuit)
    target = _dynamic_target(shape) if dynamic else shape.target
    execution = plan.spec.execution
    try:
        ready = _plain_conditions(circuit) if dynamic else circuit
        with without_ibms_plugins():
            prepared = generate_preset_pass_manager(
                optimization_level=execution.optimization_level,
                target=target,
                initial_layout=_layout(circuit, shape, plan),
                seed_transpiler=seed_of(plan),
            ).run(ready)
    except (MemoryError, KeyboardInterrupt, SystemExit, RunFailed):
        raise
    # Passes raise what they like, and a panic in Qiskit's Rust code is no Exception.
    except BaseException as error:
        raise RunFailed(
            Reason.TRANSPILE_FAILED,
            f"the circuit cannot be transpiled for {shape.name}: {type(error).__name__}: {error}",
        ) from error
    return prepared


def program(prepared: QuantumCircuit, shape: Shape) -> str:
    """What :func:`prepare` made, as OpenQASM 3.

    Raises:
        RunFailed: the converter cannot write it.
    """
    from braket.circuits.serialization import IRType
    from qiskit_braket_provider import to_braket, to_oq3

    with warnings.catch_warnings():
        # Of barriers and global phases that are left out.
        warnings.simplefilter("ignore")
        try:
            if is_dynamic(prepared):
                # Only OpenQASM has control flow. The service compiles these itself.
                text = str(to_oq3(_one_register(prepared)))
                # A bit that is asked before it was measured is 0, as in Qiskit. QPUs take no
                # such initial values.
                zeros = f'bit[\\1] b = "{"0" * prepared.num_clbits}";'
                return _REGISTER.sub(zeros, text, 1) if shape.labels is None else text
            # The converter of whole circuits knows the units of every native gate. With qubit
            # labels it makes a verbatim box: the device executes just that.
            circuit = (
                to_braket(prepared, target=shape.target)
                if shape.labels is None
                else to_braket(
                    prepared, target=shape.target, qubit_labels=shape.labels, verbatim=True
                )
            )
            return str(circuit.to_ir(ir_type=IRType.OPENQASM).source)
        except (ValueError, NotImplementedError, TypeError, KeyError) as error:
            raise RunFailed(
                Reason.TRANSPILE_FAILED,
                f"the circuit cannot be written for {shape.name}: {error}",
            ) from error


def _one_register(circuit: QuantumCircuit) -> QuantumCircuit:
    """All qubits in one register, and all classical bits, which is all that Braket takes."""
    from qiskit.circuit import ClassicalRegister, IfElseOp, QuantumCircuit, QuantumRegister

    made = QuantumCircuit(
        QuantumRegister(circuit.num_qubits, "q"), ClassicalRegister(circuit.num_clbits, "b")
    )
    for each in circuit.data:
        operation = each.operation
        if isinstance(operation, IfElseOp):
            bit, value = operation.condition
            asked = made.clbits[circuit.find_bit(bit).index]
            operation = IfElseOp((asked, value), *map(_one_register, operation.blocks))
        made.append(
            operation,
            [circuit.find_bit(bit).index for bit in each.qubits],
            [circuit.find_bit(bit).index for bit in each.clbits],
        )
    return made


def _simplified(circuit: QuantumCircuit, shape: Shape) -> QuantumCircuit:
    """Without loops of a fixed length and, where time does not pass, without delays."""
    from qiskit.transpiler import PassManager
    from qiskit.transpiler.passes import UnrollForLoops

    if "for_loop" in _operations(circuit):
        circuit = PassManager([UnrollForLoops()]).run(circuit)
    if shape.labels is None and "delay" in _operations(circuit):
        made = circuit.copy_empty_like()
        for each in circuit.data:
            if each.operation.name != "delay":
                made.append(each)
        circuit = made
    return circuit


def _check(circuit: QuantumCircuit, shape: Shape) -> None:
    if circuit.num_qubits > shape.qubits:
        raise RunFailed(
            Reason.BACKEND_REFUSED,
            f"the circuit has {circuit.num_qubits} qubits, and {shape.name} {shape.qubits}",
        )
    loops = sorted(_operations(circuit) & _LOOPS)
    if loops:
        raise RunFailed(
            Reason.BACKEND_REFUSED,
            f"Amazon Braket takes no loop of unknown length and no switch ({', '.join(loops)})",
        )
    if not shape.dynamic and is_dynamic(circuit):
        raise RunFailed(
            Reason.BACKEND_REFUSED,
            f"{shape.name} measures at the end only: it takes no operation on a qubit after its "
            "measurement, no reset and no if_test; braket_sv and braket_dm do",
        )


def _operations(circuit: QuantumCircuit) -> set[str]:
    """The names of all operations, those inside of others too."""
    found = set()
    for each in circuit.data:
        found.add(str(each.operation.name))
        for block in getattr(each.operation, "blocks", ()):
            found |= _operations(block)
    return found


def _layout(circuit: QuantumCircuit, shape: Shape, plan: Plan) -> list[int] | None:
    """``spec.execution.initialLayout``, as indices of the target's qubits.

    Raises:
        RunFailed: it is not one, or the device has no such qubit.
    """
    asked = plan.spec.execution.initial_layout
    # A simulator's qubits are all alike.
    if asked is None or shape.labels is None:
        return None
    field = "spec.execution.initialLayout"
    if len(asked) != circuit.num_qubits or len(set(asked)) != len(asked):
        raise RunFailed(
            Reason.BACKEND_REFUSED,
            f"{field}: give {circuit.num_qubits} different qubits, one for each of the circuit",
        )
    missing = sorted(set(asked) - set(shape.labels))
    if missing:
        raise RunFailed(
            Reason.BACKEND_REFUSED,
            f"{field}: {shape.name} has no qubit {', '.join(map(str, missing))}; it has "
            f"{', '.join(map(str, shape.labels))}",
        )
    return [shape.labels.index(each) for each in asked]


def _dynamic_target(shape: Shape) -> Target:
    """The gates that the converter to OpenQASM writes under the device's own names.

    Those without parameters, and rotations in radians: it writes IonQ's gates in turns, where
    Braket reads radians, and ``u`` where it reads ``U``.
    """
    from qiskit.circuit import IfElseOp, Reset
    from qiskit.circuit.library import get_standard_gate_name_mapping
    from qiskit.transpiler import Target

    standard = get_standard_gate_name_mapping()
    target = Target(num_qubits=shape.qubits)
    known = {str(each) for each in shape.operations}
    for qiskit, braket in _PLAIN_GATES.items():
        if braket in known:
            target.add_instruction(standard[qiskit], name=qiskit)
    target.add_instruction(standard["measure"], name="measure")
    target.add_instruction(IfElseOp, name=_BRANCH)
    target.add_instruction(Reset(), name="reset")
    return target


# Qiskit's name and Braket's.
_PLAIN_GATES: Mapping[str, str] = {
    "ccx": "ccnot",
    "cp": "cphaseshift",
    "cx": "cnot",
    "cz": "cz",
    "h": "h",
    "id": "i",
    "p": "phaseshift",
    "r": "prx",
    "rx": "rx",
    "ry": "ry",
    "rz": "rz",
    "s": "s",
    "sdg": "si",
    "swap": "swap",
    "sx": "v",
    "sxdg": "vi",
    "t": "t",
    "tdg": "ti",
    "x": "x",
    "y": "y",
    "z": "z",
}


def _plain_conditions(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit with every condition on one bit, and that it is 1.

    The converter puts all bits into one register, so no other can be asked, and not every
    device's OpenQASM has operators on bits.
    """
    from qiskit.circuit import IfElseOp

    made = circuit.copy_empty_like()
    for each in circuit.data:
        operation = each.operation
        if isinstance(operation, IfElseOp):
            blocks = [_plain_conditions(block) for block in operation.blocks]
            empty = blocks[0].copy_empty_like()
            scope = _Scope(each.qubits, each.clbits)
            operation = scope.branch(_expression(operation.condition), (*blocks, empty)[:2])
        made.append(operation, each.qubits, each.clbits)
    return made


@attrs.frozen
class _Scope:
    """The bits that a branch of a circuit is about."""

    qubits: Sequence[Any]
    clbits: Sequence[Any]

    def branch(self, condition: Any, blocks: Sequence[QuantumCircuit]) -> Any:
        """An IfElseOp of which each condition, inside of it too, is one bit.

        Args:
            blocks: what is done if the condition is true, and if it is not.
        """
        from qiskit.circuit import Clbit, IfElseOp
        from qiskit.circuit.classical import expr

        yes, no = blocks
        match condition:
            case expr.Var(var=Clbit() as bit):
                return IfElseOp((bit, 1), yes, no if no.data else None)
            case expr.Unary(op=expr.Unary.Op.LOGIC_NOT | expr.Unary.Op.BIT_NOT, operand=inner):
                return self.branch(inner, (no, yes))
            case expr.Binary(op=expr.Binary.Op.LOGIC_AND, left=left, right=right):
                return self.branch(left, (self._circuit(right, yes, no), no))
            case expr.Binary(op=expr.Binary.Op.LOGIC_OR, left=left, right=right):
                return self.branch(left, (yes, self._circuit(right, yes, no)))
        raise RunFailed(
            Reason.BACKEND_REFUSED,
            f"a condition on {condition} cannot be written for Amazon Braket; use bits, registers "
            "with one value, and, or, not",
        )

    def _circuit(self, condition: Any, yes: QuantumCircuit, no: QuantumCircuit) -> QuantumCircuit:
        made = yes.copy_empty_like()
        inside = _Scope(made.qubits, made.clbits)
        # The condition's bits are those of the circuit around it.
        places = dict(zip(self.clbits, made.clbits, strict=True))
        made.append(inside.branch(_moved(condition, places), (yes, no)), made.qubits, made.clbits)
        return made


def _moved(condition: Any, places: Mapping[Any, Any]) -> Any:
    """A condition about other bits."""
    from qiskit.circuit.classical import expr

    match condition:
        case expr.Var(var=bit):
            return expr.Var(places.get(bit, bit), condition.type)
        case expr.Unary():
            return expr.Unary(condition.op, _moved(condition.operand, places), condition.type)
        case expr.Binary():
            left, right = _moved(condition.left, places), _moved(condition.right, places)
            return expr.Binary(condition.op, left, right, condition.type)
    return condition


def _expression(condition: Any) -> Any:
    """A condition as an expression over single bits, as far as it can be."""
    from qiskit.circuit import ClassicalRegister
    from qiskit.circuit.classical import expr

    if isinstance(condition, tuple):
        bits, value = condition
        if isinstance(bits, ClassicalRegister):
            return _bitwise(bits, int(value))
        return expr.lift(bits) if value else expr.logic_not(bits)
    match condition:
        case expr.Binary(
            op=expr.Binary.Op.EQUAL,
            left=expr.Var(var=ClassicalRegister() as register),
            right=expr.Value(value=number),
        ):
            return _bitwise(register, int(number))
        case expr.Unary():
            return expr.Unary(condition.op, _expression(condition.operand), condition.type)
        case expr.Binary(op=expr.Binary.Op.LOGIC_AND | expr.Binary.Op.LOGIC_OR):
            left, right = _expression(condition.left), _expression(condition.right)
            return expr.Binary(condition.op, left, right, condition.type)
    return condition


def _bitwise(register: Any, value: int) -> Any:
    from qiskit.circuit.classical import expr

    terms = [
        expr.lift(bit) if value >> i & 1 else expr.logic_not(bit) for i, bit in enumerate(register)
    ]
    every = terms[0]
    for term in terms[1:]:
        every = expr.logic_and(every, term)
    return every


# --- what comes back ----------------------------------------------------------------------------


def measured_bits(circuit: QuantumCircuit) -> list[int]:
    """The indices of the classical bits that are ever measured into, in order."""
    found = set()
    for each in circuit.data:
        if each.operation.name == "measure":
            found.add(circuit.find_bit(each.clbits[0]).index)
        for block in getattr(each.operation, "blocks", ()):
            inside = measured_bits(block)
            found |= {circuit.find_bit(each.clbits[i]).index for i in inside}
    return sorted(found)


def columns(source: str, measured_qubits: Sequence[int], circuit: QuantumCircuit) -> list[int]:
    """The classical bit of `circuit` that each column of a result belongs to.

    Args:
        source: the program that was executed, in OpenQASM 3.
        measured_qubits: the qubit of each column, as the result tells it.

    Raises:
        ValueError: the result does not belong to the program.
    """
    declared = _REGISTER.search(source)
    measured = {int(bit): int(a or b) for bit, a, b in _MEASURE.findall(source)}
    bits = measured_bits(circuit)
    # The register has a bit for each of the circuit's, or for each that is measured.
    if declared is not None and int(declared[1]) == circuit.num_clbits:
        names = {bit: bit for bit in measured}
    else:
        names = dict(zip(sorted(measured), bits, strict=False))
    if len(names) != len(measured_qubits) or set(names) != set(measured):
        raise ValueError(
            f"the result has {len(measured_qubits)} columns for {len(measured)} measured bits"
        )
    by_qubit = {qubit: bit for bit, qubit in measured.items()}
    if len(by_qubit) == len(measured) and set(by_qubit) == set(measured_qubits):
        return [names[by_qubit[qubit]] for qubit in measured_qubits]
    # Qubits that are measured more than once: columns are in the order of the bits.
    return [names[bit] for bit in sorted(measured)]


def outcomes(
    table: NDArray[Any], bits: Sequence[int], circuit: QuantumCircuit
) -> tuple[dict[str, int], list[str]]:
    """Counts by outcome and the outcome of each shot, as Qiskit writes them.

    Args:
        table: 0 and 1, a row for each shot.
        bits: the classical bit of each column; the others of `circuit` are 0.
    """
    import numpy
    from qiskit.result.postprocess import format_counts_memory

    header = {
        "memory_slots": circuit.num_clbits,
        "creg_sizes": [[each.name, each.size] for each in circuit.cregs],
    }
    full = numpy.zeros((len(table), circuit.num_clbits), dtype=numpy.uint8)
    full[:, list(bits)] = table
    # The highest bit comes first.
    distinct, which, times = numpy.unique(
        full[:, ::-1], axis=0, return_inverse=True, return_counts=True
    )
    texts = [
        str(format_counts_memory(hex(int("".join(map(str, row)), 2)), header)) for row in distinct
    ]
    counts = {text: int(n) for text, n in zip(texts, times, strict=True)}
    return counts, [texts[i] for i in which.reshape(-1)]
