"""What the reconciler sees of one QiskitJob, as plain values.

Only this module knows where Kubernetes keeps such things as the message of a terminated
container; :mod:`.decision` works on the answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs
import structlog

from qiskit_controller.api.codec import DecodeError, from_wire
from qiskit_controller.api.qiskitjob import QiskitJobSpec, QiskitJobStatus
from qiskit_controller.api.quantities import parse_time
from qiskit_controller.api.run import (
    Progress,
    Reason,
    Report,
    SourceReport,
    Submission,
    progress_key,
    result_key,
    submission_key,
)
from qiskit_controller.reconcilers.qiskitjob.assigning import Market
from qiskit_controller.reconcilers.qiskitjob.session import SessionSeen
from qiskit_controller.telemetry.trace import JobTrace

log = structlog.get_logger(__name__)

CIRCUIT = "circuit"
EXECUTOR = "executor"
SOURCE = "source"

# A container that waits for one of these does so in the normal course of things.
_ORDINARY_WAITS = frozenset({"ContainerCreating", "PodInitializing"})
# What the kubelet says when it evicts a pod for its own use of disk, and not for the node's sake.
_OWN_STORAGE = (
    "Usage of EmptyDir volume",
    "Pod ephemeral local storage usage exceeds",
    "exceeded its local ephemeral storage limit",
)
# By a queueing system or by hand; we never do it.
_SUSPENDED = ("JobSuspended", "the Kubernetes Job is suspended; the job goes on when it is resumed")


@attrs.frozen
class Terminated:
    """A container that has ended."""

    exit_code: int
    reason: str  # the kubelet's word: Completed, Error, OOMKilled, ...
    message: str
    finished: datetime | None


@attrs.frozen
class PodView:
    """The pod of an attempt.

    Attributes:
        problem: what keeps it from starting, as (reason, message), while it does.
        idle_since: since when it has a node, but no container of it has run.
        source_started: when the stage that fetches the code began.
        source_ended: how it ended.
        source_report: what it said of the code.
        circuit_started: when the untrusted stage began.
        circuit_ended: how it ended.
        executor_started: when the executor began.
        executor_ended: how it ended.
        report: the executor's last word, when it could leave one.
        lost: why the pod is no longer there to be waited for, when that is so.
        created: when it was made.
        scheduled: when it was given a node.
    """

    name: str
    problem: tuple[str, str] | None = None
    idle_since: datetime | None = None
    source_started: datetime | None = None
    source_ended: Terminated | None = None
    source_report: SourceReport | None = None
    circuit_started: datetime | None = None
    circuit_ended: Terminated | None = None
    executor_started: datetime | None = None
    executor_ended: Terminated | None = None
    report: Report | None = None
    lost: tuple[Reason, str] | None = None
    created: datetime | None = None
    scheduled: datetime | None = None

    @property
    def over(self) -> bool:
        """Whether nothing in it will run any more."""
        before = (self.source_ended, self.circuit_ended)
        return self.executor_ended is not None or any(
            each is not None and each.exit_code != 0 for each in before
        )


@attrs.frozen
class Run:
    """One attempt: its Kubernetes Job and that Job's pod.

    Attributes:
        failed: the Job's own Failed condition, as (reason, message).
        complete: whether the Job says that it is complete.
        ended: since when the Job says that it has failed or is complete.
        no_pod: why there is no pod, as (reason, message), when it is known.
    """

    attempt: int
    job_name: str
    created: datetime
    deleting: bool = False
    pod: PodView | None = None
    failed: tuple[str, str] | None = None
    complete: bool = False
    ended: datetime | None = None
    no_pod: tuple[str, str] | None = None


@attrs.frozen
class Canceller:
    """The Kubernetes Job that cancels at a provider.

    Attributes:
        complete: it has done so.
        failed: why it will not.
        said: what its last pod that ended said.
    """

    job_name: str
    deleting: bool = False
    complete: bool = False
    failed: str | None = None
    said: str = ""


@attrs.frozen
class Source:
    """The code as it was found, to be pinned."""

    file: str
    content: bytes

    @property
    def sha256(self) -> str:
        """In hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()


@attrs.frozen
class ToFetch:
    """The code is fetched by the pod; there is nothing to pin yet but its file's name."""

    file: str


@attrs.frozen
class SourceMissing:
    """The code is not there yet; it may still come."""

    reason: str
    message: str


