"""When to open, look at and close a session, and what came of it, as a pure function.

::

    Pending -> Opening -> Active -> Draining -> Closed
                 |  ^                             |
                 v  +--- for the next job, unless it has expired
               Failed

An answer is written into the status first, together with the UID of the Kubernetes Job that gave
it, and then that Job is deleted; so a crash in between counts no answer twice. There is never more
than one such Job of a session. What it costs begins with its first job, so a session that nobody
knows of, because the pod that opened it was lost, costs nothing, and IBM closes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Literal

import attrs

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.conditions import Condition, find, upsert
from qiskit_controller.api.qiskitjob import BackendSpec
from qiskit_controller.api.qiskitsession import (
    CLOSED_BY_PROVIDER,
    DELETED,
    EXPIRED,
    FIXED,
    FIXED_IN,
    IDLE,
    QiskitSessionSpec,
    QiskitSessionStatus,
    SessionJobs,
    ended_because,
)
from qiskit_controller.api.quantities import (
    format_duration,
    format_time,
    parse_duration,
    parse_time,
)
from qiskit_controller.api.run import (
    Reason,
    Retry,
    SessionAction,
    SessionReport,
    SessionRequest,
)
from qiskit_controller.reconcilers.errands import ERRAND_TIME, LOOK_AGAIN, Errand, backoff
from qiskit_controller.reconcilers.qiskitsession.turns import JobSeen, Turns, next_turns

# After an errand that did not succeed; doubled for each in a row.
RETRY = timedelta(seconds=10)
# Jobs may wait for it, so it is not left for long.
LONGEST_RETRY = timedelta(minutes=10)
# While jobs are in it.
LOOK_PERIOD = timedelta(minutes=3)
# While it is empty: IBM closes what has no job for half an hour.
LOOK_RARELY = timedelta(minutes=10)
# Until it is known when it expires, and when it is about to end.
LOOK_SOON = timedelta(seconds=20)
# Then it is left to IBM, which closes it by itself.
CLOSE_PATIENCE = timedelta(minutes=10)
# IBM's clock is not ours.
_ABOUT = timedelta(seconds=60)

_GOOD = ("Active", "Opening", IDLE, DELETED, "Accepted")


@attrs.frozen(kw_only=True)
class Seen:
    """All that a decision is made from; `spec` is None, with `problem`, when it cannot be read.

    Attributes:
        deleted: since when it is being deleted.
        finalized: our finalizer is on the object.
        jobs: the QiskitJobs that name it, and those that are in it.
    """

    name: str
    generation: int
    spec: QiskitSessionSpec | None
    problem: str = ""
    status: QiskitSessionStatus
    errand: Errand | None = None
    jobs: Sequence[JobSeen] = ()
    deleted: datetime | None = None
    finalized: bool = True
    now: datetime


@attrs.frozen
class Note:
    """An Event about the QiskitSession."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@attrs.frozen(kw_only=True)
class Decision:
    """What to write, in this order: the finalizer, the status, the end of an errand, a new one,
    and the end of all."""

    status: QiskitSessionStatus
    add_finalizer: bool = False
    delete_errand: bool = False
    start: SessionAction | None = None
    remove_finalizer: bool = False
    delete: bool = False
    notes: tuple[Note, ...] = ()
    requeue_after: timedelta | None = None


def decide(seen: Seen) -> Decision:
    """The next step for a QiskitSession."""
    status = attrs.evolve(seen.status, observed_generation=seen.generation)
    if seen.deleted is not None:
        return _delete(seen, status, seen.deleted)
    if seen.spec is None:
        status = _put(seen, status, "Ready", "False", "InvalidSpec", seen.problem)
        return _told(seen, status)
    if not seen.finalized:
        status = attrs.evolve(status, phase=status.phase or "Pending")
        status = _ready(seen, status, "False", "Accepted", "Accepted; about to be opened")
        again = timedelta(0)
        return attrs.evolve(_told(seen, status), add_finalizer=True, requeue_after=again)
    errand = seen.errand
    fresh = errand is not None and errand.over and errand.uid != status.job_uid
    if errand is not None and fresh:
        status = _answered(seen, status, errand)
    elif errand is not None and errand.uid != status.job_uid and errand.problem:
        status = _waiting(seen, status, errand)
    status = _next_phase(seen, seen.spec, status)
    status, turns = _with_turns(seen, seen.spec, status)
    status = _with_spec_note(seen, seen.spec, status)
    start = _next_errand(seen, status) if errand is None else None
    if start == "open":
        status = attrs.evolve(status, opened_with=seen.spec)
    decision = _told(seen, status)
    entered = tuple(
        Note("Normal", "JobAdmitted", f"It is the turn of QiskitJob {each}")
        for each in turns.admitted
    )
    return attrs.evolve(
        decision,
        start=start,
        delete_errand=errand is not None
        and not errand.deleting
        # What was counted goes, also when that was done before.
        and (errand.uid == status.job_uid or _is_outdated(errand, seen.spec, status)),
        delete=_is_to_go(seen, seen.spec, status, turns),
        notes=(*decision.notes, *entered),
        requeue_after=_requeue(seen, seen.spec, status, turns, start),
    )


