"""The controller half of ``ibm_quantum``."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.drivers import ControllerDriver

# What the service keeps at most for a job, and at least.
MAX_EXECUTION_SECONDS = 10_800
LEAST_BUSY = "least busy"


class IbmQuantum:
    """See :class:`qiskit_controller.drivers.ControllerDriver`."""

    def problems(self, spec: QiskitJobSpec) -> Sequence[str]:
        """Credentials are needed."""
        if spec.credentials is None or spec.credentials.secret_ref is None:
            return [
                "spec.credentials.secretRef: name a Secret with the key api-key, an IBM Cloud API "
                "key; ibm_simulator runs without one"
            ]
        return []

    def warnings(self, spec: QiskitJobSpec) -> Sequence[str]:
        """What is accepted and has no effect any more, each as ``spec.<field>: <what now>``."""
        backend = spec.backend
        given = [
            f"spec.backend.{name}"
            for name, value in (
                ("hub", backend.hub),
                ("group", backend.group),
                ("project", backend.project),
            )
            if value is not None
        ]
        if not given:
            return []
        return [
            f"{', '.join(given)}: hubs, groups and projects ended with IBM Quantum Platform "
            "Classic in 2025 and are ignored; an instance's CRN replaced them: set "
            "spec.backend.instance, or the key instance of the Secret"
        ]

    def backend_name(self, spec: QiskitJobSpec) -> str:
        """The device, or that it is chosen when it is known which are free."""
        return spec.backend.name or LEAST_BUSY

    def cost(self, spec: QiskitJobSpec) -> Decimal:
        """Not known before it has run: IBM bills seconds of the device."""
        return Decimal(0)


DRIVER: ControllerDriver = IbmQuantum()
