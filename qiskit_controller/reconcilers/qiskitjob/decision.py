"""What should be, from what is: the state machine of a QiskitJob as a pure function.

:func:`decide` looks at one :class:`~.observed.Observed` and returns what to write. It moves a
job by at most one phase at a time and asks to be called again, so that every phase that the
reference names is seen by who watches, however fast the pod was::

    Pending -> Validating -> Scheduling -> Running -> Completed
       |            |            |            |
       +------------+------------+------------+--> Failed, Cancelled, or back to Pending
                                                   for the next attempt

Pending lasts until the circuit's own code begins to run, so it includes waiting for a
ConfigMap, a node or an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

import attrs

from qiskit_controller.api import names
from qiskit_controller.api.conditions import MAX_MESSAGE, Condition, find, is_true, upsert
from qiskit_controller.api.qiskitjob import (
    FINISHED,
    AttemptStatus,
    QiskitJobStatus,
    ResultsStatus,
    SessionStatus,
    SourceStatus,
)
from qiskit_controller.api.qiskitsession import QiskitSessionSpec
from qiskit_controller.api.quantities import (
    format_duration,
    format_microtime,
    format_money,
    format_time,
    parse_duration,
    parse_money,
    parse_time,
)
from qiskit_controller.api.run import (
    Assignment,
    Limits,
    Progress,
    Reason,
    Report,
    Retry,
    timeout_message,
)
from qiskit_controller.reconcilers.qiskitjob import assigning, provider
from qiskit_controller.reconcilers.qiskitjob import session as sessions
from qiskit_controller.reconcilers.qiskitjob.observed import (
    Observed,
    PodView,
    Run,
    Source,
    SourceMissing,
    Terminated,
    ToFetch,
)

# How long a missing source or a pod that does not start is left before it is looked at again;
# what is being waited for normally wakes the job up earlier.
RECHECK = timedelta(seconds=30)
# What has been so for long is looked at less often: there may be thousands that wait for room.
RECHECK_CAP = timedelta(minutes=5)
# A pod that nothing is known about this long after its Job was made is looked into.
POD_PATIENCE = timedelta(seconds=5)
# Above what the untrusted stage enforces itself, for code that got the better of it.
CIRCUIT_GRACE = timedelta(seconds=60)
# Above what the stage that fetches enforces itself, for a node that got stuck.
SOURCE_GRACE = timedelta(seconds=60)
# Above what the executor enforces itself, which leaves its log to be read; a node may be stuck.
TIMEOUT_GRACE = timedelta(seconds=10)
# An attempt that stores for longer is ended; the executor itself gives up long before.
STORING_PATIENCE = timedelta(minutes=30)
# Like the Job controller's own: 10 s, doubled for each failure, six minutes at most.
RETRY_BASE = timedelta(seconds=10)
RETRY_CAP = timedelta(minutes=6)
# Attempts that do not count may be many; of those, the status shows this many. It has to fit
# into an object of 1.5 MB.
SHOWN_FREE_ATTEMPTS = 20
# How the kubelet calls containers that ended while it did not look: the node was restarted.
_OUT_OF_SIGHT = frozenset({"Unknown", "ContainerStatusUnknown"})
# ... and those that never began.
_NOT_STARTED = frozenset({"StartError", "ContainerCannotRun", "ContainerCannotStart"})


@attrs.frozen
class AddFinalizer:
    """Make sure that deletion waits for us."""


@attrs.frozen
class RemoveFinalizer:
    """Let the object go."""


@attrs.frozen
class Start:
    """Pin the spec, and the code where it is at hand, then run the first attempt."""

    source: Source | ToFetch


@attrs.frozen
class StartAttempt:
    """Run another attempt of what was pinned."""

    number: int


@attrs.frozen
class Assign:
    """Reserve what a backend will cost, and tell the executor to use it."""

    assignment: Assignment


@attrs.frozen
class CreateSession:
    """Make the QiskitSession that the job describes."""

    name: str
    spec: QiskitSessionSpec


@attrs.frozen
class DeleteSession:
    """Delete a QiskitSession of ours that has ended, to make it anew."""

    name: str
    uid: str


@attrs.frozen
class StopRuns:
    """Delete the Kubernetes Jobs and their pods."""

    job_names: tuple[str, ...]


@attrs.frozen
class StartCancel:
    """Run a pod that cancels at the provider what a submission has there."""

    ticket: int
    job_id: str | None


@attrs.frozen
class StopCancel:
    """Delete the Kubernetes Job of that pod."""

    job_name: str


@attrs.frozen
class CleanUp:
    """Delete what only a running pod needs: the record and its permissions."""

    output_unused: bool  # also the output ConfigMap, which nothing was written to
    keep_record: bool = False  # it holds a result that could not be stored anywhere else


@attrs.frozen
class DeleteJob:
    """Delete the QiskitJob itself: its time to live is over."""


Action = (
    AddFinalizer
    | RemoveFinalizer
    | Start
    | StartAttempt
    | Assign
    | CreateSession
    | DeleteSession
    | StopRuns
    | StartCancel
    | StopCancel
    | CleanUp
    | DeleteJob
)


@attrs.frozen
class EventNote:
    """An Event about the QiskitJob."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@attrs.frozen
class Decision:
    """What to write, in this order: the actions, the status, the Events.

    Attributes:
        status: the whole new status; equal to the old one when there is nothing to write.
        requeue_after: look again after this long, even if nothing happens.
    """

    status: QiskitJobStatus
    actions: tuple[Action, ...] = ()
    events: tuple[EventNote, ...] = ()
    requeue_after: timedelta | None = None


def decide(seen: Observed, limits: Limits) -> Decision:
    """The next step for a QiskitJob.

    Args:
        seen: what is.
        limits: the operator's bounds on the untrusted stage.
    """
    status = attrs.evolve(seen.status, observed_generation=seen.generation)
    seen = provider.noted(attrs.evolve(seen, status=status))
    if seen.deleting:
        return _delete(seen)
    if status.phase in FINISHED:
        return _finished(seen)
    if status.phase is None:
        return _accept(seen)
    failing = find(status.conditions, "Failed")
    if failing is not None and failing.status == "Unknown":
        return _end_failing(seen, failing)
    if seen.spec is not None and seen.spec.cancel and not _has_succeeded(seen):
        return _cancel(seen)
    if not status.attempts:
        return _start(seen)
    return _watch(seen, limits)


