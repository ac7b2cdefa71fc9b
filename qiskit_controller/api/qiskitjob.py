"""The QiskitJob: what a user asks for, and what the controller answers.

Descriptions here are what ``kubectl explain qiskitjob`` shows. Fields that the published
reference does not have are marked "Additional field".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import attrs

from qiskit_controller.api.conditions import Condition
from qiskit_controller.api.fields import Rule, field
from qiskit_controller.api.quantities import DURATION_PATTERN, MONEY_PATTERN, QUANTITY_PATTERN

GROUP = "quantum.io"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "QiskitJob"
PLURAL = "qiskitjobs"

# What comes with this package. The API server refuses others, so that a slip of the pen is found
# at once; who installs a driver for another adds its name to the CRD.
BACKEND_TYPES = ("ibm_quantum", "ibm_simulator", "aws_braket", "local_simulator")
SourceType = Literal["inline", "configmap", "url", "git"]
Priority = Literal["low", "normal", "high", "urgent"]
OutputType = Literal["configmap", "pvc", "s3", "gcs"]
OutputFormat = Literal["json", "pickle", "qpy", "csv"]
SessionMode = Literal["dedicated", "shared"]
Phase = Literal[
    "Pending", "Validating", "Scheduling", "Running", "Completed", "Failed", "Cancelled"
]
ProviderState = Literal["Queued", "Running", "Done", "Failed", "Cancelled"]
FINISHED: frozenset[Phase] = frozenset({"Completed", "Failed", "Cancelled"})

# The name rules of Kubernetes' own objects (RFC 1123).
_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_CONFIG_KEY = r"^[-._a-zA-Z0-9]+$"


def _name(doc: str, **more: object) -> str:
    made: str = field(doc, pattern=_SUBDOMAIN, min_length=1, max_length=253, **more)
    return made


def _is_subdomain(name: str | None) -> bool:
    return name is None or (len(name) <= 253 and re.fullmatch(_SUBDOMAIN, name) is not None)


@attrs.frozen
class BackendSpec:
    """Where the circuit runs."""

    type: str = field(
        "Backend type: ibm_quantum, ibm_simulator, aws_braket or local_simulator.",
        enum=list(BACKEND_TYPES),
    )
    name: str | None = field(
        "Specific backend name (e.g. ibm_brisbane).", default=None, min_length=1, max_length=256
    )
    instance: str | None = field(
        "IBM Cloud CRN for enterprise accounts.", default=None, max_length=1024
    )
    hub: str | None = field("IBM Quantum Network hub (legacy).", default=None, max_length=256)
    group: str | None = field("IBM Quantum Network group (legacy).", default=None, max_length=256)
    project: str | None = field(
        "IBM Quantum Network project (legacy).", default=None, max_length=256
    )


@attrs.frozen
class ConfigMapKeyRef:
    """One key of a ConfigMap in the job's namespace."""

    name: str = _name("Name of the ConfigMap, in the namespace of the QiskitJob.")
    key: str = field(
        "Key in the ConfigMap's data or binaryData.",
        pattern=_CONFIG_KEY,
        min_length=1,
        max_length=253,
    )


@attrs.frozen
class GitRef:
    """One file of a Git repository."""

    repository: str = field("URL of the repository, https or ssh.", min_length=1, max_length=2048)
    branch: str | None = field(
        "Branch, tag or full commit. The repository's default branch when absent.",
        default=None,
        min_length=1,
        max_length=256,
    )
    path: str = field("Path of the file inside the repository.", min_length=1, max_length=1024)


