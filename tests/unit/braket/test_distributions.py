"""Every sample circuit on Braket gives what it gives on Aer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from qiskit import QuantumCircuit

from qiskit_controller.api.run import Reason
from qiskit_controller.drivers import RunFailed, RunResult
from qiskit_controller.drivers.aws_braket import circuits
from qiskit_controller.drivers.aws_braket.controller import LOCAL
from qiskit_controller.drivers.aws_braket.runner import DRIVER
from qiskit_controller.drivers.local_simulator.runner import DRIVER as AER
from tests.standins.braket.catalogue import ANKAA, DM1, FORTE, GARNET, SV1, TN1

from .samples import SAMPLES, STATIC, SURE, agreement, asymmetric, grover, midcircuit, registers
from .support import Client, plan_for

SHOTS = 4000
DEVICES = {"SV1": SV1, "DM1": DM1, "TN1": TN1, "Forte": FORTE, "Garnet": GARNET, "Ankaa": ANKAA}


@cache
def on_aer(name: str) -> RunResult:
    plan = plan_for(None, "local_simulator", execution={"shots": 50_000, "seedSimulator": 1})
    return AER.run(SAMPLES[name](), plan, attempt=1, executing=lambda _name: None)


def here(circuit: QuantumCircuit, name: str = "braket_sv", **execution: object) -> RunResult:
    plan = plan_for(name, execution={"shots": SHOTS, **execution})
    runner = DRIVER.here(plan)
    assert runner is not None
    executing: list[str] = []
    result = runner.run(circuit, plan, attempt=1, executing=executing.append)
    assert executing == [name] == [result.backend]
    assert sum(result.counts.values()) == SHOTS
    assert not result.usage
    return result


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("simulator", LOCAL)
def test_the_sdks_simulators_give_what_aer_gives(simulator: str, name: str) -> None:
    counts = here(SAMPLES[name](), simulator).counts
    assert agreement(counts, on_aer(name).counts) > SURE


# The on-demand simulators are much alike.
PAIRS = [(device, name) for device in DEVICES if device not in ("DM1", "TN1") for name in STATIC]
PAIRS += [(device, name) for device in ("DM1", "TN1") for name in ("bell", "registers")]


@pytest.mark.parametrize(("device", "name"), PAIRS)
def test_devices_of_the_service_give_what_aer_gives(
    connect: Callable[..., Client], device: str, name: str
) -> None:
    client = connect(DEVICES[device], execution={"shots": SHOTS})
    result = client.run(STATIC[name]())
    assert sum(result.counts.values()) == SHOTS
    assert agreement(result.counts, on_aer(name).counts) > SURE


def test_measuring_in_mid_circuit_where_the_device_can(
    connect: Callable[..., Client], shared: object
) -> None:
    client = connect(GARNET, execution={"shots": SHOTS})
    result = client.run(midcircuit())
    assert agreement(result.counts, on_aer("midcircuit").counts) > SURE
    # The device compiles such circuits itself, and for those who asked for its experiments.
    (task,) = shared.tasks(client.plan.job.uid)  # type: ignore[attr-defined]
    assert task["experimental"] == {"enabled": "ALL"}
    assert "verbatim" not in task["source"]


@pytest.mark.parametrize("device", ["SV1", "DM1", "TN1", "Forte", "Ankaa"])
def test_measuring_in_mid_circuit_where_the_device_cannot(
    connect: Callable[..., Client], device: str
) -> None:
    with pytest.raises(RunFailed) as caught:
        connect(DEVICES[device]).prepare(midcircuit())
    assert caught.value.reason is Reason.BACKEND_REFUSED
    assert "measures at the end only" in caught.value.message
    assert "braket_sv and braket_dm do" in caught.value.message


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("device", ["SV1", "Garnet"])
def test_optimization_levels(connect: Callable[..., Client], device: str, level: int) -> None:
    execution = {"shots": SHOTS, "optimizationLevel": level}
    counts = connect(DEVICES[device], execution=execution).run(grover()).counts
    assert agreement(counts, on_aer("grover").counts) > SURE


# --- the order of bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_bits_come_in_qiskits_order(connect: Callable[..., Client], device: str) -> None:
    # Qubit 0 is 1 and goes to bit 2 of 0 to 3; the highest bit comes first.
    counts = connect(DEVICES[device], execution={"shots": 200}).run(asymmetric()).counts
    assert counts == {"0100": 200}


@pytest.mark.parametrize("device", ["SV1", "Garnet"])
def test_single_shots_add_up_to_the_counts(connect: Callable[..., Client], device: str) -> None:
    client = connect(DEVICES[device], execution={"shots": 500}, output={"memory": True})
    result = client.run(registers())
    assert result.memory is not None
    assert {each: list(result.memory).count(each) for each in result.counts} == result.counts
    assert {len(each) for each in result.counts} == {6}
    assert {each[3] for each in result.counts} == {" "}


def test_a_device_that_tells_no_single_shots(connect: Callable[..., Client]) -> None:
    client = connect(FORTE, execution={"shots": 500}, output={"memory": True})
    result = client.run(registers())
    assert result.memory is None
    assert sum(result.counts.values()) == 500


# --- is the comparison worth anything? ------------------------------------------------------------


@pytest.mark.parametrize("name", ["qft", "grover", "ansatz", "asymmetric", "registers"])
def test_a_wrong_order_of_bits_would_be_seen(name: str) -> None:
    right = on_aer(name).counts
    turned: dict[str, int] = {}
    for outcome, shots in right.items():
        # As many shots as a test has.
        turned[outcome[::-1]] = shots * SHOTS // 50_000
    assert agreement(turned, right) < SURE / 100


def test_a_slightly_wrong_circuit_would_be_seen() -> None:
    circuit = SAMPLES["ansatz"]()
    wrong = circuit.copy_empty_like()
    wrong.ry(0.25, 2)
    wrong.compose(circuit, inplace=True)
    assert agreement(here(wrong).counts, on_aer("ansatz").counts) < SURE


# --- what else a circuit can hold -----------------------------------------------------------------


def test_conditions_of_every_kind() -> None:
    from qiskit.circuit import ClassicalRegister, QuantumRegister
    from qiskit.circuit.classical import expr

    outcome, last = ClassicalRegister(3, "outcome"), ClassicalRegister(3, "last")
    circuit = QuantumCircuit(QuantumRegister(2, "a"), QuantumRegister(1, "b"), outcome, last)
    for qubit in range(3):
        circuit.ry(0.9 + 0.3 * qubit, qubit)
    circuit.measure([0, 1, 2], outcome)
    with circuit.if_test((outcome, 5)) as otherwise:
        circuit.x(1)
        with circuit.if_test((outcome[0], 0)):
            circuit.x(0)
    with otherwise:
        circuit.ry(0.4, 0)
    either = expr.logic_or(
        expr.logic_and(outcome[0], expr.logic_not(outcome[1])), expr.equal(outcome, 2)
    )
    with circuit.if_test(either):
        circuit.ry(1.1, 2)
    with circuit.if_test((outcome[2], 0)):
        circuit.x(1)
    with circuit.for_loop(range(3)):
        circuit.ry(0.2, 1)
    circuit.measure([2, 1, 0], last)
    plan = plan_for(None, "local_simulator", execution={"shots": 50_000})
    expected = AER.run(circuit, plan, attempt=1, executing=lambda _name: None).counts
    for level in range(4):
        assert agreement(here(circuit, optimizationLevel=level).counts, expected) > SURE


def test_a_bit_that_is_asked_before_it_was_measured_is_0() -> None:
    circuit = QuantumCircuit(2, 3)
    circuit.x(0)
    circuit.measure(0, 0)
    with circuit.if_test((circuit.clbits[1], 0)):
        circuit.x(0)
    circuit.measure([0, 1], [1, 2])
    assert here(circuit).counts == {"001": SHOTS}


def test_resets_delays_and_matrices() -> None:
    import numpy
    from scipy.stats import unitary_group

    circuit = QuantumCircuit(3, 3)
    circuit.unitary(unitary_group.rvs(8, random_state=1), [0, 2, 1])
    circuit.delay(100, 0)
    circuit.measure(0, 0)
    circuit.reset(0)
    circuit.unitary(unitary_group.rvs(4, random_state=2), [2, 0])
    circuit.cu(0.1, 0.2, 0.3, 0.4, 1, 2)
    circuit.measure([1, 2], [1, 2])
    plan = plan_for(None, "local_simulator", execution={"shots": 50_000})
    expected = AER.run(circuit, plan, attempt=1, executing=lambda _name: None).counts
    assert agreement(here(circuit).counts, expected) > SURE
    assert numpy.isclose(sum(expected.values()), 50_000)


@pytest.mark.parametrize("simulator", LOCAL)
def test_controlled_gates_of_every_kind(simulator: str) -> None:
    """Without modifiers, of some of which the density matrix simulator dies."""
    from qiskit_controller.drivers.aws_braket import sdk

    circuit = QuantumCircuit(4, 4)
    for qubit in range(4):
        circuit.ry(0.5 + 0.4 * qubit, qubit)
    circuit.ch(0, 1)
    circuit.ccz(0, 1, 2)
    circuit.crx(0.3, 1, 2)
    circuit.cry(0.7, 2, 3)
    circuit.crz(0.9, 0, 3)
    circuit.csx(3, 0)
    circuit.cs(1, 3)
    circuit.cswap(0, 1, 2)
    circuit.mcx([0, 1, 2], 3)
    circuit.ccx(3, 2, 0, ctrl_state=1)
    for qubit in range(4):
        circuit.rx(0.8, qubit)
    circuit.measure(range(4), range(4))
    plan = plan_for(None, "local_simulator", execution={"shots": 50_000})
    expected = AER.run(circuit, plan, attempt=1, executing=lambda _name: None).counts
    for level in range(4):
        result = here(circuit, simulator, optimizationLevel=level)
        assert agreement(result.counts, expected) > SURE
        shape = sdk.local_shape(sdk.LocalSimulator(simulator), simulator)
        assert "ctrl" not in circuits.program(result.circuit, shape)


def test_loops_of_unknown_length_are_refused() -> None:
    circuit = QuantumCircuit(1, 1)
    circuit.h(0)
    circuit.measure(0, 0)
    with circuit.while_loop((circuit.clbits[0], 1)):
        circuit.h(0)
        circuit.measure(0, 0)
    with pytest.raises(RunFailed) as caught:
        here(circuit)
    assert caught.value.reason is Reason.BACKEND_REFUSED
    assert "no loop of unknown length" in caught.value.message


def test_more_shots_than_are_simulated_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from qiskit_controller.drivers.aws_braket import local

    monkeypatch.setattr(local, "SHOTS_AT_A_TIME", 1500)
    assert agreement(here(registers()).counts, on_aer("registers").counts) > SURE


@pytest.mark.parametrize(("name", "qubits"), [("braket_sv", 24), ("braket_dm", 12)])
def test_too_many_qubits_for_the_memory(
    monkeypatch: pytest.MonkeyPatch, name: str, qubits: int
) -> None:
    from qiskit_controller.runner import pod

    monkeypatch.setattr(pod, "free_memory", lambda: 512 << 20)
    circuit = QuantumCircuit(qubits)
    circuit.h(range(qubits))
    circuit.measure_all()
    with pytest.raises(RunFailed) as caught:
        here(circuit, name)
    assert caught.value.reason is Reason.BACKEND_REFUSED
    assert "896 MiB of memory and 512 MiB are free" in caught.value.message


def test_more_qubits_than_the_device_has(connect: Callable[..., Client]) -> None:
    circuit = QuantumCircuit(20)
    circuit.h(range(20))
    circuit.measure_all()
    with pytest.raises(RunFailed) as caught:
        connect(GARNET).prepare(circuit)
    assert caught.value.reason is Reason.BACKEND_REFUSED
    assert caught.value.message == "the circuit has 20 qubits, and Garnet 19"


def test_a_layout_on_the_devices_own_qubits(connect: Callable[..., Client], shared: object) -> None:
    # 8 is a neighbour of 7; the lattice counts from 1.
    execution = {"shots": 100, "initialLayout": [8, 7]}
    client = connect(GARNET, execution=execution)
    circuit = QuantumCircuit(2, 2)
    circuit.x(0)
    circuit.cx(0, 1)
    circuit.x(1)
    circuit.measure([0, 1], [0, 1])
    assert client.run(circuit).counts == {"01": 100}
    (task,) = shared.tasks(client.plan.job.uid)  # type: ignore[attr-defined]
    assert "b[0] = measure $8;" in task["source"]
    assert "b[1] = measure $7;" in task["source"]


@pytest.mark.parametrize(
    ("layout", "says"),
    [([1], "give 2 different qubits"), ([1, 1], "give 2 different"), ([1, 13], "no qubit 13")],
)
def test_a_layout_that_is_none(
    connect: Callable[..., Client], layout: list[int], says: str
) -> None:
    with pytest.raises(RunFailed) as caught:
        connect(GARNET, execution={"initialLayout": layout}).prepare(SAMPLES["bell"]())
    assert caught.value.reason is Reason.BACKEND_REFUSED
    assert caught.value.message.startswith("spec.execution.initialLayout: ")
    assert says in caught.value.message
