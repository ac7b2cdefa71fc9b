"""The runner half of ``ibm_simulator``: Aer with a device's noise, coupling map and basis gates.

Without credentials, the device is as qiskit-ibm-runtime keeps it: a snapshot of its configuration
and its calibration. With them, it is as IBM Quantum describes it now.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from qiskit_controller.api.qiskitjob import ExecutionSpec
from qiskit_controller.api.run import Plan, Reason
from qiskit_controller.drivers import RunFailed, RunnerDriver, RunResult
from qiskit_controller.drivers.ibm_quantum.account import Account, Login
from qiskit_controller.drivers.ibm_quantum.runner import IbmProvider, transpile
from qiskit_controller.drivers.ibm_simulator.controller import IDEAL
from qiskit_controller.drivers.local_simulator.runner import aer_options, seed_of, simulate
from qiskit_controller.drivers.remote import Unavailable
from qiskit_controller.runner.pod import Paths
from qiskit_controller.runner.stores.credentials import Credentials
from qiskit_controller.runner.tracing import span

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

# For IBM Quantum, to describe a device.
PATIENCE_SECONDS = 300.0
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 30.0


@attrs.frozen
class IbmSimulator:
    """See :class:`qiskit_controller.drivers.RunnerDriver`.

    Attributes:
        paths: where the credentials are.
    """

    paths: Paths = attrs.field(factory=Paths.under)

    def run(
        self,
        circuit: QuantumCircuit,
        plan: Plan,
        *,
        attempt: int,
        executing: Callable[[str], None],
    ) -> RunResult:
        """Transpile for the device, and simulate it. Every run has a seed."""
        from qiskit_aer import AerSimulator

        name = plan.spec.backend.name or IDEAL
        seed = seed_of(plan)
        with span("load backend"):
            device = None if name == IDEAL else self._device(name, plan)
            simulator = (
                AerSimulator(n_qubits=circuit.num_qubits, **aer_options())
                if device is None
                else AerSimulator.from_backend(device, **aer_options())
            )
        executing(name)
        seeded: ExecutionSpec = attrs.evolve(plan.spec.execution, seed_simulator=seed)
        plan = attrs.evolve(plan, spec=attrs.evolve(plan.spec, execution=seeded))
        with span("transpile", quantum_level=plan.spec.execution.optimization_level):
            transpiled = transpile(circuit, device or simulator, name, plan)
        return simulate(simulator, circuit, transpiled, plan, seed=seed, name=name)

    def _device(self, name: str, plan: Plan) -> Any:
        """The device, with its target.

        Raises:
            RunFailed: there is none of that name, or it cannot be described.
        """
        credentials = Credentials.read(self.paths.credentials)
        # A Secret may be there for the output alone.
        if credentials.get("api-key", "token") is None:
            return _kept(name)
        login = Login.read(plan.spec, credentials)
        begun, wait = time.monotonic(), _FIRST_WAIT_SECONDS
        while True:
            try:
                return IbmProvider(Account.connect(login)).described(name)
            except Unavailable as error:
                pause = max(wait, error.retry_after.total_seconds() if error.retry_after else 0.0)
                if time.monotonic() - begun + pause > PATIENCE_SECONDS:
                    raise RunFailed(Reason.BACKEND_UNAVAILABLE, error.message) from None
            time.sleep(pause)
            wait = min(wait * 2, _LONGEST_WAIT_SECONDS)


def _kept(name: str) -> Any:
    """The snapshot of a device, by any of its names: ibm_x, ibmq_x, fake_x."""
    from qiskit_ibm_runtime.fake_provider import FakeProviderForBackendV2

    # Each of them is made, and some have something to say about themselves.
    warnings.filterwarnings("ignore", module=r"qiskit_ibm_runtime.*")
    kept = {each.name: each for each in FakeProviderForBackendV2().backends()}
    bare = re.sub(r"^(ibmq?|fake)_", "", name)
    found = kept.get(f"fake_{bare}")
    if found is not None:
        return found
    names = ", ".join(sorted(each.replace("fake_", "ibm_", 1) for each in kept))
    raise RunFailed(
        Reason.BACKEND_REFUSED,
        f"spec.backend.name: there is no snapshot of {name!r}; with an api-key in the Secret of "
        f"spec.credentials.secretRef, it is fetched from IBM Quantum. There are: {names}",
    )


DRIVER: RunnerDriver = IbmSimulator()