@attrs.frozen
class CircuitSpec:
    """Which circuit is run."""

    source: SourceType = field("Circuit source: inline, configmap, url or git.")
    code: str | None = field(
        "Inline Qiskit Python code. Required if source=inline.", default=None, max_length=1_000_000
    )
    config_map_ref: ConfigMapKeyRef | None = field(
        "ConfigMap reference. Required if source=configmap.", default=None
    )
    url: str | None = field(
        "Circuit URL, http or https. Required if source=url.", default=None, max_length=2048
    )
    git_ref: GitRef | None = field(
        "Git repository reference. Required if source=git.", default=None
    )
    sha256: str | None = field(
        "Expected SHA-256 of the circuit's source, in hexadecimal; a source that differs is not "
        "run. Additional field.",
        default=None,
        pattern="^[0-9a-f]{64}$",
    )
    parameters: Mapping[str, float] = field(
        "Values for the circuit's parameters, by parameter name. Additional field.",
        factory=dict,
        max_properties=1024,
    )

    RULES = (
        Rule(
            "self.source != 'inline' || (has(self.code) && self.code.size() > 0)",
            lambda self: self.source != "inline" or bool(self.code),
            "code: required if source is inline",
        ),
        Rule(
            "self.source != 'configmap' || has(self.configMapRef)",
            lambda self: self.source != "configmap" or self.config_map_ref is not None,
            "configMapRef: required if source is configmap",
        ),
        Rule(
            "self.source != 'url' || has(self.url)",
            lambda self: self.source != "url" or self.url is not None,
            "url: required if source is url",
        ),
        Rule(
            "!has(self.url) || self.url.startsWith('https://') || self.url.startsWith('http://')",
            lambda self: self.url is None or self.url.startswith(("https://", "http://")),
            "url: must begin with https:// or http://",
        ),
        Rule(
            "self.source != 'git' || has(self.gitRef)",
            lambda self: self.source != "git" or self.git_ref is not None,
            "gitRef: required if source is git",
        ),
    )


@attrs.frozen
class ExecutionSpec:
    """How the circuit is run."""

    shots: int = field(
        "Number of circuit executions.",
        default=1024,
        minimum=1,
        maximum=10_000_000,
        format="int32",
    )
    optimization_level: int = field(
        "Transpiler optimization level (0-3).", default=1, minimum=0, maximum=3, format="int32"
    )
    priority: Priority = field("Job priority: low, normal, high or urgent.", default="normal")
    timeout: str = field(
        "Maximum execution time, such as 90s, 30m or 1h30m. It counts from the phase Running; "
        "time in a provider's queue is not counted.",
        default="1h",
        pattern=DURATION_PATTERN,
        max_length=32,
    )
    max_retries: int = field(
        "Maximum retry attempts after failures that may pass; a wrong circuit is not retried.",
        default=3,
        minimum=0,
        maximum=100,
        format="int32",
    )
    seed_simulator: int | None = field(
        "Seed of the simulator and the transpiler, for results that can be repeated. "
        "Additional field.",
        default=None,
        minimum=0,
        maximum=2**31 - 1,
        format="int64",
    )
    initial_layout: tuple[int, ...] | None = field(
        "Physical qubit for each qubit of the circuit, in order. Additional field.",
        default=None,
        max_items=4096,
    )


@attrs.frozen
class SessionSpec:
    """The IBM Quantum Runtime session to run in."""

    name: str | None = _name("Session name or reference; by default the job's name.", default=None)
    max_time: int | None = field(
        "Maximum session duration (seconds).",
        default=None,
        minimum=1,
        maximum=28_800,
        format="int32",
    )
    mode: SessionMode | None = field("Session mode: dedicated or shared.", default=None)


_CPU = "such as 500m or 2."
_MEMORY = "such as 512Mi or 4Gi."


def _quantity(doc: str) -> str | int | None:
    made: str | int | None = field(doc, default=None, pattern=QUANTITY_PATTERN, max_length=64)
    return made


@attrs.frozen
class ResourceRequests:
    """What the scheduler reserves."""

    cpu: str | int | None = _quantity(f"CPU request, {_CPU}")
    memory: str | int | None = _quantity(f"Memory request, {_MEMORY}")


@attrs.frozen
class ResourceLimits:
    """What the kernel enforces."""

    cpu: str | int | None = _quantity(f"CPU limit, {_CPU}")
    memory: str | int | None = _quantity(f"Memory limit, {_MEMORY}")


@attrs.frozen
class ResourceRequirements:
    """Pod resources."""

    requests: ResourceRequests | None = field(
        "What the scheduler reserves for the pod.", default=None
    )
    limits: ResourceLimits | None = field("What the pod may use at most.", default=None)


@attrs.frozen
class BudgetSpec:
    """What the job may cost, and who pays."""

    max_cost: str | None = field(
        'Maximum allowed cost in US dollars (e.g. "$10.00").',
        default=None,
        pattern=MONEY_PATTERN,
        max_length=32,
    )
    cost_center: str | None = field("Cost center for accounting.", default=None, max_length=253)
    project: str | None = field("Project name for billing.", default=None, max_length=253)
    alert_threshold: float | None = field(
        "Fraction of maxCost at which a warning Event is sent. Additional field.",
        default=None,
        minimum=0,
        maximum=1,
    )
    allow_unknown_cost: bool = field(
        "Run also where nobody knows the price, with no limit then. Additional field.",
        default=False,
    )