def _is_outdated(errand: Errand, spec: QiskitSessionSpec, status: QiskitSessionStatus) -> bool:
    """Whether it cannot begin to open the session, and the spec has been mended meanwhile."""
    if errand.action != "open" or errand.begun or not errand.problem or errand.over:
        return False
    return status.opened_with is not None and bool(changed_fields(status.opened_with, spec))


def request(name: str, status: QiskitSessionStatus, action: SessionAction) -> SessionRequest:
    """What an errand is told to do.

    Raises:
        ValueError: it was never decided to open it.
    """
    spec = status.opened_with
    if spec is None:
        raise ValueError(f"QiskitSession {name} has not been opened with anything")
    backend = BackendSpec(
        type=spec.backend.type, name=spec.backend.name, instance=spec.backend.instance
    )
    if action == "open":
        return SessionRequest(
            action=action, backend=backend, mode=spec.mode, max_time=spec.max_time
        )
    return SessionRequest(action=action, backend=backend, mode=spec.mode, id=status.session_id)


def not_started(seen: Seen, why: str) -> Decision:
    """What becomes of a session that is deleted, when nothing can be run that would close it."""
    status = attrs.evolve(seen.status, observed_generation=seen.generation)
    return _left(seen, status, why)


def changed_fields(opened_with: QiskitSessionSpec, spec: QiskitSessionSpec) -> list[str]:
    """The fields that are fixed while it is open, and differ from what it was opened with."""
    then, now = to_wire(opened_with), to_wire(spec)
    return [f"spec.{each}" for each in FIXED if then.get(each) != now.get(each)]


# --- what an errand said --------------------------------------------------------------------


def _answered(seen: Seen, status: QiskitSessionStatus, errand: Errand) -> QiskitSessionStatus:
    report = _read(errand)
    status = attrs.evolve(status, job_uid=errand.uid, last_look=format_time(seen.now))
    if report.reason is not None:
        return _not_answered(seen, status, errand, report.reason, report.message)
    status = _put(
        seen, status, "CredentialsValid", "True", "LoggedIn", "The account could be logged in to"
    )
    status = attrs.evolve(
        status,
        failures=0,
        session_id=report.id or status.session_id,
        backend=report.backend or status.backend,
        expires_at=report.expires_at or status.expires_at,
    )
    if errand.action == "open":
        status = _opened(seen, status)
    status = _with_usage(status, report.usage)
    if errand.action == "close":
        why = DELETED if seen.deleted is not None else IDLE
        return _closed(seen, status, why, _why(seen, status, why))
    if report.closed:
        # What was being closed for want of jobs opens again for the next one all the same; so does
        # what IBM has closed because it had none.
        idle = status.phase == "Draining" and ended_because(status) == IDLE
        unused = status.expires_at is None and not status.members
        unused = unused and not _turned_away(seen, status, ever=True)
        why = IDLE if idle or unused else _expired_or(seen, status, CLOSED_BY_PROVIDER)
        return _closed(seen, status, why, _why(seen, status, why))
    if not report.accepting and status.phase == "Active":
        why = _expired_or(seen, status, CLOSED_BY_PROVIDER)
        status = attrs.evolve(status, phase="Draining")
        return _ready(seen, status, "False", why, _why(seen, status, why))
    return status


