"""The loop around a provider: one ticket is one job, whatever happens in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from qiskit import QuantumCircuit

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.run import Plan, Reason, Submission, submission_key
from qiskit_controller.drivers import BackendDown, RunFailed, RunResult
from qiskit_controller.drivers.remote import Device, JobState, RemoteJob, Ticket, Unavailable
from qiskit_controller.runner.cluster import Cluster
from qiskit_controller.runner.remote import Pace, Remote, cancel

from .support import BELL, RECORD, UID, ApiServer, Pod, bell

FAST = Pace(
    before=0.6,
    cancelling=0.6,
    ending=0.3,
    submitting=0.3,
    first=0.01,
    longest=0.05,
    queued=(0.01, 0.02),
    running=(0.01, 0.02),
    telling=0.0,
    cluster=1.0,
)
# States that a job goes through, one at each look.
STATES = (JobState.QUEUED, JobState.QUEUED, JobState.RUNNING, JobState.DONE)


class Killed(BaseException):
    """The pod ended here."""


@attrs.define
class Job:
    """A job in the provider's books."""

    id: str
    ticket: str
    states: list[JobState]
    looks: int = 0
    transient: bool = False
    seen_by_find: bool = True

    @property
    def now(self) -> RemoteJob:
        state = self.states[min(self.looks, len(self.states) - 1)]
        return RemoteJob(
            id=self.id,
            state=state,
            backend="device",
            detail="as the provider says",
            queue_position=3 - self.looks if state is JobState.QUEUED else None,
            transient=self.transient,
        )


Hook = Callable[[str], None]


@attrs.define
class Books:
    """A provider that is in this process: its ledger, and what is to go wrong.

    Attributes:
        before, after: called with the name of each call, before and after its effect.
        lag: how many times find misses a job that is there.
    """

    jobs: list[Job] = attrs.field(factory=list)
    states: Sequence[JobState] = STATES
    before: Hook = attrs.field(default=lambda _: None)
    after: Hook = attrs.field(default=lambda _: None)
    lag: int = 0
    settling: timedelta = timedelta(seconds=0.2)
    calls: list[str] = attrs.field(factory=list)

    # The driver is its own provider.
    def connect(self, plan: Plan, credentials: Path) -> Books:
        return self._call("connect", lambda: self)

    def devices(self, name: str | None = None) -> Sequence[Device]:
        made = (
            Device(name="small", simulator=False, operational=True, qubits=1, pending_jobs=0),
            Device(name="busy", simulator=False, operational=True, qubits=5, pending_jobs=9),
            Device(name="idle", simulator=False, operational=True, qubits=5, pending_jobs=1),
            Device(name="off", simulator=False, operational=False, qubits=5, pending_jobs=0),
        )
        return [each for each in made if name in (None, each.name)]

    def prepare(self, circuit: QuantumCircuit, backend: str, plan: Plan) -> QuantumCircuit:
        return self._call("prepare", lambda: circuit)

    def find(self, ticket: Ticket) -> Sequence[RemoteJob]:
        def look() -> Sequence[RemoteJob]:
            if self.lag > 0:
                self.lag -= 1
                return []
            return [each.now for each in self.jobs if each.ticket == str(ticket)]

        return self._call("find", look)

    def submit(
        self, circuit: QuantumCircuit, backend: str, plan: Plan, ticket: Ticket
    ) -> RemoteJob:
        def make() -> RemoteJob:
            self.jobs.append(Job(f"job-{len(self.jobs) + 1}", str(ticket), list(self.states)))
            return self.jobs[-1].now

        return self._call("submit", make)

    def look(self, job_id: str) -> RemoteJob:
        def see() -> RemoteJob:
            job = self.job(job_id)
            job.looks += 1
            return job.now

        return self._call("look", see)

    def result(self, job_id: str, circuit: QuantumCircuit, plan: Plan) -> RunResult:
        return self._call(
            "result",
            lambda: RunResult(
                counts={"00": 1024},
                backend=job_id,
                started=datetime.now(UTC),
                execution_time=1.0,
                circuit=circuit,
            ),
        )

    def cancel(self, job_id: str) -> None:
        def end() -> None:
            job = self.job(job_id)
            if not job.now.state.over:
                job.states, job.looks = [JobState.CANCELLED], 0

        self._call("cancel", end)

    def job(self, job_id: str) -> Job:
        return next(each for each in self.jobs if each.id == job_id)

    def _call(self, name: str, act: Callable[[], Any]) -> Any:
        self.calls.append(name)
        self.before(name)
        done = act()
        self.after(name)
        return done