def refuse(seen: Observed, reason: Reason, message: str) -> Decision:
    """Fail the job, because an action was refused for good."""
    validated = False if reason is Reason.INVALID_SPEC else None
    status = attrs.evolve(seen.status, observed_generation=seen.generation)
    seen = provider.noted(attrs.evolve(seen, status=status))
    decision = _fail(seen, reason, message, validated=validated)
    if decision.status.phase not in FINISHED:
        return decision
    # Some of what the job needs may have been made before the refusal.
    clean_up = CleanUp(output_unused=True, keep_record=_kept(seen) is not None)
    return attrs.evolve(decision, actions=(clean_up,))


def over_budget(seen: Observed, message: str) -> Decision:
    """What becomes of a job whose assignment a QiskitBudget has refused."""
    status = attrs.evolve(seen.status, observed_generation=seen.generation)
    return _over_budget(attrs.evolve(seen, status=status), Reason.BUDGET_EXCEEDED, message)


def unassigned(seen: Observed, reason: str, message: str) -> Decision:
    """Keep a job waiting for its backend."""
    status = _with_condition(seen, "BackendSelected", "False", reason, message)
    status = attrs.evolve(status, message=message, observed_generation=seen.generation)
    notes = _if_new(seen, "BackendSelected", EventNote("Warning", reason, message))
    return Decision(status, events=notes, requeue_after=RECHECK)


def blocked(seen: Observed, reason: str, message: str) -> Decision:
    """Keep the job where it is, because the API server does not let us go on for now."""
    status = _with_condition(seen, "PodStarted", "False", reason, message)
    status = attrs.evolve(
        status, message=f"{reason}: {message}", observed_generation=seen.generation
    )
    note = EventNote("Warning", reason, message)
    return Decision(status, events=_if_new(seen, "PodStarted", note), requeue_after=RECHECK)


def not_cancelled(seen: Observed, why: str) -> Decision:
    """Go on without having cancelled at the provider, because nothing can be run that would."""
    status = attrs.evolve(seen.status, observed_generation=seen.generation)
    return _abandon(provider.noted(attrs.evolve(seen, status=status)), why)


def waiting(seen: Observed, message: str) -> QiskitJobStatus:
    """The status of a job that cannot have its names yet."""
    status = _with_condition(seen, "PodStarted", "False", "WaitingForDeletion", message)
    return attrs.evolve(status, message=message, observed_generation=seen.generation)


# --- beginning ------------------------------------------------------------------------------


def _accept(seen: Observed) -> Decision:
    status = attrs.evolve(
        seen.status,
        phase="Pending",
        start_time=format_time(seen.now),
        message="Accepted; waiting for validation",
    )
    note = EventNote("Normal", "Accepted", status.message or "")
    return Decision(status, (AddFinalizer(),), (note,), requeue_after=timedelta(0))


def _start(seen: Observed) -> Decision:
    if seen.problems or seen.spec is None:
        return _fail(seen, Reason.INVALID_SPEC, "; ".join(seen.problems), validated=False)
    if seen.unsupported:
        return _fail(seen, Reason.UNSUPPORTED, seen.unsupported, validated=False)
    if not seen.finalized:
        return Decision(seen.status, (AddFinalizer(),), requeue_after=timedelta(0))
    if seen.source is None:
        return Decision(seen.status, requeue_after=RECHECK)
    if isinstance(seen.source, SourceMissing):
        status = _with_condition(
            seen, "Validated", "False", seen.source.reason, seen.source.message
        )
        status = attrs.evolve(status, message=seen.source.message)
        note = EventNote("Warning", seen.source.reason, seen.source.message)
        return Decision(status, events=_if_new(seen, "Validated", note), requeue_after=RECHECK)
    source = None
    if isinstance(seen.source, Source):
        source = SourceStatus(sha256=seen.source.sha256)
        wanted = seen.spec.circuit.sha256
        if wanted and wanted != source.sha256:
            return _fail(
                seen,
                Reason.SOURCE_HASH_MISMATCH,
                f"spec.circuit.sha256 is {wanted}, but the code has {source.sha256}",
                validated=False,
            )
    job_name = names.job_name(seen.name, 1)
    status = _with_condition(
        seen, "Validated", "Unknown", "Validating", "The circuit has not been validated yet"
    )
    status = _put(seen, status, "PodStarted", "False", "Starting", _made(job_name))
    status = attrs.evolve(
        status,
        message="Waiting for the pod to start",
        source=source,
        attempts=(AttemptStatus(number=1, job_name=job_name, start_time=format_time(seen.now)),),
    )
    notes = [EventNote("Normal", "Started", f"Created Kubernetes Job {job_name}")]
    if seen.warnings:
        text = "; ".join(seen.warnings)
        status = _put(seen, status, "SpecWarning", "True", "FieldsIgnored", text)
        notes.append(EventNote("Warning", "FieldsIgnored", text))
    return Decision(status, (Start(seen.source),), tuple(notes), requeue_after=POD_PATIENCE)


# --- while it runs --------------------------------------------------------------------------


def _watch(seen: Observed, limits: Limits) -> Decision:
    current = seen.status.attempts[-1]
    if current.completion_time is not None:
        return _between_attempts(seen, current)
    run = seen.runs.get(current.number)
    if run is None and seen.status.phase == "Pending":
        # Not in the cache yet, or deleted by someone: creating it answers both.
        return Decision(seen.status, (StartAttempt(current.number),), requeue_after=POD_PATIENCE)
    if run is None:
        gone = f"Kubernetes Job {current.job_name} was deleted"
        return _attempt_failed(seen, current, None, Reason.POD_LOST, gone)
    replaced = _replaced(seen, run)
    seen = _note_pod(seen, run)
    pod = run.pod
    verdict = replaced or _failure(seen, run, limits)
    # What has run is shown to have run, also where it was faster than we looked.
    behind = _kept(seen) is not None and seen.status.phase != "Running" and pod is not None
    if verdict is not None and not behind:
        return _attempt_failed(seen, current, run, *verdict)
    advance = _ADVANCES.get(seen.status.phase or "Pending")
    decision = advance(seen, pod) if advance is not None and pod is not None else None
    if decision is None:
        decision = _with_provider_note(seen, _wait(seen, run, limits))
    return _with_spec_note(seen, decision)


def _validating(seen: Observed, pod: PodView) -> Decision | None:
    if not (pod.circuit_started or seen.progress or pod.report):
        return None
    status = _with_condition(seen, "PodStarted", "True", "Started", f"Pod {pod.name} has started")
    status = attrs.evolve(status, phase="Validating", message="Validating the circuit")
    notes = [EventNote("Normal", "Validating", f"Validating the circuit in pod {pod.name}")]
    fetched = pod.source_report
    if fetched is not None:
        at = f"commit {fetched.commit}, " if fetched.commit else ""
        text = f"Fetched the code: {at}{fetched.size} bytes, SHA-256 {fetched.sha256}"
        notes.insert(0, EventNote("Normal", "SourceFetched", text))
    return Decision(status, events=tuple(notes), requeue_after=timedelta(0))


