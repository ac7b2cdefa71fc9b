"""The controller half of ``local_simulator``."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.drivers import ControllerDriver

DEFAULT_BACKEND = "aer_simulator"
# The methods of qiskit_aer.AerSimulator; a test holds the list against the installed Aer.
METHODS = (
    "automatic",
    "density_matrix",
    "extended_stabilizer",
    "matrix_product_state",
    "stabilizer",
    "statevector",
)
_NAMES = {DEFAULT_BACKEND: "automatic"} | {f"{DEFAULT_BACKEND}_{each}": each for each in METHODS}


def method_of(backend_name: str | None) -> str | None:
    """Aer's simulation method for a backend name, or None for a name that is not Aer's."""
    return _NAMES.get(backend_name or DEFAULT_BACKEND)


class LocalSimulator:
    """See :class:`qiskit_controller.drivers.ControllerDriver`."""

    def problems(self, spec: QiskitJobSpec) -> Sequence[str]:
        """An unknown simulator's name is all that can be wrong."""
        if method_of(spec.backend.name) is None:
            return [
                f"spec.backend.name: {spec.backend.name!r} is not a local simulator; "
                f"leave it out or use one of {', '.join(_NAMES)}"
            ]
        return []

    def backend_name(self, spec: QiskitJobSpec) -> str:
        """Aer's own name for it."""
        return spec.backend.name or DEFAULT_BACKEND

    def cost(self, spec: QiskitJobSpec) -> Decimal:
        """Nothing beyond the cluster's own time."""
        return Decimal(0)


DRIVER: ControllerDriver = LocalSimulator()