def _opened(seen: Seen, status: QiskitSessionStatus) -> QiskitSessionStatus:
    status = attrs.evolve(
        status,
        phase="Active",
        openings=status.openings + 1,
        opened_at=format_time(seen.now),
        idle_since=format_time(seen.now),
        closed_at=None,
        opening_usage=None,
    )
    text = f"Session {status.session_id} on {status.backend} takes jobs"
    return _ready(seen, status, "True", "Active", text)


def _not_answered(
    seen: Seen, status: QiskitSessionStatus, errand: Errand, reason: Reason, message: str
) -> QiskitSessionStatus:
    failures = status.failures + 1
    status = attrs.evolve(status, failures=failures)
    denied = reason is Reason.BACKEND_DENIED
    value: Literal["False", "Unknown"] = "False" if denied else "Unknown"
    status = _put(seen, status, "CredentialsValid", value, str(reason), message)
    if errand.action == "look" and reason is Reason.SESSION_CLOSED:
        why = _expired_or(seen, status, CLOSED_BY_PROVIDER)
        return _closed(seen, status, why, _why(seen, status, why))
    final = reason.retry is Retry.NEVER
    if errand.action == "open":
        if not final:
            pause = format_duration(backoff(RETRY, failures - 1, LONGEST_RETRY))
            text = f"{message}; trying again in {pause}"
            return _ready(seen, status, "False", str(reason), text)
        status = attrs.evolve(
            status, phase="Failed", closed_at=format_time(seen.now), idle_since=None
        )
        return _ready(seen, status, "False", str(reason), f"It could not be opened: {message}")
    if errand.action == "close" and (final or _close_is_late(seen, status)):
        return _given_up(seen, status, message)
    return status


def _read(errand: Errand) -> SessionReport:
    try:
        report = from_wire(json.loads(errand.message), SessionReport)
        if report.expires_at is not None:
            parse_time(report.expires_at)
        if report.reason is None and errand.action == "open" and not report.id:
            raise ValueError("it names no session")
        return report
    except (ValueError, RecursionError):
        told = errand.problem or errand.message.strip()[:200] or "it left no report"
        return SessionReport(
            reason=Reason.STAGE_FAILED, message=f"the pod that asks the provider failed: {told}"
        )


def _with_usage(status: QiskitSessionStatus, told: str | None) -> QiskitSessionStatus:
    """`status` with what this opening was counted so far, beside those before."""
    if told is None:
        return status
    try:
        before = Decimal(status.usage or "0") - Decimal(status.opening_usage or "0")
        total = before + Decimal(told)
    except InvalidOperation:
        return status
    return attrs.evolve(status, usage=f"{total.normalize():f}", opening_usage=told)


def _closed(seen: Seen, status: QiskitSessionStatus, why: str, text: str) -> QiskitSessionStatus:
    status = attrs.evolve(
        status, phase="Closed", closed_at=format_time(seen.now), idle_since=None, failures=0
    )
    return _ready(seen, status, "False", why, text)


def _given_up(seen: Seen, status: QiskitSessionStatus, why: str) -> QiskitSessionStatus:
    text = (
        f"Session {status.session_id} could not be closed at the provider, which closes it when "
        f"its time is over: {why}. Close it there yourself"
    )
    status = _put(seen, status, "ClosedAtProvider", "False", "NotClosedAtProvider", text)
    reason = DELETED if seen.deleted is not None else IDLE
    return _closed(seen, status, reason, _why(seen, status, reason))


def _expired_or(seen: Seen, status: QiskitSessionStatus, other: str) -> str:
    expires = parse_time(status.expires_at) if status.expires_at else None
    return EXPIRED if expires is not None and seen.now >= expires - _ABOUT else other


def _why(seen: Seen, status: QiskitSessionStatus, reason: str) -> str:
    """Why it takes no more jobs, in words that jobs repeat."""
    which = f"session {seen.name} ({status.session_id})"
    if reason == EXPIRED:
        most = status.opened_with.max_time if status.opened_with else None
        limit = f"its maxTime of {most} s" if most else "the provider's longest time"
        return f"{which} reached {limit} at {status.expires_at}"
    if reason == IDLE:
        return f"{which} was closed, as no job needed it; it opens for the next one"
    if reason == DELETED:
        return f"{which} was closed, as its QiskitSession was deleted"
    return f"{which} was closed at the provider"


