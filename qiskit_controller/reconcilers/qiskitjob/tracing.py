"""What the controller tells of a QiskitJob's time, as spans of its trace.

::

    QiskitJob                          creation to the end
    |- phase Pending                   one after the other, without a gap
    |  '- wait for controller
    |- phase Validating ...
    |- attempt                         retries are siblings
    |  |- pod scheduling, pod start
    |  |- stage source, circuit, executor
    |  |  '- (from inside the pod)     see qiskit_controller.runner.tracing
    |  |- container start              between two stages
    |  '- outcome                      the kubelet tells, the controller decides
    |- retry back-off
    |- wait for session               until it is the job's turn
    '- reconcile                       one that wrote something
       '- create jobs, update qiskitjobs ...

All but the reconciles are a pure function of the object's status and its pods
(:func:`spans_of`), under identifiers that are derived from the UID. So a leader that takes over
tells what the one before may not have got out any more; told twice, it is the same span.

Kubernetes keeps times in whole seconds. Phases have microseconds in ``status.phaseHistory``, and
the stages ``source`` and ``executor`` say in their reports when they began and ended. What only
Kubernetes knows (when a pod got its node, when the untrusted stage ran) is drawn from the second
in which it was, next to the span before it, so that there is no gap.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import attrs

from qiskit_controller.api.conditions import find
from qiskit_controller.api.qiskitjob import (
    FINISHED,
    MAX_PHASE_HISTORY,
    AttemptStatus,
    PhaseChange,
    QiskitJobStatus,
)
from qiskit_controller.api.quantities import format_microtime, parse_time
from qiskit_controller.kube.errors import Conflict
from qiskit_controller.kube.objects import Object
from qiskit_controller.reconcilers.qiskitjob.observed import (
    CIRCUIT,
    EXECUTOR,
    SOURCE,
    PodView,
    Run,
    Terminated,
)
from qiskit_controller.telemetry.trace import (
    ANNOTATION,
    Attribute,
    JobTrace,
    Span,
    SpanContext,
    recorded_calls,
    trace_of,
    waited_in_queue,
)

# In which a time that is told in whole seconds may lie.
_SECOND = timedelta(seconds=1)
# Longer than it takes to send spans and to notice that a leader is gone: the end of a job that is
# older than this has been told by whoever wrote it.
_LATE = timedelta(minutes=2)
_REMEMBERED = 4096


def noted(old: QiskitJobStatus, new: QiskitJobStatus, now: datetime) -> QiskitJobStatus:
    """`new`, with the change of phase between the two in its history."""
    if new.phase is None or new.phase == old.phase:
        return new
    change = PhaseChange(phase=new.phase, time=format_microtime(now))
    return attrs.evolve(new, phase_history=(*old.phase_history, change)[-MAX_PHASE_HISTORY:])


def stage_span(trace: JobTrace, attempt: int, stage: str) -> SpanContext:
    """The span that a stage of the pod is, and that its own spans have for a parent."""
    return trace.span("attempt", attempt, "stage", stage)


# --- from status to spans -------------------------------------------------------------------


def spans_of(
    job: Object,
    trace: JobTrace,
    status: QiskitJobStatus,
    runs: Mapping[int, Run],
    gone: datetime | None = None,
) -> list[Span]:
    """All that is over by now.

    Args:
        gone: when the object went; whatever was under way ended then.
    """
    return list(_Telling(job, trace, status, runs, gone).spans())


@attrs.frozen
class _Telling:
    job: Object
    trace: JobTrace
    status: QiskitJobStatus
    runs: Mapping[int, Run]
    gone: datetime | None

    @property
    def created(self) -> datetime:
        return parse_time(self.job["metadata"]["creationTimestamp"])

    def spans(self) -> Iterator[Span]:
        changes: list[tuple[str, datetime]] = [
            (each.phase, parse_time(each.time)) for each in self.status.phase_history
        ]
        if self.gone is not None and self.status.phase not in FINISHED:
            changes.append(("", self.gone))
        if not changes:
            return
        yield from self._phases(changes)
        session = self.status.session
        if session is not None and session.since and session.entered:
            waited = parse_time(session.since), parse_time(session.entered)
            about = {"quantum.session": session.name}
            yield self._span("wait for session", ("session", session.name), *waited, about)
        before = changes[0][1]
        for number, attempt in enumerate(self.status.attempts):
            following = self.status.attempts[number + 1 : number + 2]
            begun = max(before, _time_of(attempt.start_time) or before)
            if number:
                yield self._span("retry back-off", ("back-off", attempt.number), before, begun)
            end = self._end_of(attempt, following, changes)
            if end is None:
                break
            before = max(begun, end)
            entered = [
                moment
                for phase, moment in changes
                if phase != "Pending" and begun < moment < before
            ]
            yield from self._attempt(attempt, begun, before, entered[0] if entered else None)
        phase, moment = changes[-1]
        if phase in FINISHED or self.gone is not None:
            yield self._root(max(self.created, moment))

    def _root(self, end: datetime) -> Span:
        failed = find(self.status.conditions, "Failed")
        error = failed if failed is not None and failed.status == "True" else None
        return Span(
            name="QiskitJob",
            context=self.trace.root,
            parent=self.trace.parent,
            start=self.created,
            end=end,
            attributes=job_attributes(self.job, self.status),
            error=error.message if error else None,
            error_type=error.reason if error else None,
        )

    def _phases(self, changes: Sequence[tuple[str, datetime]]) -> Iterator[Span]:
        first = len(self.status.phase_history) < MAX_PHASE_HISTORY
        for number, (phase, begun) in enumerate(changes[:-1]):
            following, end = changes[number + 1]
            start = self.created if number == 0 and first else begun
            context = self.trace.span("phase", phase, format_microtime(begun))
            error = self._why(following, end)
            yield Span(
                name=f"phase {phase}",
                context=context,
                parent=self.trace.root,
                start=min(start, begun),
                end=end,
                attributes={**self._names(), "quantum.phase": phase},
                error=error[1] if error else None,
                error_type=error[0] if error else None,
            )
            if number == 0 and first:
                waited = ("wait for controller", ("accepted",), min(start, begun), begun)
                yield attrs.evolve(self._span(*waited), parent=context)

    def _why(self, following: str, moment: datetime) -> tuple[str, str] | None:
        """Why a phase was not followed by the next one."""
        if following == "Failed":
            failed = find(self.status.conditions, "Failed")
            return (failed.reason, failed.message) if failed else None
        if following != "Pending":
            return None
        over = [
            each
            for each in self.status.attempts
            if each.reason and (_time_of(each.completion_time) or moment) <= moment
        ]
        return (over[-1].reason or "", over[-1].message or "") if over else None

    def _end_of(
        self,
        attempt: AttemptStatus,
        following: Sequence[AttemptStatus],
        changes: Sequence[tuple[str, datetime]],
    ) -> datetime | None:
        """When it was known to be over; None while it is not."""
        completed = _time_of(attempt.completion_time)
        if completed is None:
            return self.gone
        begun = _time_of(attempt.start_time) or self.created
        later = _time_of(following[0].start_time) if following else None
        for phase, moment in changes[1:]:
            # Of a retry, the phase that it ended in; not the one that it began in.
            over = phase in FINISHED or (phase == "Pending" and moment > begun + _SECOND)
            if over and completed <= moment and (later is None or moment <= later + _SECOND):
                return moment if later is None else min(moment, later)
        return min(completed + _SECOND, later or completed + _SECOND)

    def _attempt(
        self, attempt: AttemptStatus, start: datetime, end: datetime, entered: datetime | None
    ) -> Iterator[Span]:
        """An attempt and what is in it.

        Args:
            entered: when it left the phase Pending: from then on something ran in a pod of it.
        """
        run = self.runs.get(attempt.number)
        own: dict[str, Attribute] = {
            "quantum.attempt": attempt.number,
            "quantum.attempt.counted": attempt.counted,
            "k8s.job.name": attempt.job_name,
        }
        if run is not None and run.pod is not None:
            own["k8s.pod.name"] = run.pod.name
        context = self.trace.span("attempt", attempt.number)
        cancelled = attempt.reason == "Cancelled"
        yield attrs.evolve(
            self._span("attempt", ("attempt", attempt.number), start, end, own),
            error=attempt.message or "" if attempt.reason and not cancelled else None,
            error_type=attempt.reason,
        )
        pod = run.pod if run is not None else None
        if entered is not None and (pod is None or not any(each.started for each in _stages(pod))):
            # The pod is gone, or a Job has made another in its place. What it told from inside is
            # there and needs its parents.
            parts = self._lost(attempt.number, start, entered, end)
        elif pod is not None:
            parts = self._pod(attempt.number, pod, start, end)
        else:
            return
        for span in parts:
            named = {**own, **span.attributes}
            yield attrs.evolve(span, parent=context, attributes=named)

    def _lost(
        self, number: int, start: datetime, entered: datetime, end: datetime
    ) -> Iterator[Span]:
        """The same of a pod that nothing is known of any more."""
        circuit = (self.job.get("spec") or {}).get("circuit") or {}
        fetched = circuit.get("source") in ("url", "git")
        before = (SOURCE, "stage source") if fetched else ("", "pod start")
        for (stage, name), begun, until in (
            (before, start, entered),
            ((EXECUTOR, "stage executor"), entered, end),
        ):
            span = self._span(name, ("attempt", number, name), begun, until)
            more = {"quantum.stage": stage} if stage else {}
            yield attrs.evolve(
                span,
                context=stage_span(self.trace, number, stage) if stage else span.context,
                attributes={**span.attributes, **more},
            )

    def _pod(self, number: int, pod: PodView, start: datetime, end: datetime) -> Iterator[Span]:
        """What an attempt's time went into, from its beginning to its end."""

        def part(name: str, until: datetime, **more: Attribute) -> Span:
            about = ("attempt", number, name, more.get("quantum.stage", ""))
            return self._span(name, about, reached, until, {**self._names(), **more})

        reached = start
        if pod.scheduled is not None:
            until = _within(pod.scheduled, reached, end)
            yield part("pod scheduling", until)
            reached = until
        stages = [each for each in _stages(pod) if each.started is not None]
        for each in stages:
            until = _within(each.began or end, reached, end)
            name = "pod start" if each is stages[0] else "container start"
            yield part(name, until, **{"quantum.stage": each.name})
            reached = until
            until = _within(each.over(last=each is stages[-1]) or end, reached, end)
            span = part(f"stage {each.name}", until, **each.attributes)
            error = each.error
            yield attrs.evolve(
                span,
                context=stage_span(self.trace, number, each.name),
                error=error[1] if error else None,
                error_type=error[0] if error else None,
            )
            reached = until
        yield part("outcome" if stages else "pod start", end)

    def _span(
        self,
        name: str,
        about: tuple[object, ...],
        start: datetime,
        end: datetime,
        attributes: Mapping[str, Attribute] | None = None,
    ) -> Span:
        return Span(
            name=name,
            context=self.trace.span(*about),
            parent=self.trace.root,
            start=start,
            end=max(start, end),
            attributes={**self._names(), **(attributes or {})},
        )

    def _names(self) -> dict[str, Attribute]:
        metadata = self.job["metadata"]
        return {
            "k8s.namespace.name": metadata["namespace"],
            "quantum.job.name": metadata["name"],
            "quantum.job.uid": metadata["uid"],
        }


