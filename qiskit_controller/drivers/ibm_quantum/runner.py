"""The runner half of ``ibm_quantum``: SamplerV2 of qiskit-ibm-runtime.

A job carries its ticket as a job tag, and is found by it. IBM's listing has a job a moment after
it was taken, and each request until then has a deadline; together they are
:attr:`IbmProvider.settling`.

A session is IBM's Session when it is dedicated, and IBM's Batch when it is shared. The client's
objects of these names are made for one submission and forgotten: they close their session only at
the end of a ``with`` block, which nobody writes here.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from qiskit_controller.api.qiskitjob import SessionMode
from qiskit_controller.api.quantities import parse_duration
from qiskit_controller.api.run import Plan, Reason
from qiskit_controller.drivers import RunFailed, RunResult
from qiskit_controller.drivers.ibm_quantum.account import (
    CONNECT_SECONDS,
    READ_SECONDS,
    Account,
    Login,
    clients_of,
    response_of,
)
from qiskit_controller.drivers.ibm_quantum.controller import MAX_EXECUTION_SECONDS
from qiskit_controller.drivers.remote import (
    Device,
    JobState,
    Provider,
    RemoteDriver,
    RemoteJob,
    Session,
    Ticket,
    Unavailable,
)
from qiskit_controller.runner.stores.credentials import Credentials

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

TAG = "qiskit-controller"
# SamplerV2.run asks for the instance's usage and the device's status before it submits.
REQUESTS_TO_SUBMIT = 3
# The listing is made from what was written a moment before.
LISTING_SECONDS = 15.0
# Seconds are counted up a moment after the job is done.
USAGE_SECONDS = 10.0
_STATES = {
    "INITIALIZING": JobState.QUEUED,
    "QUEUED": JobState.QUEUED,
    "RUNNING": JobState.RUNNING,
    "DONE": JobState.DONE,
    "ERROR": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
}
# Of IBM's error code registry (https://quantum.cloud.ibm.com/docs/errors), those whose solution
# is to try again: errors inside the service and on the device. All others say what is wrong with
# the job, or that it took too long.
_TRANSIENT = frozenset({1006, 1008, 1010, 1011, 9999})
# The reason code of a job that was in the queue when its session closed, with the reason "Session
# <id> has been closed" (https://github.com/Qiskit/qiskit-ibm-runtime/issues/841).
_SESSION_CLOSED = 1217
_CLOSED = "closed"
# Of a session that IBM has forgotten.
_UNKNOWN = "unknown"
_SEEDS = 2**31


def transpile(circuit: QuantumCircuit, backend: Any, name: str, plan: Plan) -> QuantumCircuit:
    """The circuit in the gates and on the qubits of a device.

    Raises:
        RunFailed: TranspileFailed.
    """
    from qiskit.transpiler import generate_preset_pass_manager

    execution = plan.spec.execution
    layout = execution.initial_layout
    try:
        return generate_preset_pass_manager(
            optimization_level=execution.optimization_level,
            backend=backend,
            initial_layout=None if layout is None else list(layout),
            seed_transpiler=seed_of(plan),
        ).run(circuit)
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    # Passes raise what they like, and the circuit is all that differs from a run that works.
    # BaseException: a panic in Qiskit's Rust code is no Exception.
    except BaseException as error:
        raise RunFailed(
            Reason.TRANSPILE_FAILED,
            f"the circuit cannot be transpiled for {name}: {type(error).__name__}: {error}",
        ) from error


def seed_of(plan: Plan) -> int:
    """The seed that was asked for, or else one of the QiskitJob's own, the same in every pod."""
    if plan.spec.execution.seed_simulator is not None:
        return plan.spec.execution.seed_simulator
    return int.from_bytes(hashlib.sha256(plan.job.uid.encode()).digest()[:4]) % _SEEDS


