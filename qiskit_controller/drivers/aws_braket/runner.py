"""The runner half of ``aws_braket``: tasks of Amazon Braket, and which device is simulated here.

A submission's ticket is the client token of CreateQuantumTask, so that Braket itself takes it but
once, and a tag of the task, by which it is found again. The SDK is imported only where a circuit
is prepared or a result is read: cancelling and looking need nothing but boto3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from qiskit_controller.api import names
from qiskit_controller.api.run import Plan, Reason
from qiskit_controller.drivers import BillingUnit, RunFailed, RunnerDriver, RunResult
from qiskit_controller.drivers.aws_braket import circuits, devices
from qiskit_controller.drivers.aws_braket.controller import LOCAL, parse_arn
from qiskit_controller.drivers.aws_braket.local import LocalSimulators
from qiskit_controller.drivers.aws_braket.service import (
    DEFAULT_PREFIX,
    SECRET,
    Account,
    code_of,
    configured_region,
)
from qiskit_controller.drivers.remote import Device, JobState, RemoteJob, Ticket, Unavailable
from qiskit_controller.runner import story
from qiskit_controller.runner.stores.credentials import Credentials

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

TICKET_TAG = "quantum.io/ticket"
NAMESPACE_TAG = "quantum.io/namespace"
COST_CENTER_TAG = "quantum.io/cost-center"
RESULTS_FILE = "results.json"
# How far back a task of ours can have been created: one that waits for a QPU may wait for days.
_LOOK_BACK = timedelta(days=30)
# Tasks of the device that are looked through for ours; 100 fit into a page.
_PAGES = 10
# A simulator's task is billed for three seconds at least: https://aws.amazon.com/braket/pricing/
_LEAST_SECONDS = Decimal(3)
# In a message there is room for so many devices.
_LISTED = 16
# What a tag's value may consist of.
_UNTAGGABLE = re.compile(r"[^\w\s+\-=.:/@]")

_STATES: Mapping[str, JobState] = {
    "CREATED": JobState.QUEUED,
    "QUEUED": JobState.QUEUED,
    "RUNNING": JobState.RUNNING,
    "COMPLETED": JobState.DONE,
    "FAILED": JobState.FAILED,
    # It may still run, or come to its end before it is told.
    "CANCELLING": JobState.RUNNING,
    "CANCELLED": JobState.CANCELLED,
}
# Failures that are the service's own. Another run is paid for, so everything else is taken as the
# circuit's fault.
_TRANSIENT = re.compile(
    r"internal|try again|retry|timed? ?out|unavailable|service error|temporar|recalibrat", re.I
)


@attrs.define
class Braket:
    """One account; see :class:`qiskit_controller.drivers.remote.Provider`."""

    account: Account
    plan: Plan
    _shapes: dict[str, circuits.Shape] = attrs.field(factory=dict)
    _answers: dict[str, Mapping[str, Any]] = attrs.field(factory=dict)
    _running: dict[str, datetime] = attrs.field(factory=dict)
    _regions: dict[str, Account] = attrs.field(factory=dict)
    _session: Any = None

    # A client token is unique at Braket: to submit again is to find.
    settling = timedelta(0)

    # --- devices ------------------------------------------------------------------------

    def devices(self, name: str | None = None) -> Sequence[Device]:
        """The gate-based devices of all regions that the account may ask, or one of them."""
        now = datetime.now(UTC)
        if name is not None:
            try:
                found = devices.device_of(self._get_device(name), now)
            except RunFailed as failed:
                if failed.reason is Reason.BACKEND_REFUSED:
                    return ()
                raise
            return (found,)
        return tuple(self._every_device(now))

    def _every_device(self, now: datetime) -> Iterator[Device]:
        for account, arn in self._visible():
            with account.asking(f"asking for {arn}"):
                answer = account.client("braket").get_device(deviceArn=arn)
            if devices.openqasm_of(devices.capabilities_of(answer)) is not None:
                yield devices.device_of(answer, now)

    def _visible(self) -> Iterator[tuple[Account, str]]:
        """Each device that is not retired, and the account in a region that has it."""
        here = self.account.region
        others = sorted(set(self.account.session.get_available_regions("braket")) - {here})
        seen: set[str] = set()
        for region in (here, *others):
            account = self.account.within(region)
            try:
                with account.asking("listing the devices"):
                    pages = account.client("braket").get_paginator("search_devices")
                    found = [
                        each
                        for page in pages.paginate(filters=[])
                        for each in page["devices"]
                        if each["deviceStatus"] != "RETIRED"
                    ]
            except (Unavailable, RunFailed):
                # An account need not have every region.
                if region == here:
                    raise
                continue
            for each in found:
                arn = str(each["deviceArn"])
                if arn not in seen:
                    seen.add(arn)
                    yield account, arn

    def _get_device(self, arn: str) -> Mapping[str, Any]:
        if arn not in self._answers:
            with self.account.asking(f"asking for {arn}"):
                self._answers[arn] = self._braket().get_device(deviceArn=arn)
        return self._answers[arn]

    # --- submitting ---------------------------------------------------------------------

    def prepare(self, circuit: QuantumCircuit, backend: str, plan: Plan) -> QuantumCircuit:
        """The circuit in the device's own gates; for a QPU on its own qubits."""
        shape = self._shape(backend)
        self._check_shots(backend, plan)
        return circuits.prepare(circuit, shape, plan)

    def _shape(self, arn: str) -> circuits.Shape:
        if arn in self._shapes:
            return self._shapes[arn]
        self._check_device(arn)
        from qiskit_controller.drivers.aws_braket import sdk

        try:
            with self.account.asking(f"asking for {arn}"):
                device = sdk.AwsDevice(arn, self._sdk_session())
            self._shapes[arn] = sdk.shape_of(device)
        except OSError as error:
            raise Unavailable(f"{arn}: reading its calibrations: {error}") from None
        return self._shapes[arn]

    def _check_device(self, arn: str) -> None:
        """Whether the device is there and can run circuits at all.

        Raises:
            RunFailed: BackendRefused, for one that is not visible with those that are.
        """
        try:
            with self.account.asking(f"asking for {arn}"):
                answer = self._braket().get_device(deviceArn=arn)
        except RunFailed as failed:
            if failed.reason is Reason.BACKEND_REFUSED:
                raise self._invisible(arn) from None
            raise
        self._answers[arn] = answer
        if devices.openqasm_of(devices.capabilities_of(answer)) is None:
            raise RunFailed(
                Reason.BACKEND_REFUSED,
                f"spec.backend.name: {answer['deviceName']} is no gate-based device; it takes no "
                "circuits",
            )
        if answer["deviceStatus"] == "RETIRED":
            raise RunFailed(
                Reason.BACKEND_REFUSED,
                f"spec.backend.name: {answer['deviceName']} is retired; {self._others()}",
            )

    def _invisible(self, arn: str) -> RunFailed:
        asked = parse_arn(arn)
        visible = [found for _, found in self._visible()]
        same = [
            each
            for each in visible
            if asked and (other := parse_arn(each)) and other.device == asked.device
        ]
        text = f"spec.backend.name: this account sees no device {arn}"
        if same:
            text += f"; {asked.device if asked else arn} is {', '.join(same)}"
        return RunFailed(Reason.BACKEND_REFUSED, f"{text}; {_listed(visible)}")

    def _others(self) -> str:
        return _listed([found for _, found in self._visible()])

    def _check_shots(self, arn: str, plan: Plan) -> None:
        answer = self._get_device(arn)
        service = devices.capabilities_of(answer).get("service") or {}
        allowed = devices.shots_range(service)
        shots = plan.spec.execution.shots
        if allowed is not None and not max(1, allowed[0]) <= shots <= allowed[1]:
            raise RunFailed(
                Reason.BACKEND_REFUSED,
                f"spec.execution.shots: {answer['deviceName']} takes {max(1, allowed[0])} to "
                f"{allowed[1]}, not {shots}",
            )

    def submit(
        self, circuit: QuantumCircuit, backend: str, plan: Plan, ticket: Ticket
    ) -> RemoteJob:
        """CreateQuantumTask, with the ticket as its client token."""
        from qiskit_controller.drivers.aws_braket import sdk

        try:
            shape = self._shape(backend)
            session = self._sdk_session()
            bucket, prefix = self._results(session)
        except Unavailable as error:
            error.nothing_done = True
            raise
        source = circuits.program(circuit, shape)
        request = {
            "clientToken": str(ticket),
            "deviceArn": backend,
            "shots": plan.spec.execution.shots,
            "outputS3Bucket": bucket,
            "outputS3KeyPrefix": prefix,
            "action": sdk.Program(source=source).json(),
            "tags": _tags(plan, ticket),
        }
        if shape.labels is not None and circuits.is_dynamic(circuit):
            # QPUs do this as an experiment, for those who ask for it.
            request["experimentalCapabilities"] = {"enabled": "ALL"}
        try:
            arn = str(session.create_quantum_task(**request))
        except Exception as error:
            if _is_taken(error):
                return self._taken(backend, ticket)
            raise self.account.failure(error, "creating the task") from None
        return RemoteJob(id=arn, state=JobState.QUEUED, backend=backend, detail="CREATED")

    def _taken(self, backend: str, ticket: Ticket) -> RemoteJob:
        """The task of an earlier pod, which had transpiled the circuit in another way.

        Raises:
            Unavailable: Braket does not list it yet.
        """
        found = list(self._search(ticket, backend, None))
        if not found:
            raise Unavailable(
                f"Amazon Braket in {self.account.region}: an earlier submission has created the "
                "task, and it is not listed yet"
            )
        return found[0]

    def _results(self, session: Any) -> tuple[str, str]:
        """Where the results go: as the Secret says, else where the SDK puts them.

        Raises:
            RunFailed: it cannot be used. Nothing is paid yet.
        """
        given = self.account.credentials.get("results-bucket")
        prefix = (self.account.credentials.get("results-prefix") or DEFAULT_PREFIX).strip("/")
        try:
            with self.account.asking("making sure of the default bucket for results"):
                bucket = str(session.default_bucket())
        except RunFailed as failed:
            raise RunFailed(
                failed.reason,
                f"{failed.message}; or name one under the key results-bucket in {SECRET}",
            ) from None
        except ValueError as error:
            # The SDK's word for a bucket that is another account's.
            raise RunFailed(
                Reason.BACKEND_REFUSED,
                f"{error} Name a bucket under the key results-bucket in {SECRET}.",
            ) from None
        try:
            self.account.client("s3").head_bucket(Bucket=bucket)
        except Exception as error:
            if code_of(error) == "404" or code_of(error) == "NoSuchBucket":
                raise RunFailed(
                    Reason.BACKEND_REFUSED, f"there is no bucket {bucket!r} for the results"
                ) from None
            failure = self.account.failure(error, f"looking at the results' bucket {bucket!r}")
            if isinstance(failure, RunFailed) and given is None:
                failure.message += f"; or name another one under results-bucket in {SECRET}"
            raise failure from None
        return bucket, prefix

    # --- waiting ------------------------------------------------------------------------

    def find(self, ticket: Ticket) -> Sequence[RemoteJob]:
        """The task with the ticket's tag, among the device's latest ones.

        Of an account that may not list its tasks, none: the client token suffices.
        """
        backend = self.plan.spec.backend.name or ""
        try:
            return tuple(self._search(ticket, backend, _PAGES))
        except RunFailed as failed:
            if failed.reason is not Reason.BACKEND_DENIED:
                raise
            return ()

    def _search(self, ticket: Ticket, backend: str, pages: int | None) -> Iterator[RemoteJob]:
        """Oldest first."""
        since = datetime.now(UTC) - _LOOK_BACK
        filters = [{"name": "createdAt", "operator": "GTE", "values": [since.isoformat()]}]
        if backend:
            filters.append({"name": "deviceArn", "operator": "EQUAL", "values": [backend]})
        settings = {"PageSize": 100} | ({} if pages is None else {"MaxItems": 100 * pages})
        with self.account.asking("looking for the task"):
            found = [
                each
                for page in self._braket()
                .get_paginator("search_quantum_tasks")
                .paginate(filters=filters, PaginationConfig=settings)
                for each in page["quantumTasks"]
                if (each.get("tags") or {}).get(names.UID_LABEL) == ticket.uid
                and (each.get("tags") or {}).get(TICKET_TAG) == str(ticket.number)
            ]
        for each in sorted(found, key=lambda task: task["createdAt"]):
            yield self._job(each)

    def look(self, job_id: str) -> RemoteJob:
        """GetQuantumTask."""
        return self._job(self._get_task(job_id))

    def _get_task(self, job_id: str) -> Mapping[str, Any]:
        try:
            answer: Mapping[str, Any] = self._braket(job_id).get_quantum_task(
                quantumTaskArn=job_id, additionalAttributeNames=["QueueInfo"]
            )
        except Exception as error:
            if code_of(error) == "ResourceNotFoundException":
                # A new one is not seen everywhere at once.
                raise Unavailable(
                    f"Amazon Braket in {self.account.region} does not know {job_id}"
                ) from None
            raise self.account.failure(error, "asking for the task") from None
        return answer

    def _job(self, task: Mapping[str, Any]) -> RemoteJob:
        """A task as GetQuantumTask or SearchQuantumTasks tells it."""
        arn, status = str(task["quantumTaskArn"]), str(task["status"])
        state = _STATES.get(status, JobState.RUNNING)
        reason = str(task.get("failureReason") or "")
        if state is JobState.RUNNING:
            self._running.setdefault(arn, datetime.now(UTC))
        job = RemoteJob(
            id=arn,
            state=state,
            backend=str(task["deviceArn"]),
            detail=f"{status}: {reason}" if reason else status,
            transient=state is JobState.FAILED and _TRANSIENT.search(reason) is not None,
        )
        return self._queued(job, task) if state is JobState.QUEUED else job

    def _queued(self, job: RemoteJob, task: Mapping[str, Any]) -> RemoteJob:
        """With its place in the queue, how long that is, and when the device executes again."""
        position = devices.queue_number((task.get("queueInfo") or {}).get("position"))
        # Braket counts from 1.
        before = None if position is None else max(0, position - 1)
        job = attrs.evolve(job, queue_position=before)
        try:
            with self.account.asking(f"asking for {job.backend}"):
                answer = self._braket().get_device(deviceArn=job.backend)
        except (Unavailable, RunFailed):
            return job
        now = datetime.now(UTC)
        service = devices.capabilities_of(answer).get("service") or {}
        opens = devices.next_opening(service.get("executionWindows") or (), now)
        waiting = devices.device_of(answer, now).pending_jobs
        return attrs.evolve(
            job,
            detail=job.detail if waiting is None else f"{job.detail}, {waiting} in the queue",
            estimated_start=opens if opens is not None and opens > now else None,
        )

    # --- the end ------------------------------------------------------------------------

    def result(self, job_id: str, circuit: QuantumCircuit, plan: Plan) -> RunResult:
        """Counts from the task's ``results.json``."""
        from qiskit_controller.drivers.aws_braket import sdk

        task = self._get_task(job_id)
        text = self._read_result(task)
        try:
            found, metadata = sdk.read_result(text)
            source = str(metadata.action.source)
            bits = circuits.columns(source, list(found.measured_qubits), circuit)
        except (ValueError, AttributeError, KeyError) as error:
            raise RunFailed(
                Reason.BACKEND_REFUSED, f"the result of {job_id} cannot be read: {error}"
            ) from error
        counts, each = circuits.outcomes(found.measurements, bits, circuit)
        memory: list[str] | None = None
        if plan.spec.output.memory:
            if found.measurements_copied_from_device:
                memory = each
            else:
                story.say("Note       the device tells no single shots, so there is no memory")
        simulator = getattr(metadata, "simulatorMetadata", None)
        seconds = None
        if simulator is not None:
            seconds = Decimal(simulator.executionDuration) / 1000
        created, ended = _time(task["createdAt"]), _time(task.get("endedAt") or task["createdAt"])
        if seconds is not None:
            started = ended - timedelta(seconds=float(seconds))
        else:
            started = min(self._running.get(job_id, created), ended)
        return RunResult(
            counts=counts,
            memory=memory,
            backend=str(task["deviceArn"]),
            started=started,
            execution_time=float(seconds) if seconds else (ended - started).total_seconds(),
            circuit=circuit,
            usage=self._usage(task, seconds),
            queued=created,
        )

    def _read_result(self, task: Mapping[str, Any]) -> str:
        bucket, key = task["outputS3Bucket"], f"{task['outputS3Directory']}/{RESULTS_FILE}"
        try:
            body = self.account.client("s3").get_object(Bucket=bucket, Key=key)["Body"]
            return bytes(body.read()).decode()
        except Exception as error:
            failure = self.account.failure(error, f"reading s3://{bucket}/{key}")
            # It is paid for and is there: whoever manages the bucket can still mend it.
            raise Unavailable(
                f"the task has been executed, and its result cannot be read: {failure.message}"
            ) from None

    def _usage(
        self, task: Mapping[str, Any], seconds: Decimal | None
    ) -> Mapping[BillingUnit, Decimal]:
        """What is billed: a simulator's seconds, or a QPU's task and shots."""
        arn = parse_arn(str(task["deviceArn"]))
        if arn is not None and not arn.qpu:
            return {"second": max(seconds or Decimal(0), _LEAST_SECONDS)}
        shots = task.get("numSuccessfulShots")
        return {"task": Decimal(1), "shot": Decimal(task["shots"] if shots is None else shots)}

    def cancel(self, job_id: str) -> None:
        """CancelQuantumTask."""
        try:
            self._braket(job_id).cancel_quantum_task(quantumTaskArn=job_id)
        except Exception as error:
            # It has ended already, or is being cancelled.
            if code_of(error) != "ConflictException":
                raise self.account.failure(error, "cancelling the task") from None

    def _braket(self, task: str | None = None) -> Any:
        """The client of the device's region, or of that which a task is in.

        Without a region in the device's ARN, somebody may have put another one into the Secret.
        """
        region = task.split(":")[3] if task is not None and task.count(":") > 3 else ""
        if region in ("", self.account.region):
            return self.account.client("braket")
        if region not in self._regions:
            self._regions[region] = self.account.within(region)
        return self._regions[region].client("braket")

    def _sdk_session(self) -> Any:
        from qiskit_controller.drivers.aws_braket import sdk

        if self._session is None:
            self._session = sdk.Session(self.account)
        return self._session


