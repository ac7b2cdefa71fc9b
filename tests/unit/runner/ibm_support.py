"""A QiskitJob of ``ibm_quantum`` on this machine, and the service that it runs at.

The service is a process of its own (``tests/standins/ibm``), the client is IBM's own.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from qiskit import QuantumCircuit

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.run import (
    Plan,
    Progress,
    Report,
    Submission,
    progress_key,
    submission_key,
)
from qiskit_controller.drivers.ibm_quantum import runner as ibm_runner
from qiskit_controller.runner import executor
from qiskit_controller.runner.cluster import Cluster
from qiskit_controller.runner.remote import Pace
from tests.standins.ibm.client import Ibm, running

from .support import BELL, OUTPUT, RECORD, ApiServer, Pod, bell, no_timer

FAST = Pace(
    before=9.0,
    cancelling=3.0,
    ending=5.0,
    submitting=1.0,
    first=0.1,
    longest=0.5,
    queued=(0.1, 0.3),
    running=(0.1, 0.3),
    telling=0.0,
    cluster=5.0,
)
DEVICE = "ibm_manila"


@pytest.fixture(scope="module")
def service() -> Iterator[Ibm]:
    with running() as ibm:
        yield ibm


@pytest.fixture
def ibm(service: Ibm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Ibm]:
    """The service in order, at the beginning and at the end; and a home folder to be watched."""
    # The client tells by these which service it talks to; the executor's process sets them.
    for name in ("IAM_URL", "QISKIT_FUNCTIONS_EXPERIMENTAL"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.setattr(ibm_runner, "READ_SECONDS", 1.0)
    monkeypatch.setattr(ibm_runner, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(ibm_runner, "LISTING_SECONDS", 0.5)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    try:
        yield service
    finally:
        service.mend()
        for each in service.sessions:
            service.expire(each)
        service.set(
            keys=[service.key],
            token_seconds=3600.0,
            queue_seconds=0.0,
            run_seconds=0.05,
            held=False,
            listing_lag=0.0,
            expired=False,
            session_seconds=28_800,
            interactive_seconds=5.0,
            unused_seconds=1800.0,
            devices={DEVICE: "active"},
            online={DEVICE: True},
        )
    assert not list(home.rglob("*")), "the root file system of a pod cannot be written"


@attrs.define
class Run:
    """One QiskitJob of the test's own, at the service."""

    pod: Pod
    server: ApiServer
    ibm: Ibm
    plan: Plan

    @property
    def uid(self) -> str:
        return self.plan.job.uid

    def __call__(self, attempt: int = 1, ticket: int = 1, pace: Pace = FAST) -> Report:
        """One pod, from the executor's begin to its report."""
        executor.run_stage(
            self.pod.paths,
            attempt,
            no_timer(),
            lambda paths, ns: Cluster(self.server.url, paths.token, ns),
            ticket=ticket,
            pace=pace,
        )
        return self.pod.report()

    def begin(self, **how: Any) -> Callable[[], Report]:
        """The same in the background; the answer waits for its end."""
        reports: list[Report] = []
        thread = threading.Thread(target=lambda: reports.append(self(**how)), daemon=True)
        thread.start()

        def end() -> Report:
            thread.join(90)
            assert reports, "the executor goes on and on"
            return reports[0]

        return end

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """What was submitted for this QiskitJob."""
        return [
            each
            for each in self.ibm.ledger
            if any(tag.startswith(self.uid) for tag in each["tags"])
        ]

    def submission(self, ticket: int = 1) -> Submission | None:
        text = self.server.data(RECORD).get(submission_key(ticket))
        return from_wire(json.loads(text), Submission) if text else None

    def progress(self, attempt: int = 1) -> Progress | None:
        text = self.server.data(RECORD).get(progress_key(attempt))
        return from_wire(json.loads(text), Progress) if text else None

    def until(self, what: Callable[[], Any], seconds: float = 30.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < deadline, "it does not come to be"
            time.sleep(0.05)
        return found

    def in_queue(self) -> Submission:
        """Wait until the executor waits."""
        found: Submission = self.until(
            lambda: (s := self.submission()) and s.state == "Queued" and s.id and s
        )
        return found


Make = Callable[..., Run]


@pytest.fixture
def make(pod: Pod, server: ApiServer, ibm: Ibm) -> Make:
    def made(
        circuit: QuantumCircuit | None = None,
        secret: dict[str, str] | None = None,
        session: str | None = None,
        **spec: Any,
    ) -> Run:
        asked = {"backend": {"type": "ibm_quantum", "name": DEVICE}, **spec}
        plan = pod.plan(BELL, spec=asked)
        # Its own UID: the service remembers tickets beyond a test.
        job = attrs.evolve(plan.job, uid=str(uuid.uuid4()))
        plan = attrs.evolve(plan, job=job, session=session)
        (pod.paths.input / "plan.json").write_text(json.dumps(to_wire(plan)))
        for each in (OUTPUT, RECORD):
            server.create(each, {"quantum.io/job-uid": plan.job.uid})
        (pod.paths.token / "token").write_text(server.token)
        (pod.paths.token / "ca.crt").touch()
        pod.paths.credentials.mkdir(parents=True, exist_ok=True)
        for key, value in (ibm.secret if secret is None else secret).items():
            (pod.paths.credentials / key).write_text(value + "\n")
        pod.leave(bell() if circuit is None else circuit)
        return Run(pod, server, ibm, plan)

    return made
