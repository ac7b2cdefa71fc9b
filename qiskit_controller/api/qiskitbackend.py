"""The QiskitBackend: a device, or all devices of an account, that QiskitJobs may be given to."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from qiskit_controller.api.billing import PRICE_PATTERN
from qiskit_controller.api.conditions import Condition
from qiskit_controller.api.fields import field
from qiskit_controller.api.qiskitjob import BACKEND_TYPES, SecretRef
from qiskit_controller.api.quantities import DURATION_PATTERN

KIND = "QiskitBackend"
PLURAL = "qiskitbackends"


@attrs.frozen
class BackendCredentials:
    """The Secret of the account."""

    secret_ref: SecretRef | None = field(
        "Secret with the account's credentials, for example the key api-key. Jobs are given to "
        "this backend only if they name the same Secret.",
        default=None,
    )


def _price(doc: str) -> str | None:
    made: str | None = field(doc, default=None, pattern=PRICE_PATTERN, max_length=32)
    return made


@attrs.frozen
class PricingSpec:
    """What the account pays, where it is not the list price."""

    plan: str | None = field(
        "The account's plan, as the price book names it: for ibm_quantum pay-as-you-go or open.",
        default=None,
        max_length=63,
    )
    per_task: str | None = _price('For each run, in US dollars (e.g. "$0.30").')
    per_shot: str | None = _price('For each shot, in US dollars (e.g. "$0.00145").')
    per_second: str | None = _price('For each second of the device, in US dollars (e.g. "$1.60").')


@attrs.frozen
class ProbeSpec:
    """How often the account is asked for its devices."""

    interval: str = field(
        "Time between two probes, such as 5m; at least 10s.",
        default="5m",
        pattern=DURATION_PATTERN,
        max_length=32,
    )


@attrs.frozen
class QiskitBackendSpec:
    """Which device or account it is."""

    type: str = field(
        "Backend type: ibm_quantum, ibm_simulator, aws_braket or local_simulator.",
        enum=list(BACKEND_TYPES),
    )
    name: str | None = field(
        "The device (e.g. ibm_brisbane); every device of the account when absent.",
        default=None,
        min_length=1,
        max_length=256,
    )
    instance: str | None = field(
        "IBM Cloud CRN for enterprise accounts.", default=None, max_length=1024
    )
    credentials: BackendCredentials | None = field("How to log in.", default=None)
    default: bool = field(
        "Whether, of several accounts of its type, jobs that do not choose are given to this one.",
        default=False,
    )
    priority: int = field(
        "Of several entries for one device, the one with the highest counts.",
        default=0,
        minimum=-1000,
        maximum=1000,
        format="int32",
    )
    pricing: PricingSpec | None = field(
        "What the account pays, where it is not the list price.", default=None
    )
    probe: ProbeSpec = field("How often the account is asked.", factory=ProbeSpec)


@attrs.frozen
class DeviceStatus:
    """What the provider tells of a device; what it does not tell is absent."""

    name: str = field("As spec.backend.name of a job takes it.")
    simulator: bool = field("Whether it is a simulator.", default=False)
    operational: bool = field("Whether it takes jobs and runs them.", default=False)
    detail: str = field("The provider's word for its state.", default="")
    qubits: int | None = field("Number of qubits.", default=None, format="int32")
    basis_gates: tuple[str, ...] = field("As the provider names them.", default=())
    dynamic: bool | None = field(
        "Whether it measures in mid-circuit and acts on the outcome.", default=None
    )
    pending_jobs: int | None = field("Jobs in its queue.", default=None, format="int64")
    queue_time: float | None = field("Expected wait in seconds.", default=None)
    single_qubit_error: float | None = field("Median one-qubit gate error (0.0-1.0).", default=None)
    two_qubit_error: float | None = field("Median two-qubit gate error (0.0-1.0).", default=None)
    readout_error: float | None = field("Median readout error (0.0-1.0).", default=None)
    shot_time: float | None = field("Seconds that a shot takes beside the circuit.", default=None)
    prices: Mapping[str, str] = field(
        "US dollars for each task, shot or second, as the provider tells.", factory=dict
    )
    availability: float | None = field(
        "Share of the recent probes in which it took jobs (0.0-1.0).", default=None
    )


@attrs.frozen
class QiskitBackendStatus:
    """What the last probe found. Only the controller writes it."""

    operational: bool | None = field("Whether a device of it takes jobs.", default=None)
    ready: str | None = field("Devices that take jobs, of all, such as 2/3.", default=None)
    qubits: int | None = field("Of the largest device.", default=None, format="int32")
    pending_jobs: int | None = field(
        "In the shortest queue of a device that takes jobs.", default=None, format="int64"
    )
    devices: tuple[DeviceStatus, ...] = field(
        "The devices.",
        default=(),
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    conditions: tuple[Condition, ...] = field(
        "Available: a device takes jobs. CredentialsValid: the account could be logged in to.",
        default=(),
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    observed_generation: int | None = field(
        "The metadata.generation that this status is about.", default=None, format="int64"
    )
    last_probe: str | None = field(
        "When the account last answered or failed to.", default=None, format="date-time"
    )
    failures: int = field("Probes that failed, in a row.", default=0, format="int32")
    probe_uid: str | None = field("UID of the last probe's Kubernetes Job.", default=None)


@attrs.frozen
class QiskitBackend:
    """QiskitBackend is a device or account that QiskitJobs may be given to."""

    spec: QiskitBackendSpec = field("Which device or account it is.")
    status: QiskitBackendStatus = field("What the last probe found.", factory=QiskitBackendStatus)