@attrs.frozen
class OutputSpec:
    """Where the results go."""

    type: OutputType = field("Storage type: configmap, pvc, s3 or gcs.", default="configmap")
    location: str | None = field(
        "Storage location: the name of the ConfigMap (<job>-results when absent) or of the "
        "PersistentVolumeClaim, or the URL of a folder such as s3://bucket/path or "
        "gs://bucket/path.",
        default=None,
        min_length=1,
        max_length=1024,
    )
    format: OutputFormat = field("Result format: json, pickle, qpy or csv.", default="json")
    path: str | None = field(
        "Folder inside the PersistentVolumeClaim. Additional field.", default=None, max_length=1024
    )
    memory: bool = field(
        "Also keep the outcome of every single shot, in order. Additional field.", default=False
    )

    RULES = (
        Rule(
            "self.type == 'configmap' || has(self.location)",
            lambda self: self.type == "configmap" or self.location is not None,
            "location: required if type is pvc, s3 or gcs",
        ),
        Rule(
            "self.type != 's3' || !has(self.location) || self.location.startsWith('s3://')",
            lambda self: self.type != "s3" or not self.location or self.location[:5] == "s3://",
            "location: must begin with s3:// if type is s3",
        ),
        Rule(
            "self.type != 'gcs' || !has(self.location) || self.location.startsWith('gs://')",
            lambda self: self.type != "gcs" or not self.location or self.location[:5] == "gs://",
            "location: must begin with gs:// if type is gcs",
        ),
        Rule(
            f"!(self.type in ['configmap', 'pvc']) || !has(self.location) || "
            f"(self.location.size() <= 253 && self.location.matches(r'{_SUBDOMAIN}'))",
            lambda self: self.type not in ("configmap", "pvc") or _is_subdomain(self.location),
            "location: must be the name of a Kubernetes object (lower case letters, digits, "
            "'-' and '.') if type is configmap or pvc",
        ),
    )


@attrs.frozen
class SecretRef:
    """A Secret in the job's namespace."""

    name: str = _name("Secret name.")


@attrs.frozen
class CredentialsSpec:
    """Secrets that the trusted stages of the pod may use."""

    secret_ref: SecretRef | None = field(
        "Secret with the backend's credentials, for example the key api-key, and with those of "
        "an s3 or gcs output.",
        default=None,
    )
    git_secret_ref: SecretRef | None = field(
        "Secret for a private Git repository: username and password, or ssh-privatekey. "
        "Additional field.",
        default=None,
    )


def _weight(doc: str) -> float | None:
    made: float | None = field(doc, default=None, minimum=0, maximum=1)
    return made


@attrs.frozen
class SelectionWeights:
    """How much each criterion counts."""

    cost: float | None = _weight("Weight for cost (0.0-1.0).")
    queue_time: float | None = _weight("Weight for queue time (0.0-1.0).")
    capability: float | None = _weight("Weight for backend capability (0.0-1.0).")
    availability: float | None = _weight("Weight for availability (0.0-1.0).")


@attrs.frozen
class SelectionRequirements:
    """What a backend must have to be selected at all."""

    min_qubits: int | None = field(
        "Fewest qubits.", default=None, minimum=1, maximum=1_000_000, format="int32"
    )
    max_error: float | None = field(
        "Largest median two-qubit gate error (0.0-1.0).", default=None, minimum=0, maximum=1
    )
    max_queue_time: str | None = field(
        "Longest expected wait in the queue, such as 30m.",
        default=None,
        pattern=DURATION_PATTERN,
        max_length=32,
    )


@attrs.frozen
class BackendSelectionSpec:
    """How a backend is chosen when none is named."""

    weights: SelectionWeights | None = field(
        "Weights of the criteria; they need not add up to 1.", default=None
    )
    fallback_to_simulator: bool = field(
        "Fallback to simulator if cost exceeds budget.", default=False
    )
    requirements: SelectionRequirements | None = field(
        "What a backend must have to be selected. Additional field.", default=None
    )


