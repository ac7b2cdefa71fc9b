"""A QiskitJob's pods on this machine, one after the other, as the controller would start them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from qiskit import QuantumCircuit

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.run import Plan, PlannedSource, Reason, Report, Submission
from qiskit_controller.runner import executor, keeping, storing
from qiskit_controller.runner.cluster import Cluster
from qiskit_controller.runner.remote import Pace
from qiskit_controller.runner.stores import configmap
from tests.unit.runner.support import OUTPUT, RECORD, ApiServer, Pod, no_timer

from .support import plan_for, secret

# Everything a hundred times as fast as with a provider that has to be paid.
FAST = Pace(
    before=3.0,
    cancelling=3.0,
    ending=3.0,
    submitting=2.0,
    first=0.05,
    longest=0.2,
    queued=(0.05, 0.1),
    running=(0.05, 0.1),
    telling=0.1,
    cluster=20.0,
)
CODE = "# the circuit is laid out by the test"


@attrs.define
class Job:
    """A QiskitJob: its plan, its ConfigMaps, and the pods that it has had."""

    plan: Plan
    pod: Pod
    server: ApiServer
    attempts: int = 0
    reports: list[Report] = attrs.field(factory=list)

    @classmethod
    def of(
        cls,
        root: Path,
        server: ApiServer,
        circuit: QuantumCircuit,
        backend: str,
        credentials: Mapping[str, str],
        **spec: Any,
    ) -> Job:
        """Lay everything out; `server` has to be served."""
        pod = Pod(root)
        pod.plan(CODE)
        digest = hashlib.sha256(CODE.encode()).hexdigest()
        plan = attrs.evolve(
            plan_for(backend, **spec), source=PlannedSource(file="circuit.py", sha256=digest)
        )
        plan = attrs.evolve(
            plan, job=attrs.evolve(plan.job, namespace="default"), output_location=OUTPUT
        )
        (pod.paths.input / "plan.json").write_text(json.dumps(to_wire(plan)))
        for name in (OUTPUT, RECORD):
            server.create(name, {"quantum.io/job-uid": plan.job.uid})
        (pod.paths.token / "token").write_text(server.token)
        secret(pod.paths.credentials, credentials)
        pod.leave(circuit)
        return cls(plan, pod, server)

    @property
    def uid(self) -> str:
        return self.plan.job.uid

    def submissions(self) -> list[Submission]:
        """What is in the record."""
        data = self.server.data(RECORD)
        found = [key for key in data if key.startswith("submission-")]
        return [from_wire(json.loads(data[key]), Submission) for key in sorted(found)]

    def next_pod(self) -> dict[str, Any]:
        """What the controller tells the next pod: the arguments of :func:`execute`."""
        self.attempts += 1
        number = 1 + sum(each.reason is Reason.PROVIDER_JOB_FAILED for each in self.reports)
        known = {each.ticket: each.id for each in self.submissions()}
        return {
            "root": self.pod.root,
            "url": self.server.url,
            "attempt": self.attempts,
            "ticket": number,
            "provider_job": known.get(number),
        }

    def run(self) -> Report:
        """The next pod, in this process."""
        execute(**self.next_pod())
        return self.ended()

    def ended(self) -> Report:
        """The report of the pod that has ended."""
        self.reports.append(self.pod.report())
        self.pod.paths.termination_log.write_text("")
        return self.reports[-1]

    def counts(self) -> dict[str, int]:
        """What is stored."""
        found: dict[str, int] = json.loads(self.server.data(OUTPUT)["counts"])
        return found


def execute(root: Path, url: str, attempt: int, ticket: int, provider_job: str | None) -> int:
    """The stage executor, in this process; its exit code."""
    # Patience is for real outages.
    storing.CHECK_SECONDS = storing.KEPT_SECONDS = storing.UNKEPT_SECONDS = 4.0
    configmap.FORBIDDEN_SECONDS, configmap.REQUEST_SECONDS = 1.0, 2.0
    keeping.KEEP_SECONDS = executor.PROGRESS_SECONDS = 5.0
    pod = Pod(root)
    return executor.run_stage(
        pod.paths,
        attempt,
        no_timer(),
        lambda paths, namespace: Cluster(url, paths.token, namespace),
        ticket=ticket,
        provider_job=provider_job,
        pace=FAST,
    )


def execute_alone(root: Path, log: Path, **pod: Any) -> None:
    """:func:`execute` as all that a process does, with what it prints in a file."""
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    os._exit(execute(root, **pod))
