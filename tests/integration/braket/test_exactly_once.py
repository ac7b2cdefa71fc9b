"""Two hundred jobs whose executor is killed again and again: each is one task at Amazon Braket.

The executor runs in processes of its own, made by a server that has imported all of it already,
and is killed with SIGKILL: at a random moment, or at one of its requests to the API server, before
or after that has its effect. Now and then Braket's answer to a submission is lost as well. What
comes next is what the controller would start.
"""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.standins.braket.catalogue import GARNET, SV1
from tests.standins.braket.client import Standin, running
from tests.unit.braket.executing import Job, execute_alone
from tests.unit.braket.samples import bell
from tests.unit.runner.support import ApiServer, Request, serve

pytestmark = [pytest.mark.extended, pytest.mark.timeout(900)]

JOBS = 200
AT_A_TIME = 4
KILLS = 2  # of one job; then it is left alone
SEED = 20260930
SHOTS = 20

_PROCESSES = multiprocessing.get_context("forkserver")
# How a process has ended is told once, and starting one asks after all others too: one thread at
# a time, or another than the one that is told takes it for a failure.
_ONE = threading.Lock()


@pytest.fixture(scope="module")
def standin() -> Iterator[Standin]:
    _PROCESSES.set_forkserver_preload(
        [
            "tests.unit.braket.executing",
            "qiskit_controller.drivers.aws_braket.sdk",
            # A plugin of the transpiler, so every pod imports it.
            "qiskit_ibm_runtime",
            "scipy.optimize",
            "qiskit_braket_provider",
        ]
    )
    with running() as made:
        # Tasks take their time in the queue, and are not listed at once.
        for arn in (SV1, GARNET):
            made.device(arn, run_seconds=0.1, listed_after=0.3)
        yield made


def _ended(process: BaseProcess, seconds: float) -> bool:
    """Whether it ends in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with _ONE:
            if not process.is_alive():
                return True
        time.sleep(0.02)
    return False


@attrs.define
class Killer:
    """Ends one process, at the moment that was drawn.

    Attributes:
        request: at this one of its requests to the API server.
        seconds: after this time.
        after: when the request has had its effect.
    """

    process: BaseProcess
    request: int | None
    seconds: float | None
    after: bool
    seen: int = 0

    def meet(self, api: ApiServer, request: Request) -> tuple[int, Any] | None:
        """Instead of the API server: see ``ApiServer.interfere``."""
        self.seen += 1
        if self.request is None or self.seen != self.request:
            return None
        if self.after:
            # Its effect, without an answer.
            self.request = None
            api.answer(request)
        self.process.kill()
        return 0, {}


@attrs.define
class Run:
    """One job until it has its result."""

    number: int
    root: Path
    standin: Standin
    how: Counter[str] = attrs.field(factory=Counter)
    dice: random.Random = attrs.field(
        default=attrs.Factory(lambda self: random.Random(SEED + self.number), takes_self=True)
    )

    def run(self) -> Job:
        api = ApiServer()
        http = serve(api)
        try:
            backend = SV1 if self.number % 2 else GARNET
            job = Job.of(
                self.root,
                api,
                bell(),
                backend,
                self.standin.secret(),
                execution={"shots": SHOTS},
            )
            while True:
                if self.pod(job, api, kill=self.how["killed"] < KILLS):
                    return job
                assert job.attempts < 20, (self.root / "log").read_text()
        finally:
            http.shutdown()
            http.server_close()

    def pod(self, job: Job, api: ApiServer, *, kill: bool) -> bool:
        """The next pod; whether the job has its result."""
        if self.dice.random() < 0.2:
            self.standin.fault("CreateQuantumTask", "lose")
        process = _PROCESSES.Process(
            target=execute_alone, kwargs={"log": self.root / "log", **job.next_pod()}
        )
        with _ONE:
            process.start()
        killer = self.killer(process) if kill else Killer(process, None, None, False)
        api.interfere = lambda request, _before: killer.meet(api, request)
        if killer.seconds is not None and not _ended(process, killer.seconds):
            process.kill()
        assert _ended(process, 120), "the executor hangs"
        assert process.exitcode is not None
        if process.exitcode < 0:
            self.how["killed"] += 1
            job.pod.paths.termination_log.write_text("")
            return False
        self.how["ended"] += 1
        report = job.ended()
        assert report.reason is None, report
        return True

    def killer(self, process: BaseProcess) -> Killer:
        if self.dice.random() < 0.3:
            return Killer(process, None, self.dice.uniform(0.05, 2.0), False)
        return Killer(process, self.dice.randint(1, 9), None, self.dice.random() < 0.5)


def test_200_jobs_are_200_tasks(standin: Standin, tmp_path: Path) -> None:
    begun = time.monotonic()
    runs = [Run(number, tmp_path / f"job-{number}", standin) for number in range(JOBS)]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        jobs = list(pool.map(Run.run, runs))
    ledger = standin.ledger()
    by_job = Counter(each["tags"]["quantum.io/job-uid"] for each in ledger["tasks"])
    assert by_job == {job.uid: 1 for job in jobs}
    assert all(each["executions"] == 1 for each in ledger["tasks"])
    assert {each["status"] for each in ledger["tasks"]} == {"COMPLETED"}
    for job in jobs:
        assert sum(job.counts().values()) == SHOTS
        (submission,) = job.submissions()
        (task,) = (
            each for each in ledger["tasks"] if each["tags"]["quantum.io/job-uid"] == job.uid
        )
        assert submission.id == task["quantumTaskArn"]
    kills = sum(run.how["killed"] for run in runs)
    outcomes = Counter(each["outcome"] for each in ledger["requests"])
    print(
        f"{JOBS} jobs, {kills} kills, {sum(job.attempts for job in jobs)} pods, "
        f"CreateQuantumTask: {dict(outcomes)}, {time.monotonic() - begun:.0f} s"
    )
    # It was put to the test: pods were killed, and submissions were made again.
    assert kills > JOBS
    assert outcomes["created"] == JOBS
    assert outcomes["repeated"] + outcomes["conflict"] > 0
