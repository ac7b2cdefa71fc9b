"""Sessions of ``ibm_quantum``: as the pod opens and closes them, and as a job runs in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
import qiskit_ibm_runtime

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.qiskitjob import BackendSpec, QiskitJobSpec
from qiskit_controller.api.run import (
    ASSIGNMENT_KEY,
    MAX_REPORT_BYTES,
    PLAN_ENV,
    SESSION_ENV,
    Assignment,
    Reason,
    SessionAction,
    SessionReport,
    SessionRequest,
)
from qiskit_controller.drivers.ibm_quantum import account
from qiskit_controller.drivers.ibm_quantum import runner as ibm_runner
from qiskit_controller.drivers.ibm_quantum.controller import DRIVER as CONTROLLER_HALF
from qiskit_controller.drivers.remote import Provider, Ticket
from qiskit_controller.runner import cancel_stage, devices, sessions
from qiskit_controller.runner.pod import Paths
from tests.standins.ibm.client import Ibm

from .ibm_support import DEVICE, FAST, Make, Run
from .support import RECORD, REPOSITORY, bell

CRN = "crn:v1:bluemix:public:quantum-computing:eu-de:a/1:2::"


@attrs.define
class Account:
    """The pod that does something about sessions."""

    paths: Paths
    ibm: Ibm
    setenv: Callable[[str, str], None]

    def __call__(self, action: SessionAction, id: str | None = None, **asked: Any) -> SessionReport:
        """One pod, from its request to its report."""
        self.request(action, id, **asked)
        code = sessions.run_session(self.paths)
        report = self.report()
        assert code == (0 if report.reason is None else 1)
        return report

    def request(self, action: SessionAction, id: str | None = None, **asked: Any) -> str:
        backend = BackendSpec(
            type=asked.pop("type", "ibm_quantum"),
            name=asked.pop("name", DEVICE),
            instance=asked.pop("instance", None),
        )
        request = SessionRequest(action=action, backend=backend, id=id, **asked)
        text = json.dumps(to_wire(request))
        self.setenv(SESSION_ENV, text)
        return text

    def report(self) -> SessionReport:
        text = self.paths.termination_log.read_text()
        assert len(text.encode()) <= MAX_REPORT_BYTES
        return from_wire(json.loads(text), SessionReport)

    def opened(self, **asked: Any) -> str:
        report = self("open", **asked)
        assert report.reason is None, report.message
        assert report.id is not None
        return report.id

    def looked(self, id: str) -> SessionReport:
        report = self("look", id)
        assert report.reason is None, report.message
        return report


@pytest.fixture
def session(ibm: Ibm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    paths = Paths.under(tmp_path / "pod-of-the-session")
    paths.credentials.mkdir(parents=True)
    paths.termination_log.parent.mkdir(parents=True)
    for key, value in ibm.secret.items():
        (paths.credentials / key).write_text(value)
    monkeypatch.setattr(sessions, "PATIENCE", timedelta(seconds=3))
    monkeypatch.setattr(devices, "FIRST_WAIT", timedelta(seconds=0.2))
    return Account(paths, ibm, monkeypatch.setenv)


@attrs.define
class Since:
    """What was asked of the service since."""

    ibm: Ibm
    begun: int

    def __call__(self, what: str) -> int:
        return sum(each.startswith(what) for each in self.ibm.asked[self.begun :])


@pytest.fixture
def asked(ibm: Ibm) -> Since:
    return Since(ibm, len(ibm.asked))


def connect(run: Run) -> Provider:
    """The provider as a pod of `run` would have it."""
    return ibm_runner.DRIVER.connect(run.plan, run.pod.paths.credentials)


def until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it does not come to be"
        time.sleep(0.05)
    return found


# --- opening ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "there", "instance"),
    [("dedicated", "dedicated", None), ("shared", "batch", CRN)],
)
def test_a_job_runs_in_a_session(
    session: Account,
    make: Make,
    ibm: Ibm,
    asked: Since,
    mode: str,
    there: str,
    instance: str | None,
) -> None:
    report = session("open", mode=mode, max_time=600, instance=instance)
    assert (report.reason, report.message) == (None, "")
    assert report.id is not None
    assert (report.backend, report.state) == (DEVICE, "open")
    assert (report.accepting, report.closed, report.expires_at) == (True, False, None)
    assert Decimal(report.usage or "-1") == 0
    made = ibm.sessions[report.id]
    assert (made["mode"], made["max_ttl"], made["backend_name"]) == (there, 600, DEVICE)

    ibm.set(run_seconds=1.0)
    run = make(
        session=report.id, backend={"type": "ibm_quantum", "name": DEVICE, "instance": instance}
    )
    ended = run()
    assert ended.reason is None, ended.message
    (sold,) = run.ledger
    assert (sold["session"], sold["tags"][0]) == (report.id, f"{run.uid}-1")

    now = session("look", report.id, instance=instance)
    assert (now.reason, now.accepting, now.closed) == (None, True, False)
    assert now.state == "active"
    activated = datetime.fromisoformat(ibm.sessions[report.id]["activated_at"])
    assert now.expires_at is not None
    expires = datetime.fromisoformat(now.expires_at)
    assert abs(expires - activated - timedelta(seconds=600)) < timedelta(seconds=1)
    assert Decimal(now.usage or "0") >= 1
    # The client opens none by itself, and closes none.
    assert (asked("POST /api/v1/sessions"), asked("PATCH"), asked("DELETE")) == (1, 0, 0)


def test_the_session_comes_with_the_assignment(session: Account, make: Make, ibm: Ibm) -> None:
    opened = session.opened()
    run = make(backend={"type": "ibm_quantum", "name": None})
    (run.pod.paths.input / "plan.json").write_text(
        json.dumps(to_wire(attrs.evolve(run.plan, select=True)))
    )
    assignment = Assignment(
        number=1, type="ibm_quantum", name=DEVICE, reason="RequestedBackend", session=opened
    )
    run.server.objects[RECORD]["data"] = {ASSIGNMENT_KEY: json.dumps(to_wire(assignment))}
    report = run()
    assert report.reason is None, report.message
    assert [each["session"] for each in run.ledger] == [opened]


def test_the_least_busy_device_is_taken_when_none_is_named(
    session: Account, make: Make, ibm: Ibm
) -> None:
    ibm.set(devices={"ibm_brisbane": "maintenance"}, held=True)
    try:
        run = make()
        run.begin()
        run.in_queue()
        assert session("open", name=None).backend == "ibm_sherbrooke"
        ibm.set(held=False, devices={"ibm_sherbrooke": "maintenance", DEVICE: "maintenance"})
        report = session("open", name=None)
        assert report.reason is Reason.BACKEND_UNAVAILABLE
        assert "ibm_sherbrooke" in report.message
    finally:
        ibm.set(devices={"ibm_brisbane": "active", "ibm_sherbrooke": "active", DEVICE: "active"})


def test_there_is_no_such_device(session: Account, asked: Since) -> None:
    report = session("open", name="ibm_atlantis")
    assert report.reason is Reason.BACKEND_REFUSED
    assert "ibm_atlantis" in report.message
    assert asked("POST /api/v1/sessions") == 0


def test_other_backends_have_no_sessions(session: Account) -> None:
    report = session("open", type="local_simulator", name=None)
    assert report.reason is Reason.UNSUPPORTED
    assert "local_simulator has no sessions" in report.message
    assert session("open", type="nothing", name=None).reason is Reason.UNSUPPORTED


def test_the_key_is_not_accepted(
    session: Account, ibm: Ibm, asked: Since, capsys: pytest.CaptureFixture[str]
) -> None:
    (session.paths.credentials / "api-key").write_text("wrong-and-secret")
    report = session("open")
    assert report.reason is Reason.BACKEND_DENIED
    assert "spec.credentials.secretRef" in report.message
    assert asked("POST /api/v1/sessions") == 0
    story = capsys.readouterr()
    assert "wrong-and-secret" not in story.out + story.err + report.message


@pytest.mark.parametrize("path", ["/identity/token", "/instances/usage"])
def test_the_service_is_down(session: Account, ibm: Ibm, asked: Since, path: str) -> None:
    ibm.fault("*", path, 503)
    begun = time.monotonic()
    report = session("open")
    assert report.reason is Reason.BACKEND_UNAVAILABLE
    assert "503" in report.message
    assert 1.0 < time.monotonic() - begun < 20
    assert asked("POST /api/v1/sessions") == 0


def test_the_service_comes_back(session: Account, ibm: Ibm, asked: Since) -> None:
    ibm.fault("*", "", 503, times=2)
    opened = session.opened()
    ibm.fault("GET", "/sessions/", 503, times=2)
    assert session.looked(opened).accepting
    ibm.fault("PATCH", "/sessions/", 502, times=1)
    assert session("close", opened).closed
    assert asked("POST /api/v1/sessions") == 1


@pytest.mark.parametrize("status", [502, 503, 0])
def test_the_answer_to_opening_is_lost(
    session: Account, ibm: Ibm, asked: Since, status: int
) -> None:
    """It may be there, so it is not opened a second time by the same pod."""
    before = set(ibm.sessions)
    ibm.fault("POST", "/sessions$", status, times=1, after=True)
    report = session("open")
    assert report.reason is Reason.BACKEND_UNAVAILABLE
    assert "may have been opened" in report.message
    assert asked("POST /api/v1/sessions") == 1
    # And nobody wants it: the service closes it.
    (lost,) = set(ibm.sessions) - before
    ibm.set(unused_seconds=0.1)
    until(lambda: ibm.sessions[lost]["state"] == "closed")
    assert ibm.sessions[lost]["elapsed_time"] == 0


def test_opening_was_turned_away(session: Account, ibm: Ibm, asked: Since) -> None:
    before = set(ibm.sessions)
    ibm.fault("POST", "/sessions$", 429, times=1, headers={"Retry-After": "1"})
    opened = session.opened()
    assert asked("POST /api/v1/sessions") == 2
    assert set(ibm.sessions) - before == {opened}


@pytest.mark.parametrize("status", [403, 404, 503])
def test_what_was_opened_is_told_though_it_cannot_be_looked_at(
    session: Account, ibm: Ibm, asked: Since, status: int
) -> None:
    ibm.fault("GET", "/sessions/", status)
    report = session("open")
    assert (report.reason, report.backend, report.accepting) == (None, DEVICE, True)
    assert report.id in ibm.sessions
    assert asked("POST /api/v1/sessions") == 1


def test_a_token_expires_before_it_is_opened(
    session: Account, ibm: Ibm, asked: Since, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected = account.Account.connect

    def connect(login: Any) -> Any:
        made = connected(login)
        ibm.set(expire_tokens=True)
        return made

    monkeypatch.setattr(account.Account, "connect", connect)
    before = set(ibm.sessions)
    opened = session.opened()
    assert set(ibm.sessions) - before == {opened}


def test_the_command(session: Account, ibm: Ibm) -> None:
    """As a process of its own, as the Kubernetes Job starts it."""
    text = session.request("open")
    root = session.paths.credentials.parents[1]
    command = [sys.executable, "-m", "qiskit_controller.runner", "session", "--root", str(root)]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, SESSION_ENV: text},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = session.report()
    assert report.id in ibm.sessions
    assert f"Session    {report.id} on {DEVICE}: open" in done.stdout
    assert ibm.key not in done.stdout + done.stderr


def test_the_controller_takes_a_job_with_a_session() -> None:
    wire = {
        "backend": {"type": "ibm_quantum"},
        "circuit": {"source": "inline", "code": "qc"},
        "credentials": {"secretRef": {"name": "ibm"}},
        "session": {"name": "vqe"},
    }
    assert not CONTROLLER_HALF.problems(from_wire(wire, QiskitJobSpec))


def test_a_report_fits() -> None:
    report = SessionReport(reason=Reason.BACKEND_REFUSED, message="ö" * 4000, id="s")
    text = sessions.encode_session(report)
    assert len(text.encode()) <= MAX_REPORT_BYTES
    assert from_wire(json.loads(text), SessionReport).reason is Reason.BACKEND_REFUSED


# --- closing ----------------------------------------------------------------------------------


def test_what_a_session_has_ends_when_it_is_closed(
    session: Account, make: Make, ibm: Ibm, asked: Since
) -> None:
    opened = session.opened()
    run = make(session=opened)
    ibm.set(held=True)
    end = run.begin()
    run.in_queue()
    report = session("close", opened)
    assert (report.reason, report.accepting, report.closed) == (None, False, False)
    ibm.set(held=False)
    assert end().reason is None
    report = until(lambda: (r := session.looked(opened)).closed and r)
    assert (report.accepting, report.state) == (False, "closed")
    assert Decimal(report.usage or "0") > 0
    assert asked("PATCH") == 1
    # Of a closed one, nothing.
    assert session("close", opened).closed
    assert asked("PATCH") == 1


def test_a_closed_session_takes_no_job(session: Account, make: Make, asked: Since) -> None:
    opened = session.opened()
    assert session("close", opened).closed
    run = make(session=opened)
    report = run()
    assert report.reason is Reason.SESSION_CLOSED
    assert opened in report.message
    assert "another session" in report.message
    assert not run.ledger
    assert run.submission() is None
    assert asked("POST /api/v1/jobs") == 1


def test_a_job_is_refused_and_then_the_service_is_down(
    session: Account, make: Make, ibm: Ibm
) -> None:
    """It was refused; so it is submitted again, to find out why."""
    opened = session.opened()
    session("close", opened)
    run = make(session=opened)
    ibm.fault("GET", "/sessions/", 503, times=2)
    report = run()
    assert report.reason is Reason.SESSION_CLOSED
    assert not run.ledger


def test_a_session_that_ibm_does_not_know(session: Account, make: Make, asked: Since) -> None:
    run = make(session="s-long-gone")
    report = run()
    assert report.reason is Reason.SESSION_CLOSED
    assert "s-long-gone" in report.message
    assert not run.ledger
    for told in (session("look", "s-long-gone"), session("close", "s-long-gone")):
        assert (told.reason, told.closed, told.accepting) == (None, True, False)
        assert told.state == "unknown"
    assert asked("PATCH") == 0


def test_a_job_is_refused_for_another_reason(session: Account, make: Make, ibm: Ibm) -> None:
    opened = session.opened()
    body = {"errors": [{"code": 1002, "message": "the job is not valid"}]}
    ibm.fault("POST", "/jobs$", 400, times=1, body=body)
    report = make(session=opened)()
    assert report.reason is Reason.BACKEND_REFUSED
    assert "the job is not valid" in report.message


def test_the_session_is_on_another_device(session: Account, make: Make) -> None:
    opened = session.opened(name="ibm_brisbane")
    run = make(session=opened)
    report = run()
    assert report.reason is Reason.INVALID_SPEC
    assert "ibm_brisbane" in report.message
    assert not run.ledger


# --- the maximum time -------------------------------------------------------------------------


def submitted(run: Run) -> str:
    """The id of the run's one job, from the service."""
    found: str = until(lambda: run.ledger)[0]["id"]
    return found


