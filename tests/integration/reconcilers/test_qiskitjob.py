"""QiskitJobs on a real API server, from their creation to their end."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from qiskit_controller.api import names
from qiskit_controller.api.run import PLAN_FILE, Reason
from qiskit_controller.kube.client import (
    CONFIGMAPS,
    JOBS,
    PODS,
    ROLEBINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    Resource,
)
from qiskit_controller.reconcilers.qiskitjob.reconciler import QISKITJOBS

from .cluster import (
    Cluster,
    Object,
    Replica,
    Watcher,
    be_evicted,
    conditions,
    counted,
    events_until,
    eventually,
    fail,
    in_turn,
    nothing_left,
    phase_of,
    qiskitjob,
    reason_of,
    succeed,
    succeed_at_once,
    until,
)
from .cluster import missing as is_missing

ALL_PHASES = ["Pending", "Validating", "Scheduling", "Running", "Completed"]
QUOTAS = Resource("", "v1", "resourcequotas", "ResourceQuota")

# Takes long; `./hack/test extended` runs it.
pytestmark = [pytest.mark.usefixtures("replica"), pytest.mark.extended]


async def create(cluster: Cluster, job: Object) -> Object:
    return await cluster.client.create(QISKITJOBS, job, cluster.namespace)


async def edit(cluster: Cluster, name: str, spec: Object) -> None:
    await cluster.client.patch(QISKITJOBS, name, cluster.namespace, {"spec": spec})


async def delete(cluster: Cluster, name: str) -> None:
    await cluster.client.delete(QISKITJOBS, name, cluster.namespace)


async def config_map(cluster: Cluster, name: str, **data: str) -> Object:
    body = {"metadata": {"name": name}, "data": data}
    return await cluster.client.create(CONFIGMAPS, body, cluster.namespace)


async def missing(cluster: Cluster, resource: Resource, name: str) -> bool:
    return await is_missing(cluster.client, resource, name, cluster.namespace)


async def vanished(cluster: Cluster, resource: Resource, name: str) -> None:
    await eventually(lambda: missing(cluster, resource, name), f"{resource.kind} {name} is gone")


# --- success ----------------------------------------------------------------------------------


@pytest.mark.parametrize("story", [succeed, succeed_at_once])
async def test_the_happy_path(cluster: Cluster, watcher: Watcher, story: Any) -> None:
    cluster.story = story
    await create(cluster, qiskitjob())
    done = await watcher.finished("bell")
    assert watcher.phases("bell") == ALL_PHASES
    status = done["status"]
    assert status["results"]["counts"] == {"00": 500, "11": 524}
    assert status["backend"] == "aer_simulator"
    assert status["observedGeneration"] == done["metadata"]["generation"]
    assert status["attempts"][0]["jobName"] == "qiskit-job-bell"
    assert status["executorPodName"].startswith("qiskit-job-bell-")
    found = {type_: each["status"] for type_, each in conditions(done).items()}
    assert (
        found.items()
        >= {
            "Validated": "True",
            "PodStarted": "True",
            "BackendSelected": "True",
            "Complete": "True",
            "Failed": "False",
        }.items()
    )
    output = await cluster.client.get(CONFIGMAPS, "bell-results", cluster.namespace)
    assert output["data"]["counts"] == '{"00": 500, "11": 524}'
    assert names.belongs_to(output, done["metadata"]["uid"])
    # What only a running pod needs is gone; the pod and its log stay.
    for resource in (SERVICE_ACCOUNTS, ROLES, ROLEBINDINGS):
        assert await missing(cluster, resource, "qiskit-job-bell")
    assert await missing(cluster, CONFIGMAPS, "qiskit-job-bell-record")
    assert not await missing(cluster, JOBS, "qiskit-job-bell")
    told = await events_until(cluster.client, cluster.namespace, "bell", "Completed")
    assert [each["reason"] for each in told] == [
        "Accepted",
        "Started",
        "Validating",
        "CircuitValid",
        "BackendSelected",
        "Running",
        "Completed",
    ]
    assert {each.get("count") for each in told} == {1}


async def test_what_has_ended_is_left_in_peace(
    cluster: Cluster, watcher: Watcher, replica: Replica
) -> None:
    await create(cluster, qiskitjob())
    await watcher.finished("bell")
    key = f"{cluster.namespace}/bell"
    version = (await cluster.client.get(QISKITJOBS, "bell", cluster.namespace))["metadata"]
    for _ in range(5):
        result = await replica.reconciler.reconcile(key)
        assert result.requeue_after is None
    after = (await cluster.client.get(QISKITJOBS, "bell", cluster.namespace))["metadata"]
    assert after["resourceVersion"] == version["resourceVersion"]


async def test_binary_code_arrives_as_it_was(cluster: Cluster, watcher: Watcher) -> None:
    content = base64.b64encode(bytes(range(256))).decode()
    body = {"metadata": {"name": "circuits"}, "binaryData": {"bell.qpy": content}}
    await cluster.client.create(CONFIGMAPS, body, cluster.namespace)
    reference = {"name": "circuits", "key": "bell.qpy"}
    await create(cluster, qiskitjob(circuit={"source": "configmap", "configMapRef": reference}))
    await watcher.phase("bell", "Completed")
    pinned = await cluster.client.get(CONFIGMAPS, "qiskit-job-bell-input", cluster.namespace)
    assert pinned["binaryData"]["bell.qpy"] == content


# --- waiting for the code ---------------------------------------------------------------------


async def test_a_config_map_that_comes_later_wakes_the_job_at_once(
    cluster: Cluster, watcher: Watcher
) -> None:
    reference = {"name": "circuits", "key": "bell.py"}
    await create(cluster, qiskitjob(circuit={"source": "configmap", "configMapRef": reference}))
    waiting = await watcher.until("bell", lambda job: "Validated" in conditions(job))
    found = conditions(waiting)["Validated"]
    assert found["reason"] == "ConfigMapNotFound"
    assert "'circuits'" in found["message"]
    await config_map(cluster, "circuits", **{"other.py": "x"})
    again = await watcher.until(
        "bell", lambda job: reason_of(job, "Validated") == "ConfigMapKeyNotFound"
    )
    assert "it has: other.py" in conditions(again)["Validated"]["message"]
    began = time.monotonic()
    await cluster.client.patch(
        CONFIGMAPS, "circuits", cluster.namespace, {"data": {"bell.py": "qc = 1"}}
    )
    await watcher.until("bell", lambda job: job["status"].get("attempts"))
    woken = time.monotonic() - began
    assert woken < 15, f"it took {woken:.1f} s, as long as the recheck"
    await watcher.phase("bell", "Completed")
    assert watcher.phases("bell") == ALL_PHASES


# --- what cannot run --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"circuit": {"source": "inline"}}, "spec.circuit.code: required if source is inline"),
        ({"circuit": {"source": "configmap"}}, "spec.circuit.configMapRef: required"),
        ({"circuit": {"source": "url"}}, "spec.circuit.url: required"),
        ({"circuit": {"source": "git"}}, "spec.circuit.gitRef: required"),
        ({"output": {"type": "s3"}}, "spec.output.location: required if type is pvc, s3 or gcs"),
        ({"output": {"type": "s3", "location": "bucket"}}, "spec.output.location: must begin"),
        ({"output": {"location": "No_Name"}}, "spec.output.location: must be the name"),
        ({"output": {"location": "qiskit-job-bell-record"}}, "spec.output.location: qiskit-job"),
        ({"session": {"name": "s"}}, "spec.session: only backend type ibm_quantum"),
        ({"execution": {"timeout": "0s"}}, "spec.execution.timeout: '0s' must be longer"),
        ({"backend": {"type": "local_simulator", "name": "abacus"}}, "spec.backend.name: 'abacus'"),
        (
            {"resources": {"limits": {"cpu": "1e2.5"}, "requests": {"cpu": "1"}}},
            "spec.resources.limits.cpu: '1e2.5' is not a quantity",
        ),
        (
            {"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}},
            "spec.resources.requests.cpu: 2 is more than the limit 1",
        ),
        # What only the API server says to the pod.
        ({"resources": {"limits": {"memory": "-1Gi"}}}, "must be greater than or equal to 0"),
    ],
)
async def test_a_spec_that_the_schema_lets_through(
    cluster: Cluster, watcher: Watcher, spec: Object, field: str
) -> None:
    await create(cluster, qiskitjob(**spec))
    failed = await watcher.finished("bell")
    assert failed["status"]["phase"] == "Failed"
    found = conditions(failed)["Failed"]
    assert found["reason"] == "InvalidSpec"
    assert field in found["message"]
    assert conditions(failed)["Validated"]["status"] == "False"
    assert not cluster.made


async def test_code_that_does_not_fit_into_a_config_map(cluster: Cluster, watcher: Watcher) -> None:
    code = "#" + "€" * 350_000
    await create(cluster, qiskitjob(circuit={"source": "inline", "code": code}))
    failed = await watcher.finished("bell")
    assert conditions(failed)["Failed"]["reason"] == "InvalidSpec"
    assert "Too long" in failed["status"]["message"]


async def test_somebody_elses_output_is_left_alone(
    cluster: Cluster, watcher: Watcher, replica: Replica
) -> None:
    theirs = await config_map(cluster, "taken", mine="yes")
    await create(cluster, qiskitjob(output={"location": "taken"}))
    failed = await watcher.finished("bell")
    found = conditions(failed)["Failed"]
    assert found["reason"] == "OutputConflict"
    assert "ConfigMap 'taken' exists already and belongs to someone else" in found["message"]
    assert await cluster.client.get(CONFIGMAPS, "taken", cluster.namespace) == theirs
    assert not cluster.made
    # Nor is anything left of the attempt to start.
    for name in ("qiskit-job-bell-record",):
        assert await missing(cluster, CONFIGMAPS, name)


async def test_two_jobs_cannot_have_one_output(cluster: Cluster, watcher: Watcher) -> None:
    cluster.story = lambda pod: succeed(pod, "shared")
    await create(cluster, qiskitjob("first", output={"location": "shared"}))
    await watcher.phase("first", "Completed")
    await create(cluster, qiskitjob("second", output={"location": "shared"}))
    failed = await watcher.finished("second")
    assert conditions(failed)["Failed"]["reason"] == "OutputConflict"
    assert "belongs to QiskitJob 'first'" in failed["status"]["message"]
    kept = await cluster.client.get(CONFIGMAPS, "shared", cluster.namespace)
    assert kept["data"]["counts"]


async def test_a_name_that_is_taken(cluster: Cluster, watcher: Watcher) -> None:
    body = {"metadata": {"name": "qiskit-job-bell"}}
    theirs = await cluster.client.create(SERVICE_ACCOUNTS, body, cluster.namespace)
    await create(cluster, qiskitjob())
    failed = await watcher.finished("bell")
    found = conditions(failed)["Failed"]
    assert found["reason"] == "NameConflict"
    assert "ServiceAccount 'qiskit-job-bell'" in found["message"]
    left = await cluster.client.get(SERVICE_ACCOUNTS, "qiskit-job-bell", cluster.namespace)
    assert left["metadata"]["uid"] == theirs["metadata"]["uid"]
    assert not cluster.made


@pytest.mark.usefixtures("quick_retries")
async def test_the_second_attempt_of_x_and_the_first_of_x_2(
    cluster: Cluster, watcher: Watcher
) -> None:
    cluster.story = in_turn(fail(Reason.EXECUTOR_FAILED), succeed)
    await create(cluster, qiskitjob("x"))
    await watcher.phase("x", "Completed")
    cluster.story = succeed
    await create(cluster, qiskitjob("x-2"))
    done = await watcher.phase("x-2", "Completed")
    assert cluster.made == {("x", 1): 1, ("x", 2): 1, ("x-2", 1): 1}
    (attempt,) = done["status"]["attempts"]
    assert attempt["jobName"].startswith("qiskit-job-x-2-")
    assert not await missing(cluster, JOBS, attempt["jobName"])


async def test_the_name_of_a_deleted_job_can_be_used_again(
    cluster: Cluster, watcher: Watcher
) -> None:
    first = await create(cluster, qiskitjob())
    await watcher.phase("bell", "Completed")
    await delete(cluster, "bell")
    await watcher.deleted("bell")
    # What the first one owned may still be there.
    second = await create(cluster, qiskitjob())
    assert first["metadata"]["uid"] != second["metadata"]["uid"]

    def is_second(job: Object) -> bool:
        uid: str = job["metadata"]["uid"]
        return (
            uid == second["metadata"]["uid"] and job.get("status", {}).get("phase") == "Completed"
        )

    await watcher.until("bell", is_second)
    output = await cluster.client.get(CONFIGMAPS, "bell-results", cluster.namespace)
    assert names.belongs_to(output, second["metadata"]["uid"])
    assert output["data"]["counts"]


# --- failures and retries ---------------------------------------------------------------------


async def test_a_permanent_failure(cluster: Cluster, watcher: Watcher) -> None:
    cluster.story = fail(Reason.CIRCUIT_SYNTAX_ERROR)
    await create(cluster, qiskitjob())
    failed = await watcher.finished("bell")
    assert conditions(failed)["Failed"]["reason"] == "CircuitSyntaxError"
    assert cluster.made == {("bell", 1): 1}
    # The Job stays for its log; the output that nothing was written to does not.
    assert not await missing(cluster, JOBS, "qiskit-job-bell")
    assert await missing(cluster, CONFIGMAPS, "bell-results")


@pytest.mark.usefixtures("quick_retries")
async def test_retries(cluster: Cluster, watcher: Watcher) -> None:
    cluster.story = in_turn(fail(Reason.EXECUTOR_FAILED), be_evicted, succeed)
    await create(cluster, qiskitjob(execution={"maxRetries": 1}))
    done = await watcher.phase("bell", "Completed")
    assert cluster.made == {("bell", 1): 1, ("bell", 2): 1, ("bell", 3): 1}
    assert [each.get("reason") for each in done["status"]["attempts"]] == [
        "ExecutorFailed",
        "Evicted",
        None,
    ]
    assert [each["counted"] for each in done["status"]["attempts"]] == [True, False, True]
    told = counted(await events_until(cluster.client, cluster.namespace, "bell", "Completed"))
    assert sum(n for text, n in told.items() if text.startswith("Retrying")) == 2


@pytest.mark.usefixtures("quick_retries")
async def test_no_more_attempts_than_allowed(cluster: Cluster, watcher: Watcher) -> None:
    cluster.story = fail(Reason.EXECUTOR_FAILED)
    await create(cluster, qiskitjob(execution={"maxRetries": 2}))
    failed = await watcher.finished("bell")
    assert failed["status"]["message"].endswith("(attempt 3 of 3, the last)")
    assert cluster.made == {("bell", 1): 1, ("bell", 2): 1, ("bell", 3): 1}


@pytest.mark.usefixtures("quick_retries")
async def test_a_pod_that_is_deleted_by_hand(cluster: Cluster, watcher: Watcher) -> None:
    cluster.story = in_turn(until("Running"), succeed)
    await create(cluster, qiskitjob(execution={"maxRetries": 0}))
    running = await watcher.phase("bell", "Running")
    pod = running["status"]["executorPodName"]
    await cluster.client.delete(PODS, pod, cluster.namespace)
    done = await watcher.phase("bell", "Completed")
    assert done["status"]["attempts"][0]["reason"] == "PodLost"
    assert cluster.made == {("bell", 1): 1, ("bell", 2): 1}


async def test_a_timeout_ends_the_pod(cluster: Cluster, watcher: Watcher) -> None:
    cluster.story = until("Running")
    await create(cluster, qiskitjob(execution={"timeout": "1s"}))
    failed = await watcher.finished("bell")
    assert conditions(failed)["Failed"]["reason"] == "Timeout"
    await vanished(cluster, JOBS, "qiskit-job-bell")


# --- changes after the start ------------------------------------------------------------------


@pytest.mark.usefixtures("quick_retries")
async def test_a_change_after_the_start_is_ignored_and_reported(
    cluster: Cluster, watcher: Watcher
) -> None:
    cluster.story = in_turn(until("Running"), succeed)
    await create(cluster, qiskitjob())
    running = await watcher.phase("bell", "Running")
    await edit(
        cluster,
        "bell",
        {"circuit": {"code": "other"}, "backend": {"name": "aer_simulator_stabilizer"}},
    )
    told = await watcher.until("bell", lambda job: "SpecChangeIgnored" in conditions(job))
    message = conditions(told)["SpecChangeIgnored"]["message"]
    assert message.startswith("spec.backend, spec.circuit changed after the job had started")
    # The next attempt runs what the first one ran.
    await cluster.client.delete(PODS, running["status"]["executorPodName"], cluster.namespace)
    done = await watcher.phase("bell", "Completed")
    assert done["status"]["backend"] == "aer_simulator"
    pinned = await cluster.client.get(CONFIGMAPS, "qiskit-job-bell-input", cluster.namespace)
    assert pinned["data"]["circuit.py"] == "qc = 1"
    assert "stabilizer" not in pinned["data"][PLAN_FILE]


async def test_a_change_that_is_taken_back(cluster: Cluster, watcher: Watcher) -> None:
    cluster.story = until("Running")
    await create(cluster, qiskitjob())
    await watcher.phase("bell", "Running")
    await edit(cluster, "bell", {"execution": {"shots": 5}})
    await watcher.until("bell", lambda job: reason_of(job, "SpecChangeIgnored") == "AlreadyStarted")
    await edit(cluster, "bell", {"execution": {"shots": 1024}})
    await watcher.until("bell", lambda job: reason_of(job, "SpecChangeIgnored") == "Reverted")


async def test_code_beside_a_config_map_is_no_change(cluster: Cluster, watcher: Watcher) -> None:
    await config_map(cluster, "circuits", **{"bell.py": "qc = 1"})
    circuit = {
        "source": "configmap",
        "configMapRef": {"name": "circuits", "key": "bell.py"},
        "code": "left over",
    }
    await create(cluster, qiskitjob(circuit=circuit))
    done = await watcher.phase("bell", "Completed")
    assert "SpecChangeIgnored" not in conditions(done)


# --- cancel, delete, time to live -------------------------------------------------------------


@pytest.mark.parametrize("phase", ["Pending", "Validating", "Scheduling", "Running"])
async def test_cancel(cluster: Cluster, watcher: Watcher, phase: str) -> None:
    cluster.story = until(phase)
    await create(cluster, qiskitjob())
    await watcher.until(
        "bell",
        lambda job: phase_of(job) == phase and job["status"].get("attempts"),
        phase,
    )
    await edit(cluster, "bell", {"cancel": True})
    done = await watcher.finished("bell")
    assert done["status"]["phase"] == "Cancelled"
    assert conditions(done)["Cancelled"]["status"] == "True"
    assert conditions(done)["Complete"]["status"] == "False"
    assert done["status"]["attempts"][0]["completionTime"]
    for resource in (JOBS, SERVICE_ACCOUNTS, ROLES, ROLEBINDINGS):
        await vanished(cluster, resource, "qiskit-job-bell")
    assert cluster.made == {("bell", 1): 1}


async def test_cancel_while_it_waits_for_its_code(cluster: Cluster, watcher: Watcher) -> None:
    reference = {"name": "circuits", "key": "bell.py"}
    circuit = {"source": "configmap", "configMapRef": reference}
    await create(cluster, qiskitjob(circuit=circuit))
    await watcher.phase("bell", "Pending")
    await edit(cluster, "bell", {"cancel": True})
    await watcher.phase("bell", "Cancelled")
    assert not cluster.made


@pytest.mark.parametrize(
    "phase", ["", "Pending", "Validating", "Scheduling", "Running", "Completed", "Failed"]
)
async def test_delete(cluster: Cluster, watcher: Watcher, phase: str) -> None:
    stories = {"Completed": succeed, "Failed": fail(Reason.CIRCUIT_INVALID)}
    cluster.story = stories.get(phase) or until(phase or "Pending")
    await create(cluster, qiskitjob())
    if phase:
        await watcher.until(
            "bell", lambda job: phase_of(job) == phase and job["status"].get("attempts"), phase
        )
    await delete(cluster, "bell")
    await watcher.deleted("bell")
    await nothing_left(cluster.client, cluster.namespace)


async def test_deletion_waits_for_the_pod(cluster: Cluster, watcher: Watcher) -> None:
    cluster.story = until("Running")
    await create(cluster, qiskitjob())
    await watcher.phase("bell", "Running")
    await delete(cluster, "bell")
    await watcher.deleted("bell")
    # Not a moment before: the last thing that went is the QiskitJob.
    assert await missing(cluster, JOBS, "qiskit-job-bell")
    pods = await cluster.client.list(PODS, cluster.namespace)
    assert pods["items"] == []


async def test_a_stray_pod_with_our_labels_does_not_hold_a_deletion(
    cluster: Cluster, watcher: Watcher
) -> None:
    created = await create(cluster, qiskitjob())
    await watcher.phase("bell", "Completed")
    stray = {
        "metadata": {
            "name": "stray",
            "labels": names.labels("bell", created["metadata"]["uid"]),
            "annotations": {names.JOB_ANNOTATION: "bell"},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "nobody"}
            ],
        },
        "spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": "nowhere"},
    }
    await cluster.client.create(PODS, stray, cluster.namespace)
    await delete(cluster, "bell")
    await watcher.deleted("bell")


async def test_time_to_live(cluster: Cluster, watcher: Watcher) -> None:
    await create(cluster, qiskitjob(ttlSecondsAfterFinished=1))
    done = await watcher.phase("bell", "Completed")
    assert "deletionTimestamp" not in done["metadata"]
    await watcher.deleted("bell")
    await nothing_left(cluster.client, cluster.namespace)


async def test_a_time_to_live_that_is_given_after_the_end(
    cluster: Cluster, watcher: Watcher
) -> None:
    await create(cluster, qiskitjob())
    await watcher.phase("bell", "Completed")
    await edit(cluster, "bell", {"ttlSecondsAfterFinished": 0})
    await watcher.deleted("bell")


# --- quotas -----------------------------------------------------------------------------------


async def quota(cluster: Cluster, name: str, used: int, hard: int) -> None:
    """A quota as the quota controller, which is not here, would keep it."""
    body = {"metadata": {"name": "quota"}, "spec": {"hard": {name: str(hard)}}}
    await cluster.client.create(QUOTAS, body, cluster.namespace)
    await set_quota(cluster, name, used, hard)


async def set_quota(cluster: Cluster, name: str, used: int, hard: int) -> None:
    status = {"hard": {name: str(hard)}, "used": {name: str(used)}}
    await cluster.client.patch(
        QUOTAS, "quota", cluster.namespace, {"status": status}, subresource="status"
    )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks again soon; a quota tells nobody that it has room."""
    from qiskit_controller.reconcilers.qiskitjob import decision

    monkeypatch.setattr(decision, "RECHECK", decision.RECHECK / 300)


