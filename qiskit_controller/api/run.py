"""What the controller and a job's pod say to each other.

All are JSON through :mod:`qiskit_controller.api.codec`:

- :class:`Plan`, controller to pod: the ConfigMap ``qiskit-job-<name>-input``, made once and
  never changed, so that every attempt runs what the first one ran. It also holds the code.
- :class:`Assignment`, controller to executor: the backend that was chosen, another key of the
  record.
- :class:`Progress`, executor to controller while it works: a key of the ConfigMap
  ``qiskit-job-<name>-record``, which is all of the API that the pod's token can write,
  beside an output ConfigMap.
- :class:`Submission`, executor to controller, in the same record: what was submitted to a
  provider. The executor of the next attempt reads it too.
- :class:`SourceReport`, stage ``source`` to controller and to the executor: what was fetched.
- :class:`Report`, executor to controller at the end: the container's termination message,
  which needs no permission and arrives with the Pod.

Between the pod's own stages there is one more, :class:`Outcome`: the untrusted stage writes it
into the shared volume, and the executor treats it as hostile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Literal

import attrs

from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.fields import field
from qiskit_controller.api.qiskitbackend import DeviceStatus
from qiskit_controller.api.qiskitjob import (
    BackendSpec,
    CircuitMetrics,
    CostStatus,
    ProviderState,
    QiskitJobSpec,
    SessionMode,
)
from qiskit_controller.api.quantities import format_duration

# Where things are inside the pod.
INPUT_DIR = PurePosixPath("/quantum/input")  # ConfigMap: plan.json and the code; all stages
WORK_DIR = PurePosixPath("/quantum/work")  # emptyDir: circuit stage writes, executor reads
SOURCE_DIR = PurePosixPath("/quantum/source")  # emptyDir: source stage writes, the others read
GIT_DIR = PurePosixPath("/quantum/git")  # Secret: Git credentials; source stage only
TOKEN_DIR = PurePosixPath("/quantum/token")  # projected: token, ca.crt, namespace; executor only
STORAGE_DIR = PurePosixPath("/quantum/storage")  # PersistentVolumeClaim; executor only
CREDENTIALS_DIR = PurePosixPath("/quantum/credentials")  # Secret; executor only
TERMINATION_LOG = PurePosixPath("/dev/termination-log")
PLAN_FILE = "plan.json"
CIRCUIT_FILE = "circuit.qpy"
OUTCOME_FILE = "outcome.json"
SOURCE_FILE = "source.json"
# Names of our own in the folders where the code lies.
RESERVED_FILES = frozenset({PLAN_FILE, SOURCE_FILE})

# Environment of the executor.
ATTEMPT_ENV = "QUANTUM_ATTEMPT"
STORE_ENV = "QUANTUM_STORE"  # run nothing; store what this attempt has kept in the record
TICKET_ENV = "QUANTUM_TICKET"  # which submission to a provider this is
PROVIDER_JOB_ENV = "QUANTUM_PROVIDER_JOB"  # the provider's job of that submission, if it is known
# Environment of the pod that cancels: the plan, as it needs no other part of the input.
PLAN_ENV = "QUANTUM_PLAN"
# Environment of a probe: a ProbeRequest.
PROBE_ENV = "QUANTUM_PROBE"
# Environment of the pod that opens, looks at or closes a session: a SessionRequest.
SESSION_ENV = "QUANTUM_SESSION"
# Environment of the source stage: what an earlier attempt fetched, for this one to fetch again.
COMMIT_ENV = "QUANTUM_SOURCE_COMMIT"
SHA256_ENV = "QUANTUM_SOURCE_SHA256"

# The kubelet cuts termination messages at 4096 bytes, and at 12 KiB for all containers of a pod
# together (MaxPodTerminationMessageLogLength), each an equal share. This leaves room for two
# that a service mesh adds to our three.
MAX_REPORT_BYTES = 2400


class Retry(StrEnum):
    """What a failure means for the next attempt."""

    NEVER = "never"  # trying again would fail again, or cost again
    COUNTED = "counted"  # may pass; uses up one of maxRetries
    FREE = "free"  # not the job's doing; does not count


class Reason(StrEnum):
    """Why a job, or an attempt of it, did not succeed: the closed list.

    The value is the ``reason`` of conditions and Events.
    """

    retry: Retry

    def __new__(cls, value: str, retry: Retry) -> Reason:
        member = str.__new__(cls, value)
        member._value_ = value
        member.retry = retry
        return member

    # The object itself
    INVALID_SPEC = "InvalidSpec", Retry.NEVER
    UNSUPPORTED = "Unsupported", Retry.NEVER
    NAME_CONFLICT = "NameConflict", Retry.NEVER
    # The circuit
    CIRCUIT_SYNTAX_ERROR = "CircuitSyntaxError", Retry.NEVER
    CIRCUIT_IMPORT_ERROR = "CircuitImportError", Retry.NEVER
    CIRCUIT_EXCEPTION = "CircuitException", Retry.NEVER
    CIRCUIT_EXITED = "CircuitExited", Retry.NEVER
    CIRCUIT_TIMEOUT = "CircuitTimeout", Retry.NEVER
    CIRCUIT_OUT_OF_MEMORY = "CircuitOutOfMemory", Retry.NEVER
    CIRCUIT_OUTPUT_TOO_LARGE = "CircuitOutputTooLarge", Retry.NEVER
    CIRCUIT_TOO_LARGE = "CircuitTooLarge", Retry.NEVER
    CIRCUIT_INVALID = "CircuitInvalid", Retry.NEVER
    NO_CIRCUIT = "NoCircuit", Retry.NEVER
    AMBIGUOUS_CIRCUIT = "AmbiguousCircuit", Retry.NEVER
    NO_MEASUREMENT = "NoMeasurement", Retry.NEVER
    UNBOUND_PARAMETERS = "UnboundParameters", Retry.NEVER
    UNKNOWN_PARAMETERS = "UnknownParameters", Retry.NEVER
    # Fetching its code
    SOURCE_NOT_FOUND = "SourceNotFound", Retry.NEVER
    SOURCE_FORBIDDEN = "SourceForbidden", Retry.NEVER
    SOURCE_ADDRESS_FORBIDDEN = "SourceAddressForbidden", Retry.NEVER
    SOURCE_UNTRUSTED = "SourceUntrusted", Retry.NEVER
    GIT_AUTHENTICATION_FAILED = "GitAuthenticationFailed", Retry.NEVER
    SOURCE_TOO_LARGE = "SourceTooLarge", Retry.NEVER
    SOURCE_INVALID = "SourceInvalid", Retry.NEVER
    SOURCE_HASH_MISMATCH = "SourceHashMismatch", Retry.NEVER
    SOURCE_UNAVAILABLE = "SourceUnavailable", Retry.COUNTED
    SOURCE_FAILED = "SourceFailed", Retry.COUNTED
    # What it costs, and where it runs
    BUDGET_EXCEEDED = "BudgetExceeded", Retry.NEVER
    COST_UNKNOWN = "CostUnknown", Retry.NEVER
    NO_BACKEND = "NoBackend", Retry.NEVER
    # Running it
    TRANSPILE_FAILED = "TranspileFailed", Retry.NEVER
    BACKEND_REFUSED = "BackendRefused", Retry.NEVER
    BACKEND_UNAVAILABLE = "BackendUnavailable", Retry.COUNTED
    BACKEND_DENIED = "BackendDenied", Retry.NEVER
    PROVIDER_JOB_FAILED = "ProviderJobFailed", Retry.COUNTED  # by the next submission
    PROVIDER_JOB_CANCELLED = "ProviderJobCancelled", Retry.NEVER  # somebody wanted it so
    SESSION_CLOSED = "SessionClosed", Retry.NEVER  # another may cost money: the user decides
    SESSION_FAILED = "SessionFailed", Retry.NEVER
    OUT_OF_MEMORY = "OutOfMemory", Retry.NEVER
    TIMEOUT = "Timeout", Retry.NEVER
    EXECUTOR_FAILED = "ExecutorFailed", Retry.COUNTED
    # Storing what came back
    OUTPUT_CONFLICT = "OutputConflict", Retry.NEVER
    OUTPUT_TOO_LARGE = "OutputTooLarge", Retry.NEVER
    OUTPUT_DENIED = "OutputDenied", Retry.COUNTED  # a person can mend the Secret meanwhile
    OUTPUT_NOT_FOUND = "OutputNotFound", Retry.COUNTED  # a person can make the bucket meanwhile
    OUTPUT_FULL = "OutputFull", Retry.COUNTED
    OUTPUT_UNAVAILABLE = "OutputUnavailable", Retry.COUNTED
    OUTPUT_FAILED = "OutputFailed", Retry.COUNTED
    RESULT_LOST = "ResultLost", Retry.NEVER  # running again is for the user to decide
    # The pod
    STAGE_FAILED = "StageFailed", Retry.COUNTED
    STORAGE_EXCEEDED = "StorageExceeded", Retry.NEVER
    POD_LOST = "PodLost", Retry.FREE
    EVICTED = "Evicted", Retry.FREE


@attrs.frozen
class JobIdentity:
    """The QiskitJob that a pod works for."""

    namespace: str = field("Its namespace.")
    name: str = field("Its name.")
    uid: str = field("Its UID, which a second object of the same name does not share.")


@attrs.frozen
class PlannedSource:
    """The code: pinned in the input folder, or fetched in the pod into the source folder."""

    file: str = field("File name in that folder; its ending tells the format.")
    sha256: str = field("SHA-256 of the file. Unknown beforehand if it is fetched.", default="")
    fetched: bool = field("Whether the stage source fetches it.", default=False)


@attrs.frozen
class Limits:
    """Bounds on what users choose, set by the operator."""

    circuit_seconds: float = field("Wall time of the user's code.", default=300.0)
    printed_bytes: int = field("What the user's code may print.", default=1_000_000)
    circuit_bytes: int = field("Size of the circuit in QPY form.", default=64_000_000)
    source_seconds: float = field("Wall time of fetching the code.", default=120.0)
    source_bytes: int = field("Size of the code that is fetched.", default=10_000_000)
    git_bytes: int = field("What a Git repository may take up.", default=256_000_000)
    source_allow_cidr: tuple[str, ...] = field(
        "Networks that code may be fetched from, beside the public Internet.", default=()
    )
    source_deny_cidr: tuple[str, ...] = field(
        "Networks that code may not be fetched from, whatever else is allowed.", default=()
    )


@attrs.frozen
class Plan:
    """All that a pod needs to know; the same for every attempt."""

    job: JobIdentity = field("The QiskitJob.")
    spec: QiskitJobSpec = field("Its spec when it started.")
    source: PlannedSource = field("The code.")
    record: str = field("Name of the ConfigMap that takes the progress.")
    output_location: str = field("spec.output.location, or its default.")
    limits: Limits = field("Bounds on the untrusted stage.", factory=Limits)
    select: bool = field("Whether the executor waits to be told its backend.", default=False)
    probe: bool = field(
        "With select: whether it tells first which devices its credentials lead to.", default=False
    )
    secret: str | None = field(
        "The Secret of a QiskitBackend, for a job that names none of its own.", default=None
    )
    session: str | None = field(
        "The provider's session to run in. It comes with the assignment, so it is never in the "
        "ConfigMap.",
        default=None,
    )


# Kubernetes tells both in whole seconds.
_BEGUN = "When the stage's first process began, RFC 3339 with microseconds."
_ENDED = "When the stage had nothing left to do but say so."


@attrs.frozen
class SourceReport:
    """What the stage ``source`` fetched, or with a reason, why it did not."""

    reason: Reason | None = field("Why there is no code.", default=None)
    message: str = field("For people.", default="")
    sha256: str = field("SHA-256 of the file.", default="")
    size: int = field("Its size in bytes.", default=0)
    commit: str | None = field("The commit it is from, for git.", default=None)
    begun: str | None = field(_BEGUN, default=None)
    ended: str | None = field(_ENDED, default=None)


@attrs.frozen
class Outcome:
    """What the untrusted stage says of itself: a hint, never a fact.

    Without a reason, it says that a circuit was written.
    """

    reason: str | None = field("A value of Reason.", default=None)
    message: str = field("For people.", default="")
    printed: str = field("The end of what the user's code printed.", default="")


Stage = Literal["Validated", "Executing", "Executed"]


@attrs.frozen
class KeptResult:
    """A result that waits in the record for being stored, as an .xz file."""

    file: str = field("Name of the file in the store.")
    text: bool = field("Whether it is UTF-8 text.", default=False)
    media_type: str = field("For stores that keep one.", default="")
    size: int = field("Bytes, before compression.")
    sha256: str = field("SHA-256 of the bytes, before compression.")


@attrs.frozen
class Assignment:
    """Where the job runs, controller to executor: the record's key :data:`ASSIGNMENT_KEY`.

    It holds all that the status says of it, so that a controller that starts anew says the same.
    Both sides write over the version of the record that they have read: the executor takes up an
    assignment (``Progress.assignment``) or finds another, and one that is taken up is replaced
    only when the executor refuses its backend.
    """

    number: int = field("Which choice this is, from 1.")
    type: str = field("Backend type.")
    name: str = field("The backend.")
    reason: str = field("Why this one, in CamelCase.")
    message: str = field("The same, for people.", default="")
    costs: CostStatus = field("What it is going to cost.", factory=CostStatus)
    exceeded: str = field("The budget's verdict, for one that falls back.", default="")
    session: str | None = field("The provider's session to run in.", default=None)


# The reason of an assignment to the one backend that the job names.
REQUESTED = "RequestedBackend"
# Keys of the record.
ASSIGNMENT_KEY = "assignment"
DEVICES_KEY = "devices"  # a list of DeviceStatus, of the executor's own account


@attrs.frozen
class Progress:
    """How far an attempt has come. Kept in the record under :func:`progress_key`."""

    attempt: int = field("Which attempt.")
    stage: Stage = field("The step that has been reached.")
    circuit_metrics: CircuitMetrics = field("The validated circuit.")
    backend: str | None = field("The backend that executes.", default=None)
    report: Report | None = field("With Executed: what came back, as far as it fits.", default=None)
    kept: KeptResult | None = field(
        "With Executed: the whole result, when it could be kept under result_key.", default=None
    )
    waiting: str = field("What keeps it from going on, while that is so, for people.", default="")
    assignment: int = field("Number of the assignment that was taken up.", default=0)
    refused: Mapping[str, str] = field(
        "Backends that took no job of this one, before anything was submitted, and why.",
        factory=dict,
    )
    dynamic: bool = field(
        "Whether the circuit measures in mid-circuit or acts on outcomes.", default=False
    )
    operations: tuple[str, ...] = field(
        "Operations of the circuit that cannot be made of other gates.", default=()
    )


@attrs.frozen
class ProbeRequest:
    """Which account a probe asks, and for what."""

    backend: BackendSpec = field("Type, and name where it is about one device.")


@attrs.frozen
class ProbeReport:
    """The probe's last word: a termination message. Without a reason it succeeded."""

    reason: Reason | None = field("Why it did not succeed.", default=None)
    message: str = field("The same, for people.", default="")
    devices: tuple[DeviceStatus, ...] = field("The devices, if they fit.", default=())
    packed: str = field("Else the same list as JSON, compressed with zlib, in base64.", default="")
    left_out: int = field("Devices that did not fit even so.", default=0)