def test_a_session_ends_while_a_job_waits_in_it(session: Account, make: Make, ibm: Ibm) -> None:
    """The service fails the job; what runs goes on."""
    opened = session.opened(mode="shared")
    first = make(session=opened)
    ibm.set(run_seconds=10.0)
    ends = first.begin()
    running = submitted(first)
    until(lambda: ibm.jobs[running]["status"] == "Running")
    # Another QiskitJob of the same session, without a pod of its own: it waits behind the first.
    provider = connect(first)
    circuit = provider.prepare(bell(), DEVICE, first.plan)
    other = attrs.evolve(first.plan, job=attrs.evolve(first.plan.job, uid="another"))
    waiting = provider.submit(circuit, DEVICE, other, Ticket("another", 1))
    ibm.expire(opened)
    seen = provider.look(waiting.id)
    assert (seen.state, seen.session_closed, seen.transient) == ("Failed", True, False)
    assert "has been closed" in seen.detail
    now = session.looked(opened)
    assert (now.accepting, now.state) == (False, "closed")
    assert not now.closed  # the first runs still
    assert ends().reason is None
    assert session.looked(opened).closed


@pytest.mark.parametrize("how", ["its time is over", "somebody cancels it at IBM"])
def test_a_job_whose_session_ends_is_not_submitted_again(
    session: Account, make: Make, ibm: Ibm, how: str
) -> None:
    opened = session.opened()
    run = make(session=opened)
    ibm.set(held=True)
    end = run.begin()
    known = run.in_queue()
    if how == "its time is over":
        ibm.expire(opened)
    else:
        service = connect(run).account.service  # type: ignore[attr-defined]  of this driver
        qiskit_ibm_runtime.Session.from_id(opened, service).cancel()
    report = end()
    assert report.reason is Reason.SESSION_CLOSED
    assert report.reason.retry == "never"
    for each in (opened, known.id, "maxTime", "another session"):
        assert str(each) in report.message
    # A pod that comes later finds the same, and submits nothing.
    assert run(attempt=2).reason is Reason.SESSION_CLOSED
    assert [each["id"] for each in run.ledger] == [known.id]
    last = run.submission()
    assert last is not None
    assert last.state == "Failed"