@pytest.mark.usefixtures("impatient")
async def test_a_quota_is_shown_and_waited_for(cluster: Cluster, watcher: Watcher) -> None:
    await quota(cluster, "count/jobs.batch", 0, 0)
    await create(cluster, qiskitjob())
    blocked = await watcher.until("bell", lambda job: reason_of(job, "PodStarted") == "Forbidden")
    assert "exceeded quota" in conditions(blocked)["PodStarted"]["message"]
    assert blocked["status"]["phase"] == "Pending"
    assert blocked["status"]["message"].startswith("Forbidden: ")
    # As long as nothing has started, the spec may still be mended.
    await edit(cluster, "bell", {"execution": {"shots": 7}})
    await set_quota(cluster, "count/jobs.batch", 0, 10)
    await cluster.client.patch(
        QUOTAS, "quota", cluster.namespace, {"spec": {"hard": {"count/jobs.batch": "10"}}}
    )
    await set_quota(cluster, "count/jobs.batch", 0, 10)
    done = await watcher.phase("bell", "Completed")
    assert "SpecChangeIgnored" not in conditions(done)
    pinned = await cluster.client.get(CONFIGMAPS, "qiskit-job-bell-input", cluster.namespace)
    assert '"shots": 7' in pinned["data"][PLAN_FILE]


