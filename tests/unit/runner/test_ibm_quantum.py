"""``ibm_quantum`` as the executor runs it, against a service that speaks IBM's protocol.

The service is a process of its own (``tests/standins/ibm``), the client is IBM's own.
"""

from __future__ import annotations

import json
import socket
import time
from datetime import timedelta
from decimal import Decimal

import pytest
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.api.run import (
    PLAN_ENV,
    Reason,
    submission_key,
)
from qiskit_controller.drivers import RunFailed
from qiskit_controller.drivers.ibm_quantum import account
from qiskit_controller.drivers.ibm_quantum import runner as ibm_runner
from qiskit_controller.drivers.ibm_quantum.account import ANY_INSTANCE, Login
from qiskit_controller.drivers.remote import JobState, Ticket
from qiskit_controller.runner import cancel_stage
from qiskit_controller.runner.remote import Pace
from qiskit_controller.runner.stores.credentials import Credentials
from tests.standins.ibm.client import Ibm

from .ibm_support import DEVICE, FAST, Make
from .support import OUTPUT, RECORD, bell


def test_a_bell_state(make: Make, capsys: pytest.CaptureFixture[str], ibm: Ibm) -> None:
    run = make(execution={"shots": 2000, "timeout": "5m"})
    report = run()
    assert report.reason is None, report.message
    assert set(report.counts) == {"00", "11"}
    # Five standard deviations of a fair coin.
    assert abs(report.counts["00"] - 1000) < 112
    assert (report.backend, report.shots) == (DEVICE, 2000)
    (sold,) = run.ledger
    assert sold["tags"] == [f"{run.uid}-1", "qiskit-controller"]
    assert (sold["shots"], sold["cost"]) == (2000, 300)
    known = run.submission()
    assert known is not None
    assert (known.id, known.state) == (sold["id"], "Done")
    stored = json.loads(run.server.data(OUTPUT)["results.json"])
    assert set(stored["transpiled"]["ops"]) <= {"cx", "rz", "sx", "x", "measure", "barrier"}
    story = capsys.readouterr()
    assert f"Submitted  job {sold['id']} to {DEVICE}" in story.out
    assert ibm.key not in story.out + story.err


def test_registers_and_shots_are_as_qiskit_has_them(make: Make) -> None:
    circuit = QuantumCircuit(
        QuantumRegister(3), ClassicalRegister(1, "a"), ClassicalRegister(2, "b")
    )
    circuit.x(0)
    circuit.x(2)
    circuit.measure([0, 1, 2], [0, 1, 2])
    run = make(circuit, output={"memory": True}, execution={"shots": 5})
    assert run().counts == {"10 1": 5}
    stored = json.loads(run.server.data(OUTPUT)["results.json"])
    assert stored["memory"] == ["10 1"] * 5


def test_the_queue_is_shown(make: Make, ibm: Ibm) -> None:
    run = make()
    ibm.set(held=True)
    end = run.begin()
    known = run.in_queue()
    known = run.until(lambda: (s := run.submission()) and s.estimated_start and s)
    assert known.queue_position == 0
    assert known.backend == DEVICE
    assert run.progress().stage == "Validated"  # type: ignore[union-attr]
    ibm.set(held=False)
    assert end().reason is None


def test_the_shortest_queue_is_taken_when_no_device_is_named(make: Make, ibm: Ibm) -> None:
    ibm.set(devices={"ibm_brisbane": "maintenance", "ibm_sherbrooke": "maintenance"})
    try:
        run = make(backend={"type": "ibm_quantum", "name": None})
        assert run().backend == DEVICE
    finally:
        ibm.set(devices={"ibm_brisbane": "active", "ibm_sherbrooke": "active"})


# --- credentials ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        ({"api-key": "wrong-and-secret"}, "Provided API key could not be found"),
        ({"password": "of something else"}, "there is no api-key"),
        ({"api-key": "a-key-for-it", "url": "ftp://example.org"}, "its url is not one of http(s)"),
    ],
)
def test_a_key_is_not_accepted(
    make: Make, ibm: Ibm, capsys: pytest.CaptureFixture[str], secret: dict[str, str], says: str
) -> None:
    run = make(secret={"url": ibm.url, **secret})
    report = run()
    assert report.reason is Reason.BACKEND_DENIED
    assert says in report.message
    assert "spec.credentials.secretRef" in report.message
    assert not run.ledger
    story = capsys.readouterr()
    told = story.out + story.err + report.message
    assert not any(value in told for key, value in secret.items() if key in ("api-key", "password"))