SessionAction = Literal["open", "look", "close"]


@attrs.frozen
class SessionRequest:
    """What is to be done about a session at a provider."""

    action: SessionAction = field("What to do.")
    backend: BackendSpec = field("Type, and the device where one is named.")
    mode: SessionMode = field("For open: dedicated or shared.", default="dedicated")
    max_time: int | None = field("For open: seconds.", default=None)
    id: str | None = field("For look and close: the provider's name for it.", default=None)


@attrs.frozen
class SessionReport:
    """The last word on a SessionRequest: a termination message. Without a reason it succeeded."""

    reason: Reason | None = field("Why it did not succeed.", default=None)
    message: str = field("The same, for people.", default="")
    id: str | None = field("The provider's name for the session.", default=None)
    backend: str | None = field("The device it is on.", default=None)
    accepting: bool = field("Whether it takes jobs.", default=False)
    closed: bool = field("Whether it is closed: none of its jobs runs any more.", default=False)
    state: str = field("The provider's own word for its state.", default="")
    expires_at: str | None = field("When the provider closes it, RFC 3339.", default=None)
    usage: str | None = field("Seconds that the provider counts for it.", default=None)


def progress_key(attempt: int) -> str:
    """The record's key for an attempt; a late writer of an old one disturbs nobody."""
    return f"progress-{attempt}"