@attrs.frozen
class Observed:
    """All that a decision is made from.

    Attributes:
        problems: what is wrong with the spec; nothing is started then.
        spec: None when it could not even be read.
        source: read only as long as the job has not started.
        runs: those attempts whose Job exists, by number.
        pods_left: pods of attempts that still exist, also of Jobs that are gone.
        spec_changed: fields of spec that differ from what was started.
        submission: the newest in the record.
        canceller: the Job that cancels at the provider, as long as it exists.
        cancel_pods: its pods that still exist.
        selects: whether the executor waits to be told its backend.
        market: what there is to choose from, while it waits.
        session: the session that it is to run in, while it waits.
        warnings: what in the spec has no effect.
        trace: the job's; nothing is decided by it.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    deleting: bool
    finalized: bool  # our finalizer is on the object
    spec: QiskitJobSpec | None
    problems: Sequence[str]
    unsupported: str | None
    backend: str
    cost: str
    status: QiskitJobStatus
    source: Source | ToFetch | SourceMissing | None
    runs: Mapping[int, Run]
    pods_left: int
    progress: Progress | None
    spec_changed: Sequence[str]
    now: datetime
    submission: Submission | None = None
    canceller: Canceller | None = None
    cancel_pods: int = 0
    selects: bool = False
    market: Market | None = None
    session: SessionSeen | None = None
    warnings: Sequence[str] = ()
    trace: JobTrace | None = None


def read_progress(record: Mapping[str, Any], attempt: int) -> Progress | None:
    """What an attempt has written into the record."""
    text = (record.get("data") or {}).get(progress_key(attempt))
    try:
        return from_wire(json.loads(text), Progress) if text else None
    except (ValueError, RecursionError) as error:
        log.warning("progress cannot be read", error=str(error))
        return None


def kept_progress(record: Mapping[str, Any], attempt: int) -> Progress | None:
    """The progress of this attempt, or else of the newest before it, that kept its result."""
    kept = record.get("binaryData") or {}
    for number in range(attempt, 0, -1):
        if result_key(number) in kept:
            progress = read_progress(record, number)
            if progress is not None and progress.stage == "Executed" and progress.kept:
                return progress
    return None


def newest_submission(record: Mapping[str, Any]) -> Submission | None:
    """What was last submitted to a provider, or is about to be."""
    found = []
    for key, text in (record.get("data") or {}).items():
        if key.startswith(submission_key(0)[:-1]):
            try:
                found.append(from_wire(json.loads(text), Submission))
            except (ValueError, RecursionError) as error:
                log.warning("a submission cannot be read", error=str(error))
    return max(found, key=lambda each: each.ticket, default=None)


def view_canceller(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> Canceller:
    """The Job of the form that :mod:`.manifests` makes, and its pods."""
    conditions = {
        each["type"]: each
        for each in job.get("status", {}).get("conditions") or ()
        if each["status"] == "True"
    }
    failed = conditions.get("Failed")
    said = ""
    for pod in sorted(pods, key=lambda each: str(each["metadata"].get("creationTimestamp"))):
        for container in pod.get("status", {}).get("containerStatuses") or ():
            ended = _terminated(container)
            if ended is not None and ended.message:
                try:
                    said = from_wire(json.loads(ended.message), Report).message
                except (ValueError, RecursionError):
                    said = ended.message[:512]
    return Canceller(
        job_name=job["metadata"]["name"],
        deleting="deletionTimestamp" in job["metadata"],
        complete="Complete" in conditions,
        failed=(failed.get("message") or failed.get("reason") or "") if failed else None,
        said=said,
    )


def view_run(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], attempt: int) -> Run:
    """A Job and the newest of its pods (a Job replaces a pod that was deleted)."""
    metadata = job["metadata"]
    newest = max(
        pods,
        key=lambda pod: (
            "deletionTimestamp" not in pod["metadata"],
            pod["metadata"]["creationTimestamp"],
        ),
        default=None,
    )
    conditions = {
        each["type"]: each
        for each in job.get("status", {}).get("conditions") or ()
        if each["status"] == "True"
    }
    failed = conditions.get("Failed")
    since = (failed or conditions.get("Complete") or {}).get("lastTransitionTime")
    return Run(
        attempt=attempt,
        job_name=metadata["name"],
        created=parse_time(metadata["creationTimestamp"]),
        deleting="deletionTimestamp" in metadata,
        pod=view_pod(newest, attempt) if newest is not None else None,
        failed=(failed.get("reason", ""), failed.get("message", "")) if failed else None,
        complete="Complete" in conditions,
        ended=parse_time(since) if since else None,
        no_pod=_SUSPENDED if job.get("spec", {}).get("suspend") else None,
    )


def view_pod(pod: Mapping[str, Any], attempt: int) -> PodView:
    """Read a Pod of the form that :mod:`.manifests` makes."""
    status = pod.get("status", {})
    containers = {
        each["name"]: each
        for key in ("initContainerStatuses", "containerStatuses")
        for each in status.get(key) or ()
    }
    executor_ended = _terminated(containers.get(EXECUTOR))
    source_ended = _terminated(containers.get(SOURCE))
    return PodView(
        name=pod["metadata"]["name"],
        problem=_problem(status, containers),
        idle_since=_idle_since(status, containers),
        source_started=_started(containers.get(SOURCE)),
        source_ended=source_ended,
        source_report=_source_report(source_ended),
        circuit_started=_started(containers.get(CIRCUIT)),
        circuit_ended=_terminated(containers.get(CIRCUIT)),
        executor_started=_started(containers.get(EXECUTOR)),
        executor_ended=executor_ended,
        report=_report(executor_ended, attempt),
        lost=_lost(pod),
        created=_time(pod["metadata"].get("creationTimestamp")),
        scheduled=_scheduled(status),
    )


def _scheduled(status: Mapping[str, Any]) -> datetime | None:
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "True":
            return _time(condition.get("lastTransitionTime"))
    return None


def _time(text: str | None) -> datetime | None:
    return parse_time(text) if text else None


def _started(container: Mapping[str, Any] | None) -> datetime | None:
    state = (container or {}).get("state") or {}
    since = (state.get("running") or state.get("terminated") or {}).get("startedAt")
    return parse_time(since) if since else None


def _terminated(container: Mapping[str, Any] | None) -> Terminated | None:
    ended = ((container or {}).get("state") or {}).get("terminated")
    if ended is None:
        return None
    finished = ended.get("finishedAt")
    return Terminated(
        exit_code=ended.get("exitCode", 0),
        reason=ended.get("reason", ""),
        message=ended.get("message", ""),
        finished=parse_time(finished) if finished else None,
    )


def _problem(
    status: Mapping[str, Any], containers: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str] | None:
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return condition.get("reason", "Unschedulable"), condition.get("message", "")
    for container in containers.values():
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in (None, *_ORDINARY_WAITS):
            return waiting["reason"], waiting.get("message", "")
    return None


def _idle_since(
    status: Mapping[str, Any], containers: Mapping[str, Mapping[str, Any]]
) -> datetime | None:
    since = status.get("startTime")
    if not since or any(_started(each) for each in containers.values()):
        return None
    return parse_time(since)


def _source_report(ended: Terminated | None) -> SourceReport | None:
    if ended is None or not ended.message:
        return None
    try:
        return from_wire(json.loads(ended.message), SourceReport)
    except (json.JSONDecodeError, DecodeError):
        return None  # the kubelet's own words


def _report(ended: Terminated | None, attempt: int) -> Report | None:
    if ended is None or not ended.message:
        return None
    try:
        report = from_wire(json.loads(ended.message), Report)
        if report.started is not None:
            parse_time(report.started)
    except (ValueError, RecursionError):  # what is no JSON and what is no report, too
        return None  # the kubelet's own words, or a report that was cut off
    # The status of a success is made from these; a driver of somebody else's may forget one.
    if report.reason is None and not (report.circuit_metrics and report.started):
        return None
    return report if report.attempt == attempt else None


def _lost(pod: Mapping[str, Any]) -> tuple[Reason, str] | None:
    status = pod.get("status", {})
    told = status.get("message") or ""
    # Kubernetes 1.26 and later say so in a condition, all others in the pod's reason.
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return Reason.EVICTED, condition.get("message") or told or condition.get("reason", "")
    if status.get("reason") == "Evicted" and any(each in told for each in _OWN_STORAGE):
        # It would be evicted again, and again at no cost.
        return Reason.STORAGE_EXCEEDED, f"the pod used more disk than it may: {told.strip()}"
    if status.get("reason") in ("Evicted", "Preempting", "Shutdown", "NodeShutdown", "Terminated"):
        return Reason.EVICTED, told or f"the pod was ended: {status['reason']}"
    if status.get("reason") == "NodeLost":
        return Reason.POD_LOST, told or "the node was lost"
    if "deletionTimestamp" in pod["metadata"]:
        return Reason.POD_LOST, "the pod was deleted"
    if status.get("phase") == "Failed" and not _has_run(status):
        # The kubelet's admission: OutOfcpu, NodeAffinity, UnexpectedAdmissionError, ...
        why = ": ".join(filter(None, (status.get("reason"), told))) or "it gave no reason"
        return Reason.POD_LOST, f"the node did not take the pod ({why})"
    return None


def _has_run(status: Mapping[str, Any]) -> bool:
    """Whether a container of the pod has begun, or was at least tried."""
    return any(
        state in (each.get("state") or {})
        for key in ("initContainerStatuses", "containerStatuses")
        for each in status.get(key) or ()
        for state in ("running", "terminated")
    )