# --- phases ---------------------------------------------------------------------------------


def _next_phase(
    seen: Seen, spec: QiskitSessionSpec, status: QiskitSessionStatus
) -> QiskitSessionStatus:
    wanted = _wanted(seen)
    if status.phase in (None, "Pending"):
        return _opening(seen, status, "Opening a session for the first time")
    if status.phase == "Failed" and seen.status.observed_generation != seen.generation:
        return _opening(seen, status, "Opening it with the spec that was changed")
    if status.phase == "Closed" and ended_because(status) == IDLE and wanted:
        return _opening(seen, status, "Opening another session for the next job")
    if status.phase != "Active":
        return status
    if wanted or status.members:
        return attrs.evolve(status, idle_since=None)
    since = status.idle_since or format_time(seen.now)
    status = attrs.evolve(status, idle_since=since)
    if seen.now < parse_time(since) + parse_duration(spec.ttl):
        return status
    text = f"Closing session {status.session_id}, as no job needed it for {spec.ttl}"
    return _ready(seen, attrs.evolve(status, phase="Draining"), "False", IDLE, text)


def _opening(seen: Seen, status: QiskitSessionStatus, text: str) -> QiskitSessionStatus:
    status = attrs.evolve(
        status,
        phase="Opening",
        failures=0,
        session_id=None,
        backend=None,
        expires_at=None,
        idle_since=None,
    )
    return _ready(seen, status, "False", "Opening", text)


def _wanted(seen: Seen) -> bool:
    return any(each.waiting for each in seen.jobs)


def _with_turns(
    seen: Seen, spec: QiskitSessionSpec, status: QiskitSessionStatus
) -> tuple[QiskitSessionStatus, Turns]:
    expires = parse_time(status.expires_at) if status.expires_at else None
    # What is let in at the last moment would not be run any more.
    admits = status.phase == "Active" and (expires is None or seen.now < expires)
    # Nor what came after somebody who was told that it takes no more.
    admits = admits and not _turned_away(seen, status)
    mode = (status.opened_with or spec).mode
    turns = next_turns(status.members, seen.jobs, mode, admits=admits)
    jobs = SessionJobs(
        waiting=len(turns.waiting),
        running=len(turns.members),
        finished=status.jobs.finished + turns.finished,
    )
    return attrs.evolve(status, members=turns.members, jobs=jobs), turns


def _with_spec_note(
    seen: Seen, spec: QiskitSessionSpec, status: QiskitSessionStatus
) -> QiskitSessionStatus:
    opened = status.opened_with
    changed = changed_fields(opened, spec) if opened and status.phase in FIXED_IN else []
    if changed:
        text = (
            f"{', '.join(changed)} changed while the session is open; the change is ignored until "
            "it is closed. Create another QiskitSession to have it now"
        )
        return _put(seen, status, "SpecChangeIgnored", "True", "AlreadyOpen", text)
    if find(status.conditions, "SpecChangeIgnored") is not None:
        same = "No change waits for the session to be closed"
        return _put(seen, status, "SpecChangeIgnored", "False", "Same", same)
    return status


def _is_to_go(
    seen: Seen, spec: QiskitSessionSpec, status: QiskitSessionStatus, turns: Turns
) -> bool:
    left = _time_to_live(seen, spec, status)
    return left is not None and left <= timedelta(0) and not turns.members and not turns.waiting


def _time_to_live(
    seen: Seen, spec: QiskitSessionSpec, status: QiskitSessionStatus
) -> timedelta | None:
    ttl = spec.ttl_seconds_after_finished
    if ttl is None or status.phase not in ("Closed", "Failed") or status.closed_at is None:
        return None
    return parse_time(status.closed_at) + timedelta(seconds=ttl) - seen.now


# --- errands --------------------------------------------------------------------------------


def _next_errand(seen: Seen, status: QiskitSessionStatus) -> SessionAction | None:
    due = _errand_due(seen, status)
    return due[0] if due is not None and seen.now >= due[1] else None


