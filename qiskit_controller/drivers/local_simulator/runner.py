"""The runner half of ``local_simulator``: Qiskit Aer in this process."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from qiskit_controller.api.run import Plan, Reason
from qiskit_controller.drivers import RunFailed, RunnerDriver, RunResult
from qiskit_controller.drivers.local_simulator.controller import DEFAULT_BACKEND, method_of
from qiskit_controller.runner.pod import Cgroup, free_memory
from qiskit_controller.runner.tracing import span

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

# Seeds are 31 bits, as spec.execution.seedSimulator is.
_SEEDS = 2**31
# Of the container's memory beside this process's own, for results and Aer's bookkeeping.
_SPARE = 0.1


class LocalSimulator:
    """See :class:`qiskit_controller.drivers.RunnerDriver`."""

    def run(
        self,
        circuit: QuantumCircuit,
        plan: Plan,
        *,
        attempt: int,
        executing: Callable[[str], None],
    ) -> RunResult:
        """Transpile and simulate. Every run has a seed, so that every result can be repeated."""
        name = plan.spec.backend.name or DEFAULT_BACKEND
        seed = seed_of(plan)
        with span("load backend"):
            simulator = _simulator(name, _qubits(circuit, plan))
        # Here transpiling belongs to executing: it is the same pod's time, and with no queue
        # before it nothing else would bound it than spec.execution.timeout.
        executing(name)
        with span("transpile", quantum_level=plan.spec.execution.optimization_level):
            transpiled = _transpile(circuit, simulator, plan, seed)
        return simulate(simulator, circuit, transpiled, plan, seed=seed, name=name)


def seed_of(plan: Plan) -> int:
    """The seed that was asked for, or any."""
    seed = plan.spec.execution.seed_simulator
    return secrets.randbelow(_SEEDS) if seed is None else seed


def simulate(
    simulator: Any,
    circuit: QuantumCircuit,
    transpiled: QuantumCircuit,
    plan: Plan,
    *,
    seed: int,
    name: str,
) -> RunResult:
    """Run on one of Aer's simulators.

    Args:
        circuit: as the user wrote it.
        name: of what executes, for the result.

    Raises:
        RunFailed: BackendRefused.
    """
    started = datetime.now(UTC)
    begun = time.perf_counter()
    result = simulator.run(
        transpiled,
        shots=plan.spec.execution.shots,
        seed_simulator=seed,
        memory=plan.spec.output.memory,
    ).result()
    execution_time = time.perf_counter() - begun
    if not result.success:
        raise _refused(result, circuit)
    return RunResult(
        counts=_counts(result),
        memory=result.get_memory(0) if plan.spec.output.memory else None,
        backend=name,
        started=started,
        execution_time=execution_time,
        circuit=transpiled,
        seed=seed,
    )


def aer_options() -> dict[str, Any]:
    """Options that keep Aer within the container."""
    options: dict[str, Any] = {"max_parallel_threads": Cgroup().cpus()}
    free = free_memory()
    if free is not None:
        # Aer would take the node's memory for its own.
        options["max_memory_mb"] = max(1, int(free * (1 - _SPARE)) >> 20)
    return options


def _qubits(circuit: QuantumCircuit, plan: Plan) -> int:
    """How wide the simulated device is: as wide as it has to be.

    Aer's own choice depends on the memory of the node, and keeps a stabilizer circuit of 50
    qubits, which needs next to none, from being run.

    Raises:
        RunFailed: BackendRefused, for a layout that is not one.
    """
    layout = plan.spec.execution.initial_layout
    if layout is None:
        return int(circuit.num_qubits)
    field = "spec.execution.initialLayout"
    if len(layout) != circuit.num_qubits:
        raise RunFailed(
            Reason.BACKEND_REFUSED,
            f"{field}: it has {len(layout)} entries for a circuit of {circuit.num_qubits} qubits; "
            "give one physical qubit for each",
        )
    if len(set(layout)) != len(layout) or min(layout, default=0) < 0:
        raise RunFailed(
            Reason.BACKEND_REFUSED,
            f"{field}: physical qubits must be different from each other and not negative",
        )
    # Idle qubits between the used ones are not simulated.
    return max(int(circuit.num_qubits), max(layout, default=0) + 1)


def _simulator(name: str, qubits: int) -> Any:
    from qiskit_aer import AerSimulator

    method = method_of(name)
    if method is None:
        raise RunFailed(
            Reason.BACKEND_REFUSED, f"spec.backend.name: {name!r} is not a local simulator"
        )
    return AerSimulator(method=method, n_qubits=qubits, **aer_options())


@contextlib.contextmanager
def without_ibms_plugins() -> Iterator[None]:
    """Let Qiskit transpile without importing qiskit_ibm_runtime.

    ``generate_preset_pass_manager`` loads every translation plugin that is installed, by stevedore
    and whichever is asked for. Those are for IBM's own backends, and to import them takes longer
    than all the rest of a small job.
    """
    from stevedore.extension import ExtensionManager

    group = "qiskit.transpiler.translation"
    before = ExtensionManager.ENTRY_POINT_CACHE.pop(group, None)
    ExtensionManager.ENTRY_POINT_CACHE[group] = [
        each
        for each in entry_points(group=group)
        if not each.value.startswith("qiskit_ibm_runtime.")
    ]
    try:
        yield
    finally:
        del ExtensionManager.ENTRY_POINT_CACHE[group]
        if before is not None:
            ExtensionManager.ENTRY_POINT_CACHE[group] = before


def _transpile(circuit: QuantumCircuit, simulator: Any, plan: Plan, seed: int) -> QuantumCircuit:
    from qiskit.transpiler import generate_preset_pass_manager

    execution = plan.spec.execution
    layout = execution.initial_layout
    try:
        with without_ibms_plugins():
            return generate_preset_pass_manager(
                optimization_level=execution.optimization_level,
                backend=simulator,
                initial_layout=None if layout is None else list(layout),
                seed_transpiler=seed,
            ).run(circuit)
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    # Passes raise what they like, and the circuit is all that differs from a run that works.
    # BaseException: a panic in Qiskit's Rust code is no Exception.
    except BaseException as error:
        raise RunFailed(
            Reason.TRANSPILE_FAILED,
            f"the circuit cannot be transpiled for Aer: {type(error).__name__}: {error}",
        ) from error


def _counts(result: Any) -> dict[str, int]:
    return {str(outcome): int(shots) for outcome, shots in result.get_counts(0).items()}


def _refused(result: Any, circuit: QuantumCircuit) -> RunFailed:
    """Aer's reasons are all about the circuit and the method: permanent."""
    said = "; ".join(str(each.status) for each in result.results) or str(result.status)
    said = re.sub(r"^ERROR: *|\[Experiment \d+\] ", "", said).strip()
    memory = re.search(r"Required memory: (\d+)M, max memory: (\d+)M", said)
    if memory:
        needed, available = int(memory[1]), int(memory[2])
        return RunFailed(
            Reason.BACKEND_REFUSED,
            f"simulating {circuit.num_qubits} qubits takes {_size(needed)} of memory and "
            f"{_size(available)} are free; raise spec.resources.limits.memory, or choose "
            "another method with spec.backend.name, such as aer_simulator_matrix_product_state",
        )
    return RunFailed(Reason.BACKEND_REFUSED, f"Aer: {said}")


def _size(mebibytes: int) -> str:
    # Aer counts in 64 bits and says their largest number where they do not suffice.
    if mebibytes >= 2**40:
        return "more than 1 EiB"
    return f"{mebibytes} MiB" if mebibytes < 10_240 else f"{mebibytes / 1024:.0f} GiB"


DRIVER: RunnerDriver = LocalSimulator()
