"""A job that waits for its session, and for its turn in it."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.conditions import Condition
from qiskit_controller.api.qiskitjob import QiskitJobSpec, SessionStatus
from qiskit_controller.api.qiskitsession import (
    QiskitSessionSpec,
    QiskitSessionStatus,
    SessionMember,
)
from qiskit_controller.api.quantities import format_microtime, format_time
from qiskit_controller.api.run import Assignment, Reason
from qiskit_controller.reconcilers.qiskitjob import decision
from qiskit_controller.reconcilers.qiskitjob.assigning import Refusal, Waiting
from qiskit_controller.reconcilers.qiskitjob.observed import Observed
from qiskit_controller.reconcilers.qiskitjob.session import (
    Existing,
    SessionSeen,
    Wait,
    manifest,
    propose,
)

from .support import (
    NOW,
    attempt,
    condition,
    decided,
    pod,
    reasons,
    run,
    seconds,
    spec,
    status,
    underway,
)
from .test_assigning import VALIDATED, market

MEMBER = SessionMember(name="bell", uid="uid-1")
MINE = QiskitSessionStatus(phase="Active", session_id="s-1", backend="ibm_fez", members=(MEMBER,))


def wanted(**more: Any) -> QiskitJobSpec:
    given = {
        "backend": {"type": "ibm_quantum"},
        "credentials": {"secretRef": {"name": "ibm-key"}},
        "session": {"name": "vqe", "maxTime": 600, "mode": "dedicated"},
    }
    return spec(**given | more)


def session(
    status: QiskitSessionStatus = MINE, wire: dict[str, Any] | None = None, **more: Any
) -> SessionSeen:
    given = {"credentials": {"secretRef": {"name": "ibm-key"}}} | (wire or {})
    existing = Existing(
        uid="uid-s",
        ours=more.pop("ours", False),
        deleting=more.pop("deleting", False),
        spec=from_wire(given, QiskitSessionSpec),
        status=status,
    )
    return seen(existing, **more)


def seen(existing: Existing | None, **more: Any) -> SessionSeen:
    given = {
        "name": "vqe",
        "existing": existing,
        "job_uid": "uid-1",
        "created": NOW - seconds(90),
        "secret": "ibm-key",
    }
    return SessionSeen(**given | more)


def ended(phase: Any, reason: str) -> QiskitSessionStatus:
    at = NOW - seconds(60)
    ready = Condition(
        type="Ready", status="False", reason=reason, last_transition_time=format_time(at)
    )
    text = "session vqe (s-1) reached its maxTime of 600 s at 12:00"
    closed_at = format_time(at) if phase in ("Closed", "Failed") else None
    return QiskitSessionStatus(
        phase=phase, session_id="s-1", conditions=(ready,), message=text, closed_at=closed_at
    )


def test_the_first_job_describes_a_session_on_the_device_that_was_chosen() -> None:
    given = wanted(backendSelection={"weights": {"cost": 1.0}})
    found = propose(given, market(), VALIDATED, seen(None))
    assert isinstance(found, Wait)
    assert found.reason == "SessionOpening"
    assert found.create is not None
    made = manifest("ns", "vqe", found.create, "bell")
    assert made["metadata"]["annotations"] == {"quantum.io/made-for": "bell"}
    assert "ownerReferences" not in made["metadata"]
    assert made["spec"] == {
        "backend": {"type": "ibm_quantum", "name": "ibm_brisbane"},
        "maxTime": 600,
        "mode": "dedicated",
        "credentials": {"secretRef": {"name": "ibm-key"}},
        "ttl": "5m",
        "ttlSecondsAfterFinished": 3600,
    }


def test_it_waits_for_it_and_then_for_its_turn_and_then_runs_in_it() -> None:
    for phase in (None, "Pending", "Opening"):
        opening = QiskitSessionStatus(phase=phase)  # type: ignore[arg-type]
        found = propose(wanted(), market(), VALIDATED, session(opening))
        assert isinstance(found, Wait)
        assert found.reason == "SessionOpening"
    other = attrs.evolve(MINE, members=(SessionMember(name="a", uid="uid-a"),))
    found = propose(wanted(), market(), VALIDATED, session(other))
    assert isinstance(found, Wait)
    assert found.reason == "WaitingForTurn"
    found = propose(wanted(), market(), VALIDATED, session())
    assert isinstance(found, Assignment)
    # Of all devices, the session's.
    assert (found.name, found.session) == ("ibm_fez", "s-1")


def test_a_device_that_is_in_no_list_is_its_driver_s_to_judge() -> None:
    there = attrs.evolve(MINE, backend="ibm_new")
    found = propose(wanted(), market(), VALIDATED, session(there))
    assert isinstance(found, Assignment)
    assert (found.name, found.session) == ("ibm_new", "s-1")


def test_a_job_too_dear_is_refused_before_it_has_a_session() -> None:
    given = wanted(budget={"maxCost": "$0.01"}, backendSelection={"fallbackToSimulator": True})
    found = propose(given, market(), VALIDATED, seen(None))
    assert isinstance(found, Refusal)
    assert found.over


@pytest.mark.parametrize(
    ("more", "of", "field"),
    [
        ({"backend": {"type": "ibm_quantum", "name": "ibm_torino"}}, {}, "spec.backend.name"),
        (
            {"backend": {"type": "ibm_quantum", "instance": "crn:1"}},
            {},
            "spec.backend.instance",
        ),
        ({}, {"secret": "other-key"}, "spec.credentials.secretRef"),
    ],
)
def test_what_contradicts_its_session_is_refused(
    more: dict[str, Any], of: dict[str, Any], field: str
) -> None:
    found = propose(wanted(**more), market(), VALIDATED, session(**of))
    assert isinstance(found, Refusal)
    assert found.reason is Reason.INVALID_SPEC
    assert found.message.startswith(field)


@pytest.mark.parametrize(
    ("phase", "why", "reason"),
    [
        ("Closed", "Expired", Reason.SESSION_CLOSED),
        ("Closed", "ClosedByProvider", Reason.SESSION_CLOSED),
        ("Draining", "Expired", Reason.SESSION_CLOSED),
        ("Failed", "BackendDenied", Reason.SESSION_FAILED),
    ],
)
def test_one_that_has_ended_for_good_takes_nobody(phase: str, why: str, reason: Reason) -> None:
    for given in (session(ended(phase, why)), session(ended(phase, why), waited=True)):
        found = propose(wanted(), market(), VALIDATED, given)
        assert isinstance(found, Refusal)
        assert found.reason is reason
        assert "reached its maxTime of 600 s" in found.message
    # One of ours is made anew for a job that came later, and only then.
    ours = session(ended(phase, why), ours=True)
    assert isinstance(propose(wanted(), market(), VALIDATED, ours), Refusal)
    later = session(ended(phase, why), ours=True, created=NOW)
    found = propose(wanted(), market(), VALIDATED, later)
    assert isinstance(found, Wait)
    assert found.replace == (None if phase == "Draining" else "uid-s")
    assert not found.belongs


@pytest.mark.parametrize("phase", ["Closed", "Draining"])
def test_one_that_was_closed_for_want_of_jobs_is_waited_for(phase: str) -> None:
    found = propose(wanted(), market(), VALIDATED, session(ended(phase, "Idle")))
    assert isinstance(found, Wait)
    assert (found.reason, found.belongs, found.replace) == ("SessionOpening", True, None)


def test_one_that_is_deleted_is_told_to_those_who_waited() -> None:
    for given in (session(deleting=True, waited=True), seen(None, waited=True)):
        found = propose(wanted(), market(), VALIDATED, given)
        assert isinstance(found, Refusal)
        assert found.reason is Reason.SESSION_CLOSED
        assert "deleted while the job waited for it" in found.message
    found = propose(wanted(), market(), VALIDATED, session(deleting=True))
    assert isinstance(found, Wait)
    assert not found.belongs


def test_a_retry_stays_in_its_session_while_that_is_open() -> None:
    given = Assignment(number=1, type="ibm_quantum", name="ibm_fez", reason="x", session="s-1")
    again = market(assignment=given)
    assert propose(wanted(), again, VALIDATED, session(waited=True)) is None
    other = attrs.evolve(MINE, session_id="s-2")
    for gone in (session(other, waited=True), seen(None, waited=True)):
        found = propose(wanted(), again, VALIDATED, gone)
        assert isinstance(found, Refusal)
        assert found.reason is Reason.SESSION_CLOSED
    # What may be at the provider already is found there, whatever became of the session.
    assert propose(wanted(), again, VALIDATED, seen(None, waited=True, submitted=True)) is None
    taken = attrs.evolve(VALIDATED, assignment=1)
    assert propose(wanted(), again, taken, session(ended("Closed", "Expired"))) is None
    simulator = attrs.evolve(given, type="local_simulator", name="aer_simulator", session=None)
    fallen = market(assignment=simulator)
    assert propose(wanted(), fallen, VALIDATED, session(ended("Closed", "Expired"))) is None


def test_a_device_that_refuses_is_waited_for_in_its_session() -> None:
    given = Assignment(number=1, type="ibm_quantum", name="ibm_fez", reason="x", session="s-1")
    refused = attrs.evolve(VALIDATED, refused={"ibm_fez": "is offline"})
    found = propose(wanted(), market(assignment=given), refused, session(waited=True))
    assert isinstance(found, Waiting)


# --- what the status says ---------------------------------------------------------------------


def waiting_job(given: SessionSeen, **more: Any) -> Observed:
    changes = {
        "spec": wanted(),
        "progress": VALIDATED,
        "market": market(),
        "selects": True,
        "session": given,
    }
    return underway("Scheduling", pod(executor_started=NOW - seconds(20)), **changes | more)


def test_the_status_of_one_that_waits() -> None:
    made = decided(waiting_job(seen(None)))
    assert isinstance(made.actions[0], decision.CreateSession)
    since = format_microtime(NOW)
    assert made.status.session == SessionStatus(name="vqe", since=since)
    assert condition(made, "SessionReady").reason == "SessionOpening"
    assert reasons(made) == ["SessionOpening"]
    other = attrs.evolve(MINE, members=())
    turn = decided(attrs.evolve(waiting_job(session(other, waited=True)), status=made.status))
    assert condition(turn, "SessionReady").reason == "WaitingForTurn"
    assert turn.status.message is not None
    assert turn.status.message.startswith("Waiting for its turn in QiskitSession vqe on ibm_fez")
    quiet = decided(attrs.evolve(waiting_job(session(other)), status=turn.status))
    assert (quiet.status, quiet.events) == (turn.status, ())
    inside = decided(attrs.evolve(waiting_job(session()), status=turn.status))
    assert isinstance(inside.actions[0], decision.Assign)
    assert inside.actions[0].assignment.session == "s-1"
    entered = SessionStatus(name="vqe", id="s-1", since=since, entered=since)
    assert inside.status.session == entered
    assert condition(inside, "SessionReady").status == "True"
    assert inside.status.backend == "ibm_fez"


def test_the_end_of_one_whose_session_expired() -> None:
    waited = decided(waiting_job(seen(None))).status
    job = waiting_job(session(ended("Closed", "Expired"), waited=True), status=waited)
    made = decided(job)
    assert condition(made, "Failed").reason == "SessionClosed"
    assert "reached its maxTime" in condition(made, "Failed").message
    assert condition(made, "SessionReady").reason == "SessionClosed"
    over = attrs.evolve(job, status=made.status, runs={1: run(deleting=True)}, session=None)
    done = decided(over)
    assert (done.status.phase, reasons(done)) == ("Failed", ["SessionClosed"])


def test_one_that_falls_back_to_a_simulator_leaves_its_session() -> None:
    given = wanted(budget={"maxCost": "$0.01"}, backendSelection={"fallbackToSimulator": True})
    waited = status("Scheduling", attempt(), session=SessionStatus(name="vqe"))
    made = decided(waiting_job(session(waited=True), spec=given, status=waited))
    assert made.status.backend == "aer_simulator"
    assert made.status.session is None
    assert condition(made, "SessionReady").reason == "NotNeeded"
