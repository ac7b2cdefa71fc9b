"""The QiskitSession: a provider's session that QiskitJobs share."""

from __future__ import annotations

from typing import Literal

import attrs

from qiskit_controller.api.conditions import Condition, find
from qiskit_controller.api.fields import Rule, field
from qiskit_controller.api.qiskitbackend import BackendCredentials
from qiskit_controller.api.qiskitjob import SessionMode
from qiskit_controller.api.quantities import DURATION_PATTERN

KIND = "QiskitSession"
PLURAL = "qiskitsessions"

SessionPhase = Literal["Pending", "Opening", "Active", "Draining", "Closed", "Failed"]
# While there is a session at the provider, or may be one.
OPEN: frozenset[SessionPhase] = frozenset({"Opening", "Active", "Draining"})
# While it takes jobs, or its last ones run, this is fixed. Before, a mistake may still be mended.
FIXED_IN: frozenset[SessionPhase] = frozenset({"Active", "Draining"})
FIXED = ("backend", "maxTime", "mode", "credentials")
# Why it takes no more jobs: reasons of the condition Ready. After the first, it opens again.
IDLE = "Idle"
EXPIRED = "Expired"
CLOSED_BY_PROVIDER = "ClosedByProvider"
DELETED = "Deleted"


@attrs.frozen
class SessionBackend:
    """Where the session is."""

    type: str = field("Backend type: ibm_quantum.", default="ibm_quantum", enum=["ibm_quantum"])
    name: str | None = field(
        "The device (e.g. ibm_brisbane); the least busy one of the account when absent.",
        default=None,
        min_length=1,
        max_length=256,
    )
    instance: str | None = field(
        "IBM Cloud CRN for enterprise accounts.", default=None, max_length=1024
    )


@attrs.frozen
class QiskitSessionSpec:
    """Which session, and for how long."""

    backend: SessionBackend = field("Where the session is.", factory=SessionBackend)
    max_time: int | None = field(
        "Maximum session duration (seconds), counted by the provider from the session's first "
        "job; the provider's own maximum when absent.",
        default=None,
        minimum=1,
        maximum=28_800,
        format="int32",
    )
    mode: SessionMode = field(
        "dedicated: the device works for this session alone (a session of IBM Quantum). shared: "
        "its jobs are scheduled together and the device is shared (a batch of IBM Quantum).",
        default="dedicated",
    )
    credentials: BackendCredentials | None = field("How to log in.", default=None)
    ttl: str = field(
        "How long it stays open without a job, such as 5m. It opens again for the next job.",
        default="5m",
        pattern=DURATION_PATTERN,
        max_length=32,
    )
    ttl_seconds_after_finished: int | None = field(
        "Seconds after which a session that is Closed or Failed is deleted; never when absent.",
        default=None,
        minimum=0,
        maximum=2**31 - 1,
        format="int32",
    )


@attrs.frozen
class SessionJobs:
    """The QiskitJobs that name the session."""

    waiting: int = field("Those that wait for their turn.", default=0, format="int32")
    running: int = field("Those that are in it.", default=0, format="int32")
    finished: int = field("Those that have left it.", default=0, format="int32")


@attrs.frozen
class SessionMember:
    """A QiskitJob whose turn it is."""

    name: str = field("The QiskitJob's name.")
    uid: str = field("Its UID.")
    entered: bool = field(
        "Whether it was told to run in the session; from then on only its end gives up its place.",
        default=False,
    )


@attrs.frozen
class QiskitSessionStatus:
    """What the controller observed. Only the controller writes it."""

    phase: SessionPhase | None = field("Current phase of the session.", default=None)
    message: str | None = field("The phase in one sentence.", default=None)
    session_id: str | None = field("The provider's name for it.", default=None)
    backend: str | None = field("The device it is on.", default=None)
    opened_at: str | None = field("When it was opened.", default=None, format="date-time")
    expires_at: str | None = field(
        "When the provider closes it; known once its first job has begun.",
        default=None,
        format="date-time",
    )
    closed_at: str | None = field("When it was closed.", default=None, format="date-time")
    jobs: SessionJobs = field("The QiskitJobs that name it.", factory=SessionJobs)
    members: tuple[SessionMember, ...] = field(
        "The QiskitJobs whose turn it is.",
        default=(),
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uid"]},
    )
    idle_since: str | None = field(
        "Since when no QiskitJob waits for it or is in it.", default=None, format="date-time"
    )
    usage: str | None = field(
        "Seconds that the provider counts for it, in all of its openings.", default=None
    )
    opening_usage: str | None = field(
        "Of those, the seconds of the present or last opening.", default=None
    )
    opened_with: QiskitSessionSpec | None = field(
        "The spec that it is opened, looked at and closed with.", default=None
    )
    openings: int = field("How often it was opened.", default=0, format="int32")
    failures: int = field("Tries in a row that did not succeed.", default=0, format="int32")
    observed_generation: int | None = field(
        "The metadata.generation that this status is about.", default=None, format="int64"
    )
    last_look: str | None = field(
        "When the provider was last asked about it.", default=None, format="date-time"
    )
    job_uid: str | None = field(
        "UID of the last Kubernetes Job whose answer was counted.", default=None
    )
    conditions: tuple[Condition, ...] = field(
        "Ready: it takes jobs. CredentialsValid: the account could be logged in to.",
        default=(),
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


@attrs.frozen
class QiskitSession:
    """QiskitSession is a provider's session that QiskitJobs share."""

    spec: QiskitSessionSpec = field("Which session, and for how long.")
    status: QiskitSessionStatus = field(
        "What the controller observed.", factory=QiskitSessionStatus
    )

    RULES = (
        *(
            Rule(
                "!has(oldSelf.status) || !has(oldSelf.status.phase) || "
                "!(oldSelf.status.phase in ['Active', 'Draining']) || "
                f"(has(self.spec.{name}) == has(oldSelf.spec.{name}) && "
                f"(!has(self.spec.{name}) || self.spec.{name} == oldSelf.spec.{name}))",
                lambda _self: True,  # the reconciler compares with what it was opened with
                f"spec.{name}: cannot change while the session is open; create another "
                "QiskitSession",
            )
            for name in FIXED
        ),
    )


def ended_because(status: QiskitSessionStatus) -> str:
    """The reason of the condition Ready: while it takes no jobs, why that is so."""
    ready = find(status.conditions, "Ready")
    return ready.reason if ready is not None else ""