@attrs.frozen
class QiskitJobSpec:
    """What the user asks for."""

    backend: BackendSpec = field("Quantum backend configuration.")
    circuit: CircuitSpec = field("Quantum circuit to execute.")
    execution: ExecutionSpec = field(
        "Execution parameters for the quantum circuit.", factory=ExecutionSpec
    )
    session: SessionSpec | None = field("IBM Quantum Runtime session configuration.", default=None)
    resources: ResourceRequirements | None = field(
        "Pod resource requirements for job execution.", default=None
    )
    budget: BudgetSpec | None = field("Budget constraints and cost management.", default=None)
    output: OutputSpec = field("Result storage configuration.", factory=OutputSpec)
    credentials: CredentialsSpec | None = field("Backend authentication credentials.", default=None)
    backend_selection: BackendSelectionSpec | None = field(
        "Smart backend selection preferences.", default=None
    )
    cancel: bool = field(
        "Set to true to cancel the job; it ends in the phase Cancelled. Additional field.",
        default=False,
    )
    ttl_seconds_after_finished: int | None = field(
        "Seconds after which a finished QiskitJob is deleted, with its pods and the ConfigMaps it "
        "owns. Never when absent. Additional field.",
        default=None,
        minimum=0,
        maximum=2**31 - 1,
        format="int32",
    )

    RULES = (
        Rule(
            "!has(self.session) || self.backend.type == 'ibm_quantum'",
            lambda self: self.session is None or self.backend.type == "ibm_quantum",
            "session: only backend type ibm_quantum has sessions",
        ),
    )


# What may change while a job runs; every other field of spec is fixed once it has started.
MUTABLE = ("cancel", "ttlSecondsAfterFinished")


@attrs.frozen
class CircuitMetrics:
    """The validated circuit, as the user wrote it: before transpilation."""

    qubits: int = field("Number of qubits.", format="int32")
    clbits: int = field("Number of classical bits.", default=0, format="int32")
    depth: int = field("Circuit depth.", default=0, format="int64")
    gates: int = field("Number of operations.", default=0, format="int64")
    hash: str = field(
        "SHA-256 over what the circuit does; circuits that are equal share it.", default=""
    )


@attrs.frozen
class SourceStatus:
    """The code that was run, so that a result can be traced to it."""

    sha256: str = field("SHA-256 of the circuit's source.", default="")
    commit: str | None = field("Commit that was fetched, for git.", default=None)


@attrs.frozen
class ProviderStatus:
    """The job at the provider that executes the circuit."""

    submission: int = field(
        "Which submission, from 1; there is another one only after the provider's job before it "
        "has failed.",
        format="int32",
    )
    job_id: str | None = field("The provider's name for the job.", default=None)
    state: ProviderState | None = field(
        "Queued, Running, Done, Failed or Cancelled; absent until the provider has answered.",
        default=None,
    )
    detail: str | None = field("The provider's own word for it.", default=None)
    queue_position: int | None = field(
        "Jobs before it in the queue, where the provider tells.", default=None, format="int64"
    )
    estimated_start: str | None = field(
        "When it may begin, where the provider tells.", default=None, format="date-time"
    )
    cancellation: Literal["Requested", "Done", "Abandoned"] | None = field(
        "Whether it was cancelled because the QiskitJob has ended or is deleted; Abandoned if "
        "that was not possible.",
        default=None,
    )
    cancel_time: str | None = field("When cancelling began.", default=None, format="date-time")


@attrs.frozen
class AttemptStatus:
    """One run of the pod."""

    number: int = field("Which attempt, from 1.", format="int32")
    job_name: str = field("Name of the Kubernetes Job.")
    start_time: str | None = field("When it began.", default=None, format="date-time")
    completion_time: str | None = field("When it ended.", default=None, format="date-time")
    reason: str | None = field("Why it ended, when it did not succeed.", default=None)
    message: str | None = field("The same, for people.", default=None)
    counted: bool = field("Whether it counts against maxRetries.", default=True)


@attrs.frozen
class CostStatus:
    """What the job costs; "Unknown" where nobody knows."""

    estimated: str = field("Before it ran, in US dollars.", default="")
    actual: str | None = field("After it ran, by what the provider billed.", default=None)
    charged: str | None = field(
        "What budgets were charged: the actual cost, or the estimate of a run that began and "
        "gave no figures.",
        default=None,
    )
    usage: Mapping[str, str] = field(
        "Tasks, shots and seconds: expected at first, billed at the end.", factory=dict
    )
    prices: Mapping[str, str] = field("US dollars for each of those that is billed.", factory=dict)
    price_source: str = field("Who says so, and when.", default="")
    note: str = field("Why the cost is unknown.", default="")


