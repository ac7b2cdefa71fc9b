"""What a driver gives to run circuits at a provider: a service elsewhere, with a queue and a bill.

A provider's job outlives the pod that submitted it, so the executor's loop over these calls
(:mod:`qiskit_controller.runner.remote`) has to find it again after any crash. Each submission
has a :class:`Ticket`, which the provider keeps with the job (job tags at IBM, the client token
and tags at Braket). One ticket is one paid run, whoever presents it and how often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

from qiskit_controller.api.qiskitjob import SessionMode
from qiskit_controller.api.run import Plan
from qiskit_controller.drivers import BillingUnit, RunResult

if TYPE_CHECKING:
    from qiskit import QuantumCircuit


class JobState(StrEnum):
    """What a provider's job is doing."""

    QUEUED = "Queued"
    RUNNING = "Running"
    DONE = "Done"
    FAILED = "Failed"
    CANCELLED = "Cancelled"

    @property
    def over(self) -> bool:
        """Whether it will not change any more."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@attrs.frozen
class Ticket:
    """Which submission of which QiskitJob a provider's job belongs to.

    The number goes up only after the provider's job before it has ended without a result and
    the failure is worth another one; a pod that is lost presents the same ticket again.

    Attributes:
        uid: the QiskitJob's UID.
        number: which submission of that QiskitJob, from 1.
    """

    uid: str
    number: int

    def __str__(self) -> str:
        """At most 64 characters, as a Braket client token may have."""
        return f"{self.uid}-{self.number}"


@attrs.frozen(kw_only=True)
class RemoteJob:
    """A provider's job as it was last seen.

    Attributes:
        id: the provider's own name for it.
        backend: the device.
        detail: the provider's own word for the state, or why it ended.
        queue_position: jobs before it, where the provider tells; 0 is the next.
        estimated_start: when it may begin, with a time zone, where the provider tells.
        transient: of one that failed, whether another submission may succeed.
        session_closed: of one that failed, whether it did not run because its session closed
            while it was in the queue.
    """

    id: str
    state: JobState
    backend: str
    detail: str = ""
    queue_position: int | None = None
    estimated_start: datetime | None = None
    transient: bool = False
    session_closed: bool = False


@attrs.frozen(kw_only=True)
class Device:
    """What a provider tells of one of its devices; None for what it does not tell.

    Attributes:
        name: as ``spec.backend.name`` takes it.
        operational: whether it takes jobs and runs them.
        detail: the provider's own word for its state, or why it is not operational.
        basis_gates: as the provider names them.
        dynamic: whether it measures in mid-circuit and acts on the outcome.
        pending_jobs: in its queue.
        queue_time: expected wait.
        single_qubit_error, two_qubit_error, readout_error: medians, 0 to 1.
        shot_time: how long one shot takes at least, beside the circuit itself: the
            repetition delay.
        prices: US dollars for each unit, where the provider tells.
    """

    name: str
    simulator: bool
    operational: bool
    detail: str = ""
    qubits: int | None = None
    basis_gates: tuple[str, ...] = ()
    dynamic: bool | None = None
    pending_jobs: int | None = None
    queue_time: timedelta | None = None
    single_qubit_error: float | None = None
    two_qubit_error: float | None = None
    readout_error: float | None = None
    shot_time: timedelta | None = None
    prices: Mapping[BillingUnit, Decimal] = attrs.field(factory=dict)


class Unavailable(Exception):
    """The provider did not answer, or not now: to be asked again.

    Attributes:
        retry_after: how long it asked to be left alone, when it did.
        nothing_done: whether it is certain that what was asked had no effect: the request did
            not get there, or was turned away. Of a submission that is otherwise, somebody has
            to find out before there is another.
    """

    def __init__(
        self,
        message: str,
        retry_after: timedelta | None = None,
        *,
        nothing_done: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.nothing_done = nothing_done


class Provider(Protocol):
    """One account at a provider.

    Every call may raise :class:`Unavailable`, after which the same call may be made again, and
    :class:`~qiskit_controller.drivers.RunFailed` for what no repetition mends (credentials that
    are refused, a device that does not exist). Calls return within about a minute.

    Attributes:
        settling: for how long after :meth:`submit` was called its job may still appear, by
            :meth:`find`, when the call was never answered: the longest that the request itself
            can take, and the delay of the provider's listing. Zero where the provider makes a
            ticket unique, so that to submit again is to find.
    """

    @property
    def settling(self) -> timedelta:
        """See above; an attribute will do."""

    def devices(self, name: str | None = None) -> Sequence[Device]:
        """The devices that the account can use, by name; with `name`, that one or none."""

    def prepare(self, circuit: QuantumCircuit, backend: str, plan: Plan) -> QuantumCircuit:
        """The circuit as the device takes it: transpiled at the requested level.

        A pod that finds the job of an earlier one prepares as well, so the same should come of
        the same, as far as the device allows: transpile with a seed.
        """

    def find(self, ticket: Ticket) -> Sequence[RemoteJob]:
        """The provider's jobs that carry this ticket, oldest first; there should be one or none.

        Where the provider itself makes a ticket unique, an empty answer is allowed always:
        to submit again is then to find.
        """

    def submit(
        self, circuit: QuantumCircuit, backend: str, plan: Plan, ticket: Ticket
    ) -> RemoteJob:
        """Submit what :meth:`prepare` returned."""

    def look(self, job_id: str) -> RemoteJob:
        """The job now."""

    def result(self, job_id: str, circuit: QuantumCircuit, plan: Plan) -> RunResult:
        """What came of a job that is DONE; `circuit` is what was prepared."""

    def cancel(self, job_id: str) -> None:
        """Cancel; of a job that is over already, nothing."""


@attrs.frozen(kw_only=True)
class Session:
    """A provider's session as it was last seen.

    Attributes:
        id: the provider's own name for it.
        backend: the device it is on.
        accepting: whether it takes jobs.
        closed: whether it is over: it takes no jobs, and none of its jobs runs.
        state: the provider's own word for its state.
        expires: when the provider closes it, with a time zone, once that is known.
        usage: seconds that the provider counts for it, where it tells.
    """

    id: str
    backend: str
    accepting: bool
    closed: bool
    state: str = ""
    expires: datetime | None = None
    usage: Decimal | None = None


@runtime_checkable
class HasSessions(Protocol):
    """A :class:`Provider` whose jobs can share a session.

    :meth:`Provider.submit` submits into ``plan.session`` where there is one. For a job that is not
    taken because its session is closed it raises :class:`~qiskit_controller.drivers.RunFailed`
    with ``SessionClosed``. A session that the provider does not know any more is a closed one.
    """

    def open_session(self, backend: str | None, mode: SessionMode, max_time: int | None) -> Session:
        """Open one.

        Args:
            backend: the device; None for the least busy one.
            mode: dedicated, or shared with other users.
            max_time: seconds; None for the provider's own maximum.

        Raises:
            RunFailed: it cannot be had.
            Unavailable: no answer. Unless ``nothing_done``, there may be a session now that nobody
                knows the name of.
        """

    def look_at_session(self, session_id: str) -> Session:
        """The session now."""

    def close_session(self, session_id: str) -> Session:
        """Take no more jobs, and end when those that were taken have; of a closed one, nothing."""


@runtime_checkable
class RemoteDriver(Protocol):
    """The runner half of a driver whose circuits run at a provider."""

    def connect(self, plan: Plan, credentials: Path) -> Provider:
        """Log in.

        Args:
            credentials: the folder with the keys of ``spec.credentials.secretRef``; it may be
                empty or not exist.

        Raises:
            RunFailed: the credentials are missing or refused.
            Unavailable: the provider does not answer.
        """