def _scheduling(seen: Observed, pod: PodView) -> Decision | None:
    metrics = (
        seen.progress.circuit_metrics
        if seen.progress
        else pod.report.circuit_metrics
        if pod.report
        else None
    )
    if metrics is None:
        return None
    status = _with_condition(
        seen, "Validated", "True", "CircuitValid", "Circuit validation successful"
    )
    status = attrs.evolve(status, phase="Scheduling", circuit_metrics=metrics)
    valid = (
        f"Circuit validation successful: {metrics.qubits} qubits, depth {metrics.depth}, "
        f"{metrics.gates} operations"
    )
    notes = [EventNote("Normal", "CircuitValid", valid)]
    if seen.selects:
        status = attrs.evolve(status, message="Selecting a backend")
    else:
        selected = f"Selected {seen.backend} as requested by spec.backend"
        status = _put(seen, status, "BackendSelected", "True", "RequestedBackend", selected)
        waiting = f"Waiting for {seen.backend} to execute"
        status = attrs.evolve(status, backend=seen.backend, message=waiting)
        notes.append(EventNote("Normal", "BackendSelected", selected))
    return Decision(status, events=tuple(notes), requeue_after=timedelta(0))


def _assigned_or_running(seen: Observed, pod: PodView) -> Decision | None:
    return _assigning(seen) or _running(seen, pod)


def _assigning(seen: Observed) -> Decision | None:
    """Choose a backend, if one has to be chosen now."""
    market, progress = seen.market, seen.progress
    if market is None or progress is None or seen.spec is None:
        return None
    if progress.stage == "Validated":
        match sessions.propose(seen.spec, market, progress, seen.session):
            case sessions.Wait() as wait:
                return _wait_for_session(seen, wait)
            case Assignment() as assignment:
                return _assign(seen, assignment)
            case assigning.Waiting(reason, message):
                return unassigned(seen, reason, message)
            case assigning.Refusal(reason, message, over):
                if over:
                    return _over_budget(seen, reason, message)
                return _fail(seen, reason, message, stop=_current(seen))
    # Made before, by a controller that could not show it any more.
    if market.assignment is not None and not _shows(seen, market.assignment):
        return attrs.evolve(_assign(seen, market.assignment), actions=())
    return None


def _wait_for_session(seen: Observed, wait: sessions.Wait) -> Decision:
    assert seen.session is not None  # noqa: S101 - there is nothing else to wait for
    old, name = find(seen.status.conditions, "SessionReady"), seen.session.name
    status = _with_condition(seen, "SessionReady", "False", wait.reason, wait.message)
    before = seen.status.session or SessionStatus(name=name, since=format_microtime(seen.now))
    session = attrs.evolve(before, id=None) if wait.belongs else None
    status = attrs.evolve(status, message=wait.message[:MAX_MESSAGE], session=session)
    actions: list[Action] = []
    if wait.create is not None:
        actions.append(CreateSession(name, wait.create))
    if wait.replace is not None:
        actions.append(DeleteSession(name, wait.replace))
    news = old is None or old.reason != wait.reason
    notes = (EventNote("Normal", wait.reason, wait.message),) if news else ()
    return Decision(status, tuple(actions), notes, requeue_after=RECHECK)


def _over_budget(seen: Observed, reason: Reason, message: str) -> Decision:
    if seen.spec is not None and seen.market is not None:
        instead = assigning.fall_back(seen.spec, seen.market, message)
        if instead is not None:
            return _assign(seen, instead)
    return _fail(seen, reason, message, stop=_current(seen))


def _assign(seen: Observed, assignment: Assignment) -> Decision:
    status = _with_condition(seen, "BackendSelected", "True", assignment.reason, assignment.message)
    notes = [EventNote("Normal", "BackendSelected", assignment.message)]
    if assignment.exceeded:
        status = _put(
            seen, status, "BudgetExceeded", "True", "FallbackToSimulator", assignment.exceeded
        )
        notes.insert(0, EventNote("Warning", "BudgetExceeded", assignment.exceeded))
    notes += _near_budget(seen, assignment)
    status = attrs.evolve(
        status,
        backend=assignment.name,
        cost=assigning.shown(assignment.costs),
        costs=assignment.costs,
        message=f"Waiting for {assignment.name} to execute",
    )
    status = _in_session(seen, status, assignment)
    return Decision(status, (Assign(assignment),), tuple(notes), requeue_after=timedelta(0))


def _in_session(seen: Observed, status: QiskitJobStatus, assignment: Assignment) -> QiskitJobStatus:
    given = seen.spec.session if seen.spec is not None else None
    if given is None:
        return status
    if assignment.session is None:
        text = f"{assignment.name} runs in the cluster and needs no session"
        status = _put(seen, status, "SessionReady", "False", "NotNeeded", text)
        return attrs.evolve(status, session=None)
    name = given.name or seen.name
    text = f"Runs in session {name} ({assignment.session})"
    status = _put(seen, status, "SessionReady", "True", "InSession", text)
    before = status.session or SessionStatus(name=name)
    entered = before.entered or format_microtime(seen.now)
    return attrs.evolve(
        status, session=attrs.evolve(before, id=assignment.session, entered=entered)
    )


def _shows(seen: Observed, assignment: Assignment) -> bool:
    shown = find(seen.status.conditions, "BackendSelected")
    same = seen.status.backend == assignment.name and seen.status.costs is not None
    return same and shown is not None and shown.message == assignment.message[:MAX_MESSAGE]


def _near_budget(seen: Observed, assignment: Assignment) -> list[EventNote]:
    """That the estimate is above ``budget.alertThreshold``."""
    budget = seen.spec.budget if seen.spec else None
    if budget is None or not budget.max_cost or budget.alert_threshold is None:
        return []
    most, cost = parse_money(budget.max_cost), assigning.amount_of(assignment.costs)
    if cost == 0 or cost < most * Decimal(str(budget.alert_threshold)):
        return []
    text = (
        f"Estimated cost {format_money(cost)} is above {budget.alert_threshold:.0%} of the budget "
        f"{format_money(most)}"
    )
    return [EventNote("Warning", "BudgetThreshold", text)]


def _current(seen: Observed) -> Run | None:
    return seen.runs.get(seen.status.attempts[-1].number) if seen.status.attempts else None


