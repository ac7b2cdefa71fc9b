"""The spans of a QiskitJob, from its status and its pods; and who tells them, when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiskit_controller.api.conditions import Condition
from qiskit_controller.api.qiskitjob import (
    MAX_PHASE_HISTORY,
    AttemptStatus,
    PhaseChange,
    QiskitJobStatus,
    SessionStatus,
)
from qiskit_controller.api.quantities import format_microtime, format_time, parse_time
from qiskit_controller.api.run import Reason, Report, SourceReport
from qiskit_controller.kube.errors import Conflict, NotFound
from qiskit_controller.reconcilers.qiskitjob.observed import PodView, Run, Terminated
from qiskit_controller.reconcilers.qiskitjob.tracing import (
    JobTracer,
    noted,
    spans_of,
    stage_span,
)
from qiskit_controller.telemetry.trace import ANNOTATION, Span, note_call, note_wait, trace_of

from .support import NOW, run, seconds

UID = "0f6b0a5c-7c2f-4f0e-9d7c-1f6f0a5c7c2f"
JOB: dict[str, Any] = {
    "metadata": {
        "namespace": "ns",
        "name": "bell",
        "uid": UID,
        "creationTimestamp": format_time(NOW),
    },
    "spec": {"backend": {"type": "local_simulator"}, "execution": {"shots": 1024}},
}
TRACE = trace_of(JOB["metadata"])
PHASES = ("Pending", "Validating", "Scheduling", "Running", "Completed")


def at(number: float) -> datetime:
    return NOW + seconds(number)


def history(*changes: tuple[str, float]) -> tuple[PhaseChange, ...]:
    return tuple(PhaseChange(phase=p, time=format_microtime(at(t))) for p, t in changes)


def attempt(number: int, start: float, end: float | None, **more: Any) -> AttemptStatus:
    return AttemptStatus(
        number=number,
        job_name=f"qiskit-job-bell-{number}",
        start_time=format_time(at(start)),
        completion_time=None if end is None else format_time(at(end)),
        **more,
    )


def ended(number: float, code: int = 0) -> Terminated:
    # The kubelet has whole seconds.
    whole = parse_time(format_time(at(number)))
    return Terminated(code, "Error" if code else "Completed", "", whole)


def whole(number: float) -> datetime:
    return parse_time(format_time(at(number)))


def precise(number: float) -> str:
    return at(number).isoformat(timespec="microseconds")


def bell_pod(**changes: Any) -> PodView:
    report = Report(attempt=1, begun=precise(4.21), ended=precise(6.83))
    given_ = {
        "name": "qiskit-job-bell-abcde",
        "created": whole(0.6),
        "scheduled": whole(0.7),
        "circuit_started": whole(1.4),
        "circuit_ended": ended(3.9),
        "executor_started": whole(4.2),
        "executor_ended": ended(6.9),
        "report": report,
    }
    return PodView(**given_ | changes)


def bell() -> tuple[QiskitJobStatus, dict[int, Run]]:
    """A job that went well, with times as a cluster has them."""
    times = (0.35, 1.5, 5.0, 5.2, 7.1)
    status = QiskitJobStatus(
        phase="Completed",
        start_time=format_time(at(0.35)),
        completion_time=format_time(at(7.1)),
        attempts=(attempt(1, 0.4, 6.9),),
        phase_history=history(*zip(PHASES, times, strict=True)),
        cost="$0.00",
        backend="aer_simulator",
    )
    return status, {1: run(pod=bell_pod())}


def by_name(spans: Sequence[Span]) -> dict[str, Span]:
    assert len({each.context.span_id for each in spans}) == len(spans)
    return {each.name: each for each in spans}


def uncovered(spans: Sequence[Span], start: datetime, end: datetime) -> timedelta:
    """The longest time between two moments that no span is about."""
    longest, reached = timedelta(0), start
    for each in sorted(spans, key=lambda span: span.start):
        longest, reached = max(longest, each.start - reached), max(reached, each.end)
    return max(longest, end - reached)


def check_tree(spans: Sequence[Span], *, whole_trace: bool = True) -> None:
    """One trace, no orphan, no child outside of its parent."""
    there = {each.context.span_id: each for each in spans}
    for each in spans:
        assert each.context.trace_id == TRACE.trace_id
        assert each.start <= each.end
        if each.name == "QiskitJob" or each.parent is None:
            continue
        if each.parent.span_id not in there:
            assert not whole_trace or each.parent == TRACE.root
            assert each.parent == TRACE.root
            continue
        parent = there[each.parent.span_id]
        assert parent.start <= each.start, (each.name, parent.name)
        assert each.end <= parent.end, (each.name, parent.name)


def test_a_job_that_went_well() -> None:
    spans = spans_of(JOB, TRACE, *bell())
    check_tree(spans)
    found = by_name(spans)
    assert set(found) == {
        *("QiskitJob", "phase Pending", "phase Validating", "phase Scheduling", "phase Running"),
        *("wait for controller", "attempt", "pod scheduling", "pod start", "stage circuit"),
        *("container start", "stage executor", "outcome"),
    }
    root = found["QiskitJob"]
    assert (root.start, root.end) == (NOW, at(7.1))
    assert root.context == TRACE.root
    assert root.attributes["quantum.job.name"] == "bell"
    assert root.attributes["quantum.shots"] == 1024
    assert all(each.error is None for each in spans)
    # The executor's own times, to the microsecond.
    assert (found["stage executor"].start, found["stage executor"].end) == (at(4.21), at(6.83))
    assert found["stage executor"].context == stage_span(TRACE, 1, "executor")
    assert found["stage executor"].attributes["k8s.pod.name"] == "qiskit-job-bell-abcde"
    # Both layers cover everything.
    phases = [each for each in spans if each.name.startswith("phase")]
    assert uncovered(phases, root.start, root.end) == timedelta(0)
    details = [each for each in spans if not each.name.startswith(("phase", "Quantum", "Qiskit"))]
    assert uncovered(details, root.start, root.end) == timedelta(0)
    parts = [each for each in spans if each.parent == found["attempt"].context]
    assert uncovered(parts, found["attempt"].start, found["attempt"].end) == timedelta(0)


def test_who_tells_does_not_matter() -> None:
    first, second = (spans_of(JOB, TRACE, *bell()) for _ in range(2))
    assert first == second


def test_nothing_is_told_before_it_is_over() -> None:
    status = QiskitJobStatus(
        phase="Validating",
        attempts=(attempt(1, 0.4, None),),
        phase_history=history(("Pending", 0.3), ("Validating", 1.5)),
    )
    spans = spans_of(JOB, TRACE, status, {1: run(pod=bell_pod())})
    assert {each.name for each in spans} == {"phase Pending", "wait for controller"}
    assert spans_of(JOB, TRACE, QiskitJobStatus(), {}) == []


def test_retries_are_siblings_with_their_errors() -> None:
    lost = {"reason": "PodLost", "message": "the pod was deleted", "counted": False}
    status = QiskitJobStatus(
        phase="Failed",
        completion_time=format_time(at(40)),
        conditions=(Condition(type="Failed", status="True", reason="OutOfMemory", message="m"),),
        attempts=(
            attempt(1, 0.4, 8, **lost),
            attempt(2, 19, 39, reason="OutOfMemory", message="m"),
        ),
        phase_history=history(
            *(("Pending", 0.3), ("Validating", 2.0), ("Running", 3.0), ("Pending", 8.6)),
            *(("Validating", 21.0), ("Failed", 39.9)),
        ),
    )
    spans = spans_of(JOB, TRACE, status, {})
    check_tree(spans)
    attempts = [each for each in spans if each.name == "attempt"]
    assert [each.parent for each in attempts] == [TRACE.root, TRACE.root]
    assert [(each.start, each.end) for each in attempts] == [
        (at(0.3).replace(microsecond=300000), at(8.6)),
        (at(19), at(39.9)),
    ]
    assert [each.error_type for each in attempts] == ["PodLost", "OutOfMemory"]
    (waited,) = (each for each in spans if each.name == "retry back-off")
    assert (waited.start, waited.end) == (at(8.6), at(19))
    root = by_name([each for each in spans if each.name == "QiskitJob"])["QiskitJob"]
    assert (root.error, root.error_type) == ("m", "OutOfMemory")
    wrong = [(each.name, each.error_type) for each in spans if each.name.startswith("phase")]
    assert wrong == [
        *(("phase Pending", None), ("phase Validating", None), ("phase Running", "PodLost")),
        *(("phase Pending", None), ("phase Validating", "OutOfMemory")),
    ]


def test_the_wait_for_a_session_is_told_when_it_is_over() -> None:
    status, runs = bell()
    waiting = attrs.evolve(status, session=SessionStatus(name="vqe", since=precise(5.01)))
    assert "wait for session" not in {each.name for each in spans_of(JOB, TRACE, waiting, runs)}
    session = SessionStatus(name="vqe", id="s-1", since=precise(5.01), entered=precise(5.15))
    spans = spans_of(JOB, TRACE, attrs.evolve(status, session=session), runs)
    check_tree(spans)
    span = by_name(spans)["wait for session"]
    assert (span.parent, span.start, span.end) == (TRACE.root, at(5.01), at(5.15))
    assert span.attributes["quantum.session"] == "vqe"


def test_an_attempt_that_only_stores_follows_in_the_same_phase() -> None:
    """The phase stays Running, so the first attempt's end is told by the attempt alone."""
    status = QiskitJobStatus(
        phase="Completed",
        completion_time=format_time(at(30)),
        attempts=(
            attempt(1, 0.4, 8, reason="OutputUnavailable", message="m"),
            attempt(2, 18, 29),
        ),
        phase_history=history(("Pending", 0.3), ("Running", 2.0), ("Completed", 30.0)),
    )
    spans = spans_of(JOB, TRACE, status, {})
    check_tree(spans)
    first, second = (each for each in spans if each.name == "attempt")
    assert (first.end, second.start, second.end) == (at(9), at(18), at(30))


