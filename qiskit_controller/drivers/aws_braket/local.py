"""``braket_sv`` and ``braket_dm``: the SDK's simulators in this process; they need no account."""

from __future__ import annotations

import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from qiskit_controller.api.run import Plan, Reason
from qiskit_controller.drivers import RunFailed, RunResult
from qiskit_controller.drivers.aws_braket import circuits
from qiskit_controller.runner.tracing import span

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

# The SDK makes a list of strings of each shot; more at a time would take the container's memory.
SHOTS_AT_A_TIME = 50_000
# Bytes for each amplitude: two states, their probabilities and the sums of those.
_BYTES = 56


class LocalSimulators:
    """See :class:`qiskit_controller.drivers.RunnerDriver`."""

    def run(
        self,
        circuit: QuantumCircuit,
        plan: Plan,
        *,
        attempt: int,
        executing: Callable[[str], None],
    ) -> RunResult:
        """Transpile and simulate. These simulators take no seed."""
        from qiskit_controller.drivers.aws_braket import sdk

        # It warns of what other devices would not take.
        logging.getLogger("braket").setLevel(logging.ERROR)
        name = plan.spec.backend.name or ""
        with span("load backend"):
            simulator = sdk.LocalSimulator(name)
            shape = sdk.local_shape(simulator, name)
        # As with Aer, transpiling is this pod's time too.
        executing(name)
        with span("transpile", quantum_level=plan.spec.execution.optimization_level):
            prepared = circuits.prepare(circuit, shape, plan)
        _check_memory(circuit.num_qubits, name)
        source = circuits.program(prepared, shape)
        counts: Counter[str] = Counter()
        memory: list[str] = []
        left = plan.spec.execution.shots
        started = datetime.now(UTC)
        begun = time.perf_counter()
        while left:
            shots = min(left, SHOTS_AT_A_TIME)
            left -= shots
            try:
                with warnings.catch_warnings():
                    # Of density matrices without noise.
                    warnings.simplefilter("ignore")
                    result = simulator.run(sdk.Program(source=source), shots=shots).result()
            except (ValueError, NotImplementedError, TypeError) as error:
                raise RunFailed(Reason.BACKEND_REFUSED, f"{name}: {error}") from error
            bits = circuits.columns(source, list(result.measured_qubits), prepared)
            some, each = circuits.outcomes(result.measurements, bits, prepared)
            counts.update(some)
            if plan.spec.output.memory:
                memory += each
        return RunResult(
            counts=dict(counts),
            memory=memory if plan.spec.output.memory else None,
            backend=name,
            started=started,
            execution_time=time.perf_counter() - begun,
            circuit=prepared,
        )


def _check_memory(qubits: int, name: str) -> None:
    """Refuse what would be killed for want of memory: the SDK does not look.

    Raises:
        RunFailed: BackendRefused.
    """
    from qiskit_controller.runner.pod import free_memory

    # A density matrix has the square of a state's numbers.
    needed = _BYTES * (4**qubits if name == "braket_dm" else 2**qubits)
    free = free_memory()
    if free is not None and needed > free:
        raise RunFailed(
            Reason.BACKEND_REFUSED,
            f"simulating {qubits} qubits on {name} takes {needed >> 20} MiB of memory and "
            f"{free >> 20} MiB are free; raise spec.resources.limits.memory or use fewer qubits",
        )