def _running(seen: Observed, pod: PodView) -> Decision | None:
    executing = seen.progress is not None and seen.progress.stage in ("Executing", "Executed")
    if not executing and not (pod.report and pod.report.started):
        return None
    backend = (seen.progress.backend if seen.progress else None) or (
        seen.status.backend if seen.selects else seen.backend
    )
    status = attrs.evolve(
        seen.status,
        phase="Running",
        backend=backend,
        running_time=provider.executing_since(seen) or format_time(seen.now),
        message=f"Executing on {backend}",
    )
    note = EventNote("Normal", "Running", f"Executing on {backend}")
    return Decision(status, events=(note,), requeue_after=timedelta(0))


def _completed_or_storing(seen: Observed, pod: PodView) -> Decision | None:
    return _completed(seen, pod) or _storing(seen, pod)


def _storing(seen: Observed, pod: PodView) -> Decision | None:
    """The circuit has run: its counts are shown at once, wherever the results end up."""
    ran = _executed(seen)
    if ran is None or ran.report is None or pod.executor_started is None:
        return None
    report = ran.report
    message = f"{report.shots} shots on {report.backend}; storing the results"
    if seen.status.message == message and seen.status.results is not None:
        return None
    status = attrs.evolve(seen.status, message=message)
    if status.results is not None:
        return Decision(status, requeue_after=timedelta(0))
    status = _put(seen, status, "ResultsStored", "Unknown", "Storing", message)
    status = attrs.evolve(status, results=_results(seen, report), **_cost(seen, report))
    note = EventNote("Normal", "Executed", message)
    return Decision(status, events=(note,), requeue_after=timedelta(0))


def _completed(seen: Observed, pod: PodView) -> Decision | None:
    report = pod.report
    if report is None or report.reason is not None:
        return None
    location = report.stored.location if report.stored else None
    ran = _executed(seen)
    if ran is not None and ran.report is not None and len(ran.report.counts) > len(report.counts):
        # The record has more room for them.
        report = attrs.evolve(report, counts=ran.report.counts)
    message = (
        f"{report.shots} shots on {report.backend} in {_seconds(report.execution_time)}; "
        f"results in {location}"
    )
    status = seen.status
    if report.stored is not None:
        stored = f"{location}, {report.stored.size} bytes, SHA-256 {report.stored.sha256}"
        status = _put(seen, status, "ResultsStored", "True", "Stored", stored)
    status = _put(seen, status, "Complete", "True", "Completed", message)
    status = _put(seen, status, "Failed", "False", "Completed", "")
    status = attrs.evolve(
        status,
        phase="Completed",
        message=message,
        completion_time=format_time(seen.now),
        backend=report.backend or status.backend,
        **_cost(seen, report),
        results=_results(seen, report),
        results_location=location,
        circuit_metrics=report.circuit_metrics or status.circuit_metrics,
        attempts=_close(seen, ended=_ended(pod, seen.now)),
    )
    note = EventNote("Normal", "Completed", message)
    return Decision(status, (CleanUp(output_unused=False),), (note,))


_ADVANCES: dict[str, Callable[[Observed, PodView], Decision | None]] = {
    "Pending": _validating,
    "Validating": _scheduling,
    "Scheduling": _assigned_or_running,
    "Running": _completed_or_storing,
}


def _results(seen: Observed, report: Report) -> ResultsStatus:
    execution = report.execution_time or 0.0
    queue = 0.0
    if report.started and seen.status.start_time:
        waited = parse_time(report.started) - parse_time(seen.status.start_time)
        queue = max(0.0, waited.total_seconds())
    return ResultsStatus(
        counts=dict(report.counts),
        counts_truncated=len(report.counts) < report.outcomes,
        outcomes=report.outcomes,
        execution_time=round(execution, 6),
        queue_time=round(queue, 3),
        total_time=round(queue + execution, 3),
        sha256=report.stored.sha256 if report.stored else None,
        size=report.stored.size if report.stored else None,
    )


def _wait(seen: Observed, run: Run, limits: Limits) -> Decision:
    """Nothing has happened; look again when the next deadline is due."""
    due = [min(max(RECHECK, (seen.now - run.created) / 10), RECHECK_CAP)]
    if (deadline := _deadline(seen)) is not None:
        due.append(deadline[0] - seen.now)
    if seen.status.phase == "Validating" and run.pod and run.pod.circuit_started:
        end = run.pod.circuit_started + timedelta(seconds=limits.circuit_seconds) + CIRCUIT_GRACE
        due.append(end - seen.now)
    if (silence := _silence_ends(seen, run, limits)) is not None:
        due.append(silence - seen.now)
    if run.ended:
        due.append(run.ended + POD_PATIENCE - seen.now)
    if run.pod and run.pod.idle_since:
        due.append(run.pod.idle_since + POD_PATIENCE - seen.now)
    if run.pod and run.pod.source_started and not run.pod.source_ended:
        end = run.pod.source_started + timedelta(seconds=limits.source_seconds) + SOURCE_GRACE
        due.append(end - seen.now)
    # A deadline that has passed without effect (its stage has ended) is none any more; to look
    # again at once would be to do nothing else.
    return Decision(seen.status, requeue_after=min(each for each in due if each > timedelta(0)))


def _note_pod(seen: Observed, run: Run) -> Observed:
    """`seen` with what the pod tells of itself in the status."""
    status = seen.status
    if run.pod is not None:
        status = attrs.evolve(status, executor_pod_name=run.pod.name)
        fetched = run.pod.source_report
        # What was fetched first stays: every later attempt has to run the same.
        if fetched is not None and fetched.reason is None and status.source is None:
            source = SourceStatus(sha256=fetched.sha256, commit=fetched.commit)
            status = attrs.evolve(status, source=source)
    if status.attempts[-1].job_name != run.job_name:  # its usual name was somebody else's
        named = attrs.evolve(status.attempts[-1], job_name=run.job_name)
        status = attrs.evolve(status, attempts=(*status.attempts[:-1], named))
    problem = run.pod.problem if run.pod is not None else run.no_pod
    if problem is None:
        waited = find(status.conditions, "PodStarted")
        begun = run.pod is not None and (
            run.pod.source_started or run.pod.circuit_started or run.pod.executor_started
        )
        if run.pod is not None and begun and waited is not None and waited.status == "False":
            text = f"Pod {run.pod.name} has started"
            status = _put(seen, status, "PodStarted", "True", "Started", text)
            status = attrs.evolve(status, message=text)
        elif run.pod is not None and not begun and waited and waited.status == "False":
            # Whatever was in its way is no longer.
            text = f"Pod {run.pod.name} is starting"
            status = _put(seen, status, "PodStarted", "False", "Starting", text)
            status = attrs.evolve(status, message=text)
        return attrs.evolve(seen, status=status)
    reason, message = problem
    reason = reason if reason.isalnum() else "PodWaiting"
    status = _put(seen, status, "PodStarted", "False", reason, message)
    return attrs.evolve(seen, status=attrs.evolve(status, message=f"{reason}: {message}"))