def result_key(attempt: int) -> str:
    """The record's key, in binaryData, for the result of an attempt."""
    return f"result-{attempt}"


def counts_key(attempt: int) -> str:
    """The same for its counts, for a store that wants them beside the result."""
    return f"counts-{attempt}"


@attrs.frozen
class Submission:
    """What an executor has submitted to a provider, in the record under :func:`submission_key`.

    Without an id it is an intent: the provider may have a job of this ticket, or be about to.
    """

    ticket: int = field("Which submission of the QiskitJob, from 1.")
    attempt: int = field("The attempt that sees to it.")
    id: str | None = field("The provider's name for its job.", default=None)
    backend: str | None = field("The device.", default=None)
    state: ProviderState | None = field("What the provider's job is doing.", default=None)
    detail: str = field("The provider's own word for it.", default="")
    queue_position: int | None = field("Jobs before it.", default=None)
    estimated_start: str | None = field("When it may begin, RFC 3339.", default=None)
    executing: str | None = field("When it was first seen to execute, RFC 3339.", default=None)

    @property
    def over(self) -> bool:
        """Whether the provider's job will not change any more."""
        return self.state in ("Done", "Failed", "Cancelled")


def submission_key(ticket: int) -> str:
    """The record's key for a submission."""
    return f"submission-{ticket}"


