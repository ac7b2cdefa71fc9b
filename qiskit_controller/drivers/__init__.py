"""Backend drivers: one package for each ``spec.backend.type``, open to third parties.

A driver has two halves, because two programs use it. The controller half says what a job of
this type needs and never imports an SDK; the runner half talks to the SDK, inside the pod.
They are found by two entry point groups, so that a third party's package adds a backend type
by being installed next to ours::

    [project.entry-points."qiskit_controller.drivers"]
    my_cloud = "my_package.controller:DRIVER"

    [project.entry-points."qiskit_controller.runner_drivers"]
    my_cloud = "my_package.runner:DRIVER"

and a patch in the overlay that it is deployed with, for the API server to let the type through::

    - target: {kind: CustomResourceDefinition, name: qiskitjobs.quantum.io}
      patch: |
        - op: add
          path: "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties\\
            /backend/properties/type/enum/-"
          value: my_cloud
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import attrs

from qiskit_controller.api.billing import BillingUnit as BillingUnit
from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.api.run import Plan, Reason

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

    from qiskit_controller.drivers.remote import RemoteDriver

CONTROLLER_GROUP = "qiskit_controller.drivers"
RUNNER_GROUP = "qiskit_controller.runner_drivers"


class ControllerDriver(Protocol):
    """What the controller needs to know about a backend type."""

    def problems(self, spec: QiskitJobSpec) -> Sequence[str]:
        """What is wrong with the spec for this type, each as ``spec.<field>: <what to do>``."""

    def backend_name(self, spec: QiskitJobSpec) -> str:
        """The backend that the job runs on, as ``status.backend`` shows it."""

    def cost(self, spec: QiskitJobSpec) -> Decimal:
        """What one run costs, in US dollars."""


@runtime_checkable
class Warns(Protocol):
    """A controller half that has something to say about a spec that it accepts."""

    def warnings(self, spec: QiskitJobSpec) -> Sequence[str]:
        """What has no effect, each as ``spec.<field>: <what does instead>``."""


@attrs.frozen(kw_only=True)
class RunResult:
    """What a backend gave back.

    Attributes:
        counts: shots by outcome; bit strings as Qiskit writes them, the highest classical
            bit first, one space between registers.
        memory: the outcome of each shot in order, only when ``output.memory`` asks for it.
        backend: the name of what executed.
        started: when executing began, with a time zone.
        execution_time: seconds of executing.
        circuit: the circuit that was executed, after transpilation.
        seed: the seed that was used, where there was one.
        usage: how much of each unit is billed for it; empty for what is free.
        queued: when the provider took it into its queue, where there is one.
    """

    counts: Mapping[str, int]
    backend: str
    started: datetime
    execution_time: float
    circuit: QuantumCircuit
    memory: Sequence[str] | None = None
    seed: int | None = None
    usage: Mapping[BillingUnit, Decimal] = attrs.field(factory=dict)
    queued: datetime | None = None


class RunFailed(Exception):
    """The backend did not give a result; `reason` tells whether another attempt may help."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class BackendDown(RunFailed):
    """The backend takes no jobs now, and nothing has been submitted to it for this one.

    Where the backend was chosen for the job, another one is.
    """

    def __init__(self, message: str) -> None:
        super().__init__(Reason.BACKEND_UNAVAILABLE, message)


class RunnerDriver(Protocol):
    """How the executor runs a circuit on a backend type, in its own pod.

    A pod that is lost takes its run with it, and the next one runs the circuit again. So this is
    for what costs nothing by the run; what does is a
    :class:`~qiskit_controller.drivers.remote.RemoteDriver`.
    """

    def run(
        self,
        circuit: QuantumCircuit,
        plan: Plan,
        *,
        attempt: int,
        executing: Callable[[str], None],
    ) -> RunResult:
        """Transpile, submit, wait.

        Args:
            circuit: validated: it has measurements and no unbound parameter.
            plan: what was asked for.
            attempt: which attempt this is, from 1.
            executing: to be called once, with the backend's name, when executing begins.

        Raises:
            RunFailed: there is no result, and why.
        """


@runtime_checkable
class PartlyLocal(Protocol):
    """A runner half some of whose backends are simulated in the pod, and the others elsewhere."""

    def here(self, plan: Plan) -> RunnerDriver | None:
        """What runs the circuit in this process; None if the plan's backend is elsewhere."""


class NoDriver(LookupError):
    """No driver for a backend type is installed; the message names those that are."""


def controller_driver(backend_type: str) -> ControllerDriver:
    """The controller half for a backend type.

    Raises:
        NoDriver: none is installed.
    """
    return cast(ControllerDriver, _load(CONTROLLER_GROUP, backend_type))


def runner_driver(backend_type: str) -> RunnerDriver | RemoteDriver:
    """The runner half for a backend type, which runs circuits here or at a provider.

    Raises:
        NoDriver: none is installed.
    """
    return cast("RunnerDriver | RemoteDriver", _load(RUNNER_GROUP, backend_type))


def placed(driver: RunnerDriver | RemoteDriver, plan: Plan) -> RunnerDriver | RemoteDriver:
    """The driver, or of one that is :class:`PartlyLocal`, what runs this plan's circuit here."""
    here = driver.here(plan) if isinstance(driver, PartlyLocal) else None
    return driver if here is None else here


def _load(group: str, backend_type: str) -> Any:
    found = {each.name: each for each in entry_points(group=group)}
    if backend_type not in found:
        installed = ", ".join(sorted(found)) or "none"
        raise NoDriver(f"no driver for {backend_type!r} is installed; installed are: {installed}")
    return found[backend_type].load()
