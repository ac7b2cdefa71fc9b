"""The runner half of ``local_simulator`` against the Aer that is installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister, QuantumRegister

from qiskit_controller.api.run import Reason
from qiskit_controller.drivers import RunFailed, RunResult
from qiskit_controller.drivers.local_simulator import runner
from qiskit_controller.drivers.local_simulator.controller import METHODS
from qiskit_controller.runner.pod import Cgroup

from .support import BELL, Pod, bell


@pytest.fixture
def run(pod: Pod) -> Any:
    def once(circuit: QuantumCircuit, **spec: Mapping[str, Any]) -> RunResult:
        executing: list[str] = []
        result = runner.DRIVER.run(
            circuit, pod.plan(BELL, spec=spec), attempt=1, executing=executing.append
        )
        assert executing == [result.backend]
        return result

    return once


def test_a_bell_state_is_a_fair_coin(run: Any) -> None:
    result = run(bell(), execution={"shots": 10_000})
    assert set(result.counts) == {"00", "11"}
    # Five standard deviations.
    assert abs(result.counts["00"] - 5000) < 250
    assert sum(result.counts.values()) == 10_000
    assert result.memory is None
    assert result.execution_time > 0


def test_the_highest_classical_bit_comes_first(run: Any) -> None:
    circuit = QuantumCircuit(3, 3)
    circuit.x(0)
    circuit.measure([0, 1, 2], [0, 1, 2])
    assert run(circuit).counts == {"001": 1024}


def test_registers_are_apart(run: Any) -> None:
    a, b = ClassicalRegister(1, "a"), ClassicalRegister(2, "b")
    circuit = QuantumCircuit(QuantumRegister(2), a, b)
    circuit.x(0)
    circuit.measure(0, a[0])
    with circuit.if_test((a, 1)):
        circuit.x(1)
    circuit.measure(1, b[1])
    result = run(circuit, execution={"shots": 5}, output={"memory": True})
    assert result.counts == {"10 1": 5}
    assert list(result.memory) == ["10 1"] * 5


def test_seeds_repeat(run: Any) -> None:
    circuit = QuantumCircuit(6)
    circuit.h(range(6))
    circuit.measure_all()
    first, second = (run(circuit, execution={"seedSimulator": 42}) for _ in range(2))
    assert first.counts == second.counts
    assert first.seed == 42
    other = run(circuit)
    assert other.counts != first.counts
    # The seed that was chosen repeats it.
    assert run(circuit, execution={"seedSimulator": other.seed}).counts == other.counts


@pytest.mark.parametrize("level", range(4))
def test_optimization_levels(run: Any, level: int) -> None:
    circuit = QuantumCircuit(1, 1)
    circuit.x(0)
    circuit.x(0)
    circuit.measure(0, 0)
    result = run(circuit, execution={"optimizationLevel": level})
    assert result.counts == {"0": 1024}
    assert result.circuit.count_ops().get("x", 0) == (2 if level == 0 else 0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(run: Any, method: str) -> None:
    result = run(bell(), backend={"name": f"aer_simulator_{method}"})
    assert set(result.counts) == {"00", "11"}
    assert result.backend == f"aer_simulator_{method}"


def test_methods_are_those_of_aer() -> None:
    from qiskit_aer import AerSimulator

    ours = set(METHODS)
    assert ours <= set(AerSimulator().available_methods())


def test_fifty_qubits_of_stabilizers(run: Any) -> None:
    circuit = QuantumCircuit(50)
    circuit.h(0)
    for qubit in range(49):
        circuit.cx(qubit, qubit + 1)
    circuit.measure_all()
    assert set(run(circuit).counts) == {"0" * 50, "1" * 50}


def _hard(qubits: int) -> QuantumCircuit:
    circuit = QuantumCircuit(qubits)
    for qubit in range(qubits):
        circuit.t(qubit)
        circuit.h(qubit)
        circuit.cx(qubit, (qubit + 1) % qubits)
    circuit.measure_all()
    return circuit


@pytest.mark.parametrize(
    ("qubits", "needs"), [(30, "16 GiB"), (40, "16384 GiB"), (70, "more than 1 EiB")]
)
def test_too_many_qubits_for_the_memory(
    run: Any, monkeypatch: pytest.MonkeyPatch, qubits: int, needs: str
) -> None:
    monkeypatch.setattr(runner, "free_memory", lambda: 512 << 20)
    with pytest.raises(RunFailed) as caught:
        runner.DRIVER.run(_hard(qubits), _plan_of(run), attempt=1, executing=lambda _name: None)
    assert caught.value.reason == Reason.BACKEND_REFUSED
    assert f"simulating {qubits} qubits takes {needs} of memory" in caught.value.message
    assert "460 MiB are free" in caught.value.message
    assert "spec.resources.limits.memory" in caught.value.message


def _plan_of(run: Any) -> Any:
    """The plan that the fixture `run` would use."""
    (pod,) = (cell.cell_contents for cell in run.__closure__)
    return pod.plan(BELL, spec={"backend": {"name": "aer_simulator_statevector"}})


LAYOUTS: dict[str, tuple[list[int], str]] = {
    "too short": ([0], "it has 1 entries for a circuit of 2 qubits"),
    "twice the same": ([1, 1], "must be different"),
    "negative": ([0, -1], "must be different from each other and not negative"),
}


@pytest.mark.parametrize("what", LAYOUTS)
def test_a_layout_that_is_none(run: Any, what: str) -> None:
    layout, part = LAYOUTS[what]
    with pytest.raises(RunFailed) as caught:
        run(bell(), execution={"initialLayout": layout})
    assert caught.value.reason == Reason.BACKEND_REFUSED
    assert caught.value.message.startswith("spec.execution.initialLayout: ")
    assert part in caught.value.message


def test_a_layout(run: Any) -> None:
    circuit = QuantumCircuit(2, 2)
    circuit.x(0)
    circuit.measure([0, 1], [0, 1])
    result = run(circuit, execution={"initialLayout": [3, 1]})
    assert result.counts == {"01": 1024}
    assert result.circuit.num_qubits == 4
    assert result.circuit.layout.initial_index_layout()[:2] == [3, 1]


def test_an_operation_that_aer_does_not_know(run: Any) -> None:
    from qiskit.circuit import Instruction

    circuit = QuantumCircuit(1, 1)
    circuit.append(Instruction("mystery", 1, 0, []), [0])
    circuit.measure(0, 0)
    with pytest.raises(RunFailed) as caught:
        run(circuit)
    assert caught.value.reason == Reason.TRANSPILE_FAILED
    assert "mystery" in caught.value.message


def test_threads_are_those_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cgroup, "cpus", lambda _self: 3)
    simulator = runner._simulator("aer_simulator", 2)
    assert simulator.options.max_parallel_threads == 3


def test_a_simulation_waits_for_no_vendors_sdk() -> None:
    code = (
        "import sys\n"
        "from qiskit import QuantumCircuit\n"
        "from qiskit_aer import AerSimulator\n"
        "from qiskit.transpiler import generate_preset_pass_manager\n"
        "from qiskit_controller.drivers.local_simulator.runner import without_ibms_plugins\n"
        "circuit = QuantumCircuit(1)\n"
        "circuit.t(0)\n"
        "circuit.measure_all()\n"
        "with without_ibms_plugins():\n"
        "    done = generate_preset_pass_manager(3, backend=AerSimulator()).run(circuit)\n"
        "assert done.count_ops()['measure'] == 1\n"
        "print(*sorted({each.split('.')[0] for each in sys.modules}))\n"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert not {"qiskit_ibm_runtime", "braket", "boto3"} & set(loaded.decode().split())