def _with_provider_note(seen: Observed, decision: Decision) -> Decision:
    """`decision` with what the job waits for at its provider."""
    status = decision.status
    if status.phase not in ("Scheduling", "Running"):
        return decision
    silent = seen.progress.waiting if seen.progress is not None else ""
    text = provider.waiting_for(seen)
    notes: tuple[EventNote, ...] = ()
    if silent:
        status = _put(seen, status, "ProviderAvailable", "False", "NoAnswer", silent)
        notes = _if_new(seen, "ProviderAvailable", EventNote("Warning", "NoAnswer", silent))
    elif (was := find(status.conditions, "ProviderAvailable")) and was.status == "False":
        again = "The provider answers again"
        status = _put(seen, status, "ProviderAvailable", "True", "Answers", again)
        notes = (EventNote("Normal", "ProviderAnswers", again),)
        text = text or f"Waiting for {seen.backend} to execute"
    if text is not None:
        status = attrs.evolve(status, message=text[:MAX_MESSAGE])
    return attrs.evolve(decision, status=status, events=(*decision.events, *notes))


def _with_spec_note(seen: Observed, decision: Decision) -> Decision:
    if not seen.spec_changed:
        if not is_true(seen.status.conditions, "SpecChangeIgnored"):
            return decision
        same = "the spec is again what was started"
        status = _put(seen, decision.status, "SpecChangeIgnored", "False", "Reverted", same)
        return attrs.evolve(decision, status=status)
    message = (
        f"{', '.join(seen.spec_changed)} changed after the job had started; the change is "
        "ignored. Create a new QiskitJob to run with it"
    )
    status = _put(seen, decision.status, "SpecChangeIgnored", "True", "AlreadyStarted", message)
    notes = _if_new(seen, "SpecChangeIgnored", EventNote("Warning", "SpecChangeIgnored", message))
    return attrs.evolve(decision, status=status, events=(*decision.events, *notes))


# --- ends -----------------------------------------------------------------------------------


def _replaced(seen: Observed, run: Run) -> tuple[Reason, str] | None:
    """Whether the pod that this attempt was seen to run in is gone, and another in its place.

    A Job makes up for a pod that is deleted, where it does not fail of it (before Kubernetes
    1.23). A second run under the same number would have only what the first left of its
    timeout, and find the first one's progress. So it becomes an attempt of its own.
    """
    pod, known = run.pod, seen.status.executor_pod_name
    if seen.status.phase == "Pending" or pod is None or pod.report is not None:
        return None
    if known in (None, pod.name):
        return None
    return Reason.POD_LOST, "the pod was deleted"


def _failure(seen: Observed, run: Run, limits: Limits) -> tuple[Reason, str] | None:
    """Why this attempt will not succeed, or None."""
    pod = run.pod
    if pod is not None:
        if pod.report is not None:
            return (pod.report.reason, pod.report.message) if pod.report.reason else None
        # A pod that had not begun is no loss: its Job may make another.
        begun = seen.status.phase != "Pending"
        if pod.lost is not None and (pod.lost[0] is not Reason.POD_LOST or begun or run.failed):
            return pod.lost
        if pod.executor_ended is not None and pod.lost is None:
            return _executor_died(pod.executor_ended)
        if pod.circuit_ended is not None and pod.circuit_ended.exit_code != 0 and not pod.lost:
            return _circuit_died(pod.circuit_ended)
        source = _source_failure(seen, pod, limits)
        if source is not None and not pod.lost:
            return source
    if run.failed is not None or run.complete:
        # Two watches tell of the Job and of its pod; the pod's last word may come second.
        if run.ended is not None and seen.now < run.ended + POD_PATIENCE:
            return None
        told = run.failed or ("", "it was deleted before its report could be read")
        return Reason.POD_LOST, "the pod is gone: " + (told[1] or told[0])
    if (deadline := _deadline(seen)) is not None and seen.now >= deadline[0]:
        return deadline[1], deadline[2]
    status = seen.status
    if status.phase == "Validating" and pod and pod.circuit_started and not pod.circuit_ended:
        bound = timedelta(seconds=limits.circuit_seconds)
        if seen.now >= pod.circuit_started + bound + CIRCUIT_GRACE:
            return (
                Reason.CIRCUIT_TIMEOUT,
                f"the circuit's code ran for longer than {format_duration(bound)}",
            )
    due = _silence_ends(seen, run, limits)
    if due is not None and seen.now >= due and pod and pod.executor_started:
        silent = format_duration(due - pod.executor_started)
        return Reason.TIMEOUT, f"the executor did not begin to execute the circuit within {silent}"
    return None


def _deadline(seen: Observed) -> tuple[datetime, Reason, str] | None:
    """Until when a job that runs has to execute, and then to store, and what it is when not."""
    status = seen.status
    if status.phase != "Running" or seen.spec is None or status.running_time is None:
        return None
    ran = _executed(seen)
    if ran is None and provider.has_run(status):
        return None  # paid and done; a provider that does not hand it out is waited for
    if ran is None:
        timeout = parse_duration(seen.spec.execution.timeout)
        end = parse_time(status.running_time) + timeout + TIMEOUT_GRACE
        return end, Reason.TIMEOUT, timeout_message(timeout)
    current, shown = status.attempts[-1], find(status.conditions, "ResultsStored")
    since = current.start_time if current.number != ran.attempt else None
    since = since or (shown.last_transition_time if shown else None)
    if since is None:
        return None
    text = f"storing the results took longer than {format_duration(STORING_PATIENCE)}"
    return parse_time(since) + STORING_PATIENCE, Reason.OUTPUT_UNAVAILABLE, text


def _silence_ends(seen: Observed, run: Run, limits: Limits) -> datetime | None:
    """Until when an executor has to tell that the circuit is valid.

    It is heard as soon as it does. One that cannot be heard may still be at work, so it gets the
    time for that as well.
    """
    pod = run.pod
    if seen.status.phase != "Validating" or pod is None or pod.executor_started is None:
        return None
    timeout = parse_duration(seen.spec.execution.timeout) if seen.spec else timedelta(hours=1)
    bound = timedelta(seconds=limits.circuit_seconds)
    return pod.executor_started + bound + timeout + CIRCUIT_GRACE


def _taken_away(ended: Terminated, stage: str) -> tuple[Reason, str] | None:
    """What may come over any container, whatever runs in it."""
    if ended.reason in _OUT_OF_SIGHT:
        return Reason.POD_LOST, f"the node lost the container of the stage {stage}"
    if ended.exit_code == 143:  # SIGTERM: someone ended the pod, the stage did not fail
        return Reason.POD_LOST, f"the stage {stage} was told to stop"
    if ended.reason in _NOT_STARTED:
        told = ended.message.strip() or ended.reason
        return Reason.STAGE_FAILED, f"the stage {stage} could not be started: {told}"
    return None