@attrs.define
class Told:
    """What the loop told, and its record."""

    server: ApiServer
    executing: list[str] = attrs.field(factory=list)
    waiting: list[str] = attrs.field(factory=list)

    def submission(self, ticket: int = 1) -> Submission | None:
        text = self.server.data(RECORD).get(submission_key(ticket))
        return from_wire(json.loads(text), Submission) if text else None

    def write(self, submission: Submission) -> None:
        data = self.server.objects[RECORD].setdefault("data", {})
        data[submission_key(submission.ticket)] = json.dumps(to_wire(submission))


Loop = Callable[..., Remote]


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def told(server: ApiServer) -> Told:
    return Told(server)


@pytest.fixture
def loop(pod: Pod, server: ApiServer, books: Books, told: Told) -> Iterator[Loop]:
    plan = pod.plan(BELL, spec={"backend": {"name": "device"}})
    (pod.paths.token / "token").write_text(server.token)
    (pod.paths.token / "ca.crt").touch()

    def make(attempt: int = 1, number: int = 1, **changes: Any) -> Remote:
        given: dict[str, Any] = {
            "driver": books,
            "plan": plan,
            "cluster": Cluster(server.url, pod.paths.token, "default"),
            "credentials": pod.paths.credentials,
            "attempt": attempt,
            "number": number,
            "job_id": None,
            "check": lambda: None,
            "executing": told.executing.append,
            "waiting": told.waiting.append,
            "pace": FAST,
        }
        return Remote(**given | changes)

    return make


def once(error: BaseException, call: str) -> Hook:
    """Raises the first time that it is told of `call`."""
    left = [error]

    def hook(name: str) -> None:
        if name == call and left:
            raise left.pop()

    return hook


def test_all_goes_well(loop: Loop, books: Books, told: Told) -> None:
    result = loop().run(bell())
    assert result.backend == "job-1"
    assert [each.ticket for each in books.jobs] == [f"{UID}-1"]
    assert told.executing == ["device"]
    assert told.waiting == []
    known = told.submission()
    assert known is not None
    assert (known.id, known.state, known.over) == ("job-1", "Done", True)
    assert known.executing is not None


def test_the_queue_is_told(loop: Loop, told: Told, server: ApiServer) -> None:
    loop().run(bell())
    seen = [
        from_wire(json.loads(text), Submission)
        for each in server.patches(RECORD)
        if (text := each.body["data"].get(submission_key(1)))
    ]
    assert seen[0].id is None, "the intent comes first"
    assert [(each.state, each.queue_position) for each in seen[1:]] == [
        ("Queued", None),
        ("Queued", 3),
        ("Queued", 2),
        ("Running", None),
        ("Done", None),
    ]
    assert all(each.body["metadata"]["resourceVersion"] for each in server.patches(RECORD))


# Where the pod is killed: before or after the effect of which call.
KILLS = [
    (when, call)
    for call in ("connect", "prepare", "find", "submit", "look", "result")
    for when in ("before", "after")
]


@pytest.mark.parametrize(("when", "call"), KILLS)
@pytest.mark.parametrize("lag", [0, 2])
def test_a_pod_is_killed_and_the_next_one_goes_on(
    loop: Loop, books: Books, told: Told, when: str, call: str, lag: int
) -> None:
    setattr(books, when, once(Killed(), call))
    with pytest.raises(Killed):
        loop().run(bell())
    books.lag = lag
    assert loop(attempt=2).run(bell()).backend == "job-1"
    assert [each.ticket for each in books.jobs] == [f"{UID}-1"]


def test_the_api_server_is_killed_between_submitting_and_remembering(
    loop: Loop, books: Books, told: Told, server: ApiServer
) -> None:
    def fails_after_submitting(request: Any, _before: int) -> Any:
        return (503, {"message": "down"}) if "submit" in books.calls else None

    server.interfere = fails_after_submitting
    # The work goes on, as the provider knows the ticket.
    assert loop().run(bell()).backend == "job-1"
    server.interfere = lambda _request, _before: None
    intent = told.submission()
    assert intent is not None
    assert intent.id is None
    assert loop(attempt=2).run(bell()).backend == "job-1"
    assert len(books.jobs) == 1


def test_without_a_record_nothing_is_submitted(loop: Loop, books: Books, server: ApiServer) -> None:
    del server.objects[RECORD]
    with pytest.raises(RunFailed) as failed:
        loop().run(bell())
    assert failed.value.reason is Reason.EXECUTOR_FAILED
    assert not books.jobs