@pytest.mark.usefixtures("impatient", "quick_retries")
async def test_a_quota_that_is_full_of_our_own_does_not_hold_a_retry(
    cluster: Cluster, watcher: Watcher
) -> None:
    cluster.story = in_turn(until("Running"), succeed)
    await create(cluster, qiskitjob())
    running = await watcher.phase("bell", "Running")
    # The retry needs no ConfigMap that is not there; but a full quota is met before the name.
    await quota(cluster, "count/configmaps", 3, 3)
    await cluster.client.delete(PODS, running["status"]["executorPodName"], cluster.namespace)
    await watcher.phase("bell", "Completed")


# --- strangers --------------------------------------------------------------------------------


async def test_a_finalizer_of_somebody_else_is_kept(cluster: Cluster, watcher: Watcher) -> None:
    job = qiskitjob()
    job["metadata"]["finalizers"] = ["example.com/theirs"]
    await create(cluster, job)
    await watcher.phase("bell", "Completed")
    await delete(cluster, "bell")
    left = await watcher.until(
        "bell",
        lambda job: (
            job["metadata"].get("finalizers") == ["example.com/theirs"]
            and "deletionTimestamp" in job["metadata"]
        ),
    )
    assert left["status"]["phase"] == "Completed"
    await cluster.client.patch(
        QISKITJOBS, "bell", cluster.namespace, {"metadata": {"finalizers": None}}
    )
    await watcher.deleted("bell")


@pytest.mark.usefixtures("quick_retries")
async def test_the_input_is_deleted_by_hand(cluster: Cluster, watcher: Watcher) -> None:
    cluster.story = in_turn(until("Running"), succeed)
    await create(cluster, qiskitjob())
    running = await watcher.phase("bell", "Running")
    await cluster.client.delete(CONFIGMAPS, "qiskit-job-bell-input", cluster.namespace)
    await cluster.client.delete(PODS, running["status"]["executorPodName"], cluster.namespace)
    failed = await watcher.finished("bell")
    assert "'qiskit-job-bell-input', which holds what this job runs" in failed["status"]["message"]