@attrs.frozen
class StoredResult:
    """What was written, and where."""

    location: str = field("As status.resultsLocation shows it: configmap/<name>, s3://...")
    size: int = field("Bytes.")
    sha256: str = field("SHA-256 of the bytes.")


@attrs.frozen
class Report:
    """The executor's last word on an attempt. Without a reason it succeeded."""

    attempt: int = field("Which attempt.")
    reason: Reason | None = field("Why it did not succeed.", default=None)
    message: str = field("The verdict for people.", default="")
    circuit_metrics: CircuitMetrics | None = field("The validated circuit.", default=None)
    backend: str | None = field("The backend that executed.", default=None)
    started: str | None = field("When executing began, RFC 3339 with microseconds.", default=None)
    execution_time: float | None = field("Seconds of executing.", default=None)
    shots: int | None = field("Shots that came back.", default=None)
    counts: Mapping[str, int] = field(
        "Shots by outcome, the most frequent first; as many as fit.", factory=dict
    )
    outcomes: int = field("Number of distinct outcomes.", default=0)
    stored: StoredResult | None = field("What was written.", default=None)
    usage: Mapping[str, str] = field(
        "What is billed of each unit, where the provider tells.", factory=dict
    )
    begun: str | None = field(_BEGUN, default=None)
    ended: str | None = field(_ENDED, default=None)


