"""One account at Amazon Braket: submitting once, waiting, cancelling, and what goes wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import boto3
import pytest

from qiskit_controller.api.run import Reason
from qiskit_controller.drivers import RunFailed
from qiskit_controller.drivers.aws_braket.runner import DRIVER
from qiskit_controller.drivers.remote import JobState, Ticket, Unavailable
from tests.standins.braket.catalogue import (
    ALWAYS,
    ANKAA,
    AQUILA,
    DM1,
    FORTE,
    GARNET,
    OLD,
    SV1,
    TN1,
)
from tests.standins.braket.client import Standin

from .samples import bell, ghz
from .support import Client, plan_for, secret

Connect = Callable[..., Client]

NEVER = [{"executionDay": "Everyday", "windowStartHour": "00:00:00", "windowEndHour": "00:00:01"}]


def refused(call: Callable[[], object]) -> RunFailed:
    with pytest.raises(RunFailed) as caught:
        call()
    return caught.value


def unavailable(call: Callable[[], object]) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        call()
    return caught.value


# --- once -----------------------------------------------------------------------------------------


def test_a_ticket_is_one_task_however_often_it_is_presented(
    connect: Connect, standin: Standin
) -> None:
    client = connect(SV1)
    prepared = client.prepare(bell())
    jobs = {client.provider.submit(prepared, SV1, client.plan, client.ticket).id for _ in range(5)}
    (job,) = jobs
    (task,) = standin.tasks(client.plan.job.uid)
    assert task["quantumTaskArn"] == job
    assert task["token"] == str(client.ticket)
    outcomes = [each["outcome"] for each in standin.requests(client.plan.job.uid)]
    assert outcomes == ["created", *["repeated"] * 4]


def test_the_next_ticket_is_another_task(connect: Connect, standin: Standin) -> None:
    client = connect(SV1)
    prepared = client.prepare(bell())
    for number in (1, 2):
        ticket = Ticket(client.plan.job.uid, number)
        client.provider.submit(prepared, SV1, client.plan, ticket)
    tags = [each["tags"]["quantum.io/ticket"] for each in standin.tasks(client.plan.job.uid)]
    assert tags == ["1", "2"]


def test_an_answer_that_is_lost(connect: Connect, standin: Standin) -> None:
    client = connect(SV1)
    prepared = client.prepare(bell())
    standin.fault("CreateQuantumTask", "lose")
    error = unavailable(lambda: client.provider.submit(prepared, SV1, client.plan, client.ticket))
    assert not error.nothing_done
    (found,) = client.provider.find(client.ticket)
    again = client.provider.submit(prepared, SV1, client.plan, client.ticket)
    assert again.id == found.id
    assert len(standin.tasks(client.plan.job.uid)) == 1


def test_a_pod_that_transpiles_in_another_way_finds_the_task(
    connect: Connect, standin: Standin
) -> None:
    client = connect(GARNET)
    first = client.submit(bell())
    other = client.prepare(ghz())
    again = client.provider.submit(other, GARNET, client.plan, client.ticket)
    assert again.id == first.id
    assert len(standin.tasks(client.plan.job.uid)) == 1
    assert standin.requests(client.plan.job.uid)[-1]["outcome"] == "conflict"


def test_the_task_of_another_layout_is_read_by_the_program_that_ran(connect: Connect) -> None:
    from qiskit import QuantumCircuit

    client = connect(GARNET, execution={"shots": 50, "initialLayout": [8, 7, 6]})
    circuit = QuantumCircuit(3, 3)
    circuit.x(0)
    circuit.measure([0, 1, 2], [0, 1, 2])
    job = client.over(client.submit(circuit))
    # Prepared again by a pod that lays it out the other way round.
    later = connect(GARNET, execution={"shots": 50, "initialLayout": [6, 7, 8]})
    prepared = later.prepare(circuit)
    assert later.provider.result(job.id, prepared, later.plan).counts == {"001": 50}


def test_a_task_that_is_not_listed_yet(connect: Connect, standin: Standin) -> None:
    client = connect(GARNET)
    standin.device(GARNET, listed_after=3600)
    client.submit(bell())
    assert client.provider.find(client.ticket) == ()
    other = client.prepare(ghz())
    error = unavailable(lambda: client.provider.submit(other, GARNET, client.plan, client.ticket))
    assert "an earlier submission has created the task" in error.message


def test_an_account_that_may_not_list_its_tasks(connect: Connect, standin: Standin) -> None:
    client = connect(SV1)
    client.submit(bell())
    standin.fault("SearchQuantumTasks", "deny")
    assert client.provider.find(client.ticket) == ()


def test_tags_say_whose_task_it_is(connect: Connect, standin: Standin) -> None:
    client = connect(SV1, budget={"costCenter": "chemistry & co"})
    client.submit(bell())
    (task,) = standin.tasks(client.plan.job.uid)
    assert task["tags"] == {
        "quantum.io/job-uid": client.plan.job.uid,
        "quantum.io/ticket": "1",
        "quantum.io/namespace": "lab",
        "quantum.io/job": "bell",
        "quantum.io/cost-center": "chemistry _ co",
    }


# --- waiting --------------------------------------------------------------------------------------


def test_the_queue(connect: Connect, standin: Standin) -> None:
    standin.device(ANKAA, hold=True)
    clients = [connect(ANKAA) for _ in range(3)]
    jobs = [client.submit(bell()) for client in clients]
    seen = [client.provider.look(job.id) for client, job in zip(clients, jobs, strict=True)]
    assert [each.state for each in seen] == [JobState.QUEUED] * 3
    assert [each.queue_position for each in seen] == [0, 1, 2]
    assert {each.detail for each in seen} == {"QUEUED, 3 in the queue"}
    (now,) = connect(ANKAA).provider.devices(ANKAA)
    assert now.pending_jobs == 3
    standin.device(ANKAA, hold=False)
    for client, job in zip(clients, jobs, strict=True):
        assert client.over(job).state is JobState.DONE


def test_a_task_that_runs(connect: Connect, standin: Standin) -> None:
    standin.device(FORTE, run_seconds=1.0)
    client = connect(FORTE, execution={"shots": 100})
    prepared = client.prepare(bell())
    job = client.provider.submit(prepared, FORTE, client.plan, client.ticket)
    states = [job.state]
    while not job.state.over:
        job = client.provider.look(job.id)
        if job.state is not states[-1]:
            states.append(job.state)
    assert states == [JobState.QUEUED, JobState.RUNNING, JobState.DONE]
    result = client.provider.result(job.id, prepared, client.plan)
    assert result.usage == {"task": Decimal(1), "shot": Decimal(100)}
    assert result.queued is not None
    assert result.queued <= result.started
    assert 0.5 < result.execution_time < 20


def test_a_task_of_a_region_that_the_secret_had_before(connect: Connect) -> None:
    client = connect(SV1)
    job = client.over(client.submit(bell()))
    later = connect(SV1, keys={"region": "us-west-2"})
    assert later.provider.account.region == "us-west-2"
    assert later.provider.look(job.id).state is JobState.DONE
    prepared = later.prepare(bell())
    result = later.provider.result(job.id, prepared, later.plan)
    assert set(result.counts) == {"00", "11"}


def test_a_simulators_task_is_billed_for_three_seconds_at_least(connect: Connect) -> None:
    result = connect(SV1).run(bell())
    assert result.usage == {"second": Decimal(3)}
    assert result.execution_time < 3


def test_outside_of_the_devices_window(connect: Connect, standin: Standin) -> None:
    standin.device(GARNET, hold=True, windows=NEVER)
    client = connect(GARNET)
    job = client.provider.look(client.submit(bell()).id)
    assert job.state is JobState.QUEUED
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    assert job.estimated_start == tomorrow
    (device,) = connect(GARNET).provider.devices(GARNET)
    assert device.operational
    assert device.detail == f"ONLINE, executes from {tomorrow:%Y-%m-%d} 00:00 UTC"
    # The window opens.
    standin.device(GARNET, hold=False, windows=ALWAYS)
    assert client.over(job).state is JobState.DONE


# --- cancelling -----------------------------------------------------------------------------------


def test_cancel_in_the_queue(connect: Connect, standin: Standin) -> None:
    standin.device(ANKAA, hold=True)
    client = connect(ANKAA)
    job = client.submit(bell())
    client.provider.cancel(job.id)
    assert client.over(job).state is JobState.CANCELLED
    client.provider.cancel(job.id)  # once more is nothing
    (task,) = standin.tasks(client.plan.job.uid)
    assert task["executions"] == 0


def test_cancel_while_it_runs(connect: Connect, standin: Standin) -> None:
    standin.device(FORTE, run_seconds=30.0)
    client = connect(FORTE)
    job = client.submit(bell())
    while job.state is not JobState.RUNNING:
        job = client.provider.look(job.id)
    client.provider.cancel(job.id)
    assert client.over(job).state is JobState.CANCELLED


def test_cancel_what_has_ended(connect: Connect) -> None:
    client = connect(SV1)
    job = client.over(client.submit(bell()))
    client.provider.cancel(job.id)
    assert client.provider.look(job.id).state is JobState.DONE


def test_cancelled_in_the_console(connect: Connect, standin: Standin) -> None:
    standin.device(ANKAA, hold=True)
    client = connect(ANKAA)
    job = client.submit(bell())
    standin.task(job.id, "CANCELLED")
    seen = client.provider.look(job.id)
    assert seen.state is JobState.CANCELLED
    assert seen.detail == "CANCELLED"


@pytest.mark.parametrize(
    ("reason", "transient"),
    [
        ("Internal service error. Please try again", True),
        ("The device was recalibrated while the task ran", True),
        ("The program uses an unsupported instruction", False),
        (None, False),
    ],
)
def test_a_task_that_fails(
    connect: Connect, standin: Standin, reason: str | None, transient: bool
) -> None:
    standin.device(ANKAA, hold=True)
    client = connect(ANKAA)
    job = client.submit(bell())
    standin.task(job.id, "FAILED", reason)
    seen = client.provider.look(job.id)
    assert seen.state is JobState.FAILED
    assert seen.detail == (f"FAILED: {reason}" if reason else "FAILED")
    assert seen.transient is transient


# --- credentials ----------------------------------------------------------------------------------


WRONG = {
    "unknown key": ({"access-key-id": "AKIAUNKNOWNUNKNOWN00"}, "UnrecognizedClientException"),
    "wrong secret": (
        {"secret-access-key": "not-the-secret-of-this-key"},
        "InvalidSignatureException",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_key(connect: Connect, what: str) -> None:
    keys, says = WRONG[what]
    client = connect(SV1, keys=keys)
    failed = refused(lambda: client.prepare(bell()))
    assert failed.reason is Reason.BACKEND_DENIED
    assert says in failed.message
    assert "check the Secret of spec.credentials.secretRef" in failed.message
    for value in keys.values():
        assert value not in failed.message


def test_half_a_key(tmp_path: Path, shared: Standin) -> None:
    values = {name: value for name, value in shared.secret().items() if name != "access-key-id"}
    folder = secret(tmp_path, values)
    failed = refused(lambda: DRIVER.connect(plan_for(SV1), folder))
    assert failed.reason is Reason.BACKEND_DENIED
    assert "only one of the keys" in failed.message


def test_no_key_at_all(tmp_path: Path) -> None:
    folder = secret(tmp_path, {"region": "us-east-1"})
    failed = refused(lambda: DRIVER.connect(plan_for(SV1), folder))
    assert failed.reason is Reason.BACKEND_DENIED
    assert "put access-key-id and secret-access-key into" in failed.message
    assert "give the pod an identity of its own" in failed.message


def test_the_pods_own_identity(
    tmp_path: Path, shared: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By boto3's chain: as IAM roles for service accounts give it, with moto's STS."""
    token = tmp_path / "token"
    token.write_text("a-token-of-the-cluster")
    sts = boto3.client(
        "sts",
        endpoint_url=shared.told["aws"],
        region_name="us-east-1",
        aws_access_key_id=shared.told["admin"]["access-key-id"],
        aws_secret_access_key=shared.told["admin"]["secret-access-key"],
    )
    assert sts.get_caller_identity()["Account"] == "123456789012"
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/quantum")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", shared.told["aws"])
    client = Client.of(plan_for(SV1), tmp_path / "nothing")
    assert client.provider.account.region == "eu-north-1"
    credentials = client.provider.account.session.get_credentials()
    assert credentials is not None
    assert credentials.method == "assume-role-with-web-identity"