def _executor_died(ended: Terminated) -> tuple[Reason, str]:
    if ended.reason == "OOMKilled":
        return (
            Reason.OUT_OF_MEMORY,
            "the executor needed more memory than its limit; raise "
            "spec.resources.limits.memory or use fewer qubits",
        )
    return _taken_away(ended, "executor") or (
        Reason.EXECUTOR_FAILED,
        f"the executor ended without a report ({ended.reason}, exit code {ended.exit_code})",
    )


def _circuit_died(ended: Terminated) -> tuple[Reason, str]:
    if ended.reason == "OOMKilled":
        return (
            Reason.CIRCUIT_OUT_OF_MEMORY,
            "the circuit's code needed more memory than its limit; raise "
            "spec.resources.limits.memory or build a smaller circuit",
        )
    # The stage outlives whatever the user's code does, so this was not the code's doing.
    return _taken_away(ended, "circuit") or (
        Reason.STAGE_FAILED,
        f"the stage circuit ended without an outcome ({ended.reason}, exit code {ended.exit_code})",
    )


def _source_failure(seen: Observed, pod: PodView, limits: Limits) -> tuple[Reason, str] | None:
    """Why the code could not be fetched, or is not the code of the attempts before."""
    ended, report = pod.source_ended, pod.source_report
    if ended is None:
        bound = timedelta(seconds=limits.source_seconds)
        if pod.source_started and seen.now >= pod.source_started + bound + SOURCE_GRACE:
            return (
                Reason.SOURCE_UNAVAILABLE,
                f"fetching the code took longer than {format_duration(bound)}",
            )
        return None
    if report is not None and report.reason is not None:
        return report.reason, report.message
    if ended.exit_code == 0:
        known = seen.status.source
        if report is not None and known is not None and known.sha256 != report.sha256:
            # The Job replaced a pod that was deleted, and the code had changed meanwhile. The
            # next attempt is told what to fetch.
            return Reason.POD_LOST, "the pod was deleted, and the one in its place found other code"
        return None
    if ended.reason == "OOMKilled":
        return (
            Reason.OUT_OF_MEMORY,
            "fetching the code needed more memory than its limit; raise "
            "spec.resources.limits.memory",
        )
    return _taken_away(ended, "source") or (
        Reason.SOURCE_FAILED,
        f"the stage that fetches the code ended without a report ({ended.reason}, exit code "
        f"{ended.exit_code})",
    )


def _attempt_failed(
    seen: Observed, current: AttemptStatus, run: Run | None, reason: Reason, message: str
) -> Decision:
    pod = run.pod if run else None
    allowed = seen.spec.execution.max_retries if seen.spec else 0
    used = sum(each.counted for each in seen.status.attempts[:-1])
    counted = reason.retry is Retry.COUNTED
    if reason.retry is Retry.NEVER or (counted and used >= allowed):
        if counted and allowed:
            message = f"{message} (attempt {used + 1} of {allowed + 1}, the last)"
        return _fail(seen, reason, message, stop=run)
    attempts = _close(seen, ended=_ended(pod, seen.now), reason=reason, message=message)
    delay = retry_delay(seen.uid, attempts)
    text = f"{reason}: {message}; trying again in {format_duration(delay)}"
    if counted:
        text += f" (retry {used + 1} of {allowed})"
    status = attrs.evolve(seen.status, message=text, attempts=attempts)
    kept = _kept(seen)
    if kept is not None:
        # The next attempt only stores, so the job goes on from where it is.
        status = _with_results(seen, status, kept.report)
        running = status.running_time or format_time(seen.now)
        status = attrs.evolve(status, phase="Running", running_time=running)
    else:
        status = attrs.evolve(status, phase="Pending", running_time=None, results=None)
    was_storing = find(status.conditions, "ResultsStored") is not None
    if kept is not None or was_storing or reason in _ABOUT_OUTPUT:
        status = _put(seen, status, "ResultsStored", "False", str(reason), message)
    status = _put(seen, status, "PodStarted", "False", str(reason), message)
    note = EventNote("Warning", "Retrying", text)
    # The Job stays: its log may say why. One that still runs is ended next, once the verdict is
    # written: its pod would be seen to go, and that would be another verdict.
    alive = run is not None and _alive(run)
    return Decision(status, (), (note,), requeue_after=timedelta(0) if alive else delay)


def _between_attempts(seen: Observed, last: AttemptStatus) -> Decision:
    assert last.completion_time is not None  # noqa: S101 - the caller looked
    # A Job that has not noticed the end of its pod makes another when that one is deleted.
    left = [run for run in seen.runs.values() if run.attempt <= last.number and _alive(run)]
    if stop := _stop(left):
        return Decision(seen.status, stop, requeue_after=POD_PATIENCE)
    due = parse_time(last.completion_time) + retry_delay(seen.uid, seen.status.attempts)
    if seen.now < due:
        return Decision(seen.status, requeue_after=due - seen.now)
    number = last.number + 1
    job_name = names.job_name(seen.name, number)
    only = ", which only stores the results," if _kept(seen) is not None else ""
    status = attrs.evolve(
        seen.status,
        message=f"Waiting for the pod of attempt {number}{only} to start",
        executor_pod_name=None,
        attempts=(
            *_worth_showing(seen.status.attempts),
            AttemptStatus(number=number, job_name=job_name, start_time=format_time(seen.now)),
        ),
    )
    status = _put(seen, status, "PodStarted", "False", "Starting", _made(job_name))
    note = EventNote("Normal", "Started", f"Created Kubernetes Job {job_name}")
    return Decision(status, (StartAttempt(number),), (note,), requeue_after=POD_PATIENCE)


def _worth_showing(attempts: Sequence[AttemptStatus]) -> tuple[AttemptStatus, ...]:
    """All that count, of which there are few, and the last of the others."""
    free = [each.number for each in attempts if not each.counted]
    hidden = set(free[: max(0, len(free) - SHOWN_FREE_ATTEMPTS)])
    return tuple(each for each in attempts if each.number not in hidden)


def retry_delay(uid: str, attempts: Sequence[AttemptStatus]) -> timedelta:
    """How long after the last of `attempts` the next one begins.

    Ten seconds, doubled with each failure, six minutes at most, and up to a fifth more, which
    differs between jobs but not between two looks at the same one.
    """
    number = attempts[-1].number
    doubled = RETRY_BASE * (1 << min(number - 1, 16))
    seed = hashlib.sha256(f"{uid}/{number}".encode()).digest()
    return min(doubled, RETRY_CAP) * (1 + 0.2 * seed[0] / 255)