def test_a_key_is_revoked_while_the_job_waits(make: Make, ibm: Ibm) -> None:
    run = make()
    ibm.set(held=True)
    end = run.begin()
    run.in_queue()
    ibm.set(keys=["another"], expire_tokens=True)
    report = end()
    assert report.reason is Reason.BACKEND_DENIED
    # What was submitted is still to be cancelled, when somebody mends the key.
    known = run.submission()
    assert known is not None
    assert not known.over


def test_a_token_expires_while_the_job_waits(make: Make, ibm: Ibm) -> None:
    run = make()
    ibm.set(held=True)
    end = run.begin()
    run.in_queue()
    ibm.set(expire_tokens=True)
    time.sleep(1)
    ibm.set(expire_tokens=True, held=False)
    assert end().reason is None
    assert len(run.ledger) == 1


def test_the_identity_service_is_down_and_nobody_takes_that_for_a_wrong_key(
    make: Make, ibm: Ibm
) -> None:
    run = make()
    ibm.fault("POST", "/identity/token", 503, times=3)
    assert run().reason is None
    ibm.fault("POST", "/identity/token", 503)
    run = make()
    report = run()
    assert report.reason is Reason.BACKEND_UNAVAILABLE
    assert "503" in report.message


def login(secret: dict[str, str], **backend: str) -> Login:
    wire = {
        "backend": {"type": "ibm_quantum", **backend},
        "circuit": {"source": "inline", "code": "qc"},
    }
    return Login.read(from_wire(wire, QiskitJobSpec), Credentials(secret))


def test_where_the_service_is() -> None:
    crn = "crn:v1:bluemix:public:quantum-computing:eu-de:a/1:2::"
    plain = login({"api-key": "k"})
    assert (plain.instance, plain.url, plain.channel) == (None, None, "ibm_quantum_platform")
    assert plain.iam_url == "https://iam.cloud.ibm.com"
    assert plain.resolve("https://cloud.ibm.com", crn) == (
        "https://eu-de.quantum.cloud.ibm.com/api/v1"
    )
    assert login({"api-key": "k", "instance": "mine"}).instance == "mine"
    assert login({"api-key": "k", "instance": "mine"}, instance=crn).instance == crn
    assert login({"api-key": "k", "channel": "ibm_cloud"}).channel == "ibm_cloud"
    # Of IBM's own, such as a private endpoint, the directory and the identities stay IBM's.
    private = login({"api-key": "k", "url": "https://private.cloud.ibm.com/"})
    assert not private.elsewhere
    assert private.iam_url == "https://iam.cloud.ibm.com"
    other = login({"api-key": "k", "url": "http://10.0.0.1:8080/"})
    assert (other.instance, other.iam_url) == (ANY_INSTANCE, "http://10.0.0.1:8080")
    assert other.resolve("http://10.0.0.1:8080", ANY_INSTANCE) == "http://10.0.0.1:8080/api/v1"
    assert other.resolve("http://10.0.0.1:8080/q/v2", ANY_INSTANCE) == "http://10.0.0.1:8080/q/v2"
    iam = login({"api-key": "k", "url": "http://10.0.0.1", "iam-url": "http://10.0.0.2"})
    assert iam.iam_url == "http://10.0.0.2"
    assert "k" not in repr(plain).replace("kept", "").split("api_key")[0]
    assert "api_key" not in repr(plain)


# --- the service has a bad day ----------------------------------------------------------------


def test_429_with_retry_after_is_waited_for(make: Make, ibm: Ibm) -> None:
    run = make()
    ibm.fault("POST", "/jobs$", 429, times=1, headers={"Retry-After": "2"})
    begun = time.monotonic()
    assert run().reason is None
    assert time.monotonic() - begun > 2
    assert len(run.ledger) == 1


def test_429_for_too_long_is_counted(make: Make, ibm: Ibm) -> None:
    run = make()
    ibm.fault("POST", "/jobs$", 429, headers={"Retry-After": "3600"})
    report = run()
    assert report.reason is Reason.BACKEND_UNAVAILABLE
    assert "429" in report.message
    assert "1h" in report.message
    assert run.submission() is None


def test_too_many_pending_jobs_are_waited_for(make: Make, ibm: Ibm) -> None:
    run = make()
    body = {"errors": [{"code": 3458, "message": "You have reached the limit of pending jobs"}]}
    ibm.fault("POST", "/jobs$", 403, times=2, body=body)
    assert run().reason is None
    assert len(run.ledger) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 0])
def test_the_answer_to_a_submission_is_lost(make: Make, ibm: Ibm, status: int) -> None:
    """It was taken, and then came an error, or the connection ended."""
    run = make()
    ibm.set(listing_lag=0.4)
    ibm.fault("POST", "/jobs$", status, times=1, after=True)
    assert run().reason is None
    assert len(run.ledger) == 1


