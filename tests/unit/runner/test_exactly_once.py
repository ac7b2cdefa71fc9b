"""Many jobs, killed at random moments: each is paid for once, and has its own result.

The executors are real processes that are killed with SIGKILL. Some are not killed but forgotten,
as on a node that the cluster has lost sight of, and go on beside those in their place. The service
(``tests/standins/ibm``) takes submissions and loses the answer; its listing is late. The API
server loses answers too. Each circuit prepares a bit string of its own, so that a result that came
to somebody else would be seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from qiskit import QuantumCircuit

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.qiskitjob import BackendSpec, QiskitJobSpec, SessionMode
from qiskit_controller.api.run import JobIdentity, Plan, PlannedSource, Reason, Report
from qiskit_controller.drivers.ibm_quantum import runner as ibm_runner
from qiskit_controller.drivers.remote import HasSessions
from qiskit_controller.runner.plan import plan_of_backend
from tests.standins.ibm.client import Ibm, running

from .support import REPOSITORY, ApiServer, Pod, Request

DEVICES = ("ibm_manila", "ibm_brisbane", "ibm_sherbrooke")
QUBITS = 5
SHOTS = 16
AT_A_TIME = 16
# Of 100 executors, how many are killed, and how many are forgotten.
KILLED, FORGOTTEN = 45, 8
SECRET = "of-this-job"


def circuit_of(number: int) -> QuantumCircuit:
    """Prepares the number's lowest bits, surely."""
    circuit = QuantumCircuit(QUBITS, QUBITS)
    for bit in range(QUBITS):
        if number >> bit & 1:
            circuit.x(bit)
    circuit.measure(range(QUBITS), range(QUBITS))
    return circuit


@attrs.define
class Job:
    """One QiskitJob, and what the controller knows of it."""

    number: int
    uid: str
    pod: Pod
    attempt: int = 0
    ticket: int = 1
    report: Report | None = None
    pids: list[int] = attrs.field(factory=list)


