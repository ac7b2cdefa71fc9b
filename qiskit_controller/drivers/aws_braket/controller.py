"""The controller half of ``aws_braket``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

import attrs

from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.drivers import ControllerDriver

# The SDK's own simulators, which run in the pod and need no account.
LOCAL = ("braket_sv", "braket_dm")

# QPUs have a region; on-demand simulators are in several and have none in their ARN.
_ARN = re.compile(
    r"arn:(?P<partition>aws[a-z-]*):braket:(?P<region>[a-z0-9-]*):(?:\d{12})?:"
    r"device/(?P<kind>qpu|quantum-simulator)/(?P<provider>[\w.-]+)/(?P<device>[\w.-]+)"
)
_EXAMPLE = "arn:aws:braket:::device/quantum-simulator/amazon/sv1"


@attrs.frozen
class DeviceArn:
    """The parts of a device's ARN.

    Attributes:
        region: "" for a simulator that is in several.
    """

    region: str
    qpu: bool
    provider: str
    device: str


def parse_arn(name: str) -> DeviceArn | None:
    """The parts of a device's ARN, or None for what is none."""
    found = _ARN.fullmatch(name)
    if found is None:
        return None
    return DeviceArn(found["region"], found["kind"] == "qpu", found["provider"], found["device"])


class Braket:
    """See :class:`qiskit_controller.drivers.ControllerDriver`."""

    def problems(self, spec: QiskitJobSpec) -> Sequence[str]:
        """A name that is no device's; which devices there are, only the account knows."""
        name = spec.backend.name
        local = " or ".join(LOCAL)
        if name is None or name in LOCAL:
            return []
        arn = parse_arn(name)
        if arn is None:
            return [
                f"spec.backend.name: {name!r} is neither the ARN of an Amazon Braket device, such "
                f"as {_EXAMPLE}, nor {local}"
            ]
        if arn.qpu and not arn.region:
            return [f"spec.backend.name: {name!r} is the ARN of a QPU without its region"]
        return []

    def backend_name(self, spec: QiskitJobSpec) -> str:
        """The ARN, or the local simulator's name; nothing while it is to be chosen."""
        return spec.backend.name or ""

    def cost(self, spec: QiskitJobSpec) -> Decimal:
        """Nothing that is known here: prices are the account's, and :mod:`scheduling` has them."""
        return Decimal(0)


DRIVER: ControllerDriver = Braket()
