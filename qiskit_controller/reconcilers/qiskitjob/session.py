"""A job that runs in a session: waiting for it, and for its turn, decided from plain values.

Where such a job runs is decided as for every other (:mod:`.assigning`), among what is left when
the session's device is known. Then it waits until the QiskitSession's status says that it is its
turn, and only then is it told its backend, and the session to run in.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import attrs

from qiskit_controller.api import names, qiskitjob, qiskitsession
from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.conditions import find
from qiskit_controller.api.qiskitbackend import BackendCredentials, DeviceStatus
from qiskit_controller.api.qiskitjob import QiskitJobSpec, SecretRef
from qiskit_controller.api.qiskitsession import (
    CLOSED_BY_PROVIDER,
    EXPIRED,
    QiskitSessionSpec,
    QiskitSessionStatus,
    SessionBackend,
    ended_because,
)
from qiskit_controller.api.quantities import parse_time
from qiskit_controller.api.run import Assignment, Progress, Reason
from qiskit_controller.reconcilers.qiskitjob import assigning
from qiskit_controller.reconcilers.qiskitjob.assigning import Market, Offer, Refusal, Waiting

# On a QiskitSession that the controller made: the QiskitJob that it was made for.
MADE_FOR = "quantum.io/made-for"
# How long one that the controller made is shown after its end, in seconds.
SHOWN_SECONDS = 3600
_FINAL = (EXPIRED, CLOSED_BY_PROVIDER)


@attrs.frozen(kw_only=True)
class Existing:
    """A QiskitSession; `spec` is None when it cannot be read.

    Attributes:
        ours: the controller made it.
    """

    uid: str
    ours: bool
    deleting: bool
    spec: QiskitSessionSpec | None
    status: QiskitSessionStatus


@attrs.frozen(kw_only=True)
class SessionSeen:
    """The QiskitSession that a job names, or describes.

    Attributes:
        existing: None when there is none of that name.
        job_uid, created: the QiskitJob's.
        secret: of the account that the job logs in to.
        waited: the job has waited for a session of that name before.
        submitted: what the job's next pod would submit may be at the provider already.
    """

    name: str
    existing: Existing | None
    job_uid: str
    created: datetime
    secret: str | None = None
    waited: bool = False
    submitted: bool = False


@attrs.frozen
class Wait:
    """The job waits for its session.

    Attributes:
        create: the QiskitSession to make.
        replace: UID of the one that is to go first, as it has ended and was made by us.
        belongs: whether it is this session that the job waits for from now on.
    """

    reason: str
    message: str
    create: QiskitSessionSpec | None = None
    replace: str | None = None
    belongs: bool = True


def propose(
    spec: QiskitJobSpec, market: Market, progress: Progress, session: SessionSeen | None
) -> Assignment | Waiting | Refusal | Wait | None:
    """As :func:`.assigning.propose`, for a job that may have to run in a session."""
    if session is None:
        return assigning.propose(spec, market, progress)
    current, existing = market.assignment, session.existing
    if current is not None and current.name not in progress.refused:
        if progress.assignment == current.number or current.session is None:
            return assigning.propose(spec, market, progress)
        if session.submitted:
            return None  # Whatever became of the session: its executor will find the job.
        if not _takes(existing, current.session):
            return _closed(session, "closed before the job could be submitted again")
    if existing is None and session.waited:
        return _closed(session, "deleted while the job waited for it")
    if existing is not None:
        if (step := _unusable(spec, session, existing)) is not None:
            return step
        device = _device(existing)
        if device is not None:
            market = _within(market, device, spec.backend.type)
    found = assigning.propose(spec, market, progress)
    if not isinstance(found, Assignment):
        return found
    if existing is None:
        text = f"Waiting for QiskitSession {session.name} on {found.name}, which is being made"
        return Wait("SessionOpening", text, create=described(spec, session.secret, found.name))
    status = existing.status
    if status.phase == "Active" and any(m.uid == session.job_uid for m in status.members):
        return attrs.evolve(found, session=status.session_id)
    if status.phase == "Active":
        text = (
            f"Waiting for its turn in QiskitSession {session.name} on {status.backend}; jobs go in "
            "by priority, then by age"
        )
        return Wait("WaitingForTurn", text)
    told = f": {status.message}" if status.message else ""
    return Wait("SessionOpening", f"Waiting for QiskitSession {session.name} to open{told}")


def described(spec: QiskitJobSpec, secret: str | None, device: str) -> QiskitSessionSpec:
    """The QiskitSession that a job describes, on the device that was chosen for it."""
    given = spec.session or qiskitjob.SessionSpec()
    credentials = BackendCredentials(secret_ref=SecretRef(name=secret)) if secret else None
    return QiskitSessionSpec(
        backend=SessionBackend(name=device, instance=spec.backend.instance),
        max_time=given.max_time,
        mode=given.mode or "dedicated",
        credentials=credentials,
        ttl_seconds_after_finished=SHOWN_SECONDS,
    )


def manifest(namespace: str, name: str, spec: QiskitSessionSpec, job: str) -> dict[str, Any]:
    """A QiskitSession that a QiskitJob describes. It belongs to no job, as others share it."""
    return {
        "apiVersion": qiskitjob.API_VERSION,
        "kind": qiskitsession.KIND,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {names.MANAGED_BY: names.MANAGER},
            "annotations": {MADE_FOR: job},
        },
        "spec": to_wire(spec),
    }


def is_ours(session: Mapping[str, Any]) -> bool:
    """Whether the controller made a QiskitSession."""
    return MADE_FOR in (session["metadata"].get("annotations") or {})


def _takes(existing: Existing | None, session_id: str) -> bool:
    if existing is None or existing.deleting:
        return False
    return existing.status.phase == "Active" and existing.status.session_id == session_id


def _unusable(
    spec: QiskitJobSpec, session: SessionSeen, existing: Existing
) -> Refusal | Wait | None:
    """Why the job cannot run in the session that is there, or not yet."""
    status = existing.status
    if existing.deleting:
        if session.waited:
            return _closed(session, "deleted while the job waited for it")
        text = f"Waiting for QiskitSession {session.name}, which is being deleted, to be gone"
        return Wait("SessionDeleting", text, belongs=False)
    if existing.spec is None:
        text = f"QiskitSession {session.name} cannot be used: {status.message}"
        return Wait("SessionInvalid", text)
    final = status.phase in ("Closed", "Draining") and ended_because(status) in _FINAL
    if final or status.phase == "Failed":
        return _over(session, existing)
    problem = _mismatch(spec, session, existing, existing.spec)
    return Refusal(Reason.INVALID_SPEC, problem) if problem else None


def _over(session: SessionSeen, existing: Existing) -> Refusal | Wait:
    status = existing.status
    ready = find(status.conditions, "Ready")
    since = status.closed_at or (ready.last_transition_time if ready else None)
    later = since is not None and session.created > parse_time(since)
    if existing.ours and later:
        if status.phase == "Draining":
            text = f"Waiting for the last jobs of QiskitSession {session.name}, which has ended"
            return Wait("SessionClosing", text, belongs=False)
        text = f"Waiting for QiskitSession {session.name}, which has ended, to be made anew"
        return Wait("SessionReplaced", text, replace=existing.uid, belongs=False)
    if status.phase == "Failed":
        text = f"QiskitSession {session.name}: {status.message}"
        return Refusal(Reason.SESSION_FAILED, text)
    advice = "apply the job again with another spec.session.name, or with a larger maxTime"
    if not existing.ours:
        advice = (
            f"delete QiskitSession {session.name} and apply it again, perhaps with a larger "
            "maxTime, and then the job; or let the job name another one"
        )
    return Refusal(Reason.SESSION_CLOSED, f"{status.message}; {advice}")


def _closed(session: SessionSeen, what: str) -> Refusal:
    text = f"QiskitSession {session.name} was {what}; apply the job again with a session that is"
    return Refusal(Reason.SESSION_CLOSED, f"{text} open, or to be made")


def _mismatch(
    spec: QiskitJobSpec, session: SessionSeen, existing: Existing, other: QiskitSessionSpec
) -> str | None:
    """In what the job and the session contradict each other."""
    opened = existing.status.opened_with or other
    credentials = opened.credentials
    theirs = credentials.secret_ref.name if credentials and credentials.secret_ref else None
    if theirs != session.secret:
        return (
            f"spec.credentials.secretRef: QiskitSession {session.name} uses Secret {theirs!r} and "
            f"the job {session.secret!r}; a job can run only in a session of its own account"
        )
    if opened.backend.instance != spec.backend.instance:
        return (
            f"spec.backend.instance: QiskitSession {session.name} has "
            f"{opened.backend.instance or 'none'} and the job {spec.backend.instance or 'none'}; "
            "say the same in both"
        )
    device = _device(existing)
    if None not in (device, spec.backend.name) and device != spec.backend.name:
        return (
            f"spec.backend.name: QiskitSession {session.name} is on {device}, not on "
            f"{spec.backend.name}; leave it out, or name another session"
        )
    return None


def _device(existing: Existing) -> str | None:
    """The session's device, as far as it is known."""
    spec, status = existing.spec, existing.status
    if status.phase in qiskitsession.OPEN:
        if status.backend:
            return status.backend
        spec = status.opened_with or spec
    return spec.backend.name if spec is not None else None


def _within(market: Market, device: str, backend_type: str) -> Market:
    """What is left of the market in a session on that device."""
    offers = tuple(each for each in market.offers if each.device.name == device)
    if not offers and market.offers:
        # A device that nobody has told of: its own driver knows best whether the job may use it.
        unseen = DeviceStatus(name=device, operational=True)
        offers = (Offer(type=backend_type, device=unseen),)
    return attrs.evolve(market, offers=offers)