@attrs.frozen
class SessionStatus:
    """The session that the job waits for, or runs in."""

    name: str = field("The QiskitSession.")
    id: str | None = field("The provider's name for it, once the job is in it.", default=None)
    since: str | None = field(
        "When the job began to wait for it, to the microsecond.", default=None, format="date-time"
    )
    entered: str | None = field(
        "When it was first told to run in it, to the microsecond.",
        default=None,
        format="date-time",
    )


@attrs.frozen
class PhaseChange:
    """That the job entered a phase."""

    phase: Phase = field("The phase.")
    time: str = field("When, to the microsecond.", format="date-time")


# So many changes of phase are remembered; an attempt takes four.
MAX_PHASE_HISTORY = 64


@attrs.frozen
class ResultsStatus:
    """What came back."""

    counts: Mapping[str, int] = field(
        "Number of shots by outcome, as bit strings in Qiskit's order. The most frequent ones, "
        "when there are too many to show.",
        factory=dict,
    )
    counts_truncated: bool = field(
        "Whether counts holds only the most frequent outcomes.", default=False
    )
    outcomes: int | None = field("Number of distinct outcomes.", default=None, format="int64")
    execution_time: float | None = field("Seconds of executing.", default=None)
    queue_time: float | None = field(
        "Seconds from the start of the job until it executed.", default=None
    )
    total_time: float | None = field("queueTime and executionTime together.", default=None)
    sha256: str | None = field("SHA-256 of the stored result.", default=None)
    size: int | None = field("Bytes of the stored result.", default=None, format="int64")


@attrs.frozen
class QiskitJobStatus:
    """What the controller observed. Only the controller writes it."""

    phase: Phase | None = field("Current job phase.", default=None)
    message: str | None = field("The phase in one sentence.", default=None)
    conditions: tuple[Condition, ...] = field(
        "Conditions describing the job.",
        default=(),
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    observed_generation: int | None = field(
        "The metadata.generation that this status is about.", default=None, format="int64"
    )
    start_time: str | None = field(
        "When the controller took up the job.", default=None, format="date-time"
    )
    completion_time: str | None = field("When the job ended.", default=None, format="date-time")
    running_time: str | None = field(
        "When executing began; timeout counts from here.", default=None, format="date-time"
    )
    backend: str | None = field("Backend that was selected.", default=None)
    cost: str | None = field("Cost in US dollars.", default=None)
    costs: CostStatus | None = field("How the cost comes about. Additional field.", default=None)
    results: ResultsStatus | None = field("Job execution results.", default=None)
    results_location: str | None = field("Where the results are stored.", default=None)
    circuit_metrics: CircuitMetrics | None = field("The validated circuit.", default=None)
    source: SourceStatus | None = field("The code that was run.", default=None)
    attempts: tuple[AttemptStatus, ...] = field(
        "Attempts so far, oldest first.",
        default=(),
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
    )
    executor_pod_name: str | None = field("Pod of the current or last attempt.", default=None)
    provider: ProviderStatus | None = field(
        "The job at the provider. Additional field.", default=None
    )
    session: SessionStatus | None = field(
        "The session that it waits for, or runs in. Additional field.", default=None
    )
    phase_history: tuple[PhaseChange, ...] = field(
        f"The phases so far, oldest first, the last {MAX_PHASE_HISTORY} of them. Additional field.",
        default=(),
        **{"x-kubernetes-list-type": "atomic"},
    )


@attrs.frozen
class QiskitJob:
    """QiskitJob is a quantum circuit execution job on Kubernetes."""

    spec: QiskitJobSpec = field("What to run, where and how.")
    status: QiskitJobStatus = field("What the controller observed.", factory=QiskitJobStatus)

    RULES = (
        # Once it runs, a job is what it was. Kueue's Workload guards its podSets the same way.
        *(
            Rule(
                "!has(oldSelf.status) || !has(oldSelf.status.phase) || "
                "oldSelf.status.phase == 'Pending' || "
                f"(has(self.spec.{name}) == has(oldSelf.spec.{name}) && "
                f"(!has(self.spec.{name}) || self.spec.{name} == oldSelf.spec.{name}))",
                lambda _self: True,  # the reconciler compares with the spec that was started
                f"spec.{name}: cannot change after the job has started; create a new QiskitJob",
            )
            for name in (
                "backend",
                "circuit",
                "execution",
                "session",
                "resources",
                "budget",
                "output",
                "credentials",
                "backendSelection",
            )
        ),
    )