def test_an_answer_to_the_submission_gets_lost(loop: Loop, books: Books, told: Told) -> None:
    books.after = once(Unavailable("connection reset"), "submit")
    books.lag = 2
    assert loop().run(bell()).backend == "job-1"
    assert len(books.jobs) == 1
    assert any("connection reset" in each for each in told.waiting)


def test_a_submission_gets_lost_on_its_way(loop: Loop, books: Books) -> None:
    books.before = once(Unavailable("connection reset"), "submit")
    assert loop().run(bell()).backend == "job-1"
    assert books.calls.count("submit") == 2
    # Not before it was certain.
    between = books.calls[books.calls.index("submit") : len(books.calls)]
    assert between.count("find") > 3


def test_where_a_ticket_is_unique_at_the_provider_it_is_presented_again(
    loop: Loop, books: Books
) -> None:
    books.settling = timedelta(0)
    books.before = once(Unavailable("connection reset"), "submit")
    assert loop().run(bell()).backend == "job-1"
    assert books.calls.count("find") == 2


def test_an_older_pod_that_still_runs_submits_nothing(loop: Loop, books: Books, told: Told) -> None:
    """The node of attempt 1 is cut off while it prepares; attempt 2 does everything."""

    def meanwhile(call: str) -> None:
        if call == "prepare":
            books.before = lambda _: None
            loop(attempt=2).run(bell())

    books.before = meanwhile
    with pytest.raises(RunFailed, match="attempt 2 has taken over"):
        loop(attempt=1).run(bell())
    assert len(books.jobs) == 1
    known = told.submission()
    assert known is not None
    assert known.attempt == 2


def test_a_pod_that_was_frozen_takes_back_what_it_submits_too_late(
    loop: Loop, books: Books, told: Told
) -> None:
    """Between its intent and its submission, for longer than anybody waits for that."""

    def meanwhile(call: str) -> None:
        if call == "submit":
            books.before = lambda _: None
            loop(attempt=2).run(bell())

    books.before = meanwhile
    with pytest.raises(RunFailed, match="attempt 2 has taken over"):
        loop(attempt=1).run(bell())
    assert [each.now.state for each in books.jobs] == [JobState.DONE, JobState.CANCELLED]
    known = told.submission()
    assert known is not None
    assert known.id == "job-1"


def test_a_pod_that_was_frozen_until_its_job_has_ended_takes_back_what_it_submits(
    loop: Loop, books: Books, server: ApiServer
) -> None:
    def meanwhile(call: str) -> None:
        if call == "submit":
            del server.objects[RECORD]

    books.before = meanwhile
    with pytest.raises(RunFailed):
        loop().run(bell())
    assert [each.now.state for each in books.jobs] == [JobState.CANCELLED]


def test_a_later_attempt_that_has_found_the_job_keeps_it(loop: Loop, books: Books) -> None:
    def meanwhile(call: str) -> None:
        if call == "submit":
            books.after = lambda _: None
            loop(attempt=2).run(bell())

    books.after = meanwhile
    with pytest.raises(RunFailed, match="attempt 2 has taken over"):
        loop(attempt=1).run(bell())
    assert [each.now.state for each in books.jobs] == [JobState.DONE]


def test_of_two_jobs_with_one_ticket_the_younger_is_cancelled(loop: Loop, books: Books) -> None:
    books.jobs = [Job(f"job-{n}", f"{UID}-1", list(STATES)) for n in (1, 2)]
    assert loop(attempt=2).run(bell()).backend == "job-1"
    assert books.job("job-2").now.state is JobState.CANCELLED
    assert "submit" not in books.calls


def test_what_the_controller_knows_suffices(loop: Loop, books: Books) -> None:
    """The record was deleted by hand, and made anew."""
    books.jobs = [Job("job-1", "of somebody else", list(STATES))]
    assert loop(attempt=2, job_id="job-1").run(bell()).backend == "job-1"
    assert "submit" not in books.calls


def test_a_job_that_was_submitted_is_not_checked_again(
    loop: Loop, books: Books, told: Told
) -> None:
    def fails() -> None:
        raise RunFailed(Reason.OUTPUT_DENIED, "no")

    with pytest.raises(RunFailed):
        loop(check=fails).run(bell())
    assert "submit" not in books.calls
    books.jobs = [Job("job-1", f"{UID}-1", list(STATES))]
    told.write(Submission(ticket=1, attempt=1, id="job-1"))
    assert loop(attempt=2, check=fails).run(bell()).backend == "job-1"


