"""How the executor comes to its backend: it tells what it knows, and waits to be told.

Both sides write over the version of the record that they have read. An assignment that was taken
up therefore is the one that stands; another comes only after its backend was refused here, and
that is said only when nothing has been submitted to it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import attrs

from qiskit_controller.api.codec import DecodeError, from_wire, to_wire
from qiskit_controller.api.quantities import format_duration
from qiskit_controller.api.run import (
    ASSIGNMENT_KEY,
    DEVICES_KEY,
    REQUESTED,
    Assignment,
    Plan,
    Progress,
    Reason,
    progress_key,
)
from qiskit_controller.drivers import RunFailed
from qiskit_controller.drivers.remote import Unavailable
from qiskit_controller.runner import story
from qiskit_controller.runner.cluster import ApiError, Cluster, Conflict, Forbidden, Object
from qiskit_controller.runner.devices import ask_patiently
from qiskit_controller.runner.pod import Paths

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

REQUEST_SECONDS = 30.0
FIRST_WAIT_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 5.0
# A backend that was refused may be up again by then.
FORGET_SECONDS = 300.0
# For a provider that does not answer; then the attempt has failed, and the next one asks.
PATIENCE = timedelta(minutes=5)
# What the account's devices do is told anew while none of them would do.
TELL_AGAIN_SECONDS = 60.0
# What no transpiler makes of other gates; control flow is asked for as `dynamic`.
_NO_GATES = frozenset({"reset"})
_HARMLESS = frozenset({"barrier", "delay", "global_phase"})


@attrs.define
class Assignments:
    """The executor's side of the choice.

    Attributes:
        progress: what the controller was told last; the stage is Validated.
        chosen: whether the backend was the controller's choice, so that another would do.
    """

    plan: Plan
    paths: Paths
    cluster: Cluster
    progress: Progress
    sleep: Callable[[float], None] = time.sleep
    chosen: bool = attrs.field(default=False, init=False)

    def take(self) -> Plan:
        """The plan with the backend that the controller has chosen; waits for it.

        Raises:
            RunFailed: the credentials are refused, or the provider does not answer; of a device
                that the job names, only the latter.
            ApiError: the record cannot be read.
        """
        if not self.plan.select:
            return self.plan
        begun = told = time.monotonic()
        if self.plan.probe and not self.progress.refused:
            self._tell_devices()
        story.say("Waiting    for a backend")
        for pause in _pauses():
            if self.plan.probe and time.monotonic() - told > TELL_AGAIN_SECONDS:
                self._tell_devices()
                told = time.monotonic()
            if self.progress.refused and time.monotonic() - begun > FORGET_SECONDS:
                begun = time.monotonic()
                self.progress = attrs.evolve(self.progress, refused={})
                self._write(self.progress)
            record = self._read()
            if progress_key(self.progress.attempt) not in (record.get("data") or {}):
                # The first time it was told, nobody answered; without it nobody would choose.
                self._write(self.progress)
            assignment = _assignment(record)
            if assignment is not None and assignment.name not in self.progress.refused:
                taken = attrs.evolve(self.progress, assignment=assignment.number)
                try:
                    self._write(taken, record["metadata"]["resourceVersion"])
                except Conflict:
                    continue  # It may be another one by now.
                self.progress = taken
                self.chosen = assignment.reason != REQUESTED
                story.say(f"Selected   {assignment.name}: {assignment.message}")
                return _with_backend(self.plan, assignment)
            self.sleep(pause)
        raise AssertionError("the pauses never end")

    def refuse(self, name: str, why: str) -> None:
        """Tell that a backend takes no jobs, before anything was submitted to it."""
        story.say(f"Refused    {name}: {why}")
        self.progress = attrs.evolve(
            self.progress, assignment=0, refused={**self.progress.refused, name: why}
        )
        self._write(self.progress)

    def _tell_devices(self) -> None:
        backend = self.plan.spec.backend
        try:
            devices = ask_patiently(
                self.plan,
                self.paths.credentials,
                backend.name,
                patience=PATIENCE,
                waiting=self._wait,
                sleep=self.sleep,
            )
        except RunFailed as error:
            if backend.name is None:
                raise
            # Who may run on a device need not be allowed to ask for it.
            story.say(f"Note       {backend.name} is not described: {error.message}")
            devices = ()
        except Unavailable as error:
            raise RunFailed(
                Reason.BACKEND_UNAVAILABLE, f"{error.message}, for {format_duration(PATIENCE)}"
            ) from None
        self._wait("")
        patch = {"data": {DEVICES_KEY: json.dumps(to_wire(devices))}}
        self.cluster.patch_config_map(self.plan.record, patch, seconds=REQUEST_SECONDS)
        story.say(f"Devices    {', '.join(each.name for each in devices) or 'none'}")

    def _wait(self, what: str) -> None:
        """Tell what keeps it from going on."""
        if what == self.progress.waiting:
            return
        if what:
            story.say(f"Note       {what}")
        self.progress = attrs.evolve(self.progress, waiting=what)
        self._write(self.progress)

    def _read(self) -> Object:
        while True:
            try:
                return self.cluster.get_config_map(self.plan.record, seconds=REQUEST_SECONDS)
            # The API server may be away for longer than one asks; nothing is lost by waiting.
            except Forbidden:
                raise
            except ApiError as error:
                if error.status is not None and error.status < 500:
                    raise
                story.say(f"Note       {error}; asking again")
            self.sleep(LONGEST_WAIT_SECONDS)

    def _write(self, progress: Progress, version: str | None = None) -> None:
        patch: dict[str, Any] = {
            "data": {progress_key(progress.attempt): json.dumps(to_wire(progress))}
        }
        if version is not None:
            patch["metadata"] = {"resourceVersion": version}
        self.cluster.patch_config_map(self.plan.record, patch, seconds=REQUEST_SECONDS)


def _pauses() -> Iterator[float]:
    wait = FIRST_WAIT_SECONDS
    while True:
        yield wait
        wait = min(wait * 1.5, LONGEST_WAIT_SECONDS)


def _assignment(record: Object) -> Assignment | None:
    text = (record.get("data") or {}).get(ASSIGNMENT_KEY)
    try:
        return from_wire(json.loads(text), Assignment) if text else None
    except (ValueError, DecodeError) as error:
        story.say(f"Note       the assignment cannot be read: {error}")
        return None


def _with_backend(plan: Plan, assignment: Assignment) -> Plan:
    backend = attrs.evolve(plan.spec.backend, type=assignment.type, name=assignment.name)
    spec = attrs.evolve(plan.spec, backend=backend)
    return attrs.evolve(plan, spec=spec, session=assignment.session)


def is_dynamic(circuit: QuantumCircuit) -> bool:
    """Whether it measures and goes on with the same qubit, or acts on what it measured."""
    measured: set[Any] = set()
    for instruction in circuit.data:
        operation = instruction.operation
        if getattr(operation, "blocks", None) or getattr(operation, "condition", None) is not None:
            return True
        if operation.name in _HARMLESS:
            continue
        if operation.name == "measure":
            if measured.intersection(instruction.qubits):
                return True
            measured.update(instruction.qubits)
        elif measured.intersection(instruction.qubits):
            return True
    return False


def special_operations(circuit: QuantumCircuit) -> tuple[str, ...]:
    """The circuit's operations that cannot be made of other gates, by name."""
    return tuple(sorted(_NO_GATES.intersection(circuit.count_ops())))
