"""Jobs that name no device, on a real API server: chosen, chosen again, and fallen back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import attrs
import pytest

from qiskit_controller.api import names
from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.qiskitbackend import DeviceStatus
from qiskit_controller.api.run import ASSIGNMENT_KEY, Assignment, ProbeReport
from qiskit_controller.kube.client import CONFIGMAPS
from qiskit_controller.reconcilers.qiskitbackend import decision
from qiskit_controller.reconcilers.qiskitbackend.reconciler import QISKITBACKENDS
from qiskit_controller.reconcilers.qiskitjob.reconciler import QISKITJOBS

from ...unit.reconcilers import kubelet  # noqa: TID252 - tests are no package to be imported from
from .cluster import Cluster, Pod, Watcher, conditions, eventually, phase_of, qiskitjob, reach
from .test_budgets import MoneyReplica, assigned, run_on, run_where_told, take_up, tell
from .test_qiskitbackend import account, says, status_of

FEZ = DeviceStatus(name="ibm_fez", operational=True, qubits=156, pending_jobs=3, shot_time=0.0001)
TORINO = DeviceStatus(name="ibm_torino", operational=True, qubits=133, pending_jobs=0)


def job(name: str = "bell", **spec: Any) -> dict[str, Any]:
    given = {
        "backend": {"type": "ibm_quantum"},
        "credentials": {"secretRef": {"name": "ibm-key"}},
        "backendSelection": {"weights": {"cost": 1.0}},
    }
    return qiskitjob(name, **given | spec)


@pytest.fixture
async def probed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """An account of two devices, which is probed every second."""
    monkeypatch.setattr(decision, "SHORTEST", decision.SHORTEST / 100)
    cluster.story = run_where_told
    cluster.probe_story = says(ProbeReport(devices=(FEZ, TORINO)))
    backend = account(probe={"interval": "1s"})
    await cluster.client.create(QISKITBACKENDS, backend, cluster.namespace)
    return cluster


async def known(cluster: Cluster, ready: str) -> None:
    async def holds() -> bool:
        return (await status_of(cluster.client, cluster.namespace)).get("ready") == ready

    await eventually(holds, f"{ready} devices take jobs")


async def test_the_best_is_chosen_and_billed(probed: Cluster, watcher: Watcher) -> None:
    async with MoneyReplica(probed.client, probed.namespace):
        # Before the account was probed: it waits for that.
        await probed.client.create(QISKITJOBS, job(), probed.namespace)
        done = await watcher.finished("bell")
    assert phase_of(done) == "Completed"
    selected = conditions(done)["BackendSelected"]
    assert (selected["status"], selected["reason"]) == ("True", "OptimalBackend")
    assert selected["message"].startswith("Selected ibm_fez based on cost (score 1.00, $3.53")
    assert "Then came ibm_torino (score 0.9" in selected["message"]
    assert done["status"]["backend"] == "ibm_fez"
    costs = done["status"]["costs"]
    # 2 + 1024 * (0.0001 + 0.0001) seconds at $1.60; then the quarter of a second that it took.
    assert (costs["estimated"], costs["actual"], done["status"]["cost"]) == (
        "$3.53",
        "$0.40",
        "$0.40",
    )


async def test_what_is_too_dear_falls_back_to_the_simulator(
    probed: Cluster, watcher: Watcher
) -> None:
    selection = {"weights": {"cost": 1.0}, "fallbackToSimulator": True}
    wanted = job(backendSelection=selection, budget={"maxCost": "$1.00"})
    async with MoneyReplica(probed.client, probed.namespace):
        await known(probed, "2/2")
        await probed.client.create(QISKITJOBS, wanted, probed.namespace)
        done = await watcher.finished("bell")
    assert phase_of(done) == "Completed"
    found = conditions(done)
    assert found["BudgetExceeded"]["reason"] == "FallbackToSimulator"
    assert found["BudgetExceeded"]["message"] == "Estimated cost $3.53 exceeds budget $1.00"
    assert found["BackendSelected"]["reason"] == "SimulatorFallback"
    assert (done["status"]["backend"], done["status"]["cost"]) == ("aer_simulator", "$0.00")


async def test_a_device_that_the_executor_refuses_leads_to_a_new_choice(
    probed: Cluster, watcher: Watcher
) -> None:
    async def story(pod: Pod) -> None:
        first = await assigned(pod)
        validated = kubelet.progress(pod.attempt, "Validated")
        await tell(pod, attrs.evolve(validated, refused={first.name: "takes no jobs"}))
        name = names.record_name(pod.owner)
        while True:
            record = await pod.client.get(CONFIGMAPS, name, pod.namespace)
            second = from_wire(json.loads(record["data"][ASSIGNMENT_KEY]), Assignment)
            if second.number > first.number:
                break
            await asyncio.sleep(0.02)
        await run_on(pod, await take_up(pod))

    probed.story = story
    async with MoneyReplica(probed.client, probed.namespace):
        await known(probed, "2/2")
        await probed.client.create(QISKITJOBS, job(), probed.namespace)
        done = await watcher.finished("bell")
    assert done["status"]["backend"] == "ibm_torino"
    assert "ibm_fez takes no jobs" in conditions(done)["BackendSelected"]["message"]


async def test_a_device_that_goes_down_before_it_is_taken_up_leads_to_a_new_choice(
    probed: Cluster, watcher: Watcher
) -> None:
    go_on = asyncio.Event()

    async def story(pod: Pod) -> None:
        await reach(pod, "Scheduling")
        await go_on.wait()
        await run_on(pod, await take_up(pod))

    probed.story = story
    async with MoneyReplica(probed.client, probed.namespace):
        await known(probed, "2/2")
        await probed.client.create(QISKITJOBS, job(), probed.namespace)
        await watcher.until(
            "bell", lambda job: job["status"].get("backend") == "ibm_fez", "it is chosen"
        )
        down = attrs.evolve(FEZ, operational=False, detail="maintenance")
        probed.probe_story = says(ProbeReport(devices=(down, TORINO)))
        await watcher.until(
            "bell", lambda job: job["status"].get("backend") == "ibm_torino", "another is chosen"
        )
        go_on.set()
        done = await watcher.finished("bell")
    assert phase_of(done) == "Completed"
    message = conditions(done)["BackendSelected"]["message"]
    assert "ibm_fez is not operational (maintenance)" in message


async def test_all_are_down_and_one_comes_back(probed: Cluster, watcher: Watcher) -> None:
    down = [attrs.evolve(each, operational=False) for each in (FEZ, TORINO)]
    probed.probe_story = says(ProbeReport(devices=tuple(down)))
    async with MoneyReplica(probed.client, probed.namespace):
        await known(probed, "0/2")
        await probed.client.create(QISKITJOBS, job(), probed.namespace)
        waiting = await watcher.until(
            "bell",
            lambda job: conditions(job).get("BackendSelected", {}).get("status") == "False",
            "it says that it waits",
        )
        assert conditions(waiting)["BackendSelected"]["reason"] == "NoBackendAvailable"
        probed.probe_story = says(ProbeReport(devices=(down[0], TORINO)))
        done = await watcher.finished("bell")
    assert done["status"]["backend"] == "ibm_torino"