@attrs.define
class Nursery:
    """Processes that execute; see :mod:`nursery`."""

    process: subprocess.Popen[bytes]
    alive: dict[int, dict[str, Any]] = attrs.field(factory=dict)
    _rest: bytes = b""

    def order(self, order: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()

    def news(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """What has happened since; does not wait."""
        assert self.process.stdout is not None
        while True:
            try:
                self._rest += os.read(self.process.stdout.fileno(), 1 << 16)
            except BlockingIOError:
                break
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                pid, order = json.loads(line)
                yield pid, order


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.runner.nursery"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    made = Nursery(process)
    try:
        yield made
    finally:
        for pid in made.alive:
            os.kill(pid, signal.SIGKILL)
        process.stdin.close()  # type: ignore[union-attr]
        process.wait(30)


class Unreliable:
    """An API server whose answers get lost now and then, before or after the effect."""

    def __init__(self, server: ApiServer, fate: random.Random) -> None:
        self.server, self.fate, self.inside = server, fate, False

    def __call__(self, request: Request, _before: int) -> tuple[int, Mapping[str, Any]] | None:
        if self.inside or self.fate.random() > 0.04:
            return None
        if self.fate.random() < 0.5:
            self.inside = True
            try:
                self.server.answer(request)
            finally:
                self.inside = False
        return 503, {"message": "not now"}


def open_sessions(folder: Path, ibm: Ibm) -> dict[str, str]:
    """A session on each of the devices, by device; every other one is shared."""
    folder.mkdir()
    for key, value in ibm.secret.items():
        (folder / key).write_text(value)
    plan = plan_of_backend(BackendSpec(type="ibm_quantum"))
    provider = ibm_runner.DRIVER.connect(plan, folder)
    assert isinstance(provider, HasSessions)
    modes: tuple[SessionMode, ...] = ("dedicated", "shared", "dedicated")
    return {
        device: provider.open_session(device, mode, None).id
        for device, mode in zip(DEVICES, modes, strict=True)
    }


def lay_out(
    folder: Path, number: int, server: ApiServer, ibm: Ibm, sessions: Mapping[str, str]
) -> Job:
    uid = str(uuid.uuid4())
    pod = Pod(folder)
    record, output = f"record-{number}", f"results-{number}"
    asked = {
        "backend": {"type": "ibm_quantum", "name": DEVICES[number % len(DEVICES)]},
        "circuit": {"source": "inline", "code": "see the file"},
        "execution": {"shots": SHOTS, "optimizationLevel": 0},
        "credentials": {"secretRef": {"name": "ibm"}},
    }
    code = b"# made by hand\n"
    plan = Plan(
        job=JobIdentity(namespace="default", name=f"job-{number}", uid=uid),
        spec=from_wire(asked, QiskitJobSpec),
        source=PlannedSource(file="circuit.py", sha256=hashlib.sha256(code).hexdigest()),
        record=record,
        output_location=output,
        session=sessions.get(DEVICES[number % len(DEVICES)]),
    )
    paths = pod.paths
    for each in (paths.input, paths.work, paths.token, paths.credentials):
        each.mkdir(parents=True)
    paths.termination_log.parent.mkdir(parents=True)
    (paths.input / "plan.json").write_text(json.dumps(to_wire(plan)))
    (paths.input / "circuit.py").write_bytes(code)
    (paths.token / "token").write_text(server.token)
    (paths.token / "ca.crt").touch()
    for key, value in ibm.secret.items():
        (paths.credentials / key).write_text(value)
    for each in (record, output):
        server.create(each, {"quantum.io/job-uid": uid})
    pod.leave(circuit_of(number))
    return Job(number, uid, pod)


def start(job: Job, nursery: Nursery, server: ApiServer) -> None:
    job.attempt += 1
    job.report = None
    job.pod.paths.termination_log.write_text("")
    nursery.order(
        {
            "root": str(job.pod.root),
            "number": job.number,
            "attempt": job.attempt,
            "ticket": job.ticket,
            "server": server.url,
        }
    )


def told(job: Job) -> Report | None:
    """The report of the current attempt, if it left one."""
    text = job.pod.paths.termination_log.read_text()
    report = from_wire(json.loads(text), Report) if text else None
    return report if report is not None and report.attempt == job.attempt else None


@pytest.mark.parametrize(
    ("jobs", "in_sessions"),
    [
        pytest.param(3, False),
        pytest.param(30, True, marks=pytest.mark.extended),
        pytest.param(200, False, marks=pytest.mark.extended),
    ],
)
@pytest.mark.timeout(1500)
def test_each_job_is_submitted_once(
    jobs: int,
    in_sessions: bool,
    tmp_path: Path,
    server: ApiServer,
    nursery: Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # To open sessions sets them, for this process.
    for name in ("IAM_URL", "QISKIT_FUNCTIONS_EXPERIMENTAL"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    fate = random.Random(jobs)
    server.interfere = Unreliable(server, fate)
    with running() as ibm:
        ibm.set(listing_lag=0.8, queue_seconds=0.3)
        sessions = open_sessions(tmp_path / "account", ibm) if in_sessions else {}
        waiting = [lay_out(tmp_path / str(n), n, server, ibm, sessions) for n in range(jobs)]
        by_number = {each.number: each for each in waiting}
        done: list[Job] = []
        doomed: dict[int, float] = {}
        killed = forgotten = 0
        deadline = time.monotonic() + 1400
        while len(done) < jobs:
            assert time.monotonic() < deadline, f"{len(done)} of {jobs} are done"
            under_way = {each["number"] for each in nursery.alive.values()}
            while waiting and len(under_way) < AT_A_TIME:
                job = waiting.pop(0)
                under_way.add(job.number)
                if fate.random() < 0.15:
                    # Taken, and then no answer; or not taken at all.
                    status = fate.choice([0, 502, 503])
                    after = fate.random() < 0.7
                    ibm.fault("POST", "/jobs$", status, times=1, after=after)
                start(job, nursery, server)
            for pid, order in nursery.news():
                if order is not None:
                    nursery.alive[pid] = order
                    if fate.random() * 100 < KILLED:
                        doomed[pid] = time.monotonic() + fate.uniform(0.0, 6.0)
                    elif fate.random() * 100 < FORGOTTEN:
                        # The controller sees it lost and starts the next; it goes on.
                        forgotten += 1
                        nursery.alive[pid] = {**order, "number": -order["number"] - 1}
                        waiting.append(by_number[order["number"]])
                    continue
                ended = nursery.alive.pop(pid, None)
                doomed.pop(pid, None)
                if ended is None or ended["number"] < 0:
                    continue
                job = by_number[ended["number"]]
                report = told(job)
                if report is None or report.reason is Reason.EXECUTOR_FAILED:
                    waiting.insert(0, job)
                elif report.reason is not None:
                    raise AssertionError(f"{report.reason}: {report.message}")
                else:
                    job.report = report
                    done.append(job)
            for pid, when in list(doomed.items()):
                if time.monotonic() >= when and pid in nursery.alive:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
                    del doomed[pid]
            time.sleep(0.05)
        ledger, opened = ibm.ledger, ibm.sessions
    # Each was paid for once, and in its session; nobody opened another one or closed it.
    assert all(each["session"] == sessions.get(each["backend"]) for each in ledger)
    assert set(opened) == set(sessions.values())
    assert all(each["accepting_jobs"] for each in opened.values())
    tickets = Counter(tag for each in ledger for tag in each["tags"] if tag != "qiskit-controller")
    assert set(tickets) == {f"{each.uid}-1" for each in done}
    assert set(tickets.values()) == {1}
    assert len(ledger) == jobs
    # Each has its own result.
    for job in done:
        assert job.report is not None
        assert job.report.counts == {f"{job.number % 2**QUBITS:0{QUBITS}b}": SHOTS}
        stored = json.loads(server.data(f"results-{job.number}")["results.json"])
        assert stored["job"]["uid"] == job.uid
        assert stored["counts"] == job.report.counts
    print(f"{jobs} jobs, {killed} killed, {forgotten} forgotten, {len(ledger)} submissions")
    if jobs > 50:
        assert killed > jobs / 4
        assert forgotten > 3