def _errand_due(seen: Seen, status: QiskitSessionStatus) -> tuple[SessionAction, datetime] | None:
    """What is to be asked next, and when."""
    last = parse_time(status.last_look) if status.last_look else None
    retry = seen.now
    if last is not None and status.failures:
        retry = last + backoff(RETRY, status.failures - 1, LONGEST_RETRY)
    if status.phase == "Opening":
        return "open", retry
    if status.phase == "Draining" and ended_because(status) == IDLE:
        return "close", retry
    if last is None or status.phase not in ("Active", "Draining"):
        return None
    if status.phase == "Draining":
        return "look", max(retry, last + LOOK_SOON)
    if status.expires_at is not None and seen.now >= parse_time(status.expires_at):
        return "look", max(retry, last + LOOK_SOON)
    if _turned_away(seen, status):
        return "look", retry
    if status.members:
        known = status.expires_at is not None
        running = any(each.running for each in seen.jobs)
        at = last + (LOOK_SOON if running and not known else LOOK_PERIOD)
        if status.expires_at is not None:
            at = min(at, max(parse_time(status.expires_at), last + LOOK_SOON))
        return "look", max(retry, at)
    at = last + LOOK_RARELY
    if status.expires_at is not None:
        at = min(at, parse_time(status.expires_at))
    return "look", max(retry, at)


def _turned_away(seen: Seen, status: QiskitSessionStatus, *, ever: bool = False) -> bool:
    """Whether the session has taken a job no more since it was last looked at, or `ever`."""
    # A look that was not answered tells nothing.
    since = status.opened_at if ever or status.failures else status.last_look
    return since is not None and any(
        each.turned_away is not None and each.turned_away >= parse_time(since) for each in seen.jobs
    )


def _requeue(
    seen: Seen,
    spec: QiskitSessionSpec,
    status: QiskitSessionStatus,
    turns: Turns,
    start: SessionAction | None,
) -> timedelta | None:
    due: list[timedelta] = []
    if start is not None:
        due.append(ERRAND_TIME)
    if seen.errand is not None:
        due.append(LOOK_AGAIN)
    elif start is None and (errand := _errand_due(seen, status)) is not None:
        due.append(errand[1] - seen.now)
    if status.phase == "Active" and status.idle_since is not None:
        due.append(parse_time(status.idle_since) + parse_duration(spec.ttl) - seen.now)
    if (left := _time_to_live(seen, spec, status)) is not None and left > timedelta(0):
        due.append(left)
    return max(min(due), timedelta(0)) if due else None


def _waiting(seen: Seen, status: QiskitSessionStatus, errand: Errand) -> QiskitSessionStatus:
    known = find(status.conditions, "CredentialsValid")
    value = known.status if known is not None else "Unknown"
    status = _put(seen, status, "CredentialsValid", value, "WaitingForPod", errand.problem)
    if status.phase == "Opening":
        status = _ready(seen, status, "False", "WaitingForPod", errand.problem)
    return status


# --- deletion -------------------------------------------------------------------------------


def _delete(seen: Seen, status: QiskitSessionStatus, since: datetime) -> Decision:
    if not seen.finalized:
        return Decision(status=status)
    errand = seen.errand
    if errand is not None and errand.over and errand.uid != status.job_uid:
        status = _answered(seen, status, errand)
    if errand is not None and errand.uid != status.job_uid:
        return _delete_while_asking(seen, status, errand, since)
    if status.phase in ("Active", "Draining") and status.session_id is not None:
        status = _drained(seen, status)
        if seen.now >= since + CLOSE_PATIENCE:
            return _left(seen, status, "the pod that would do it did not succeed")
        if errand is None:
            due = _retry_at(seen, status)
            start: SessionAction | None = "close" if seen.now >= due else None
            decision = _told(seen, status)
            pause = ERRAND_TIME if start else due - seen.now
            return attrs.evolve(decision, start=start, requeue_after=pause)
    elif status.phase not in ("Closed", "Failed"):
        text = f"session {seen.name} was never opened, as its QiskitSession was deleted"
        status = _closed(seen, status, DELETED, text)
    decision = _told(seen, status)
    if errand is not None:
        delete = not errand.deleting
        return attrs.evolve(decision, delete_errand=delete, requeue_after=LOOK_AGAIN)
    return attrs.evolve(decision, remove_finalizer=True, requeue_after=timedelta(0))