def named(loop: Loop, name: str, **more: Any) -> Remote:
    """A run on that device, which the controller has chosen unless `more` says otherwise."""
    plan = loop().plan
    backend = attrs.evolve(plan.spec.backend, name=name)
    plan = attrs.evolve(plan, spec=attrs.evolve(plan.spec, backend=backend))
    return loop(plan=plan, **{"another": True, **more})


@pytest.mark.parametrize(
    ("name", "why"), [("off", "takes no jobs"), ("gone", "is not there any more")]
)
def test_a_chosen_device_that_went_down_is_given_back(
    loop: Loop, books: Books, told: Told, name: str, why: str
) -> None:
    with pytest.raises(BackendDown) as down:
        named(loop, name).run(bell())
    assert down.value.message == why
    assert books.jobs == []
    assert told.submission() is None
    assert named(loop, "idle").run(bell()).backend == "job-1"


def test_a_device_that_something_may_be_submitted_to_is_kept(
    loop: Loop, books: Books, told: Told
) -> None:
    told.write(Submission(ticket=1, attempt=1))
    assert named(loop, "off").run(bell()).backend == "job-1"
    assert len(books.jobs) == 1


def test_the_device_that_the_job_names_is_waited_for(loop: Loop, books: Books) -> None:
    assert named(loop, "off", another=False).run(bell()).backend == "job-1"


def test_the_shortest_queue_that_fits_is_taken(loop: Loop, books: Books) -> None:
    remote = loop()
    plan = remote.plan
    backend = attrs.evolve(plan.spec.backend, name=None)
    remote.plan = attrs.evolve(plan, spec=attrs.evolve(plan.spec, backend=backend))
    asked: list[str] = []
    prepare = books.prepare

    def note(circuit: QuantumCircuit, backend: str, plan: Plan) -> QuantumCircuit:
        asked.append(backend)
        return prepare(circuit, backend, plan)

    object.__setattr__(remote, "driver", _With(books, prepare=note))
    remote.run(bell())
    assert asked == ["idle"]


class _With:
    """A provider with some of its calls replaced."""

    def __init__(self, books: Books, **calls: Any) -> None:
        self._books, self._calls = books, calls

    def connect(self, plan: Plan, credentials: Path) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        return self._calls.get(name) or getattr(self._books, name)


# --- what does not go well --------------------------------------------------------------------


@pytest.mark.parametrize("call", ["connect", "prepare", "find"])
def test_before_submitting_patience_is_bounded(
    loop: Loop, books: Books, told: Told, call: str
) -> None:
    def down(name: str) -> None:
        if name == call:
            raise Unavailable("no answer")

    books.before = down
    with pytest.raises(RunFailed) as failed:
        loop().run(bell())
    assert failed.value.reason is Reason.BACKEND_UNAVAILABLE
    assert "nothing was submitted" in failed.value.message
    assert told.waiting[-1] == "no answer"
    assert told.submission() is None


def test_a_provider_that_turns_submissions_away_is_asked_again_for_a_while(
    loop: Loop, books: Books, told: Told
) -> None:
    def busy(name: str) -> None:
        if name == "submit":
            raise Unavailable("too many requests", nothing_done=True)

    books.before = busy
    with pytest.raises(RunFailed) as failed:
        loop().run(bell())
    assert failed.value.reason is Reason.BACKEND_UNAVAILABLE
    assert books.calls.count("submit") > 2
    assert told.submission() is None, "nothing is left to be cancelled"


@pytest.mark.parametrize("settling", [0.0, 0.1])
def test_submissions_that_are_never_answered_come_to_an_end(
    loop: Loop, books: Books, told: Told, settling: float
) -> None:
    def down(name: str) -> None:
        if name == "submit":
            raise Unavailable("internal error")

    books.before, books.settling = down, timedelta(seconds=settling)
    with pytest.raises(RunFailed) as failed:
        loop().run(bell())
    assert failed.value.reason is Reason.BACKEND_UNAVAILABLE
    assert told.submission() is None


def test_a_refusal_leaves_nothing_to_be_cancelled(loop: Loop, books: Books, told: Told) -> None:
    books.before = once(RunFailed(Reason.BACKEND_REFUSED, "too deep"), "submit")
    with pytest.raises(RunFailed, match="too deep"):
        loop().run(bell())
    assert told.submission() is None