def test_to_be_cancelled_is_no_error() -> None:
    status = QiskitJobStatus(
        phase="Cancelled",
        completion_time=format_time(at(9)),
        attempts=(attempt(1, 0.4, 9, reason="Cancelled", message="m"),),
        phase_history=history(("Pending", 0.3), ("Cancelled", 9.5)),
    )
    spans = spans_of(JOB, TRACE, status, {})
    assert {each.name: each.error for each in spans}["QiskitJob"] is None
    assert all(each.error is None for each in spans)


def test_a_job_that_is_deleted_under_way_ends_there() -> None:
    status = QiskitJobStatus(
        phase="Running",
        attempts=(attempt(1, 0.4, None),),
        phase_history=history(("Pending", 0.3), ("Running", 2.0)),
    )
    pod = bell_pod(executor_ended=None, report=None)
    spans = spans_of(JOB, TRACE, status, {1: run(pod=pod)}, gone=at(20))
    check_tree(spans)
    found = by_name(spans)
    assert found["QiskitJob"].end == found["attempt"].end == found["phase Running"].end == at(20)
    assert found["stage executor"].end == at(20), "its own spans have a parent"


def test_stages_that_failed_say_so() -> None:
    status, _ = bell()
    pod = bell_pod(
        source_started=whole(1.2),
        source_ended=ended(1.3, 1),
        source_report=SourceReport(
            reason=Reason.SOURCE_NOT_FOUND,
            message="404",
            begun=precise(1.21),
            ended=precise(1.29),
        ),
        circuit_ended=ended(3.9, 137),
        report=None,
        executor_started=None,
        executor_ended=None,
    )
    spans = spans_of(JOB, TRACE, status, {1: run(pod=pod)})
    check_tree(spans)
    found = by_name(spans)
    assert (found["stage source"].error_type, found["stage source"].error) == (
        "SourceNotFound",
        "404",
    )
    assert (found["stage source"].start, found["stage source"].end) == (at(1.21), at(1.29))
    assert found["stage circuit"].error_type == "Error"
    assert found["stage circuit"].attributes["process.exit.code"] == 137