def _delete_while_asking(
    seen: Seen, status: QiskitSessionStatus, errand: Errand, since: datetime
) -> Decision:
    """An errand is under way: only one that opens, or closes, is waited for."""
    if status.phase == "Closed":
        delete = not errand.deleting
        return Decision(status=status, delete_errand=delete, requeue_after=LOOK_AGAIN)
    status = _drained(seen, status) if status.session_id else status
    useful = errand.action == "open" and (errand.begun or not errand.problem)
    useful = useful or (errand.action == "close" and seen.now < since + CLOSE_PATIENCE)
    if useful and not errand.deleting:
        if errand.problem:
            status = _waiting(seen, status, errand)
        return attrs.evolve(_told(seen, status), requeue_after=LOOK_AGAIN)
    if errand.action == "close":
        why = errand.problem or "the pod that would do it did not end"
        return attrs.evolve(_left(seen, status, why), delete_errand=not errand.deleting)
    delete = not errand.deleting
    return attrs.evolve(_told(seen, status), delete_errand=delete, requeue_after=LOOK_AGAIN)


def _drained(seen: Seen, status: QiskitSessionStatus) -> QiskitSessionStatus:
    if status.phase not in ("Active", "Draining"):
        return status
    text = f"Closing session {status.session_id}, as its QiskitSession is deleted"
    return _ready(seen, attrs.evolve(status, phase="Draining"), "False", DELETED, text)


def _left(seen: Seen, status: QiskitSessionStatus, why: str) -> Decision:
    decision = _told(seen, _given_up(seen, status, why))
    return attrs.evolve(decision, requeue_after=timedelta(0))


def _retry_at(seen: Seen, status: QiskitSessionStatus) -> datetime:
    if status.last_look is None or not status.failures:
        return seen.now
    return parse_time(status.last_look) + backoff(RETRY, status.failures - 1, LONGEST_RETRY)


def _close_is_late(seen: Seen, status: QiskitSessionStatus) -> bool:
    """Whether closing it, for want of jobs, has been tried for long enough."""
    ready = find(status.conditions, "Ready")
    since = ready.last_transition_time if ready is not None else None
    if seen.deleted is not None:
        return seen.now >= seen.deleted + CLOSE_PATIENCE
    return since is not None and seen.now >= parse_time(since) + CLOSE_PATIENCE


# --- small things ---------------------------------------------------------------------------


def _ready(
    seen: Seen,
    status: QiskitSessionStatus,
    value: Literal["True", "False"],
    reason: str,
    text: str,
) -> QiskitSessionStatus:
    """`status` with the condition Ready, which the message repeats."""
    return attrs.evolve(_put(seen, status, "Ready", value, reason, text), message=text)


def _put(
    seen: Seen,
    status: QiskitSessionStatus,
    type_: str,
    value: Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
) -> QiskitSessionStatus:
    condition = Condition(
        type=type_,
        status=value,
        reason=reason,
        message=message,
        observed_generation=seen.generation,
    )
    return attrs.evolve(status, conditions=upsert(status.conditions, condition, seen.now))


def _told(seen: Seen, status: QiskitSessionStatus) -> Decision:
    """The decision to write the status, with an Event for what is news in it.

    What is wrong is told once, though two conditions may say so.
    """
    notes: list[Note] = []
    for condition in status.conditions:
        old = find(seen.status.conditions, condition.type)
        if old is not None and (old.status, old.reason) == (condition.status, condition.reason):
            continue
        if condition.type == "Ready":
            kind: Literal["Normal", "Warning"] = (
                "Normal" if condition.reason in _GOOD else "Warning"
            )
            reason = "Opened" if condition.reason == "Active" else condition.reason
            text = condition.message
            if condition.reason in (EXPIRED, CLOSED_BY_PROVIDER):
                waiting = sum(each.waiting for each in seen.jobs)
                text += f"; {waiting} QiskitJobs waited for it" if waiting else ""
            notes.append(Note(kind, reason, text))
        elif _is_bad(condition):
            notes.append(Note("Warning", condition.reason, condition.message))
    distinct = {(each.reason, each.type): each for each in reversed(notes)}
    return Decision(status=status, notes=tuple(reversed(distinct.values())))


def _is_bad(condition: Condition) -> bool:
    if condition.type == "SpecChangeIgnored":
        return condition.status == "True"
    return condition.status != "True" or condition.reason == "WaitingForPod"