def _fail(
    seen: Observed,
    reason: Reason,
    message: str,
    *,
    validated: bool | None = None,
    stop: Run | None = None,
) -> Decision:
    status = _with_condition(seen, "Failed", "True", str(reason), message)
    status = _put(seen, status, "Complete", "False", str(reason), message)
    was_valid = find(status.conditions, "Validated")
    metrics = stop.pod.report.circuit_metrics if stop and stop.pod and stop.pod.report else None
    if metrics is not None:
        status = _put(
            seen, status, "Validated", "True", "CircuitValid", "Circuit validation successful"
        )
        status = attrs.evolve(status, circuit_metrics=metrics)
    elif validated is False or (was_valid is not None and was_valid.status == "Unknown"):
        status = _put(seen, status, "Validated", "False", str(reason), message)
    status = _settled(seen, status, str(reason), message)
    ran = _executed(seen)
    report = stop.pod.report if stop and stop.pod else None
    if report is None or report.shots is None:
        report = ran.report if ran else None
    if status.results is None and (report is None or report.shots is None):
        status = attrs.evolve(status, **_cost(seen, None))
    status = _with_results(seen, status, report)
    if status.results is not None or reason in _ABOUT_OUTPUT:
        status = _put(seen, status, "ResultsStored", "False", str(reason), message)
    if reason is Reason.BUDGET_EXCEEDED:
        status = _put(seen, status, "BudgetExceeded", "True", "CostExceedsBudget", message)
    status = attrs.evolve(
        status,
        phase="Failed",
        message=f"{reason}: {message}"[:MAX_MESSAGE],
        completion_time=format_time(seen.now),
    )
    if status.attempts and status.attempts[-1].completion_time is None:
        pod = stop.pod if stop else None
        status = attrs.evolve(
            status,
            attempts=_close(seen, ended=_ended(pod, seen.now), reason=reason, message=message),
        )
    clean_up = CleanUp(output_unused=True, keep_record=_kept(seen) is not None)
    actions: tuple[Action, ...] = (clean_up,) if status.attempts else ()
    # The verdict is written before anything is done about it. A pod that is ended would be seen
    # to go, and a record that is deleted no longer tells the counts: another verdict.
    runs = stop is not None and _alive(stop)
    only_recorded = ran is not None and (report is None or report is ran.report)
    if provider.is_held(seen.status) or runs or only_recorded:
        return Decision(_failing(seen, status, reason, message), requeue_after=timedelta(0))
    return Decision(status, actions, (EventNote("Warning", str(reason), message),))


def _failing(
    seen: Observed, failed: QiskitJobStatus, reason: Reason, message: str
) -> QiskitJobStatus:
    """The status of a job that fails as soon as nothing of it is left, here or at the provider.

    Args:
        failed: the status that it will have, but for what is yet to come.
    """
    status = _put(seen, failed, "Failed", "Unknown", str(reason), message)
    text = f"{reason}: {message}"
    if provider.is_held(seen.status):
        text += f". {provider.cancelling(seen)}"
    return attrs.evolve(
        status, phase=seen.status.phase, completion_time=None, message=text[:MAX_MESSAGE]
    )


def _end_failing(seen: Observed, failing: Condition) -> Decision:
    """On the way to Failed: everything is ended first, here and at the provider."""
    running = tuple(run for run in seen.runs.values() if _alive(run))
    # A pod on a node that is lost may take long to go; only what it may submit is waited for.
    if running and (provider.is_held(seen.status) or not all(each.deleting for each in running)):
        return Decision(seen.status, _stop(running), requeue_after=RECHECK)
    if (step := _release(seen)) is not None:
        return step
    reason, message = failing.reason, failing.message
    status = _with_condition(seen, "Failed", "True", reason, message)
    status = attrs.evolve(
        status,
        phase="Failed",
        message=f"{reason}: {message}"[:MAX_MESSAGE],
        completion_time=format_time(seen.now),
    )
    clean_up = CleanUp(output_unused=True, keep_record=_kept(seen) is not None)
    return Decision(status, (clean_up,), (EventNote("Warning", reason, message),))


def _release(seen: Observed) -> Decision | None:
    """The next step to having nothing at the provider; None when that is so."""
    canceller = seen.canceller
    if not provider.is_held(seen.status):
        if canceller is None or canceller.deleting:
            return None
        return Decision(seen.status, (StopCancel(canceller.job_name),), requeue_after=RECHECK)
    assert seen.status.provider is not None  # noqa: S101 - is_held looked
    held = seen.status.provider
    if held.cancellation is None:
        text = provider.cancelling(seen)
        status = attrs.evolve(provider.requested(seen), message=text)
        note = EventNote("Normal", "CancellingAtProvider", text)
        return Decision(status, events=(note,), requeue_after=timedelta(0))
    if canceller is not None and canceller.complete:
        done = f"Cancelled at the provider: {canceller.said or held.job_id or 'nothing was there'}"
        note = EventNote("Normal", "CancelledAtProvider", done)
        status = provider.settled(seen, done=True)
        return Decision(status, events=(note,), requeue_after=timedelta(0))
    if canceller is not None and canceller.failed is not None:
        return _abandon(seen, canceller.said or canceller.failed)
    left = provider.patience_left(seen)
    if left <= timedelta(0):
        return _abandon(seen, "the pod that would do it did not run")
    if canceller is None:
        action = StartCancel(held.submission, held.job_id)
        return Decision(seen.status, (action,), requeue_after=POD_PATIENCE)
    return Decision(seen.status, requeue_after=min(left, RECHECK_CAP))


def _abandon(seen: Observed, why: str) -> Decision:
    note = EventNote("Warning", "NotCancelledAtProvider", provider.given_up(seen, why))
    status = provider.settled(seen, done=False)
    return Decision(status, events=(note,), requeue_after=timedelta(0))


def _cancel(seen: Observed) -> Decision:
    running = tuple(run for run in seen.runs.values() if _alive(run))
    if running:
        status = attrs.evolve(seen.status, message="Cancelling: waiting for the pod to end")
        note = EventNote("Normal", "Cancelling", "Cancelled by spec.cancel; ending the pod")
        return Decision(
            status,
            _stop(running),
            (note,) if seen.status.message != status.message else (),
            requeue_after=RECHECK,
        )
    if (step := _release(seen)) is not None:
        return step
    message = "Cancelled by spec.cancel"
    status = _with_condition(seen, "Cancelled", "True", "Cancelled", message)
    status = _put(seen, status, "Complete", "False", "Cancelled", message)
    status = _settled(seen, status, "Cancelled", message)
    status = attrs.evolve(
        status,
        phase="Cancelled",
        message=message,
        completion_time=format_time(seen.now),
        **_cost(seen, None),
    )
    if status.attempts and status.attempts[-1].completion_time is None:
        *before, last = _close(seen, ended=seen.now, message=message)
        last = attrs.evolve(last, reason="Cancelled")
        status = attrs.evolve(status, attempts=(*before, last))
    # Also without attempts: a crash may have come between making the first and noting it.
    actions = (CleanUp(output_unused=True),)
    return Decision(status, actions, (EventNote("Normal", "Cancelled", message),))