def timeout_message(timeout: timedelta) -> str:
    """What a job is told that executed for too long, by its executor or for it."""
    return f"execution took longer than spec.execution.timeout ({format_duration(timeout)})"


def encode_report(report: Report, limit: int = MAX_REPORT_BYTES) -> str:
    """The report as JSON of at most `limit` bytes; see :func:`fit_report`."""
    return _dumps(fit_report(report, limit))


def encode_source_report(report: SourceReport, limit: int = MAX_REPORT_BYTES) -> str:
    """The report as JSON of at most `limit` bytes; what is too much of the message is cut."""
    while len(_dumps(report).encode()) > limit and report.message:
        report = attrs.evolve(report, message=report.message[: len(report.message) * 3 // 4])
    return _dumps(report)


def fit_report(report: Report, limit: int = MAX_REPORT_BYTES) -> Report:
    """The report without what would make its JSON longer than `limit` bytes.

    Counts beyond what fits are left out, the rarest first, then the end of the message.
    ``outcomes`` still tells how many there were.
    """
    ranked = sorted(report.counts.items(), key=lambda item: (-item[1], item[0]))
    report = attrs.evolve(report, counts=dict(ranked))
    if len(_dumps(report).encode()) <= limit:
        return report
    bare = len(_dumps(attrs.evolve(report, counts={})).encode())
    room = limit - bare - len(',"counts":{}')
    kept: dict[str, int] = {}
    for outcome, shots in ranked:
        room -= len(f'"{outcome}":{shots},'.encode())
        if room < 0:
            break
        kept[outcome] = shots
    report = attrs.evolve(report, counts=kept)
    while len(_dumps(report).encode()) > limit and report.message:
        report = attrs.evolve(report, message=report.message[: len(report.message) * 3 // 4])
    return report


def _dumps(value: object) -> str:
    return json.dumps(to_wire(value), separators=(",", ":"), ensure_ascii=False)
