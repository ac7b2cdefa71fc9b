"""Each fault of Amazon Braket ends as docs/braket.md says: the whole executor, with its API."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qiskit_controller.api.run import Reason, Retry
from qiskit_controller.drivers.aws_braket.runner import DRIVER
from qiskit_controller.runner.remote import cancel
from tests.standins.braket.catalogue import ALWAYS, ANKAA, FORTE, GARNET, SV1
from tests.standins.braket.client import Standin
from tests.unit.runner.support import ApiServer, serve

from .executing import FAST, Job
from .samples import SURE, agreement, bell, midcircuit
from .test_distributions import on_aer

Submit = Callable[..., Job]
OUTSIDE = [{"executionDay": "Everyday", "windowStartHour": "00:00:00", "windowEndHour": "00:00:01"}]


@pytest.fixture
def submit(tmp_path: Path, standin: Standin) -> Iterator[Submit]:
    """Makes a QiskitJob for a device."""
    servers = []

    def made(backend: str, circuit: Any = None, **more: Any) -> Job:
        api = ApiServer()
        servers.append(serve(api))
        keys = standin.secret(**more.pop("keys", {}))
        root = tmp_path / f"job-{len(servers)}"
        return Job.of(root, api, circuit or bell(), backend, keys, **more)

    yield made
    for server in servers:
        server.shutdown()
        server.server_close()


def meanwhile(job: Job, act: Callable[[str], None]) -> threading.Thread:
    """Do something with the provider's job as soon as its id is in the record."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for each in job.submissions():
                if each.id is not None:
                    act(each.id)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("backend", ["braket_sv", "braket_dm"])
def test_in_the_pod(submit: Submit, standin: Standin, backend: str) -> None:
    job = submit(backend, midcircuit(), execution={"shots": 4000})
    report = job.run()
    assert report.reason is None
    assert report.backend == backend
    assert agreement(job.counts(), on_aer("midcircuit").counts) > SURE
    assert not job.submissions()
    assert not standin.tasks(job.uid)


@pytest.mark.parametrize("backend", [SV1, GARNET, FORTE])
def test_at_the_service(submit: Submit, standin: Standin, backend: str) -> None:
    job = submit(backend, execution={"shots": 200})
    report = job.run()
    assert report.reason is None, report.message
    assert report.backend == backend
    assert sum(job.counts().values()) == 200
    (task,) = standin.tasks(job.uid)
    assert job.submissions()[-1].id == task["quantumTaskArn"]
    assert job.submissions()[-1].state == "Done"


def test_a_wrong_key(submit: Submit) -> None:
    report = submit(SV1, keys={"secret-access-key": "not-the-secret-of-this-key"}).run()
    assert report.reason is Reason.BACKEND_DENIED
    assert report.reason.retry is Retry.NEVER
    assert "InvalidSignatureException" in report.message
    assert "not-the-secret" not in report.message


def test_the_results_bucket_is_denied(submit: Submit, standin: Standin) -> None:
    bucket = standin.bucket()
    standin.deny(bucket, "s3:*")
    job = submit(SV1, keys={"results-bucket": bucket})
    report = job.run()
    assert report.reason is Reason.BACKEND_DENIED
    assert repr(bucket) in report.message
    # Nothing is paid, and nothing is left to be cancelled.
    assert not standin.tasks(job.uid)
    assert not job.submissions()


def test_the_result_is_denied(submit: Submit, standin: Standin) -> None:
    bucket = standin.bucket()
    job = submit(SV1, keys={"results-bucket": bucket})
    standin.deny(bucket, "s3:GetObject")

    def mend(_: str) -> None:
        time.sleep(1.5)
        standin.deny(bucket)

    thread = meanwhile(job, mend)
    report = job.run()
    thread.join()
    assert report.reason is None
    assert len(standin.requests(job.uid)) == 1


def test_throttling(submit: Submit, standin: Standin) -> None:
    for operation in ("GetDevice", "CreateQuantumTask", "GetQuantumTask"):
        standin.fault(operation, "throttle", 3)
    job = submit(SV1)
    assert job.run().reason is None
    assert len(standin.tasks(job.uid)) == 1


def test_throttling_that_does_not_end(submit: Submit, standin: Standin) -> None:
    standin.fault("CreateQuantumTask", "throttle", 1000)
    job = submit(SV1)
    report = job.run()
    assert report.reason is Reason.BACKEND_UNAVAILABLE
    assert report.reason.retry is Retry.COUNTED
    assert "ThrottlingException" in report.message
    assert not standin.tasks(job.uid)


