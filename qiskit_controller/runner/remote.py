"""Run a circuit at a provider, exactly once, whatever becomes of the pod that asked for it.

A provider's job costs money and outlives this pod. So it is tied to a ticket (the QiskitJob's
UID and a number) in two places: at the provider, which keeps the ticket with its job, and in the
record ConfigMap, which every later pod of the QiskitJob reads. The order is::

    read the record --> an id is there ------------------------------> wait for that job
          |
          +--> an intent is there --> look for its job for a while --> found: wait for it
          |                                   |
          +--> nothing is there               +--> certainly none
                    |                         |
                    +-----> write an intent, submit, write the id ---> wait for that job

An intent is written with the version of the record that was read. Of two pods of the same
QiskitJob (one on a node that the cluster lost sight of) only one can write it, and the other
finds that a later attempt has taken over. The one that wrote it submits at once or writes it
again, so after a while an intent without a job has none and never will.

While a job is at the provider, no outage ends the wait; before, patience is bounded and the
attempt fails with BackendUnavailable, which costs nothing.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs

from qiskit_controller.api.codec import DecodeError, from_wire, to_wire
from qiskit_controller.api.quantities import format_duration, format_time
from qiskit_controller.api.run import Plan, Reason, Submission, submission_key
from qiskit_controller.drivers import BackendDown, RunFailed, RunResult
from qiskit_controller.drivers.remote import (
    JobState,
    Provider,
    RemoteDriver,
    RemoteJob,
    Ticket,
    Unavailable,
)
from qiskit_controller.runner import story
from qiskit_controller.runner.cluster import ApiError, Cluster, Conflict, NotFound
from qiskit_controller.runner.hostile import MESSAGE_CHARACTERS, clean
from qiskit_controller.runner.tracing import span

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Pace:
    """How long to wait for what, in seconds.

    Attributes:
        before: how long a provider may not answer before anything is submitted.
        cancelling: the same for one try at cancelling.
        ending: how long a job that is being cancelled is watched until it has ended.
        submitting: how soon after its intent a submission has to begin.
        first, longest: between two questions of the same kind after a failure.
        queued: between two looks at a job in the queue, at first and at most.
        running: the same while it runs.
        telling: between two reports of what only the queue has changed.
        cluster: how long the API server may not answer.
    """

    before: float = 300.0
    cancelling: float = 120.0
    ending: float = 60.0
    submitting: float = 15.0
    first: float = 1.0
    longest: float = 60.0
    queued: tuple[float, float] = (2.0, 90.0)
    running: tuple[float, float] = (1.0, 20.0)
    telling: float = 15.0
    cluster: float = 600.0


_GROWTH = 1.5
_LONGEST_ASKED = 900.0


class _Replaced(Exception):
    """A later attempt of the same QiskitJob has taken over."""

    def __init__(self, attempt: int) -> None:
        super().__init__(f"attempt {attempt} has taken over")


@attrs.define
class _Record:
    """The submission of one ticket in the record ConfigMap.

    Every write names the version that was read, so that two pods cannot both believe that they
    were first.
    """

    cluster: Cluster
    plan: Plan
    ticket: int
    attempt: int
    seconds: float
    _version: str = ""
    known: Submission | None = None

    def read(self) -> Submission | None:
        """What is there.

        Raises:
            _Replaced: a later attempt has written.
            ApiError: it cannot be read.
        """
        found = self.cluster.get_config_map(self.plan.record, seconds=self.seconds)
        self._version = str(found.get("metadata", {}).get("resourceVersion", ""))
        submissions = _submissions(found.get("data") or {})
        latest = max((each.attempt for each in submissions), default=0)
        if latest > self.attempt:
            raise _Replaced(latest)
        self.known = next((each for each in submissions if each.ticket == self.ticket), None)
        return self.known

    def write(self, submission: Submission | None) -> None:
        """Put it there, or with None take it away.

        Raises:
            _Replaced, ApiError: as in :meth:`read`.
        """
        value = None if submission is None else json.dumps(to_wire(submission))
        while True:
            patch = {
                "metadata": {"resourceVersion": self._version},
                "data": {submission_key(self.ticket): value},
            }
            try:
                written = self.cluster.patch_config_map(
                    self.plan.record, patch, seconds=self.seconds
                )
            except Conflict:
                # Our own progress, or somebody else: read() tells.
                self.read()
                continue
            self._version = str(written.get("metadata", {}).get("resourceVersion", ""))
            self.known = submission
            return

    def id_now(self) -> str | None:
        """The provider's job of this ticket, whichever attempt has written it.

        Raises:
            ApiError: it cannot be read.
        """
        found = self.cluster.get_config_map(self.plan.record, seconds=self.seconds)
        submissions = _submissions(found.get("data") or {})
        return next((each.id for each in submissions if each.ticket == self.ticket), None)


def _submissions(data: object) -> list[Submission]:
    found = []
    for key, text in data.items() if isinstance(data, dict) else ():
        if str(key).startswith(submission_key(0)[:-1]):
            try:
                found.append(from_wire(json.loads(text), Submission))
            except (ValueError, DecodeError, RecursionError) as error:
                raise RunFailed(
                    Reason.EXECUTOR_FAILED,
                    f"what the record says under {key} cannot be read: {error}",
                ) from None
    return found


@attrs.define
class Remote:
    """One attempt at having a circuit executed at a provider.

    Attributes:
        attempt: which attempt of the QiskitJob this pod is.
        number: of the ticket.
        job_id: the provider's job of that ticket, if the controller knows it.
        check: to be called before anything is paid; what it raises ends the attempt.
        executing: told once, with the device's name, when executing begins.
        waiting: told, for people, what keeps it from going on; "" when nothing does any more.
        another: whether another device can be chosen, should the plan's take no jobs.
    """

    driver: RemoteDriver
    plan: Plan
    cluster: Cluster
    credentials: Path
    attempt: int
    number: int
    job_id: str | None
    check: Callable[[], None]
    executing: Callable[[str], None]
    waiting: Callable[[str], None]
    pace: Pace = attrs.field(factory=Pace)
    another: bool = False
    _record: _Record = attrs.field(init=False)
    _said: str = attrs.field(init=False, default="")
    _told: float = attrs.field(init=False, default=-1e9)

    def __attrs_post_init__(self) -> None:
        self._record = _Record(
            self.cluster, self.plan, self.number, self.attempt, self.pace.cluster
        )

    @property
    def ticket(self) -> Ticket:
        """Whose job it is, as the provider knows it."""
        return Ticket(self.plan.job.uid, self.number)

    def run(self, circuit: QuantumCircuit) -> RunResult:
        """Find or submit the job, wait for it, and fetch what came of it.

        Raises:
            RunFailed: there is no result, and why.
        """
        try:
            return self._run(circuit)
        except _Replaced as replaced:
            # Nobody listens to this pod any more.
            raise RunFailed(Reason.EXECUTOR_FAILED, str(replaced)) from None
        except ApiError as error:
            raise RunFailed(
                Reason.EXECUTOR_FAILED,
                f"the record cannot be kept, without which nothing is submitted: {error}",
            ) from None

    def _run(self, circuit: QuantumCircuit) -> RunResult:
        known = self._record.read()
        job_id = (known.id if known else None) or self.job_id
        # Before an intent, nothing can be at the provider.
        limit = None if known or job_id else self.pace.before
        with span("connect to provider"):
            provider = self._patiently(
                lambda: self.driver.connect(self.plan, self.credentials), limit
            )
        prepared = None
        if job_id is not None:
            story.say(f"Resuming   job {clean(job_id, 80)}, which an earlier attempt submitted")
            job = self._patiently(lambda: provider.look(job_id))
        else:
            self.check()
            backend = self._device(provider, circuit, limit)
            if self.another and known is None:
                self._check_up(provider, backend, limit)
            with span("transpile", quantum_backend_name=backend):
                prepared = self._patiently(
                    lambda: provider.prepare(circuit, backend, self.plan), limit
                )
            with span("submit", quantum_backend_name=backend):
                job = self._submitted(provider, prepared, backend)
        with span("wait for provider", quantum_provider_job=clean(job.id, 80)):
            job = self._over(provider, job)
        if job.state is not JobState.DONE:
            raise _no_result(job, self.plan.session)
        # Of a job of an earlier pod's, what was submitted is worked out again.
        made = prepared if prepared is not None else self._prepared_again(provider, circuit, job)
        with span("fetch result"):
            return self._patiently(lambda: provider.result(job.id, made, self.plan))

    # --- submitting ---------------------------------------------------------------------

    def _device(self, provider: Provider, circuit: QuantumCircuit, limit: float | None) -> str:
        """The device that is asked for, or else the one with the shortest queue."""
        if self.plan.spec.backend.name is not None:
            return self.plan.spec.backend.name
        devices = self._patiently(provider.devices, limit)
        fit = [
            each
            for each in devices
            if each.operational and (each.qubits or 0) >= circuit.num_qubits
        ]
        if not fit:
            raise RunFailed(
                Reason.BACKEND_UNAVAILABLE,
                f"no device of {circuit.num_qubits} qubits takes jobs now; there are: "
                f"{', '.join(each.name for each in devices) or 'none'}",
            )
        return min(fit, key=lambda each: (each.pending_jobs or 0, each.qubits or 0)).name

    def _check_up(self, provider: Provider, backend: str, limit: float | None) -> None:
        """That a device still takes jobs, while another can be chosen: nothing is submitted.

        Raises:
            BackendDown: it takes none.
        """
        found = self._patiently(lambda: provider.devices(backend), limit)
        if not found:
            raise BackendDown("is not there any more")
        if not found[0].operational:
            detail = clean(found[0].detail, 200)
            raise BackendDown(f"takes no jobs{f' ({detail})' if detail else ''}")

    def _submitted(self, provider: Provider, circuit: QuantumCircuit, backend: str) -> RemoteJob:
        """The ticket's one job: found, or submitted now."""
        begun = time.monotonic()
        wait = self.pace.first
        failed: Unavailable | None = None
        while True:
            open_intent = self._record.known is not None
            found = self._found(provider, open_intent)
            if found is not None:
                self._write_id(found)
                return found
            # There certainly is none, so it is as before the first try.
            if failed is not None and time.monotonic() > begun + self.pace.before:
                self._record.write(None)
                raise _unavailable(failed, time.monotonic() - begun) from None
            try:
                return self._submit(provider, circuit, backend)
            except Unavailable as error:
                failed = error
                pause = _pause(error, wait)
                if error.nothing_done:
                    # The intent is known to have come to nothing.
                    self._record.write(None)
                    if time.monotonic() + pause > begun + self.pace.before:
                        raise _unavailable(error, time.monotonic() - begun) from None
                    self._note(error.message)
                else:
                    self._note(f"{error.message}; finding out whether the job was submitted")
            except RunFailed:
                self._record.write(None)
                raise
            time.sleep(pause)
            wait = min(wait * 2, self.pace.longest)

    def _submit(self, provider: Provider, circuit: QuantumCircuit, backend: str) -> RemoteJob:
        while True:
            begun = time.monotonic()
            self._record.write(Submission(ticket=self.number, attempt=self.attempt))
            # Whoever reads the intent waits for so long until nothing can come of it any more.
            if time.monotonic() - begun < self.pace.submitting:
                break
        job = provider.submit(circuit, backend, self.plan, self.ticket)
        story.say(f"Submitted  job {clean(job.id, 80)} to {clean(job.backend, 80)}")
        try:
            self._write_id(job, submitted=True)
        except (_Replaced, NotFound):
            # Frozen since the intent, for so long that it was given up for lost.
            self._take_back(provider, job)
            raise
        return job

    def _take_back(self, provider: Provider, job: RemoteJob) -> None:
        """Cancel what was submitted too late, unless a later attempt has found and taken it."""
        until = time.monotonic() + provider.settling.total_seconds() + self.pace.submitting
        # While nobody has one, whoever comes next looks for the ticket and finds this.
        taken: str | None = job.id
        while time.monotonic() < until:
            try:
                known = self._record.id_now()
            except NotFound:
                taken = None  # the QiskitJob has ended
                break
            except ApiError:
                known = None
            if known is not None:
                taken = known
                break
            time.sleep(min(self.pace.first, 1.0))
        if taken != job.id:
            story.say(f"Note       job {clean(job.id, 80)} came too late; cancelling it")
            self._patiently(lambda: provider.cancel(job.id), self.pace.cancelling, quiet=True)

    def _found(self, provider: Provider, open_intent: bool) -> RemoteJob | None:
        """The job with this ticket at the provider.

        Args:
            open_intent: somebody may have submitted, or be about to: one look does not suffice.
        """
        settling = provider.settling.total_seconds()
        patient = open_intent and settling > 0
        until = time.monotonic() + settling + self.pace.submitting if patient else 0.0
        if patient:
            self._note(
                "an earlier submission was not acknowledged; looking for its job for "
                f"{format_duration(timedelta(seconds=settling + self.pace.submitting))}"
            )
        limit = None if open_intent else self.pace.before
        wait = self.pace.first
        while True:
            jobs = self._patiently(lambda: provider.find(self.ticket), limit, quiet=patient)
            if jobs:
                return self._one(provider, jobs)
            left = until - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(wait, left))
            wait = min(wait * _GROWTH, 10.0)

    def _one(self, provider: Provider, jobs: Sequence[RemoteJob]) -> RemoteJob:
        """Of several, the oldest counts, and the others are cancelled."""
        first, *others = jobs
        for other in others:
            if not other.state.over:
                story.say(f"Note       job {clean(other.id, 80)} has the same ticket; cancelling")
                self._patiently(lambda job=other: provider.cancel(job.id))  # type: ignore[misc]
        story.say(f"Found      job {clean(first.id, 80)}, which was submitted before")
        return first

    def _prepared_again(
        self, provider: Provider, circuit: QuantumCircuit, job: RemoteJob
    ) -> QuantumCircuit:
        try:
            return self._patiently(lambda: provider.prepare(circuit, job.backend, self.plan))
        except RunFailed as failed:
            # The result is paid for; that its circuit cannot be shown as it ran is no matter.
            story.say(f"Note       the circuit is shown as it was written: {failed.message}")
            return circuit

    # --- waiting ------------------------------------------------------------------------

    def _over(self, provider: Provider, job: RemoteJob) -> RemoteJob:
        """The job when it is over."""
        job_id = job.id
        state: JobState | None = None
        shown: object = None
        wait = 0.0
        while True:
            if job.state is not state:
                state = job.state
                first, longest = (
                    self.pace.running if state is JobState.RUNNING else self.pace.queued
                )
                wait = first
            now_shown = (job.state, job.queue_position)
            if now_shown != shown:
                shown = now_shown
                story.say(_line(job))
            began = job.state in (JobState.RUNNING, JobState.DONE)
            self._tell(job, began)
            if job.state.over:
                return job
            time.sleep(wait * random.uniform(0.9, 1.1))  # noqa: S311  jitter
            wait = min(wait * _GROWTH, longest)
            job = self._patiently(lambda: provider.look(job_id))

    def _tell(self, job: RemoteJob, began: bool) -> None:
        """Tell the controller, and whoever comes after this pod, how the job is."""
        known = self._record.known
        now = Submission(
            ticket=self.number,
            attempt=self.attempt,
            id=job.id,
            backend=job.backend,
            state=job.state.value,
            detail=clean(job.detail, MESSAGE_CHARACTERS),
            queue_position=job.queue_position,
            estimated_start=format_time(job.estimated_start) if job.estimated_start else None,
            executing=known.executing if known else None,
        )
        first = began and now.executing is None
        if first:
            now = attrs.evolve(now, executing=format_time(datetime.now(UTC)))
        same = known is not None and (now.state, now.id) == (known.state, known.id)
        if now == known:
            pass
        elif not same or time.monotonic() - self._told > self.pace.telling:
            self._write(now)
            self._told = time.monotonic()
        if began and self.executing is not None:
            tell, self.executing = self.executing, _nobody
            tell(job.backend)

    def _write_id(self, job: RemoteJob, *, submitted: bool = False) -> None:
        """Remember it at once: until then, only the provider knows whose it is.

        Raises:
            NotFound: with `submitted`: there is no record any more.
        """
        known = Submission(
            ticket=self.number,
            attempt=self.attempt,
            id=job.id,
            backend=job.backend,
            state=job.state.value,
        )
        self._write(known, needed=submitted)

    def _write(self, submission: Submission, *, needed: bool = False) -> None:
        """Without an answer the work goes on: the job is found by its ticket, too."""
        try:
            self._record.write(submission)
        except ApiError as error:
            if needed and isinstance(error, NotFound):
                raise
            self._record.known = submission
            story.say(f"Note       the record could not be written: {error}")

    # --- patience -----------------------------------------------------------------------

    def _patiently(
        self, ask: Callable[[], T], limit: float | None = None, *, quiet: bool = False
    ) -> T:
        """What `ask` returns, asked again for as long as the provider does not answer.

        Args:
            limit: seconds, or for as long as it takes.
            quiet: leave what is shown as it is once there is an answer.

        Raises:
            RunFailed: what `ask` raises, or BackendUnavailable after `limit`.
        """
        answer = _ask(ask, self.pace, limit, self._note)
        if not quiet:
            self._note("")
        return answer

    def _note(self, text: str) -> None:
        text = clean(text, MESSAGE_CHARACTERS)
        if text == self._said:
            return
        self._said = text
        if text:
            story.say(f"Waiting    {text}")
        self.waiting(text)