@attrs.frozen
class _Stage:
    """One container of the pod. `began` and `ended` are its own word, where it has one."""

    name: str
    started: datetime | None
    terminated: Terminated | None
    begun: str | None = None
    ended: str | None = None
    reported: tuple[str, str] | None = None

    @property
    def began(self) -> datetime | None:
        return _time_of(self.begun) or self.started

    def over(self, *, last: bool) -> datetime | None:
        if (own := _time_of(self.ended)) is not None:
            return own
        finished = self.terminated.finished if self.terminated else None
        # Somewhere in that second; what comes next, if anything, began after it.
        return finished + _SECOND if finished is not None and last else finished

    @property
    def error(self) -> tuple[str, str] | None:
        if self.reported is not None:
            return self.reported
        ended = self.terminated
        if ended is None or ended.exit_code == 0:
            return None
        return ended.reason or "Error", f"exit code {ended.exit_code}"

    @property
    def attributes(self) -> dict[str, Attribute]:
        found: dict[str, Attribute] = {
            "quantum.stage": self.name,
            "k8s.container.name": self.name,
        }
        if self.terminated is not None:
            found["process.exit.code"] = self.terminated.exit_code
        return found


def _stages(pod: PodView) -> Iterator[_Stage]:
    told, report = pod.source_report, pod.report
    yield _Stage(
        SOURCE,
        pod.source_started,
        pod.source_ended,
        told.begun if told else None,
        told.ended if told else None,
        (told.reason, told.message) if told and told.reason else None,
    )
    yield _Stage(CIRCUIT, pod.circuit_started, pod.circuit_ended)
    yield _Stage(
        EXECUTOR,
        pod.executor_started,
        pod.executor_ended,
        report.begun if report else None,
        report.ended if report else None,
        (report.reason, report.message) if report and report.reason else None,
    )