@pytest.mark.parametrize("status", [503, 0])
def test_a_submission_is_lost_on_its_way(make: Make, ibm: Ibm, status: int) -> None:
    run = make()
    ibm.fault("POST", "/jobs$", status, times=1)
    assert run().reason is None
    assert len(run.ledger) == 1


def test_an_outage_while_the_job_waits(make: Make, ibm: Ibm) -> None:
    """Longer than what is waited for before a submission."""
    run = make()
    ibm.set(held=True)
    end = run.begin()
    run.in_queue()
    ibm.fault("*", "", 503, seconds=FAST.before + 3, body={"error": "down"})
    run.until(lambda: (p := run.progress()) and "503" in p.waiting)
    ibm.set(held=False)
    assert end().reason is None
    assert len(run.ledger) == 1
    assert run.progress().waiting == ""  # type: ignore[union-attr]


@pytest.mark.extended
def test_5xx_for_two_minutes(make: Make, ibm: Ibm) -> None:
    """At the pace of a real pod: from before the login on, so that nothing is submitted."""
    run = make()
    ibm.fault("*", "", 503, seconds=120, body={"error": "down"})
    begun = time.monotonic()
    assert run(pace=Pace()).reason is None
    assert time.monotonic() - begun > 115
    assert len(run.ledger) == 1


def test_the_device_is_in_maintenance(make: Make, ibm: Ibm) -> None:
    run = make()
    ibm.set(devices={DEVICE: "maintenance"})
    end = run.begin()
    known = run.until(lambda: (s := run.submission()) and s.detail and s)
    assert known.detail == "device status: maintenance"
    assert known.state == "Queued"
    ibm.set(devices={DEVICE: "active"})
    assert end().reason is None


def test_the_device_is_offline(make: Make, ibm: Ibm) -> None:
    run = make()
    ibm.set(online={DEVICE: False})
    report = run()
    assert report.reason is Reason.BACKEND_UNAVAILABLE
    assert not run.ledger


@pytest.mark.parametrize(
    ("code", "reason"), [(1010, Reason.PROVIDER_JOB_FAILED), (1002, Reason.BACKEND_REFUSED)]
)
def test_the_job_fails_at_ibm(make: Make, ibm: Ibm, code: int, reason: Reason) -> None:
    run = make()
    ibm.set(held=True)
    end = run.begin()
    known = run.in_queue()
    assert known.id is not None
    ibm.change(known.id, status="Failed", reason="the fridge is warm", reason_code=code)
    report = end()
    assert report.reason is reason
    assert f"job {known.id} on {DEVICE} failed" in report.message
    assert "the fridge is warm" in report.message
    ibm.set(held=False)
    if reason is Reason.PROVIDER_JOB_FAILED:
        assert run(attempt=2, ticket=2).reason is None
        assert [each["tags"][0] for each in run.ledger] == [f"{run.uid}-1", f"{run.uid}-2"]


def test_somebody_cancels_the_job_at_ibm(make: Make, ibm: Ibm) -> None:
    run = make()
    ibm.set(held=True)
    end = run.begin()
    known = run.in_queue()
    assert known.id is not None
    ibm.change(known.id, status="Cancelled")
    report = end()
    assert report.reason is Reason.PROVIDER_JOB_CANCELLED
    assert known.id in report.message


def test_the_result_has_expired(make: Make, ibm: Ibm) -> None:
    run = make()
    ibm.set(expired=True)
    report = run()
    assert report.reason is Reason.RESULT_LOST
    assert run.ledger[0]["id"] in report.message


def test_the_job_is_not_known_any_more(make: Make, ibm: Ibm) -> None:
    run = make()
    run.server.objects[RECORD]["data"] = {
        submission_key(1): json.dumps({"ticket": 1, "attempt": 1, "id": "long-gone"})
    }
    report = run(attempt=2)
    assert report.reason is Reason.RESULT_LOST
    assert not run.ledger


def test_the_account_has_no_such_device(make: Make) -> None:
    report = make(backend={"type": "ibm_quantum", "name": "ibm_atlantis"})()
    assert report.reason is Reason.BACKEND_REFUSED
    assert "ibm_atlantis" in report.message
    assert DEVICE in report.message


def test_a_circuit_is_too_wide(make: Make) -> None:
    wide = QuantumCircuit(6)
    wide.measure_all()
    assert make(wide)().reason is Reason.TRANSPILE_FAILED


def test_without_a_network_nothing_hangs(make: Make, ibm: Ibm) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    run = make(secret={"api-key": "a-key", "url": url})
    begun = time.monotonic()
    report = run()
    assert time.monotonic() - begun < FAST.before + 5
    assert report.reason is Reason.BACKEND_UNAVAILABLE
    assert "does not answer" in report.message
    assert "nothing was submitted" in report.message


