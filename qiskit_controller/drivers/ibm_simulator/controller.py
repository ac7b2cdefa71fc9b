"""The controller half of ``ibm_simulator``."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.drivers import ControllerDriver

# Without a device there is none to be like: no noise, and every qubit next to every other.
IDEAL = "aer_simulator"


class IbmSimulator:
    """See :class:`qiskit_controller.drivers.ControllerDriver`."""

    def problems(self, spec: QiskitJobSpec) -> Sequence[str]:
        """Which devices can be simulated is known where the SDK is."""
        return []

    def backend_name(self, spec: QiskitJobSpec) -> str:
        """The device that is simulated."""
        return spec.backend.name or IDEAL

    def cost(self, spec: QiskitJobSpec) -> Decimal:
        """Nothing beyond the cluster's own time."""
        return Decimal(0)


DRIVER: ControllerDriver = IbmSimulator()