@pytest.mark.parametrize("source", ["inline", "git"])
@pytest.mark.parametrize("known", ["nothing", "the Job", "another pod"])
def test_what_a_lost_pod_told_has_its_parents(source: str, known: str) -> None:
    """The pod was deleted under way; some Jobs make another in its place."""
    job = {**JOB, "spec": {**JOB["spec"], "circuit": {"source": source}}}
    status = QiskitJobStatus(
        phase="Pending",
        attempts=(attempt(1, 0.4, 8, reason="PodLost", message="the pod was deleted"),),
        phase_history=history(
            *(("Pending", 0.3), ("Validating", 2.0), ("Running", 3.0), ("Pending", 8.6))
        ),
    )
    another = PodView(name="another", created=whole(8.1), scheduled=whole(8.2))
    runs = {
        "nothing": {},
        "the Job": {1: run()},
        "another pod": {1: run(pod=another)},
    }[known]
    spans = spans_of(job, TRACE, status, runs)
    check_tree(spans, whole_trace=False)
    there = {each.context for each in spans}
    assert stage_span(TRACE, 1, "executor") in there
    assert (stage_span(TRACE, 1, "source") in there) == (source == "git")
    parts = [each for each in spans if each.parent == TRACE.span("attempt", 1)]
    found = by_name(spans)["attempt"]
    assert uncovered(parts, found.start, found.end) == timedelta(0)