def cancel(
    driver: RemoteDriver,
    plan: Plan,
    credentials: Path,
    number: int,
    job_id: str | None,
    pace: Pace | None = None,
) -> Sequence[RemoteJob]:
    """Cancel what was submitted with a ticket, by its id and by whatever carries the ticket.

    Args:
        number: of the ticket.
        job_id: the provider's job, if it is known.

    Returns:
        The jobs that there are, as they were last seen.

    Raises:
        RunFailed: it could not be done.
    """
    pace = pace or Pace()
    ticket = Ticket(plan.job.uid, number)
    provider = _ask(lambda: driver.connect(plan, credentials), pace, pace.cancelling, _say_waiting)
    jobs: dict[str, RemoteJob] = {}
    if job_id is not None:
        try:
            jobs[job_id] = _ask(lambda: provider.look(job_id), pace, pace.cancelling, _say_waiting)
        except RunFailed as failed:
            if failed.reason is not Reason.RESULT_LOST:
                raise
            story.say(f"Note       {failed.message}")
    settling = provider.settling.total_seconds()
    # A pod that nobody can reach may be at it still.
    until = time.monotonic() + (settling + pace.submitting if job_id is None else 0.0)
    while True:
        found = _ask(lambda: provider.find(ticket), pace, pace.cancelling, _say_waiting)
        jobs |= {each.id: each for each in found}
        left = until - time.monotonic()
        if jobs or left <= 0:
            break
        time.sleep(min(left, pace.queued[0]))
    return tuple(_cancelled(provider, each, pace) for each in jobs.values())