def _listed(arns: Sequence[str]) -> str:
    if not arns:
        return "it sees none"
    more = f" and {len(arns) - _LISTED} more" if len(arns) > _LISTED else ""
    return f"it sees {', '.join(arns[:_LISTED])}{more}"


def _tags(plan: Plan, ticket: Ticket) -> dict[str, str]:
    tags = {
        names.UID_LABEL: ticket.uid,
        TICKET_TAG: str(ticket.number),
        NAMESPACE_TAG: plan.job.namespace,
        names.JOB_LABEL: names.fit(plan.job.name),
    }
    budget = plan.spec.budget
    if budget is not None and budget.cost_center:
        tags[COST_CENTER_TAG] = _UNTAGGABLE.sub("_", budget.cost_center)[:256]
    return tags


def _is_taken(error: Exception) -> bool:
    """Whether the client token was used before, with another request."""
    code = code_of(error)
    return code == "ConflictException" or (
        code == "ValidationException" and "clienttoken" in str(error).lower().replace(" ", "")
    )


def _time(value: datetime) -> datetime:
    return value.astimezone(UTC)


class BraketDriver:
    """See :class:`qiskit_controller.drivers.remote.RemoteDriver`."""

    def here(self, plan: Plan) -> RunnerDriver | None:
        """What runs the circuit in this process, for a device that is simulated here."""
        return LocalSimulators() if plan.spec.backend.name in LOCAL else None

    def connect(self, plan: Plan, credentials: Path) -> Braket:
        """The account, in the region of the device."""
        secret = Credentials.read(credentials)
        arn = parse_arn(plan.spec.backend.name or "")
        region = arn.region if arn is not None and arn.region else None
        configured = configured_region(secret)
        if region and configured and region != configured:
            story.say(f"Note       the device is in {region}, so {configured} is not asked")
        return Braket(Account.of(secret, region), plan)


DRIVER = BraketDriver()
