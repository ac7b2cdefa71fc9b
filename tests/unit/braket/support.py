"""Jobs on Amazon Braket, and a provider that is asked as the executor asks it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from qiskit import QuantumCircuit

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.api.run import JobIdentity, Plan, PlannedSource
from qiskit_controller.drivers import RunResult
from qiskit_controller.drivers.aws_braket.runner import DRIVER, Braket
from qiskit_controller.drivers.remote import RemoteJob, Ticket

SECONDS = 60.0


def plan_for(name: str | None, kind: str = "aws_braket", **spec: Mapping[str, Any]) -> Plan:
    """The plan of a job that nobody else has."""
    asked: dict[str, Any] = {
        "backend": {"type": kind} | ({} if name is None else {"name": name}),
        "circuit": {"source": "inline", "code": "see the file"},
        **spec,
    }
    return Plan(
        job=JobIdentity(namespace="lab", name="bell", uid=str(uuid.uuid4())),
        spec=from_wire(asked, QiskitJobSpec),
        source=PlannedSource(file="circuit.py", sha256="0" * 64),
        record="qiskit-job-bell-record",
        output_location="bell-results",
    )


def secret(folder: Path, values: Mapping[str, str]) -> Path:
    """A Secret as the kubelet mounts it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(value)
    return folder


@attrs.frozen
class Client:
    """A provider and a job's plan."""

    provider: Braket
    plan: Plan

    @classmethod
    def of(cls, plan: Plan, credentials: Path) -> Client:
        return cls(DRIVER.connect(plan, credentials), plan)

    @property
    def ticket(self) -> Ticket:
        return Ticket(self.plan.job.uid, 1)

    @property
    def backend(self) -> str:
        return self.plan.spec.backend.name or ""

    def prepare(self, circuit: QuantumCircuit) -> QuantumCircuit:
        return self.provider.prepare(circuit, self.backend, self.plan)

    def submit(self, circuit: QuantumCircuit) -> RemoteJob:
        """Prepare and submit."""
        prepared = self.prepare(circuit)
        return self.provider.submit(prepared, self.backend, self.plan, self.ticket)

    def over(self, job: RemoteJob) -> RemoteJob:
        """The job when it is over."""
        deadline = time.monotonic() + SECONDS
        while not job.state.over:
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
            job = self.provider.look(job.id)
        return job

    def run(self, circuit: QuantumCircuit) -> RunResult:
        """All of it."""
        prepared = self.prepare(circuit)
        job = self.provider.submit(prepared, self.backend, self.plan, self.ticket)
        return self.provider.result(self.over(job).id, prepared, self.plan)