def _finished(seen: Observed) -> Decision:
    # A Job that was not in the cache yet when the end was decided.
    running = tuple(run for run in seen.runs.values() if _alive(run))
    if running:
        return Decision(seen.status, _stop(running), requeue_after=RECHECK)
    if (step := _release(seen)) is not None:
        return step
    ttl = seen.spec.ttl_seconds_after_finished if seen.spec else None
    if ttl is None or seen.status.completion_time is None:
        return Decision(seen.status)
    left = parse_time(seen.status.completion_time) + timedelta(seconds=ttl) - seen.now
    if left > timedelta(0):
        return Decision(seen.status, requeue_after=left)
    return Decision(seen.status, (DeleteJob(),))


def _delete(seen: Observed) -> Decision:
    if not seen.finalized:
        return Decision(seen.status)
    if seen.runs or seen.pods_left:
        status = seen.status
        if status.phase not in FINISHED:  # of one that has ended, the end stays to be read
            status = attrs.evolve(status, message="Deleting: waiting for the pod to end")
        return Decision(status, _stop(tuple(seen.runs.values())), requeue_after=RECHECK)
    if (step := _release(seen)) is not None:
        return step
    if seen.canceller is not None or seen.cancel_pods:
        return Decision(seen.status, requeue_after=RECHECK)
    return Decision(seen.status, (RemoveFinalizer(),))


# --- small things ---------------------------------------------------------------------------


def _settled(seen: Observed, status: QiskitJobStatus, reason: str, text: str) -> QiskitJobStatus:
    """`status` without conditions that tell of something yet to come, for a job that ends."""
    for type_ in ("Validated", "PodStarted", "SessionReady"):
        found = find(status.conditions, type_)
        if found is not None and found.status != "True":
            status = _put(seen, status, type_, "False", reason, text)
    return status


def _has_succeeded(seen: Observed) -> bool:
    """Whether the result is stored already, though the status does not say so yet."""
    if not seen.status.attempts or seen.status.attempts[-1].completion_time is not None:
        return False
    run = seen.runs.get(seen.status.attempts[-1].number)
    report = run.pod.report if run is not None and run.pod is not None else None
    return report is not None and report.reason is None


def _alive(run: Run) -> bool:
    """Whether something of the run may still execute."""
    over = run.failed is not None or run.complete
    # A pod that has ended and is being deleted may be made up for by its Job.
    return not over and not (run.pod is not None and run.pod.over and run.pod.lost is None)


_ABOUT_OUTPUT = frozenset(
    {
        Reason.OUTPUT_CONFLICT,
        Reason.OUTPUT_TOO_LARGE,
        Reason.OUTPUT_DENIED,
        Reason.OUTPUT_NOT_FOUND,
        Reason.OUTPUT_FULL,
        Reason.OUTPUT_UNAVAILABLE,
        Reason.OUTPUT_FAILED,
        Reason.RESULT_LOST,
    }
)


def _executed(seen: Observed) -> Progress | None:
    """What came of the circuit, once it has run and that could be recorded."""
    ran = seen.progress is not None and seen.progress.stage == "Executed"
    return seen.progress if ran else None


def _kept(seen: Observed) -> Progress | None:
    """The same, if the whole result is in the record, so that it never has to run again."""
    ran = _executed(seen)
    return ran if ran is not None and ran.kept is not None else None


def _with_results(
    seen: Observed, status: QiskitJobStatus, report: Report | None
) -> QiskitJobStatus:
    """`status` with what came of the circuit, whether it is stored or not."""
    if report is None or report.shots is None or status.results is not None:
        return status
    return attrs.evolve(status, results=_results(seen, report), **_cost(seen, report))


def _cost(seen: Observed, report: Report | None) -> dict[str, Any]:
    """``cost`` and ``costs`` of a job that has run, or has ended without."""
    costs = seen.status.costs
    if costs is None:
        return {"cost": seen.cost if report is not None else seen.status.cost}
    if report is None and costs.charged is not None:
        return {}
    begun = seen.status.phase == "Running"
    costs = assigning.closed(costs, report, begun=begun)
    return {"cost": assigning.shown(costs), "costs": costs}


def _made(job_name: str) -> str:
    return f"Kubernetes Job {job_name} was created; its pod has not started yet"


def _stop(runs: Sequence[Run]) -> tuple[Action, ...]:
    """Ends those runs that are not being ended already."""
    job_names = tuple(run.job_name for run in runs if not run.deleting)
    return (StopRuns(job_names),) if job_names else ()


def _ended(pod: PodView | None, now: datetime) -> datetime:
    ended = (pod.executor_ended or pod.circuit_ended or pod.source_ended) if pod else None
    return (ended.finished if ended else None) or now


def _close(
    seen: Observed, *, ended: datetime, reason: Reason | None = None, message: str | None = None
) -> tuple[AttemptStatus, ...]:
    last = attrs.evolve(
        seen.status.attempts[-1],
        completion_time=format_time(ended),
        reason=str(reason) if reason else None,
        message=message[:512] if message else None,
        counted=reason is None or reason.retry is not Retry.FREE,
    )
    return (*seen.status.attempts[:-1], last)


def _with_condition(
    seen: Observed, type_: str, status: Literal["True", "False", "Unknown"], reason: str, text: str
) -> QiskitJobStatus:
    return _put(seen, seen.status, type_, status, reason, text)


def _put(
    seen: Observed,
    status: QiskitJobStatus,
    type_: str,
    value: Literal["True", "False", "Unknown"],
    reason: str,
    text: str,
) -> QiskitJobStatus:
    condition = Condition(
        type=type_,
        status=value,
        reason=reason,
        message=text,
        observed_generation=seen.generation,
    )
    return attrs.evolve(status, conditions=upsert(status.conditions, condition, seen.now))


def _if_new(seen: Observed, type_: str, note: EventNote) -> tuple[EventNote, ...]:
    """The note, unless the condition of that type says the same already."""
    old = find(seen.status.conditions, type_)
    return () if old is not None and old.message == note.message[:MAX_MESSAGE] else (note,)


def _seconds(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else f"{seconds:.3g} s"