def test_the_device_is_offline(submit: Submit, standin: Standin) -> None:
    standin.device(ANKAA, status="OFFLINE")
    job = submit(ANKAA)
    report = job.run()
    assert report.reason is Reason.BACKEND_UNAVAILABLE
    assert "DeviceOfflineException" in report.message
    # The next attempt, when it is back.
    standin.device(ANKAA, status="ONLINE")
    assert job.run().reason is None
    assert len(standin.tasks(job.uid)) == 1


def test_the_task_fails_and_another_one_may_not(submit: Submit, standin: Standin) -> None:
    standin.device(ANKAA, hold=True)
    job = submit(ANKAA)
    thread = meanwhile(job, lambda arn: standin.task(arn, "FAILED", "Internal service error"))
    report = job.run()
    thread.join()
    assert report.reason is Reason.PROVIDER_JOB_FAILED
    assert report.reason.retry is Retry.COUNTED
    assert "FAILED: Internal service error" in report.message
    standin.device(ANKAA, hold=False)
    assert job.run().reason is None
    tags = [each["tags"]["quantum.io/ticket"] for each in standin.tasks(job.uid)]
    assert tags == ["1", "2"]


def test_the_task_fails_for_good(submit: Submit, standin: Standin) -> None:
    standin.device(ANKAA, hold=True)
    job = submit(ANKAA)
    thread = meanwhile(job, lambda arn: standin.task(arn, "FAILED", "The program is too deep"))
    report = job.run()
    thread.join()
    assert report.reason is Reason.BACKEND_REFUSED
    assert report.message.endswith("failed: FAILED: The program is too deep")


def test_the_task_is_cancelled_in_the_console(submit: Submit, standin: Standin) -> None:
    standin.device(ANKAA, hold=True)
    job = submit(ANKAA)
    thread = meanwhile(job, lambda arn: standin.task(arn, "CANCELLED"))
    report = job.run()
    thread.join()
    assert report.reason is Reason.PROVIDER_JOB_CANCELLED
    assert report.reason.retry is Retry.NEVER
    assert "was cancelled at the provider" in report.message


def test_the_region_of_the_arn_is_not_the_devices(submit: Submit, standin: Standin) -> None:
    arn = GARNET.replace("eu-north-1", "us-west-2")
    job = submit(arn)
    report = job.run()
    assert report.reason is Reason.BACKEND_REFUSED
    assert f"this account sees no device {arn}; Garnet is {GARNET}" in report.message
    assert not standin.tasks(job.uid)


def test_a_device_that_cannot_be_seen(submit: Submit) -> None:
    report = submit("arn:aws:braket:us-east-1::device/qpu/ionq/Nowhere").run()
    assert report.reason is Reason.BACKEND_REFUSED
    for visible in (SV1, FORTE, GARNET, ANKAA):
        assert visible in report.message


def test_outside_of_the_devices_window(submit: Submit, standin: Standin) -> None:
    standin.device(GARNET, hold=True, windows=OUTSIDE)
    job = submit(GARNET)
    seen: list[str | None] = []

    def look(_: str) -> None:
        deadline = time.monotonic() + 20
        while not seen and time.monotonic() < deadline:
            seen.extend(each.estimated_start for each in job.submissions() if each.state)
            seen[:] = [each for each in seen if each]
            time.sleep(0.05)
        standin.device(GARNET, hold=False, windows=ALWAYS)

    thread = meanwhile(job, look)
    report = job.run()
    thread.join()
    # It waits in the queue until the window opens, and says when that is.
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    assert seen[0] == f"{tomorrow}T00:00:00Z"
    assert report.reason is None


def test_cancelling_takes_what_an_earlier_pod_has_left(submit: Submit, standin: Standin) -> None:
    standin.device(ANKAA, hold=True)
    job = submit(ANKAA)
    client = DRIVER.connect(job.plan, job.pod.paths.credentials)
    prepared = client.prepare(bell(), ANKAA, job.plan)
    from qiskit_controller.drivers.remote import Ticket

    client.submit(prepared, ANKAA, job.plan, Ticket(job.uid, 1))
    (ended,) = cancel(DRIVER, job.plan, job.pod.paths.credentials, 1, None, FAST)
    assert ended.state == "Cancelled"
    (task,) = standin.tasks(job.uid)
    assert task["status"] == "CANCELLED"
    assert task["executions"] == 0