@pytest.mark.parametrize("call", ["look", "result"])
def test_once_submitted_no_outage_is_too_long(
    loop: Loop, books: Books, told: Told, call: str
) -> None:
    left = [60]  # more than `before` has room for

    def down(name: str) -> None:
        if name == call and left[0]:
            left[0] -= 1
            raise Unavailable("no answer")

    books.before = down
    assert loop().run(bell()).backend == "job-1"
    assert told.waiting == ["no answer", ""]


def test_what_the_provider_asks_for_is_waited(loop: Loop, books: Books) -> None:
    begun = datetime.now(UTC)
    books.before = once(Unavailable("busy", timedelta(seconds=0.4)), "look")
    loop().run(bell())
    assert datetime.now(UTC) - begun >= timedelta(seconds=0.4)


@pytest.mark.parametrize(
    ("state", "transient", "reason"),
    [
        (JobState.CANCELLED, False, Reason.PROVIDER_JOB_CANCELLED),
        (JobState.FAILED, True, Reason.PROVIDER_JOB_FAILED),
        (JobState.FAILED, False, Reason.BACKEND_REFUSED),
    ],
)
def test_a_job_ends_without_a_result(
    loop: Loop, books: Books, told: Told, state: JobState, transient: bool, reason: Reason
) -> None:
    books.jobs = [Job("job-1", f"{UID}-1", [JobState.QUEUED, state], transient=transient)]
    with pytest.raises(RunFailed) as failed:
        loop().run(bell())
    assert failed.value.reason is reason
    assert "job-1 on device" in failed.value.message
    assert "as the provider says" in failed.value.message
    known = told.submission()
    assert known is not None
    assert known.over
    assert told.executing == []


def test_after_a_failure_the_next_ticket_is_another_job(
    loop: Loop, books: Books, told: Told
) -> None:
    books.states = [JobState.QUEUED, JobState.FAILED]
    for each in (1, 2):
        with pytest.raises(RunFailed):
            loop(attempt=each).run(bell())
    assert len(books.jobs) == 1, "the same ticket is the same job"
    books.states = STATES
    assert loop(attempt=3, number=2).run(bell()).backend == "job-2"
    assert [each.ticket for each in books.jobs] == [f"{UID}-1", f"{UID}-2"]


def test_a_result_is_not_lost_because_its_circuit_cannot_be_shown(
    loop: Loop, books: Books, told: Told
) -> None:
    books.jobs = [Job("job-1", f"{UID}-1", list(STATES))]
    told.write(Submission(ticket=1, attempt=1, id="job-1"))
    books.before = once(RunFailed(Reason.BACKEND_REFUSED, "the device was retired"), "prepare")
    assert loop(attempt=2).run(bell()).counts == {"00": 1024}


# --- cancelling -------------------------------------------------------------------------------


def cancelled(books: Books, pod: Pod, job_id: str | None) -> Sequence[RemoteJob]:
    plan = pod.plan(BELL, spec={"backend": {"name": "device"}})
    return cancel(books, plan, pod.paths.credentials, 1, job_id, FAST)


def test_a_job_is_cancelled_by_its_id(books: Books, pod: Pod) -> None:
    books.jobs = [Job("job-1", "of nobody", [JobState.QUEUED])]
    assert [each.state for each in cancelled(books, pod, "job-1")] == [JobState.CANCELLED]


def test_a_job_is_cancelled_by_its_ticket_although_the_listing_lags(books: Books, pod: Pod) -> None:
    books.jobs = [Job("job-1", f"{UID}-1", [JobState.QUEUED])]
    books.lag = 3
    assert [each.state for each in cancelled(books, pod, None)] == [JobState.CANCELLED]


def test_there_may_be_nothing_to_cancel(books: Books, pod: Pod) -> None:
    assert cancelled(books, pod, None) == ()


def test_what_is_over_is_left(books: Books, pod: Pod) -> None:
    books.jobs = [Job("job-1", f"{UID}-1", [JobState.DONE])]
    assert [each.state for each in cancelled(books, pod, "job-1")] == [JobState.DONE]
    assert "cancel" not in books.calls


@pytest.mark.parametrize("call", ["connect", "look", "find", "cancel"])
def test_cancelling_is_tried_for_a_while(books: Books, pod: Pod, call: str) -> None:
    books.jobs = [Job("job-1", f"{UID}-1", [JobState.QUEUED])]

    def down(name: str) -> None:
        if name == call:
            raise Unavailable("no answer")

    books.before = down
    with pytest.raises(RunFailed, match="no answer"):
        cancelled(books, pod, "job-1")