def job_attributes(job: Object, status: QiskitJobStatus) -> dict[str, Attribute]:
    """What is worth searching traces for; see docs/telemetry.md."""
    metadata, spec = job["metadata"], job.get("spec") or {}
    failed = find(status.conditions, "Failed")
    circuit, execution = status.circuit_metrics, spec.get("execution") or {}
    wanted: dict[str, Any] = {
        "k8s.namespace.name": metadata["namespace"],
        "quantum.job.name": metadata["name"],
        "quantum.job.uid": metadata["uid"],
        "quantum.backend.type": (spec.get("backend") or {}).get("type"),
        "quantum.backend.name": status.backend,
        "quantum.phase": status.phase,
        "quantum.reason": failed.reason if failed and failed.status == "True" else None,
        "quantum.priority": execution.get("priority"),
        "quantum.shots": execution.get("shots"),
        "quantum.attempts": len(status.attempts),
        "quantum.cost": status.cost,
        "quantum.circuit.qubits": circuit.qubits if circuit else None,
        "quantum.circuit.depth": circuit.depth if circuit else None,
        "quantum.circuit.operations": circuit.gates if circuit else None,
        "quantum.output.type": (spec.get("output") or {}).get("type"),
    }
    return {
        name: value for name, value in wanted.items() if isinstance(value, str | int | float | bool)
    }