def test_keys_of_the_environment_and_an_endpoint_by_configuration(
    tmp_path: Path, shared: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", shared.told["key"]["access-key-id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", shared.told["key"]["secret-access-key"])
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_BRAKET", shared.told["aws"])
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", shared.told["aws"])
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", shared.told["aws"])
    result = Client.of(plan_for(SV1), tmp_path / "nothing").run(bell())
    assert set(result.counts) == {"00", "11"}


@pytest.mark.parametrize("operation", ["GetDevice", "CreateQuantumTask"])
def test_a_key_that_may_not(connect: Connect, standin: Standin, operation: str) -> None:
    client = connect(SV1)
    standin.fault(operation, "deny")
    failed = refused(lambda: client.submit(bell()))
    assert failed.reason is Reason.BACKEND_DENIED
    assert f"not authorized to perform: braket:{operation}" in failed.message
    assert failed.message.endswith("check what the key may do")
    assert not standin.tasks(client.plan.job.uid)


# --- devices --------------------------------------------------------------------------------------


def test_the_devices_of_all_regions(connect: Connect) -> None:
    found = {each.name: each for each in connect(SV1).provider.devices()}
    # Not Aquila, which is no gate-based one, nor Harmony, which is retired.
    assert set(found) == {SV1, DM1, TN1, FORTE, GARNET, ANKAA}
    assert found[SV1].simulator
    assert not found[GARNET].simulator
    assert found[GARNET].qubits == 19
    assert found[GARNET].basis_gates == ("prx", "cz")
    assert found[GARNET].prices == {"shot": Decimal("0.00145")}
    assert found[SV1].prices == {"second": Decimal("0.00125")}
    assert found[GARNET].dynamic
    assert not found[SV1].dynamic
    assert found[FORTE].two_qubit_error == pytest.approx(0.0042)
    assert found[GARNET].readout_error == pytest.approx(0.03, abs=1e-3)


def test_one_device_or_none(connect: Connect) -> None:
    provider = connect(FORTE).provider
    assert [each.name for each in provider.devices(FORTE)] == [FORTE]
    assert provider.devices(FORTE.replace("Forte-1", "Forte-9")) == ()


def test_a_device_that_the_account_cannot_see(connect: Connect) -> None:
    arn = "arn:aws:braket:us-east-1::device/qpu/ionq/Forte-9"
    failed = refused(lambda: connect(arn).prepare(bell()))
    assert failed.reason is Reason.BACKEND_REFUSED
    assert failed.message.startswith(f"spec.backend.name: this account sees no device {arn}; ")
    for visible in (SV1, DM1, TN1, FORTE, GARNET, ANKAA):
        assert visible in failed.message
    assert OLD not in failed.message


def test_a_device_of_another_region(connect: Connect) -> None:
    arn = GARNET.replace("eu-north-1", "us-east-1")
    failed = refused(lambda: connect(arn).prepare(bell()))
    assert failed.reason is Reason.BACKEND_REFUSED
    assert f"this account sees no device {arn}; Garnet is {GARNET}; " in failed.message


def test_the_devices_region_counts_and_it_is_told(
    connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect(GARNET, keys={"region": "us-east-1"})
    assert client.provider.account.region == "eu-north-1"
    said = capsys.readouterr().out
    assert "the device is in eu-north-1, so us-east-1 is not asked" in said


def test_a_region_without_braket(tmp_path: Path, shared: Standin) -> None:
    arn = FORTE.replace("us-east-1", "mars-north-1")
    values = {name: value for name, value in shared.secret().items() if name != "endpoint"}
    provider = Client.of(plan_for(arn), secret(tmp_path, values)).provider
    failed = refused(lambda: provider.prepare(bell(), arn, provider.plan))
    assert failed.reason is Reason.BACKEND_REFUSED
    assert "Amazon Braket is in " in failed.message
    assert failed.message.endswith("us-west-2, not in mars-north-1")


def test_a_simulator_and_no_region(tmp_path: Path, shared: Standin) -> None:
    values = {name: value for name, value in shared.secret().items() if name != "region"}
    failed = refused(lambda: DRIVER.connect(plan_for(SV1), secret(tmp_path, values)))
    assert failed.reason is Reason.BACKEND_REFUSED
    assert "give one under the key region" in failed.message


def test_a_device_that_is_not_gate_based(connect: Connect) -> None:
    failed = refused(lambda: connect(AQUILA).prepare(bell()))
    assert failed.reason is Reason.BACKEND_REFUSED
    assert "Aquila is no gate-based device" in failed.message


def test_a_device_that_is_retired(connect: Connect) -> None:
    failed = refused(lambda: connect(OLD).prepare(bell()))
    assert failed.reason is Reason.BACKEND_REFUSED
    assert "Harmony is retired; it sees " in failed.message


@pytest.mark.parametrize("shots", [99, 5001])
def test_more_or_fewer_shots_than_the_device_takes(connect: Connect, shots: int) -> None:
    failed = refused(lambda: connect(FORTE, execution={"shots": shots}).prepare(bell()))
    assert failed.reason is Reason.BACKEND_REFUSED
    assert failed.message == f"spec.execution.shots: Forte-1 takes 100 to 5000, not {shots}"


def test_a_device_that_is_offline(connect: Connect, standin: Standin) -> None:
    client = connect(ANKAA)
    prepared = client.prepare(bell())
    standin.device(ANKAA, status="OFFLINE")
    error = unavailable(lambda: client.provider.submit(prepared, ANKAA, client.plan, client.ticket))
    assert "DeviceOfflineException" in error.message
    assert error.nothing_done
    (device,) = connect(ANKAA).provider.devices(ANKAA)
    assert not device.operational
    assert device.detail == "OFFLINE"
    standin.device(ANKAA, status="ONLINE")
    assert client.submit(bell()).state is JobState.QUEUED


# --- the service ----------------------------------------------------------------------------------


@pytest.mark.parametrize("do", ["throttle", "500", "quota", "drop"])
@pytest.mark.parametrize(
    "operation", ["GetDevice", "CreateQuantumTask", "GetQuantumTask", "CancelQuantumTask"]
)
def test_the_service_is_busy_or_away(
    connect: Connect, standin: Standin, operation: str, do: str
) -> None:
    standin.device(ANKAA, hold=True)
    client = connect(ANKAA)
    job = client.submit(bell())
    calls: dict[str, Callable[[], object]] = {
        "GetDevice": lambda: connect(ANKAA).prepare(bell()),
        "CreateQuantumTask": lambda: connect(ANKAA).submit(bell()),
        "GetQuantumTask": lambda: client.provider.look(job.id),
        "CancelQuantumTask": lambda: client.provider.cancel(job.id),
    }
    # As often as boto3 asks by itself; then it is over. A submission is asked for once.
    once = do == "quota" or operation == "CreateQuantumTask"
    standin.fault(operation, do, 1 if once else 2)
    error = unavailable(calls[operation])
    # Of a request that was turned away, nothing can have come.
    assert error.nothing_done is (do in ("throttle", "quota"))
    assert error.message.startswith("Amazon Braket in us-west-1: ")
    calls[operation]()


def test_nobody_is_there(connect: Connect) -> None:
    client = connect(SV1, keys={"endpoint": "http://127.0.0.1:9"})
    error = unavailable(lambda: client.prepare(bell()))
    assert error.nothing_done
    assert "Could not connect" in error.message


def test_a_moment_of_throttling_is_not_even_noticed(connect: Connect, standin: Standin) -> None:
    client = connect(SV1)
    standin.fault("GetQuantumTask", "throttle", 1)
    assert client.over(client.submit(bell())).state is JobState.DONE


# --- the results' bucket --------------------------------------------------------------------------


def test_results_go_where_the_sdk_puts_them(connect: Connect, standin: Standin) -> None:
    client = connect(SV1)
    client.over(client.submit(bell()))
    (task,) = standin.tasks(client.plan.job.uid)
    assert task["outputS3Bucket"] == "amazon-braket-us-east-1-123456789012"
    assert task["outputS3Directory"] == f"tasks/{task['quantumTaskArn'].rpartition('/')[2]}"


def test_results_go_where_the_secret_says(connect: Connect, standin: Standin) -> None:
    bucket = standin.bucket()
    client = connect(SV1, keys={"results-bucket": bucket, "results-prefix": "/team/quantum/"})
    assert set(client.run(bell()).counts) == {"00", "11"}
    (task,) = standin.tasks(client.plan.job.uid)
    assert task["outputS3Bucket"] == bucket
    assert task["outputS3Directory"].startswith("team/quantum/")


def test_a_bucket_that_does_not_exist(connect: Connect, standin: Standin) -> None:
    client = connect(SV1, keys={"results-bucket": "amazon-braket-nowhere"})
    failed = refused(lambda: client.submit(bell()))
    assert failed.reason is Reason.BACKEND_REFUSED
    assert "there is no bucket 'amazon-braket-nowhere' for the results" in failed.message
    assert not standin.tasks(client.plan.job.uid)


def test_a_bucket_that_the_key_may_not_use(connect: Connect, standin: Standin) -> None:
    bucket = standin.bucket()
    standin.deny(bucket, "s3:*")
    client = connect(SV1, keys={"results-bucket": bucket})
    failed = refused(lambda: client.submit(bell()))
    assert failed.reason is Reason.BACKEND_DENIED
    assert f"looking at the results' bucket {bucket!r}" in failed.message
    # Nothing is paid.
    assert not standin.tasks(client.plan.job.uid)


def test_a_result_that_the_key_may_not_read(connect: Connect, standin: Standin) -> None:
    bucket = standin.bucket()
    client = connect(SV1, keys={"results-bucket": bucket})
    prepared = client.prepare(bell())
    job = client.provider.submit(prepared, SV1, client.plan, client.ticket)
    assert client.over(job).state is JobState.DONE
    standin.deny(bucket, "s3:GetObject")
    error = unavailable(lambda: client.provider.result(job.id, prepared, client.plan))
    assert error.message.startswith("the task has been executed, and its result cannot be read: ")
    assert f"reading s3://{bucket}/tasks/" in error.message
    # Somebody mends the policy: it is there, and is not paid for again.
    standin.deny(bucket)
    result = client.provider.result(job.id, prepared, client.plan)
    assert set(result.counts) == {"00", "11"}
    assert len(standin.tasks(client.plan.job.uid)) == 1


# --- what is imported, and where files go ---------------------------------------------------------


def test_looking_and_cancelling_need_no_sdk() -> None:
    import subprocess
    import sys

    script = (
        "from qiskit_controller.drivers import runner_driver\n"
        "runner_driver('aws_braket')\n"
        "import sys\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "boto3" in loaded
    assert not loaded & {"braket", "qiskit_braket_provider", "numba", "qiskit"}


def test_the_kernels_cache_is_in_tmp() -> None:
    import qiskit_controller.drivers.aws_braket.sdk  # noqa: F401 - for what it sets

    assert os.environ["NUMBA_CACHE_DIR"].startswith(os.environ.get("TMPDIR", "/tmp"))
