"""QiskitBackends on a real API server; their probes say what the test chooses."""

from __future__ import annotations

from typing import Any

import pytest

from qiskit_controller.api.qiskitbackend import DeviceStatus
from qiskit_controller.api.quantities import format_time
from qiskit_controller.api.run import ProbeReport, Reason
from qiskit_controller.kube.client import EVENTS, JOBS, Client
from qiskit_controller.reconcilers.qiskitbackend import decision
from qiskit_controller.reconcilers.qiskitbackend.reconciler import QISKITBACKENDS
from qiskit_controller.runner.devices import encode_probe

from .cluster import Cluster, FaultyClient, Pod, Story, eventually, now
from .test_budgets import MoneyReplica

Object = dict[str, Any]
FEZ = DeviceStatus(name="ibm_fez", operational=True, qubits=156, pending_jobs=3)
TORINO = DeviceStatus(name="ibm_torino", operational=False, detail="maintenance", qubits=133)


def says(report: ProbeReport) -> Story:
    """The probe ends with that report."""

    async def story(pod: Pod) -> None:
        code = 0 if report.reason is None else 1
        ended: Object = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "message": encode_probe(report),
            "startedAt": format_time(now()),
            "finishedAt": format_time(now()),
        }
        container = {
            "name": "probe",
            "state": {"terminated": ended},
            "ready": False,
            "restartCount": 0,
            "image": "i",
            "imageID": "",
        }
        phase = "Succeeded" if code == 0 else "Failed"
        await pod.status({"phase": phase, "containerStatuses": [container]})

    return story


def account(**spec: Any) -> Object:
    return {
        "apiVersion": "quantum.io/v1",
        "kind": "QiskitBackend",
        "metadata": {"name": "ibm"},
        "spec": {
            "type": "ibm_quantum",
            "credentials": {"secretRef": {"name": "ibm-key"}},
            "probe": {"interval": "10s"},
            **spec,
        },
    }


async def status_of(client: Client, namespace: str) -> Object:
    found = await client.get(QISKITBACKENDS, "ibm", namespace)
    status: Object = found.get("status") or {}
    return status


async def until(cluster: Cluster, what: str, **fields: Any) -> Object:
    async def holds() -> bool:
        status = await status_of(cluster.client, cluster.namespace)
        return all(status.get(key) == value for key, value in fields.items())

    await eventually(holds, what)
    return await status_of(cluster.client, cluster.namespace)


async def told(client: Client, namespace: str) -> set[str]:
    """The reasons of the Events about QiskitBackends."""
    found = await client.list(EVENTS, namespace, field_selector="involvedObject.kind=QiskitBackend")
    return {each["reason"] for each in found["items"]}


def reason(status: Object, type_: str) -> tuple[str, str]:
    found = {each["type"]: each for each in status["conditions"]}[type_]
    return found["status"], found["reason"]


async def test_from_the_first_probe_to_a_device_that_goes_down(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision, "SHORTEST", decision.SHORTEST / 100)
    client, namespace = cluster.client, cluster.namespace
    cluster.probe_story = says(ProbeReport(devices=(FEZ, TORINO)))
    async with MoneyReplica(client, namespace):
        await client.create(QISKITBACKENDS, account(probe={"interval": "1s"}), namespace)
        status = await until(cluster, "the devices are known", ready="1/2")
        assert (status["operational"], status["qubits"], status["pendingJobs"]) == (True, 156, 3)
        assert reason(status, "Available") == ("True", "Operational")
        assert reason(status, "CredentialsValid") == ("True", "LoggedIn")
        refused = ProbeReport(reason=Reason.BACKEND_UNAVAILABLE, message="no answer")
        cluster.probe_story = says(refused)
        status = await until(cluster, "it does not answer", failures=1)
        assert reason(status, "Available") == ("Unknown", "BackendUnavailable")
        assert status["operational"] is True
        cluster.probe_story = says(ProbeReport(devices=(TORINO,)))
        status = await until(cluster, "it answers again", ready="0/1")
        assert reason(status, "Available") == ("False", "NotOperational")
        await eventually(lambda: told(client, namespace), "it is told")
        assert await told(client, namespace) == {"NotOperational"}


@pytest.mark.parametrize("at", range(1, 6))
async def test_a_crash_after_any_write_counts_no_probe_twice(cluster: Cluster, at: int) -> None:
    client, namespace = cluster.client, cluster.namespace
    cluster.probe_story = says(ProbeReport(devices=(FEZ,)))
    faults = FaultyClient(client, at)
    first = await MoneyReplica(client, namespace, faults=faults).__aenter__()
    await client.create(QISKITBACKENDS, account(probe={"interval": "1h"}), namespace)

    async def died_or_done() -> bool:
        return faults.crashed.is_set() or bool((await status_of(client, namespace)).get("ready"))

    await eventually(died_or_done, "it died, or is through")
    await first.die()
    async with MoneyReplica(client, namespace):
        status = await until(cluster, "the device is known", ready="1/1")

        async def no_job() -> bool:
            return not (await client.list(JOBS, namespace))["items"]

        await eventually(no_job, "the probe's Job is gone")
    assert status["failures"] == 0
    assert (await status_of(client, namespace))["probeUid"] == status["probeUid"]