def test_the_time_counts_from_the_first_job(session: Account, make: Make, ibm: Ibm) -> None:
    opened = session.opened(max_time=3)
    time.sleep(3.5)
    assert session.looked(opened).accepting
    run = make(session=opened)
    assert run().reason is None
    until(lambda: ibm.sessions[opened]["state"] == "closed")
    report = session.looked(opened)
    assert (report.accepting, report.closed) == (False, True)
    assert make(session=opened)().reason is Reason.SESSION_CLOSED


def test_the_session_ends_while_a_submission_is_looked_for(
    session: Account, make: Make, ibm: Ibm
) -> None:
    """The answer was lost, and the job fails before it is found."""
    opened = session.opened()
    run = make(session=opened)
    ibm.set(held=True, listing_lag=1.0)
    ibm.fault("POST", "/jobs$", 503, times=1, after=True)
    end = run.begin()
    submitted(run)
    ibm.expire(opened)
    assert end().reason is Reason.SESSION_CLOSED
    assert len(run.ledger) == 1


@pytest.mark.parametrize("after", [True, False])
def test_the_answer_to_a_submission_is_lost(
    session: Account, make: Make, ibm: Ibm, after: bool
) -> None:
    opened = session.opened()
    run = make(session=opened)
    ibm.set(listing_lag=0.4)
    ibm.fault("POST", "/jobs$", 503, times=1, after=after)
    assert run().reason is None
    assert [each["session"] for each in run.ledger] == [opened]