@pytest.mark.parametrize("path", ["/identity/token", "/api/v1/jobs", "/api/v1/instances"])
def test_a_service_that_takes_the_question_and_never_answers(
    make: Make, ibm: Ibm, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(account, "READ_SECONDS", 1.0)
    monkeypatch.setattr(account, "LOGIN_SECONDS", 3.0)
    run = make()
    ibm.fault("*", path, -1, times=1)
    assert run().reason is None
    assert len(run.ledger) == 1


# --- a pod is lost ----------------------------------------------------------------------------


def test_the_next_pod_resumes_with_what_was_submitted(make: Make, ibm: Ibm) -> None:
    run = make()
    ibm.set(held=True)
    run.begin()  # and never looked at again, as on a node that was cut off
    known = run.in_queue()
    end = run.begin(attempt=2)
    time.sleep(1)
    ibm.set(held=False)
    assert end().reason is None
    assert [each["id"] for each in run.ledger] == [known.id]


# --- cancelling -------------------------------------------------------------------------------


@pytest.mark.parametrize("by_id", [True, False])
def test_the_stage_that_cancels(
    make: Make, ibm: Ibm, monkeypatch: pytest.MonkeyPatch, by_id: bool
) -> None:
    run = make()
    ibm.set(held=True)
    run.begin()
    known = run.in_queue()
    monkeypatch.setenv(PLAN_ENV, json.dumps(to_wire(run.plan)))
    code = cancel_stage.run_stage(run.pod.paths, 1, known.id if by_id else None, FAST)
    report = run.pod.report()
    assert (code, report.reason) == (0, None), report.message
    assert known.id is not None
    assert ibm.jobs[known.id]["status"] == "Cancelled"
    assert known.id in report.message


def test_it_says_why_it_cannot_cancel(
    make: Make, ibm: Ibm, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(secret={"url": ibm.url})
    monkeypatch.setenv(PLAN_ENV, json.dumps(to_wire(run.plan)))
    assert cancel_stage.run_stage(run.pod.paths, 1, "a-job", FAST) == 1
    assert run.pod.report().reason is Reason.BACKEND_DENIED


# --- what the driver tells --------------------------------------------------------------------


def test_devices(make: Make) -> None:
    run = make()
    provider = ibm_runner.DRIVER.connect(run.plan, run.pod.paths.credentials)
    devices = {each.name: each for each in provider.devices()}
    assert set(devices) == {"ibm_brisbane", "ibm_sherbrooke", DEVICE}
    brisbane = devices["ibm_brisbane"]
    assert (brisbane.qubits, brisbane.operational, brisbane.simulator) == (127, True, False)
    assert "ecr" in brisbane.basis_gates
    assert brisbane.single_qubit_error is not None
    assert brisbane.two_qubit_error is not None
    assert brisbane.readout_error is not None
    assert 1e-5 < brisbane.single_qubit_error < brisbane.two_qubit_error < 0.05
    assert 1e-3 < brisbane.readout_error < 0.1
    assert brisbane.shot_time == timedelta(microseconds=250)
    assert [each.name for each in provider.devices(DEVICE)] == [DEVICE]


def test_usage_is_in_seconds_of_the_device(make: Make, ibm: Ibm) -> None:
    run = make()
    ibm.set(run_seconds=2.0)
    provider = ibm_runner.DRIVER.connect(run.plan, run.pod.paths.credentials)
    circuit = provider.prepare(bell(), DEVICE, run.plan)
    job = provider.submit(circuit, DEVICE, run.plan, Ticket(run.uid, 1))
    while not (job := provider.look(job.id)).state.over:
        time.sleep(0.2)
    assert job.state is JobState.DONE
    result = provider.result(job.id, circuit, run.plan)
    assert result.usage == {"second": Decimal(2)}
    assert 1.9 < result.execution_time < 3
    assert result.queued is not None
    assert result.queued <= result.started
    # As it was submitted, also by a pod that has prepared another one meanwhile.
    again = provider.result(job.id, bell(), run.plan)
    assert again.circuit == result.circuit


def test_the_circuit_is_prepared_alike_by_every_pod(make: Make) -> None:
    run = make(backend={"type": "ibm_quantum", "name": "ibm_brisbane"})
    provider = ibm_runner.DRIVER.connect(run.plan, run.pod.paths.credentials)
    made = [provider.prepare(bell(), "ibm_brisbane", run.plan) for _ in range(2)]
    assert made[0] == made[1]
    with pytest.raises(RunFailed):
        provider.prepare(bell(), "ibm_atlantis", run.plan)