def _cancelled(provider: Provider, job: RemoteJob, pace: Pace) -> RemoteJob:
    job_id = job.id
    if job.state.over:
        story.say(f"Over       job {clean(job_id, 80)} was {job.state} already")
        return job
    story.say(f"Cancelling job {clean(job_id, 80)} on {clean(job.backend, 80)}")
    _ask(lambda: provider.cancel(job_id), pace, pace.cancelling, _say_waiting)
    begun, wait = time.monotonic(), pace.first
    while True:
        job = _ask(lambda: provider.look(job_id), pace, pace.cancelling, _say_waiting)
        # One that has been told and takes its time is no longer ours to wait for.
        if job.state.over or time.monotonic() - begun > pace.ending:
            story.say(f"Cancelled  job {clean(job_id, 80)}: {job.state}")
            return job
        time.sleep(wait)
        wait = min(wait * _GROWTH, 5.0)


def _ask(ask: Callable[[], T], pace: Pace, limit: float | None, note: Callable[[str], None]) -> T:
    """What `ask` returns, asked again while the provider does not answer.

    Args:
        limit: seconds, or for as long as it takes.
        note: told why it does not go on.

    Raises:
        RunFailed: what `ask` raises, or BackendUnavailable after `limit`.
    """
    begun = time.monotonic()
    wait = pace.first
    while True:
        try:
            return ask()
        except Unavailable as error:
            pause = _pause(error, wait)
            passed = time.monotonic() - begun
            if limit is not None and passed + pause > limit:
                raise _unavailable(error, passed) from None
            note(error.message)
        time.sleep(pause)
        wait = min(wait * 2, pace.longest)