def test_nonsense_in_a_report_is_no_time() -> None:
    status, _ = bell()
    report = Report(attempt=1, begun="yesterday", ended="2026-01-01T12:00:06")
    spans = spans_of(JOB, TRACE, status, {1: run(pod=bell_pod(report=report))})
    check_tree(spans)
    assert by_name(spans)["stage executor"].start == whole(4.2)


_moments = st.lists(
    st.integers(0, 60_000_000).map(lambda each: each / 1e6), min_size=9, max_size=9
).map(sorted)


@given(_moments, st.booleans(), st.booleans())
def test_whatever_the_times_there_is_no_gap_and_no_orphan(
    t: list[float], fetched: bool, tells: bool
) -> None:
    """Nine true moments in order, of which Kubernetes tells whole seconds."""
    pod = PodView(
        name="p",
        created=whole(t[1]),
        scheduled=whole(t[2]),
        source_started=whole(t[2]) if fetched else None,
        source_ended=ended(t[3]) if fetched else None,
        source_report=SourceReport(begun=precise(t[2]), ended=precise(t[3])) if fetched else None,
        circuit_started=whole(t[4]),
        circuit_ended=ended(t[5]),
        executor_started=whole(t[6]),
        executor_ended=ended(t[7]),
        report=Report(attempt=1, begun=precise(t[6]), ended=precise(t[7])) if tells else None,
    )
    changes = zip(PHASES, (t[0], t[4], t[6], t[7], t[8]), strict=True)
    status = QiskitJobStatus(
        phase="Completed",
        completion_time=format_time(at(t[8])),
        attempts=(attempt(1, t[1], t[7]),),
        phase_history=history(*changes),
    )
    spans = spans_of(JOB, TRACE, status, {1: run(pod=pod)})
    check_tree(spans)
    root = next(each for each in spans if each.name == "QiskitJob")
    phases = [each for each in spans if each.name.startswith("phase")]
    details = [each for each in spans if not each.name.startswith(("phase", "QiskitJob"))]
    for layer in (phases, details):
        assert uncovered(layer, root.start, root.end) == timedelta(0)


def test_the_history_of_phases_is_bounded_and_does_not_move() -> None:
    old = QiskitJobStatus()
    for number in range(3 * MAX_PHASE_HISTORY):
        phase = ("Pending", "Running")[number % 2]
        new = noted(old, attrs.evolve(old, phase=phase), at(number))
        assert noted(new, attrs.evolve(new, message="same phase"), at(0)).phase_history == (
            new.phase_history
        )
        old = new
    assert len(old.phase_history) == MAX_PHASE_HISTORY
    last = old.phase_history[-1]
    assert (last.phase, last.time) == ("Running", format_microtime(at(3 * MAX_PHASE_HISTORY - 1)))
    # What is left of the phases is told; the first of it is not taken for the job's beginning.
    spans = spans_of(JOB, TRACE, attrs.evolve(old), {})
    assert len(spans) == MAX_PHASE_HISTORY - 1
    assert min(each.start for each in spans) > at(MAX_PHASE_HISTORY)


# --- telling --------------------------------------------------------------------------------


@attrs.define
class Collected:
    """Takes spans."""

    spans: list[Span] = attrs.field(factory=list)
    keep: bool = True

    def send(self, spans: Sequence[Span]) -> None:
        self.spans += spans

    def sampled(self, trace_id: str) -> bool:
        return self.keep

    def ids(self) -> list[str]:
        return [each.context.span_id for each in self.spans]


@attrs.define
class Leader:
    """A process that sees a job go from status to status."""

    collected: Collected = attrs.field(factory=Collected)
    now: datetime = NOW + timedelta(seconds=8)
    tracer: JobTracer = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tracer = JobTracer(self.collected, clock=lambda: self.now)

    def see(self, statuses: Sequence[QiskitJobStatus], runs: Mapping[int, Run]) -> None:
        for old, new in pairwise(statuses):
            self.tracer.written(JOB, old, new, runs)


def course() -> list[QiskitJobStatus]:
    """Each status of a job that goes well."""
    last, _ = bell()
    found = [QiskitJobStatus()]
    for number in range(1, len(PHASES) + 1):
        found.append(
            attrs.evolve(
                last,
                phase=PHASES[number - 1],
                phase_history=last.phase_history[:number],
                completion_time=last.completion_time if number == len(PHASES) else None,
                attempts=last.attempts
                if number == len(PHASES)
                else (attrs.evolve(last.attempts[0], completion_time=None),),
            )
        )
    return found