def _time_of(text: str | None) -> datetime | None:
    try:
        return parse_time(text) if text else None
    except ValueError:  # a stage's word for it
        return None


def _within(moment: datetime, least: datetime, most: datetime) -> datetime:
    return max(least, min(moment, most))


# --- telling --------------------------------------------------------------------------------


class Sender(Protocol):
    """Where spans go."""

    def send(self, spans: Sequence[Span]) -> None:
        """Take them; it neither blocks nor raises."""

    def sampled(self, trace_id: str) -> bool:
        """Whether a new trace is sent."""


@attrs.define
class JobTracer:
    """Tells of QiskitJobs what this process has not told yet."""

    sender: Sender
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    # The spans sent, by UID; None for a job that has been told to its end.
    _told: OrderedDict[str, set[str] | None] = attrs.field(factory=OrderedDict)

    def trace(self, metadata: Mapping[str, Any]) -> JobTrace:
        """The job's trace, with the sampler's answer where it is new."""
        trace = trace_of(metadata)
        if trace.parent is None and ANNOTATION not in (metadata.get("annotations") or {}):
            sampled = self.sender.sampled(trace.trace_id)
            trace = attrs.evolve(trace, root=attrs.evolve(trace.root, sampled=sampled))
        return trace

    @contextmanager
    def reconcile(self, job: Object) -> Iterator[None]:
        """Around a reconcile: tells of it, and of its writes, if it wrote something."""
        start, waited = self.clock(), waited_in_queue()
        error: BaseException | None = None
        with recorded_calls() as calls:
            try:
                yield
            except BaseException as raised:
                error = raised
                raise
            finally:
                if calls:
                    # The object may have got its annotation in between; the trace is the same.
                    parent = self.trace(job["metadata"]).root
                    end = self.clock()
                    context = parent.sibling(secrets.token_hex(8))
                    wrong = error is not None and not isinstance(error, Conflict)
                    spans = [
                        Span(
                            name="reconcile",
                            context=context,
                            parent=parent,
                            start=start,
                            end=end,
                            attributes={
                                "k8s.namespace.name": job["metadata"]["namespace"],
                                "quantum.job.name": job["metadata"]["name"],
                                "quantum.job.uid": job["metadata"]["uid"],
                                "quantum.reconcile.conflict": isinstance(error, Conflict),
                            },
                            error=str(error) if wrong else None,
                            error_type=type(error).__name__ if wrong else None,
                        )
                    ]
                    if waited:
                        spans.append(
                            Span(
                                name="work queue",
                                context=parent.sibling(secrets.token_hex(8)),
                                parent=parent,
                                start=start - timedelta(seconds=waited),
                                end=start,
                            )
                        )
                    spans += [
                        Span(
                            name=f"{call.verb} {call.resource}",
                            context=parent.sibling(secrets.token_hex(8)),
                            parent=context,
                            start=call.start,
                            end=call.end,
                            attributes={"http.response.status_code": call.status},
                            # 404 and 409 are answers like others to who repeats what it did.
                            error=f"HTTP status {call.status}" if call.failed else None,
                            error_type=str(call.status) if call.failed else None,
                        )
                        for call in calls
                    ]
                    self.sender.send(spans)

    def written(
        self, job: Object, old: QiskitJobStatus, new: QiskitJobStatus, runs: Mapping[int, Run]
    ) -> None:
        """The status was looked at, and written if it is another than it was."""
        uid = job["metadata"]["uid"]
        over = new.phase in FINISHED
        if new == old and not (over and self._may_be_untold(uid, new)):
            return
        self._tell(job, new, runs, over=over)

    def gone(self, job: Object, status: QiskitJobStatus, runs: Mapping[int, Run]) -> None:
        """The object was let go."""
        if status.phase not in FINISHED:
            self._tell(job, status, runs, over=True, gone=self.clock())
        self._told.pop(job["metadata"]["uid"], None)

    def _may_be_untold(self, uid: str, status: QiskitJobStatus) -> bool:
        """Whether the leader that wrote the end may have died before it was sent."""
        ended = _time_of(status.completion_time)
        return uid not in self._told and ended is not None and self.clock() - ended < _LATE

    def _tell(
        self,
        job: Object,
        status: QiskitJobStatus,
        runs: Mapping[int, Run],
        *,
        over: bool,
        gone: datetime | None = None,
    ) -> None:
        uid = job["metadata"]["uid"]
        told = self._told.get(uid)
        if told is None and uid in self._told:
            return
        told = told or set()
        spans = [
            each
            for each in spans_of(job, self.trace(job["metadata"]), status, runs, gone)
            if each.context.span_id not in told
        ]
        self.sender.send(spans)
        told.update(each.context.span_id for each in spans)
        self._told[uid] = None if over else told
        while len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
