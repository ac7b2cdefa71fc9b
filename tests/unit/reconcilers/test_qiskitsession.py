"""Opening, looking, closing, and whose turn it is: without a cluster."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.conditions import Condition, find
from qiskit_controller.api.qiskitsession import (
    QiskitSessionSpec,
    QiskitSessionStatus,
    SessionMember,
)
from qiskit_controller.api.quantities import format_time
from qiskit_controller.api.run import SESSION_ENV, Reason, SessionReport
from qiskit_controller.reconcilers.errands import Errand
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings
from qiskit_controller.reconcilers.qiskitsession import manifests
from qiskit_controller.reconcilers.qiskitsession.decision import (
    CLOSE_PATIENCE,
    Decision,
    Seen,
    decide,
    request,
)
from qiskit_controller.reconcilers.qiskitsession.turns import (
    PLACES,
    JobSeen,
    next_turns,
    order,
)

from .support import NOW, seconds

PRIORITIES = ("urgent", "high", "normal", "low")


def spec(**more: Any) -> QiskitSessionSpec:
    return from_wire(
        {
            "backend": {"name": "ibm_fez"},
            "maxTime": 600,
            "credentials": {"secretRef": {"name": "ibm-key"}},
            **more,
        },
        QiskitSessionSpec,
    )


def seen(status: QiskitSessionStatus | None = None, **more: Any) -> Seen:
    given = {
        "name": "vqe",
        "generation": 1,
        "spec": spec(),
        "status": status or QiskitSessionStatus(),
        "now": NOW,
    }
    return Seen(**given | more)


def job(name: str, priority: str = "normal", age: float = 60, **more: Any) -> JobSeen:
    given = {
        "name": name,
        "uid": f"uid-{name}",
        "created": NOW - seconds(age),
        "priority": priority,
        "waiting": True,
    }
    return JobSeen(**given | more)


def errand(action: str, report: SessionReport | str | None, uid: str = "e1", **more: Any) -> Errand:
    said = json.dumps(to_wire(report)) if isinstance(report, SessionReport) else report
    given = {
        "uid": uid,
        "created": NOW - seconds(20),
        "action": action,
        "begun": True,
        "over": report is not None,
        "message": said or "",
    }
    return Errand(**given | more)


OPEN = SessionReport(id="s-1", backend="ibm_fez", accepting=True, state="open")
CLOSED = SessionReport(id="s-1", backend="ibm_fez", closed=True, state="closed", usage="42")


def active(now: Any = NOW, **more: Any) -> QiskitSessionStatus:
    """The status of a session that was opened just now."""
    opening = decide(seen(now=now)).status
    made = decide(seen(opening, errand=errand("open", OPEN), now=now))
    assert made.status.phase == "Active"
    return attrs.evolve(made.status, **more)


def told(decision: Decision, type_: str = "Ready") -> Condition:
    found = find(decision.status.conditions, type_)
    assert found is not None
    return found


def test_it_is_opened_as_soon_as_it_is_there() -> None:
    first = decide(seen(finalized=False))
    assert (first.add_finalizer, first.start, first.status.phase) == (True, None, "Pending")
    made = decide(seen(first.status))
    assert (made.start, made.status.phase) == ("open", "Opening")
    asked = request("vqe", made.status, "open")
    assert (asked.backend.name, asked.mode, asked.max_time) == ("ibm_fez", "dedicated", 600)
    # Whether the status, or the errand, was written last before a crash.
    assert decide(seen(made.status)).start == "open"
    under_way = decide(seen(made.status, errand=errand("open", None)))
    assert under_way.start is None
    done = decide(seen(made.status, errand=errand("open", OPEN)))
    assert (done.status.phase, done.status.session_id, done.status.openings) == ("Active", "s-1", 1)
    assert done.delete_errand
    assert told(done).status == "True"
    assert [each.reason for each in done.notes] == ["Opened"]
    again = decide(seen(done.status, errand=errand("open", OPEN)))
    assert (again.status, again.delete_errand, again.notes) == (done.status, True, ())


@pytest.mark.parametrize("said", ["", "{", "[]", '{"accepting": true}', '{"reason": "New"}'])
def test_an_errand_that_left_nonsense_has_failed(said: str) -> None:
    opening = decide(seen()).status
    made = decide(seen(opening, errand=errand("open", said, problem="DeadlineExceeded")))
    assert (made.status.phase, made.status.failures) == ("Opening", 1)
    assert "DeadlineExceeded; trying again in 10s" in told(made).message


def test_what_may_pass_is_tried_again_with_growing_pauses() -> None:
    status, now, pauses = decide(seen()).status, NOW, []
    away = SessionReport(reason=Reason.BACKEND_UNAVAILABLE, message="no answer")
    for number in range(9):
        made = decide(seen(status, errand=errand("open", away, uid=f"e{number}"), now=now))
        status = made.status
        waiting = decide(seen(status, now=now))
        assert waiting.start is None
        assert waiting.requeue_after is not None
        pauses.append(waiting.requeue_after.total_seconds())
        now += waiting.requeue_after
        assert decide(seen(status, now=now)).start == "open"
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert told(made).reason == "BackendUnavailable"


def test_what_no_repetition_mends_is_final_until_the_spec_changes() -> None:
    opening = decide(seen()).status
    denied = SessionReport(reason=Reason.BACKEND_DENIED, message="api-key is wrong")
    made = decide(seen(opening, errand=errand("open", denied)))
    assert made.status.phase == "Failed"
    assert told(made, "CredentialsValid").status == "False"
    assert "api-key is wrong" in told(made).message
    assert [(each.type, each.reason) for each in made.notes] == [("Warning", "BackendDenied")]
    assert decide(seen(made.status, jobs=(job("a"),))).start is None
    changed = decide(seen(made.status, generation=2))
    assert (changed.status.phase, changed.start) == ("Opening", "open")


def test_what_keeps_the_pod_from_starting_is_said() -> None:
    opening = decide(seen()).status
    stuck = errand("open", None, begun=False, problem='secret "ibm-key" not found')
    made = decide(seen(opening, errand=stuck))
    assert told(made).message == 'secret "ibm-key" not found'
    assert [each.reason for each in made.notes] == ["WaitingForPod"]
    assert decide(seen(made.status, errand=stuck)).notes == ()


def test_without_a_job_it_is_closed_and_opens_again_for_the_next() -> None:
    status = active()
    quiet = decide(seen(status))
    assert quiet.requeue_after == timedelta(minutes=5)
    later = NOW + timedelta(minutes=5)
    closing = decide(seen(quiet.status, now=later))
    assert (closing.status.phase, closing.start, told(closing).reason) == (
        "Draining",
        "close",
        "Idle",
    )
    done = decide(seen(closing.status, errand=errand("close", CLOSED, uid="e2"), now=later))
    assert (done.status.phase, done.status.usage) == ("Closed", "42")
    resting = decide(seen(done.status, now=later))
    assert (resting.start, resting.requeue_after) == (None, None)
    reopened = decide(seen(resting.status, jobs=(job("a"),), now=later))
    assert (reopened.status.phase, reopened.start) == ("Opening", "open")
    assert reopened.status.session_id is None
    second = attrs.evolve(OPEN, id="s-2", usage="8")
    done = decide(
        seen(reopened.status, errand=errand("open", second, uid="e3"), jobs=(job("a"),), now=later)
    )
    assert (done.status.session_id, done.status.openings, done.status.usage) == ("s-2", 2, "50")
    assert [each.name for each in done.status.members] == ["a"]


def test_a_job_keeps_it_open() -> None:
    inside = SessionMember(name="a", uid="uid-a", entered=True)
    status = active(members=(inside,))
    made = decide(seen(status, jobs=(job("a", waiting=False, running=True),)))
    assert made.status.idle_since is None
    later = NOW + timedelta(hours=1)
    made = decide(seen(made.status, jobs=(job("a", waiting=False, running=True),), now=later))
    assert (made.status.phase, made.start) == ("Active", "look")
    # It has ended: from now on it is idle.
    left = decide(seen(made.status, now=later))
    assert (left.status.members, left.status.jobs.finished) == ((), 1)
    idle = decide(seen(left.status, now=later))
    assert idle.status.idle_since == format_time(later)


def test_it_is_looked_at_when_its_time_begins_to_count_and_when_it_is_over() -> None:
    expires = NOW + seconds(600)
    running = (job("a", waiting=False, running=True), job("b"))
    member = SessionMember(name="a", uid="uid-a", entered=True)
    status = active(members=(member,))
    assert decide(seen(status, jobs=running)).start is None
    soon = NOW + seconds(20)
    first = decide(seen(status, jobs=running, now=soon))
    assert first.start == "look"
    known = attrs.evolve(OPEN, expires_at=format_time(expires), usage="3")
    look = errand("look", known, uid="e2")
    made = decide(seen(first.status, errand=look, jobs=running, now=soon))
    assert (made.status.expires_at, made.status.usage) == (format_time(expires), "3")
    after = decide(seen(made.status, jobs=running, now=soon))
    assert after.start is None
    assert after.requeue_after == timedelta(minutes=3)
    over = decide(seen(made.status, jobs=running, now=expires))
    assert over.start == "look"
    # Nobody is let in any more, though nobody has said that it is over.
    nobody = decide(seen(made.status, jobs=(job("b"),), now=expires))
    assert nobody.status.members == ()
    ended = decide(
        seen(over.status, errand=errand("look", CLOSED, uid="e3"), jobs=running, now=expires)
    )
    assert (ended.status.phase, told(ended).reason) == ("Closed", "Expired")
    assert told(ended).message == (
        f"session vqe (s-1) reached its maxTime of 600 s at {format_time(expires)}"
    )
    assert ended.notes[0].message.endswith("; 1 QiskitJobs waited for it")
    assert decide(seen(ended.status, jobs=(job("b"),), now=expires)).start is None


def test_it_is_looked_at_at_once_when_a_job_was_turned_away() -> None:
    status = active()
    away = job("a", waiting=False, over=True, turned_away=NOW + seconds(5))
    made = decide(seen(status, jobs=(away, job("b")), now=NOW + seconds(6)))
    assert made.start == "look"
    assert made.status.members == (), "the next would be turned away as well"
    silent = SessionReport(reason=Reason.BACKEND_UNAVAILABLE, message="no answer")
    asked = decide(
        seen(
            made.status,
            jobs=(away, job("b")),
            errand=errand("look", silent, uid="e9"),
            now=NOW + seconds(9),
        )
    )
    assert asked.status.members == ()
    later = seen(asked.status, jobs=(away, job("b")), now=NOW + seconds(19))
    assert decide(later).start == "look"
    still = decide(attrs.evolve(later, errand=errand("look", OPEN, uid="e8")))
    assert [each.name for each in still.status.members] == ["b"]
    unknown = decide(attrs.evolve(later, errand=errand("look", CLOSED, uid="e8")))
    assert told(unknown).reason == "ClosedByProvider"
    begun = attrs.evolve(CLOSED, expires_at=format_time(NOW + seconds(600)))
    by_hand = decide(
        seen(status, jobs=(away,), errand=errand("look", begun, uid="e2"), now=NOW + seconds(9))
    )
    assert (by_hand.status.phase, told(by_hand).reason) == ("Closed", "ClosedByProvider")


def test_one_that_the_provider_closed_as_it_had_no_job_opens_again() -> None:
    status = active()
    looked = decide(seen(status, spec=spec(ttl="2h"), now=NOW + timedelta(minutes=10)))
    assert looked.start == "look"
    look = errand("look", attrs.evolve(CLOSED, usage=None), uid="e2")
    made = decide(seen(status, errand=look))
    assert (made.status.phase, told(made).reason) == ("Closed", "Idle")
    assert decide(seen(made.status, jobs=(job("a"),))).start == "open"


def test_one_that_takes_no_more_drains_until_its_jobs_have_ended() -> None:
    member = SessionMember(name="a", uid="uid-a", entered=True)
    running = (job("a", waiting=False, running=True), job("b"))
    status = active(members=(member,), expires_at=format_time(NOW + seconds(30)))
    full = attrs.evolve(OPEN, accepting=False)
    now = NOW + seconds(30)
    made = decide(seen(status, errand=errand("look", full, uid="e2"), jobs=running, now=now))
    assert (made.status.phase, told(made).reason) == ("Draining", "Expired")
    assert made.status.members == (member,)
    again = decide(seen(made.status, jobs=running, now=now + seconds(20)))
    assert again.start == "look"


def test_deletion_closes_it_and_then_lets_it_go() -> None:
    status = active(jobs=decide(seen()).status.jobs)
    made = decide(seen(status, deleted=NOW))
    assert (made.start, made.remove_finalizer, made.status.phase) == ("close", False, "Draining")
    asked = request("vqe", made.status, "close")
    assert asked.id == "s-1"
    closing = errand("close", None, uid="e2")
    assert not decide(seen(made.status, deleted=NOW, errand=closing)).remove_finalizer
    closing = errand("close", CLOSED, uid="e2")
    done = decide(seen(made.status, deleted=NOW, errand=closing))
    assert (done.status.phase, done.delete_errand, done.remove_finalizer) == ("Closed", True, False)
    assert decide(seen(done.status, deleted=NOW)).remove_finalizer


def test_one_that_was_never_opened_goes_at_once() -> None:
    for status in (QiskitSessionStatus(), decide(seen()).status):
        assert decide(seen(status, deleted=NOW)).remove_finalizer
    stuck = errand("open", None, begun=False, problem='secret "ibm-key" not found')
    made = decide(seen(decide(seen()).status, errand=stuck, deleted=NOW))
    assert (made.delete_errand, made.remove_finalizer) == (True, False)


def test_one_that_is_being_opened_is_closed_when_it_is_known() -> None:
    opening = decide(seen()).status
    going = decide(seen(opening, errand=errand("open", None), deleted=NOW))
    assert (going.delete_errand, going.remove_finalizer) == (False, False)
    known = decide(seen(opening, errand=errand("open", OPEN), deleted=NOW))
    assert (known.status.session_id, known.delete_errand, known.start) == ("s-1", True, None)
    assert decide(seen(known.status, deleted=NOW)).start == "close"


def test_closing_is_given_up_with_a_warning_that_names_it() -> None:
    denied = SessionReport(reason=Reason.BACKEND_DENIED, message="the key was revoked")
    status = decide(seen(active(), deleted=NOW)).status
    made = decide(seen(status, errand=errand("close", denied, uid="e2"), deleted=NOW))
    warning = next(each for each in made.notes if each.reason == "NotClosedAtProvider")
    assert warning.type == "Warning"
    assert "s-1" in warning.message
    assert "the key was revoked" in warning.message
    assert decide(seen(made.status, deleted=NOW)).remove_finalizer
    # ... and after a while, whatever is in the way.
    late = NOW + CLOSE_PATIENCE
    stuck = errand("close", None, uid="e3", begun=False, problem="no room")
    made = decide(seen(status, errand=stuck, deleted=NOW, now=late))
    assert "no room" in " ".join(each.message for each in made.notes)
    assert made.delete_errand
    going = attrs.evolve(stuck, deleting=True)
    again = decide(seen(made.status, errand=going, deleted=NOW, now=late + seconds(5)))
    assert again.status == made.status
    assert decide(seen(made.status, deleted=NOW, now=late)).remove_finalizer


def test_a_time_to_live_begins_with_its_end() -> None:
    given = spec(ttlSecondsAfterFinished=60)
    expired = decide(
        seen(
            active(expires_at=format_time(NOW)),
            spec=given,
            errand=errand("look", CLOSED, uid="e2"),
        )
    )
    assert not expired.delete
    waiting = decide(seen(expired.status, spec=given, now=NOW + seconds(10)))
    assert (waiting.delete, waiting.requeue_after) == (False, seconds(50))
    assert decide(seen(expired.status, spec=given, now=NOW + seconds(60))).delete


def test_a_change_while_it_is_open_is_ignored_and_said() -> None:
    status = active()
    changed = spec(maxTime=7200, ttl="7m")
    made = decide(seen(status, spec=changed, generation=2))
    assert told(made, "SpecChangeIgnored").status == "True"
    assert told(made, "SpecChangeIgnored").message.startswith("spec.maxTime changed")
    assert made.requeue_after == timedelta(minutes=7)
    assert request("vqe", made.status, "look").id == "s-1"
    same = decide(seen(made.status, spec=spec(ttl="7m"), generation=3))
    assert told(same, "SpecChangeIgnored").status == "False"


def test_a_mistake_that_keeps_it_from_opening_can_be_mended() -> None:
    opening = decide(seen()).status
    problem = 'secret "ibm-kez" not found'
    hangs = errand("open", None, begun=False, problem=problem)
    waiting = decide(seen(opening, errand=hangs))
    assert (told(waiting).reason, told(waiting).message) == ("WaitingForPod", problem)
    assert not waiting.delete_errand
    mended = spec(credentials={"secretRef": {"name": "ibm-key-2"}})
    made = decide(seen(waiting.status, spec=mended, errand=hangs, generation=2))
    assert made.delete_errand
    assert find(made.status.conditions, "SpecChangeIgnored") is None
    again = decide(seen(made.status, spec=mended, generation=2))
    assert again.start == "open"
    assert again.status.opened_with == mended
    # What has begun may have opened it, so its answer counts.
    begun = errand("open", None, problem=problem)
    assert not decide(seen(made.status, spec=mended, errand=begun, generation=2)).delete_errand


def test_a_spec_that_cannot_be_read() -> None:
    made = decide(seen(spec=None, problem="spec.ttl: 5 parsecs"))
    assert (made.start, told(made).message) == (None, "spec.ttl: 5 parsecs")
    assert decide(seen(active(), spec=None, problem="x", deleted=NOW)).start == "close"


def test_the_errand_holds_the_credentials_and_nothing_else() -> None:
    status = decide(seen()).status
    asked = request("vqe", status, "open")
    made = manifests.session_job(
        "ns", "v" * 90, "uid-1", "ibm-key", asked, Settings(runner_image="runner:1")
    )
    assert len(made["metadata"]["name"]) <= 63
    assert made["metadata"]["ownerReferences"][0]["kind"] == "QiskitSession"
    pod = made["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["qiskit-runner", "session"]
    assert pod["automountServiceAccountToken"] is False
    (variable,) = container["env"]
    assert variable["name"] == SESSION_ENV
    assert json.loads(variable["value"])["maxTime"] == 600
    closing = attrs.evolve(asked, action="close", id="s-1")
    made = manifests.session_job(
        "ns", "vqe", "uid-1", None, closing, Settings(runner_image="runner:1")
    )
    assert made["metadata"]["ownerReferences"] == []
    assert {each["name"] for each in made["spec"]["template"]["spec"]["volumes"]} == {"tmp"}


# --- turns ------------------------------------------------------------------------------------

_jobs = st.lists(
    st.builds(
        JobSeen,
        name=st.sampled_from([f"j{number}" for number in range(12)]),
        uid=st.just(""),
        created=st.integers(0, 3).map(lambda age: NOW - seconds(age)),
        priority=st.sampled_from(PRIORITIES),
        waiting=st.booleans(),
        over=st.booleans(),
        elsewhere=st.booleans(),
        submitted=st.booleans(),
    ).map(lambda each: attrs.evolve(each, uid=f"uid-{each.name}")),
    unique_by=lambda each: each.uid,
)
_modes = st.sampled_from(["dedicated", "shared"])


@given(st.lists(_jobs, min_size=1, max_size=6), _modes, st.data())
def test_there_are_never_more_in_it_than_it_has_places(
    looks: list[list[JobSeen]], mode: Any, data: st.DataObject
) -> None:
    members: tuple[SessionMember, ...] = ()
    for jobs in looks:
        admits = data.draw(st.booleans())
        made = next_turns(members, jobs, mode, admits=admits)
        assert len(made.members) <= PLACES[mode]
        by_uid = {each.uid: each for each in jobs}
        for member in members:
            ended = member.uid not in by_uid or by_uid[member.uid].over
            left = member.uid not in {each.uid for each in made.members}
            if member.entered and not ended and not by_uid[member.uid].elsewhere:
                assert not left, "a job that is in it keeps its place"
        new = [by_uid[each.uid] for each in made.members if each.name in made.admitted]
        assert admits or not new
        if new and made.waiting:
            assert max(map(order, new)) <= min(map(order, made.waiting))
        before = [each for each in made.members if each.name not in made.admitted]
        in_order = all(by_uid[each.uid].submitted for each in before)
        assert len(new) <= (in_order and len(before) < PLACES[mode]), "who waits may be overtaken"
        if admits and made.waiting and in_order and not new:
            assert len(before) == PLACES[mode], "a place stays free while somebody waits"
        members = tuple(
            attrs.evolve(each, entered=each.entered or data.draw(st.booleans()))
            for each in made.members
        )


def test_one_runs_and_one_is_in_the_queue_of_a_dedicated_session() -> None:
    jobs = [job("a", submitted=True, waiting=False), job("b"), job("c", age=30)]
    inside = (SessionMember(name="a", uid="uid-a", entered=True),)
    made = next_turns(inside, jobs, "dedicated", admits=True)
    assert made.admitted == ("b",)
    assert [each.name for each in made.waiting] == ["c"]
    # Nobody else until it is in the queue, and then there is no place.
    again = next_turns(made.members, jobs, "shared", admits=True)
    assert again.admitted == ()
    jobs[1] = job("b", submitted=True, waiting=False)
    entered = tuple(attrs.evolve(each, entered=True) for each in made.members)
    assert next_turns(entered, jobs, "dedicated", admits=True).admitted == ()
    assert next_turns(entered, jobs, "shared", admits=True).admitted == ("c",)


@given(st.permutations([(p, age) for p in PRIORITIES for age in (9, 3, 1)]))
def test_the_order_is_by_priority_then_age(given: list[tuple[str, int]]) -> None:
    jobs = [job(f"{p}-{age}", p, age) for p, age in given]
    members: tuple[SessionMember, ...] = ()
    order_of_entry = []
    while jobs:
        made = next_turns(members, jobs, "dedicated", admits=True)
        (member,) = made.members
        order_of_entry.append(member.name)
        members = (attrs.evolve(member, entered=True),)
        jobs = [each for each in jobs if each.uid != member.uid]
    assert order_of_entry == [f"{p}-{age}" for p in PRIORITIES for age in (9, 3, 1)]


@given(_jobs, st.sampled_from(["Expired", "ClosedByProvider", "Idle", "Failed", "Draining"]))
def test_one_that_is_not_open_lets_nobody_in(jobs: list[JobSeen], why: str) -> None:
    status = active()
    if why == "Failed":
        status = attrs.evolve(status, phase="Failed")
    elif why == "Draining":
        status = attrs.evolve(status, phase="Draining")
    elif why == "Idle":
        status = attrs.evolve(status, phase="Closed")
    else:
        expires = format_time(NOW if why == "Expired" else NOW + seconds(600))
        made = decide(
            seen(
                attrs.evolve(status, expires_at=expires),
                errand=errand("look", CLOSED, uid="e2"),
            )
        )
        status = made.status
        assert told(made).reason == why
    made = decide(seen(status, jobs=jobs))
    assert made.status.members == ()
    if why in ("Expired", "ClosedByProvider", "Failed"):
        assert made.start is None