def test_one_leader_tells_everything_once() -> None:
    leader = Leader()
    leader.see(course(), bell()[1])
    assert sorted(leader.collected.ids()) == sorted(
        each.context.span_id for each in spans_of(JOB, TRACE, *bell())
    )
    # Looking at it again, as after a resync, tells nothing.
    done = course()[-1]
    leader.tracer.written(JOB, done, done, bell()[1])
    leader.tracer.written(JOB, done, attrs.evolve(done, message="x"), bell()[1])
    assert len(leader.collected.spans) == len(spans_of(JOB, TRACE, *bell()))


@pytest.mark.parametrize("killed", range(1, len(PHASES) + 1))
def test_whenever_the_leader_dies_the_trace_is_whole(killed: int) -> None:
    """Whatever it told is lost: it died before that was sent."""
    statuses, runs = course(), bell()[1]
    Leader().see(statuses[: killed + 1], runs)
    following = Leader()
    following.see(statuses[killed:], runs)
    if killed == len(PHASES):  # all was written; it only looks
        following.tracer.written(JOB, statuses[-1], statuses[-1], runs)
    wanted = {each.context.span_id: each for each in spans_of(JOB, TRACE, *bell())}
    assert {each.context.span_id: each for each in following.collected.spans} == wanted
    assert len(following.collected.spans) == len(wanted)


def test_jobs_that_ended_long_ago_are_not_told_again() -> None:
    leader = Leader(now=at(600))
    done, runs = bell()
    leader.tracer.written(JOB, done, done, runs)
    assert leader.collected.spans == []


def test_what_is_remembered_is_bounded() -> None:
    leader = Leader()
    for number in range(10_000):
        job = {**JOB, "metadata": {**JOB["metadata"], "uid": f"uid-{number}"}}
        for old, new in pairwise(course()[:3]):
            leader.tracer.written(job, old, new, {})
    assert len(leader.tracer._told) <= 4096


def test_a_job_that_goes_is_told_of_and_forgotten() -> None:
    leader = Leader()
    statuses, runs = course(), bell()[1]
    leader.see(statuses[:3], runs)
    leader.tracer.gone(JOB, statuses[2], runs)
    assert "QiskitJob" in {each.name for each in leader.collected.spans}
    assert len(leader.collected.ids()) == len(set(leader.collected.ids()))
    assert not leader.tracer._told
    # One that had ended has been told already.
    other = Leader()
    other.tracer.gone(JOB, statuses[-1], runs)
    assert other.collected.spans == []


def test_the_sampler_is_asked_once_for_all() -> None:
    leader = Leader(Collected(keep=False))
    trace = leader.tracer.trace(JOB["metadata"])
    assert not trace.root.sampled
    written = {**JOB["metadata"], "annotations": {ANNOTATION: str(trace.root)}}
    later = Leader(Collected(keep=True)).tracer.trace(written)
    assert not later.root.sampled
    users = {**JOB["metadata"], "annotations": {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}}
    assert leader.tracer.trace(users).root.sampled, "the user has decided"


def test_a_reconcile_that_wrote_is_told_with_its_writes() -> None:
    leader = Leader(now=NOW)
    note_wait(0.25)
    with leader.tracer.reconcile(JOB):
        note_call("get", "configmaps", 200, 0.1)
        note_call("create", "jobs", 409, 0.1)
        note_call("update", "qiskitjobs", 503, 0.1)
    found = by_name(leader.collected.spans)
    assert set(found) == {"reconcile", "work queue", "create jobs", "update qiskitjobs"}
    assert found["reconcile"].parent == found["work queue"].parent == TRACE.root
    assert found["create jobs"].parent == found["reconcile"].context
    assert found["work queue"].end - found["work queue"].start == seconds(0.25)
    assert found["create jobs"].error is None, "what was there already is no failure"
    assert found["update qiskitjobs"].error_type == "503"


def test_a_reconcile_that_only_looked_is_not_told() -> None:
    leader = Leader()
    with leader.tracer.reconcile(JOB):
        note_call("get", "configmaps", 200, 0.1)
    assert leader.collected.spans == []


@pytest.mark.parametrize(
    ("error", "told"), [(NotFound(404, "NotFound", "m"), True), (Conflict(409, "C", "m"), False)]
)
def test_a_reconcile_that_failed_is_an_error_unless_it_met_a_conflict(
    error: Exception, told: bool
) -> None:
    leader = Leader()

    def fail() -> None:
        with leader.tracer.reconcile(JOB):
            note_call("patch", "qiskitjobs", 200, 0.1)
            raise error

    with pytest.raises(type(error)):
        fail()
    found = by_name(leader.collected.spans)["reconcile"]
    assert (found.error is not None) == told
    assert found.attributes["quantum.reconcile.conflict"] is not told
