"""What a QiskitJob has at a provider, on a real API server: it is shown, and cancelled."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest

from qiskit_controller.api import names
from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.run import Reason, Submission, submission_key
from qiskit_controller.kube.client import CONFIGMAPS, JOBS, SERVICE_ACCOUNTS
from qiskit_controller.reconcilers.qiskitjob.reconciler import QISKITJOBS

from ...unit.reconcilers import kubelet  # noqa: TID252 - tests are no package to be imported from
from .cluster import (
    Cluster,
    Object,
    Pod,
    Watcher,
    events_until,
    eventually,
    missing,
    now,
    phase_of,
    qiskitjob,
    reach,
)

pytestmark = [pytest.mark.usefixtures("replica"), pytest.mark.extended]

QUEUED = Submission(
    ticket=1, attempt=1, id="job-at-ibm", backend="ibm_x", state="Queued", queue_position=4
)
Story = Callable[[Pod], Awaitable[None]]


def submitted(
    code: int = 0, said: str = "job-at-ibm: Cancelled", why: Reason | None = None
) -> Story:
    """An executor that has submitted, and waits; and a pod that cancels and ends so."""

    async def story(pod: Pod) -> None:
        if names.CANCEL_LABEL in pod.job["metadata"]["labels"]:
            message = (
                kubelet.failure(1, why, said) if why else kubelet.success(1, now(), message=said)
            )
            ended = kubelet.terminated(now(), code, message=message)
            phase = "Failed" if code else "Succeeded"
            container = {"name": "cancel", "state": ended, "ready": False, "restartCount": 0}
            shown = container | {"image": "i", "imageID": ""}
            await pod.status({"phase": phase, "containerStatuses": [shown]})
            return
        await reach(pod, "Scheduling")
        value = json.dumps(to_wire(QUEUED))
        body = {"data": {submission_key(1): value}}
        await pod.client.patch(CONFIGMAPS, names.record_name(pod.owner), pod.namespace, body)

    return story


async def begin(cluster: Cluster, watcher: Watcher, story: Story) -> Object:
    """A job whose circuit is in the provider's queue."""
    cluster.story = story
    # No controller of the test makes it, as that of a cluster does.
    default = {"metadata": {"name": "default"}}
    await cluster.client.create(SERVICE_ACCOUNTS, default, cluster.namespace)
    wanted = qiskitjob()
    wanted["spec"] |= {
        "backend": {"type": "ibm_quantum", "name": "ibm_x"},
        "credentials": {"secretRef": {"name": "ibm"}},
    }
    await cluster.client.create(QISKITJOBS, wanted, cluster.namespace)
    return await watcher.until(
        "bell", lambda job: "in the queue" in (job.get("status", {}).get("message") or "")
    )


async def ended(cluster: Cluster) -> None:
    await eventually(
        lambda: missing(cluster.client, JOBS, "qiskit-job-bell-cancel", cluster.namespace),
        "the Job that cancelled is gone",
    )


async def test_cancelling(cluster: Cluster, watcher: Watcher) -> None:
    shown = await begin(cluster, watcher, submitted())
    assert phase_of(shown) == "Scheduling"
    assert shown["status"]["message"] == "Job job-at-ibm is in the queue of ibm_x, 4 before it"
    assert shown["status"]["provider"] == {
        "submission": 1,
        "jobId": "job-at-ibm",
        "state": "Queued",
        "queuePosition": 4,
    }
    await cluster.client.patch(QISKITJOBS, "bell", cluster.namespace, {"spec": {"cancel": True}})
    done = await watcher.finished("bell")
    assert phase_of(done) == "Cancelled"
    assert done["status"]["provider"]["cancellation"] == "Done"
    events = await events_until(cluster.client, cluster.namespace, "bell", "CancelledAtProvider")
    reasons = [each["reason"] for each in events]
    assert reasons.index("CancellingAtProvider") < reasons.index("CancelledAtProvider")
    assert cluster.made["bell", 0] == 1
    await ended(cluster)


async def test_deleting(cluster: Cluster, watcher: Watcher) -> None:
    await begin(cluster, watcher, submitted())
    await cluster.client.delete(QISKITJOBS, "bell", cluster.namespace)
    await watcher.deleted("bell")
    assert cluster.made["bell", 0] == 1
    await ended(cluster)


async def test_what_cannot_be_cancelled_is_let_go(cluster: Cluster, watcher: Watcher) -> None:
    said = "the key is not accepted"
    await begin(cluster, watcher, submitted(1, said, Reason.BACKEND_DENIED))
    await cluster.client.delete(QISKITJOBS, "bell", cluster.namespace)
    await watcher.deleted("bell")
    (told,) = (
        each
        for each in await events_until(
            cluster.client, cluster.namespace, "bell", "NotCancelledAtProvider"
        )
        if each["reason"] == "NotCancelledAtProvider"
    )
    assert told["type"] == "Warning"
    assert "job-at-ibm" in told["message"]
    assert said in told["message"]
    await ended(cluster)


async def test_failing_for_good(cluster: Cluster, watcher: Watcher) -> None:
    story = submitted()

    async def fails(pod: Pod) -> None:
        await story(pod)
        if names.CANCEL_LABEL not in pod.job["metadata"]["labels"]:
            message = kubelet.failure(pod.attempt, Reason.BACKEND_REFUSED)
            ran = kubelet.terminated(now(), 1, message=message)
            await eventually(lambda: queued(cluster), "the queue is shown")
            await pod.status(kubelet.pod_status(kubelet.terminated(now()), ran))

    await begin(cluster, watcher, fails)
    done = await watcher.finished("bell")
    assert phase_of(done) == "Failed"
    assert done["status"]["message"] == "BackendRefused: that is why"
    assert done["status"]["provider"]["cancellation"] == "Done"


async def queued(cluster: Cluster) -> bool:
    job = await cluster.client.get(QISKITJOBS, "bell", cluster.namespace)
    return "in the queue" in (job.get("status", {}).get("message") or "")