# --- what else a job does ---------------------------------------------------------------------


def test_the_next_pod_resumes_after_the_session_was_closed(
    session: Account, make: Make, ibm: Ibm
) -> None:
    opened = session.opened()
    run = make(session=opened)
    ibm.set(held=True)
    run.begin()  # and never looked at again, as on a node that was cut off
    known = run.in_queue()
    session("close", opened)
    end = run.begin(attempt=2)
    time.sleep(1)
    ibm.set(held=False)
    assert end().reason is None
    assert [each["id"] for each in run.ledger] == [known.id]


def test_a_job_is_cancelled_and_its_session_goes_on(
    session: Account, make: Make, ibm: Ibm, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = session.opened()
    run = make(session=opened)
    ibm.set(held=True)
    run.begin()
    known = run.in_queue()
    monkeypatch.setenv(PLAN_ENV, json.dumps(to_wire(attrs.evolve(run.plan, session=None))))
    assert cancel_stage.run_stage(run.pod.paths, 1, None, FAST) == 0
    assert known.id is not None
    assert ibm.jobs[known.id]["status"] == "Cancelled"
    assert session.looked(opened).accepting


def test_an_active_dedicated_session_has_its_device_to_itself(
    session: Account, make: Make, ibm: Ibm
) -> None:
    opened = session.opened()
    ibm.set(interactive_seconds=60.0)
    inside = make(session=opened)
    assert inside().reason is None
    provider = connect(inside)
    circuit = provider.prepare(bell(), DEVICE, inside.plan)
    alone = attrs.evolve(inside.plan, session=None)
    outside = provider.submit(circuit, DEVICE, alone, Ticket("outside", 1))
    second = provider.submit(circuit, DEVICE, inside.plan, Ticket("inside", 1))
    until(lambda: provider.look(second.id).state == "Done")
    assert provider.look(outside.id).state == "Queued"
    assert session("close", opened).closed
    until(lambda: provider.look(outside.id).state == "Done")