def _say_waiting(text: str) -> None:
    story.say(f"Waiting    {clean(text, MESSAGE_CHARACTERS)}")


def _nobody(_: str) -> None:
    """Has been told already."""


def _pause(error: Unavailable, wait: float) -> float:
    """Seconds until the next question; what the provider asks for, up to a quarter of an hour."""
    jittered = wait * random.uniform(0.5, 1.0)  # noqa: S311  jitter
    asked = error.retry_after.total_seconds() if error.retry_after else 0.0
    return max(jittered, min(asked, _LONGEST_ASKED))


def _unavailable(error: Unavailable, seconds: float) -> RunFailed:
    asked = (
        f"; it asks to be left alone for {format_duration(error.retry_after)}"
        if error.retry_after
        else ""
    )
    return RunFailed(
        Reason.BACKEND_UNAVAILABLE,
        f"{error.message} (asked for {seconds:.0f} s{asked}); nothing was submitted",
    )


def _no_result(job: RemoteJob, session: str | None) -> RunFailed:
    what = f"job {job.id} on {job.backend}"
    said = f": {job.detail}" if job.detail else ""
    if job.state is JobState.CANCELLED:
        return RunFailed(
            Reason.PROVIDER_JOB_CANCELLED, f"{what} was cancelled at the provider{said}"
        )
    if job.session_closed:
        # Another submission would need another session, which may cost money.
        return RunFailed(
            Reason.SESSION_CLOSED,
            f"session {session or 'of the job'} closed while {what} waited in its queue, so it "
            f"did not run{said}; apply the job again with another session, or one with a larger "
            "maxTime",
        )
    reason = Reason.PROVIDER_JOB_FAILED if job.transient else Reason.BACKEND_REFUSED
    return RunFailed(reason, f"{what} failed{said}")


def _line(job: RemoteJob) -> str:
    """How a job is, for the log."""
    text = f"{job.state.value:<10} job {clean(job.id, 80)} on {clean(job.backend, 80)}"
    if job.queue_position is not None:
        text += f", {job.queue_position} before it"
    if job.estimated_start is not None:
        text += f", estimated start {format_time(job.estimated_start)}"
    return text