def outcomes(data: Any, circuit: QuantumCircuit) -> list[str]:
    """The outcome of each shot, as Qiskit writes it.

    Args:
        data: of a sampler's result: one array of bits for each classical register.
    """
    registers = [
        getattr(data, each.name).get_bitstrings() for each in circuit.cregs if each.size > 0
    ]
    return [" ".join(reversed(shot)) for shot in zip(*registers, strict=True)]


@attrs.define
class IbmProvider:
    """See :class:`qiskit_controller.drivers.remote.Provider`."""

    account: Account
    settling: timedelta = attrs.field(
        factory=lambda: timedelta(
            seconds=REQUESTS_TO_SUBMIT * (CONNECT_SECONDS + READ_SECONDS) + LISTING_SECONDS
        )
    )

    def devices(self, name: str | None = None) -> Sequence[Device]:
        """Those of the account, with their calibration."""
        return self.account.ask(lambda service: [_device(each) for each in service.backends(name)])

    def prepare(self, circuit: QuantumCircuit, backend: str, plan: Plan) -> QuantumCircuit:
        """Transpiled against the device's target as it is now."""
        return transpile(circuit, self.described(backend), backend, plan)

    def described(self, backend: str) -> Any:
        """The client's backend, with its target as it is now."""

        def fetch(service: Any) -> Any:
            device = self._backend(service, backend)
            _ = device.target  # is fetched when it is first used
            return device

        return self.account.ask(fetch)

    def find(self, ticket: Ticket) -> Sequence[RemoteJob]:
        """By job tag, in every instance that may have it."""

        def ids(service: Any) -> list[str]:
            instances = (
                [service.active_instance()]
                if self.account.login.instance
                else [each["crn"] for each in service.instances()]
            )
            return [
                job.job_id()
                for instance in instances
                for job in service.jobs(
                    limit=None, job_tags=[str(ticket)], instance=instance, descending=False
                )
            ]

        return [self.look(each) for each in self.account.ask(ids)]

    def submit(
        self, circuit: QuantumCircuit, backend: str, plan: Plan, ticket: Ticket
    ) -> RemoteJob:
        """One job of one PUB, in the session of the plan if it has one."""
        seconds = int(parse_duration(plan.spec.execution.timeout).total_seconds())

        def send(service: Any) -> str:
            from qiskit_ibm_runtime import SamplerV2

            mode = self._backend(service, backend)
            if plan.session is not None:
                mode = _session_of(mode, plan.session)
            sampler = SamplerV2(mode=mode)
            sampler.options.environment.job_tags = [str(ticket), TAG]
            sampler.options.max_execution_time = max(1, min(seconds, MAX_EXECUTION_SECONDS))
            job = sampler.run([circuit], shots=plan.spec.execution.shots)
            self.account.kept["job", job.job_id()] = job
            return str(job.job_id())

        try:
            job_id = self.account.ask(send)
        except RunFailed as refused:
            # Asked afterwards and not before: between the intent and the submission nothing should
            # take time. What the session is tells more than the words of the refusal.
            if plan.session is not None:
                self._check_session(plan.session, backend, refused)
            raise
        return RemoteJob(id=job_id, state=JobState.QUEUED, backend=backend)

    def look(self, job_id: str) -> RemoteJob:
        """State, place in the queue, and what the device does that it waits for."""
        return self.account.ask(lambda service: self._look(service, job_id))

    def _look(self, service: Any, job_id: str) -> RemoteJob:
        job = self._job(service, job_id)
        said = str(job.status())
        state = _STATES.get(said, JobState.QUEUED)
        device = job.backend()
        seen = RemoteJob(id=job_id, state=state, backend=device.name)
        if state is JobState.FAILED:
            detail = str(job.error_message() or said)
            found = re.search(r"[Ee]rror code (\d+)", detail)
            code = int(found[1]) if found else None
            return attrs.evolve(
                seen,
                detail=detail,
                transient=code in _TRANSIENT,
                session_closed=code == _SESSION_CLOSED,
            )
        if state is not JobState.QUEUED:
            return seen
        metrics, status = job.metrics(), device.status()
        active = status.operational and status.status_msg in ("active", "")
        position = metrics.get("position_in_queue")
        return attrs.evolve(
            seen,
            detail="" if active else f"device status: {status.status_msg or 'not operational'}",
            queue_position=int(position) if position is not None else None,
            estimated_start=_time(metrics.get("estimated_start_time")),
        )

    def result(self, job_id: str, circuit: QuantumCircuit, plan: Plan) -> RunResult:
        """Counts, and the seconds of the device that are billed."""
        fetched = self.account.ask(lambda service: _fetched(self._job(service, job_id)))
        if not fetched:
            raise _lost(job_id, "came back without a result")
        submitted = self._submitted(job_id, circuit)
        memory = outcomes(fetched[0].data, submitted)
        metrics = self._final_metrics(job_id)
        stamps = metrics.get("timestamps") or {}
        started = _time(stamps.get("running")) or datetime.now(UTC)
        finished = _time(stamps.get("finished")) or started
        seconds = _quantum_seconds(metrics)
        backend = self.account.ask(lambda service: self._job(service, job_id).backend().name)
        return RunResult(
            counts=dict(Counter(memory)),
            memory=memory if plan.spec.output.memory else None,
            backend=backend,
            started=started,
            execution_time=max(0.0, (finished - started).total_seconds()),
            circuit=submitted,
            usage={} if seconds is None else {"second": seconds},
            queued=_time(stamps.get("created")),
        )

    def cancel(self, job_id: str) -> None:
        """Cancel; that it is over already is as good."""

        def end(service: Any) -> None:
            from qiskit_ibm_runtime.exceptions import RuntimeInvalidStateError

            try:
                self._job(service, job_id).cancel()
            except RuntimeInvalidStateError:
                return
            finally:
                # The object takes its own word for what has become of it.
                self.account.kept.pop(("job", job_id), None)

        self.account.ask(end)

    # --- sessions -----------------------------------------------------------------------

    def open_session(self, backend: str | None, mode: SessionMode, max_time: int | None) -> Session:
        """IBM's Session, or Batch; its time counts from its first job on."""
        with _harmless():
            name = backend or self._least_busy()
            self.described(name)

        def send(service: Any) -> str | None:
            from qiskit_ibm_runtime import Batch
            from qiskit_ibm_runtime import Session as Dedicated

            kind = Batch if mode == "shared" else Dedicated
            opened: str | None = kind(self._backend(service, name), max_time=max_time).session_id
            return opened

        session_id = self.account.ask(send)
        if session_id is None:
            raise RunFailed(Reason.BACKEND_REFUSED, f"{name} has no sessions at IBM Quantum")
        # It is there, whatever else is said of it now; to fail would be to lose it.
        with contextlib.suppress(Unavailable, RunFailed):
            session = self.look_at_session(session_id)
            if session.state != _UNKNOWN:
                return session
        return Session(id=session_id, backend=name, accepting=True, closed=False)

    def look_at_session(self, session_id: str) -> Session:
        """As the service tells of it, with the seconds that it counts."""
        return self.account.ask(lambda service: _look_at_session(service, session_id))

    def close_session(self, session_id: str) -> Session:
        """It accepts no more jobs, and closes when it has none."""

        def close(service: Any) -> None:
            client, details = _details(service, session_id)
            if details.get("state") not in (_CLOSED, _UNKNOWN):
                client.close_session(session_id)

        self.account.ask(close)
        return self.look_at_session(session_id)

    def _least_busy(self) -> str:
        devices = self.devices()
        operational = [each for each in devices if each.operational]
        if not operational:
            raise RunFailed(
                Reason.BACKEND_UNAVAILABLE,
                "no device of the account takes jobs now; there are: "
                f"{', '.join(each.name for each in devices) or 'none'}",
            )
        return min(operational, key=lambda each: (each.pending_jobs or 0, each.qubits or 0)).name

    def _check_session(self, session_id: str, backend: str, refused: RunFailed) -> None:
        """Whether a job was refused because of its session; then say so.

        Raises:
            RunFailed: it was.
            Unavailable: the service does not tell; that the job was refused remains true.
        """
        with _harmless():
            try:
                session = self.look_at_session(session_id)
            except RunFailed:
                return
        if not session.accepting:
            raise RunFailed(
                Reason.SESSION_CLOSED,
                f"session {session_id} at IBM Quantum takes no more jobs (its state: "
                f"{session.state}), so the job was not submitted ({refused.message}); apply it "
                "again with another session, or one with a larger maxTime",
            ) from refused
        if session.backend != backend:
            raise RunFailed(
                Reason.INVALID_SPEC,
                f"spec.backend.name: session {session_id} at IBM Quantum is on {session.backend}, "
                f"and the job is for {backend}",
            ) from refused

    # --- small things -------------------------------------------------------------------

    def _job(self, service: Any, job_id: str) -> Any:
        from qiskit_ibm_runtime.exceptions import RuntimeJobNotFound

        kept = self.account.kept
        if ("job", job_id) not in kept:
            try:
                kept["job", job_id] = service.job(job_id)
            except RuntimeJobNotFound:
                raise _lost(job_id, "is not known any more") from None
        return kept["job", job_id]

    def _backend(self, service: Any, name: str) -> Any:
        from qiskit.providers.exceptions import QiskitBackendNotFoundError

        kept = self.account.kept
        if ("backend", name) not in kept:
            try:
                kept["backend", name] = service.backend(name)
            except QiskitBackendNotFoundError:
                service.usage()  # what fails here was no matter of names
                names = sorted(each.name for each in service.backends())
                raise RunFailed(
                    Reason.BACKEND_REFUSED,
                    f"spec.backend.name: the account has no device {name!r}, or IBM Quantum does "
                    f"not describe it; it has: {', '.join(names) or 'none'}",
                ) from None
        return kept["backend", name]

    def _submitted(self, job_id: str, circuit: QuantumCircuit) -> QuantumCircuit:
        """The circuit as it was submitted: the device may have been calibrated since."""
        from qiskit import QuantumCircuit as Circuit

        try:
            inputs = self.account.ask(lambda service: self._job(service, job_id).inputs)
        except (RunFailed, Unavailable):
            return circuit  # what was prepared here is nearly always the same
        pubs = inputs.get("pubs") or ()
        first = pubs[0][0] if pubs and pubs[0] else None
        return first if isinstance(first, Circuit) else circuit

    def _final_metrics(self, job_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + USAGE_SECONDS
        while True:
            metrics: dict[str, Any] = self.account.ask(
                lambda service: self._job(service, job_id).metrics()
            )
            pending = (metrics.get("usage") or {}).get("status") == "pending"
            if not pending or time.monotonic() > deadline:
                return metrics
            time.sleep(1.0)


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    """Whatever is asked in here may be asked again."""
    try:
        yield
    except Unavailable as error:
        error.nothing_done = True
        raise


def _details(service: Any, session_id: str) -> tuple[Any, Mapping[str, Any]]:
    """What IBM says of a session, and the client for the instance that has it.

    The client library's own Session.from_id() wants to know beforehand whether it is a session or a
    batch, and then takes the first instance that has a device of that name.
    """
    from qiskit_ibm_runtime.api.exceptions import RequestsApiError

    clients = clients_of(service)
    for client in clients:
        try:
            return client, client.session_details(session_id)
        except RequestsApiError as error:
            if error.status_code != 404:
                raise
    return clients[0], {"id": session_id, "state": _UNKNOWN}


def _session_of(backend: Any, session_id: str) -> Any:
    """The client library's object for a session, or batch, that is there.

    Its from_id() makes the same of an id, after it has asked for the session, twice, and for its
    device. The intent to submit has been written by then, and whoever reads that does not wait for
    so many answers.
    """
    from qiskit_ibm_runtime import Session as Dedicated

    made = Dedicated(backend, create_new=False)
    made._session_id = session_id
    return made


def _look_at_session(service: Any, session_id: str) -> Session:
    client, details = _details(service, session_id)
    state = str(details.get("state") or "")
    closed = state in (_CLOSED, _UNKNOWN)
    if state == _CLOSED:
        # At its maximum time it is closed, and what runs goes on, and is counted.
        pending = client.jobs_get(limit=1, session_id=session_id, pending=True)
        closed = not pending.get("jobs")
    activated, seconds = _time(details.get("activated_at")), details.get("max_ttl")
    used = details.get("elapsed_time")
    return Session(
        id=session_id,
        backend=str(details.get("backend_name") or ""),
        accepting=bool(details.get("accepting_jobs")) and state not in (_CLOSED, _UNKNOWN),
        closed=closed,
        state=state,
        expires=activated + timedelta(seconds=seconds) if activated and seconds else None,
        usage=None if used is None else Decimal(str(used)),
    )


def _fetched(job: Any) -> Any:
    """The result; None when the service has none any more.

    Raises:
        RunFailed: the same, said in another way.
    """
    try:
        return job.result()
    except Exception as error:
        response = response_of(error)
        if response is not None and response.status_code in (404, 410):
            raise _lost(job.job_id(), "has no result any more") from None
        raise


def _lost(job_id: str, what: str) -> RunFailed:
    return RunFailed(
        Reason.RESULT_LOST,
        f"job {job_id} {what} at IBM Quantum; it is not run again without you, as that may cost "
        "money: apply a new QiskitJob",
    )


def _quantum_seconds(metrics: dict[str, Any]) -> Decimal | None:
    usage = metrics.get("usage") or {}
    for name in ("qpu_charge_time_seconds", "quantum_seconds", "seconds"):
        if usage.get(name) is not None:
            return Decimal(str(usage[name]))
    return None


def _time(text: object) -> datetime | None:
    """A time as the service writes it, in UTC where it says nothing else."""
    if not isinstance(text, str) or not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _device(backend: Any) -> Device:
    status = backend.status()
    configuration = backend.configuration()
    properties = backend.properties()
    features = getattr(configuration, "supported_features", None) or ()
    gates: dict[int, list[float]] = {1: [], 2: []}
    readout: list[float] = []
    if properties is not None:
        for gate in properties.gates:
            for each in gate.parameters:
                # Gates that do nothing have no error; of 1 are those that are out of order.
                if each.name == "gate_error" and 0 < each.value < 1 and len(gate.qubits) in gates:
                    gates[len(gate.qubits)].append(float(each.value))
        readout = [
            float(each.value)
            for qubit in properties.qubits
            for each in qubit
            if each.name == "readout_error" and each.value < 1
        ]
    delay = getattr(configuration, "default_rep_delay", None)
    return Device(
        name=backend.name,
        simulator=bool(configuration.simulator),
        operational=bool(status.operational) and status.status_msg in ("active", ""),
        detail=str(status.status_msg),
        qubits=int(configuration.n_qubits),
        basis_gates=tuple(configuration.basis_gates),
        dynamic="qasm3" in features or "dynamic_circuits" in features,
        pending_jobs=int(status.pending_jobs),
        single_qubit_error=statistics.median(gates[1]) if gates[1] else None,
        two_qubit_error=statistics.median(gates[2]) if gates[2] else None,
        readout_error=statistics.median(readout) if readout else None,
        # Configurations give it in microseconds, and the client converts it to seconds.
        shot_time=timedelta(seconds=float(delay)) if delay else None,
    )


class IbmQuantum:
    """See :class:`qiskit_controller.drivers.remote.RemoteDriver`."""

    def connect(self, plan: Plan, credentials: Path) -> Provider:
        """Log in with the Secret's key."""
        login = Login.read(plan.spec, Credentials.read(credentials))
        return IbmProvider(Account.connect(login))


DRIVER: RemoteDriver = IbmQuantum()
