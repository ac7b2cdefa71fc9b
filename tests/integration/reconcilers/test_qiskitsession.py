"""QiskitSessions and their jobs on a real API server; what the provider says, the test chooses."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any, Self

import attrs
import pytest

from qiskit_controller.api import names
from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.quantities import format_time
from qiskit_controller.api.run import (
    ProbeReport,
    Reason,
    SessionReport,
    SessionRequest,
    Submission,
    submission_key,
)
from qiskit_controller.kube.client import EVENTS, JOBS, Client, NotFound
from qiskit_controller.kube.resources import CONFIGMAPS
from qiskit_controller.reconcilers.qiskitbackend.reconciler import QISKITBACKENDS
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings
from qiskit_controller.reconcilers.qiskitjob.reconciler import QISKITJOBS
from qiskit_controller.reconcilers.qiskitjob.sessions import QISKITSESSIONS, Sessions
from qiskit_controller.reconcilers.qiskitsession import decision
from qiskit_controller.reconcilers.qiskitsession.reconciler import (
    QiskitSessionReconciler,
    sessions_informer,
)

from .cluster import (
    Cluster,
    FaultyClient,
    Pod,
    Watcher,
    conditions,
    events_until,
    eventually,
    now,
    phase_of,
    qiskitjob,
    reason_of,
)
from .test_budgets import MoneyReplica, assigned, run_on
from .test_qiskitbackend import account, says
from .test_selection import FEZ, TORINO

Object = dict[str, Any]


class SessionReplica(MoneyReplica):
    """The controller with its sessions as well, as `manager.py` wires them."""

    def __init__(
        self, client: Client, namespace: str, *, faults: FaultyClient | None = None
    ) -> None:
        super().__init__(client, namespace, faults=faults)
        used: Client = faults or client  # type: ignore[assignment]
        informer = sessions_informer(client)
        self.informers = (*self.informers, informer)
        self.reconciler.sessions = Sessions(used, informer)
        self.sessions = QiskitSessionReconciler(
            used,
            informer,
            self.caches.jobs,
            self.caches.kubernetes_jobs,
            self.caches.pods,
            self.events,
            Settings(runner_image="runner"),
        )
        self._add(self.sessions)

    async def __aenter__(self) -> Self:
        self.sessions.feed(self._queues[-1], self.queue)
        # The first two are fed there.
        await super().__aenter__()
        return self


@attrs.define
class Provider:
    """What stands in for the pods that ask IBM, and for IBM.

    Attributes:
        opened: ids of the sessions that were opened, in order.
        closed: the same of those that it was told to close.
        ran: QiskitJobs that began to execute, each with its session.
        most: jobs that executed at the same time, at most.
        gate: while it is clear, jobs that execute go on doing so.
        report: what is said of a session beside its id, when it is looked at.
        refusal: why none can be opened.
        tells: whether jobs tell that IBM has them, as they do while they are in its queue.
    """

    opened: list[str] = attrs.field(factory=list)
    closed: list[str] = attrs.field(factory=list)
    ran: list[tuple[str, str | None]] = attrs.field(factory=list)
    most: int = 0
    gate: asyncio.Event = attrs.field(factory=asyncio.Event)
    report: dict[str, Any] = attrs.field(factory=dict)
    refusal: SessionReport | None = None
    tells: bool = False
    _inside: set[str] = attrs.field(factory=set)

    async def asked(self, pod: Pod) -> None:
        """The pod of a probe, or of a session's errand."""
        (container,) = pod.job["spec"]["template"]["spec"]["containers"]
        if container["name"] == "probe":
            await says(ProbeReport(devices=(FEZ, TORINO)))(pod)
            return
        request = from_wire(json.loads(container["env"][0]["value"]), SessionRequest)
        report = self._answer(request)
        code = 0 if report.reason is None else 1
        ended = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "message": json.dumps(to_wire(report)),
            "startedAt": format_time(now()),
            "finishedAt": format_time(now()),
        }
        told = {
            "name": "session",
            "state": {"terminated": ended},
            "ready": False,
            "restartCount": 0,
            "image": "i",
            "imageID": "",
        }
        phase = "Succeeded" if code == 0 else "Failed"
        await pod.status({"phase": phase, "containerStatuses": [told]})

    def _answer(self, request: SessionRequest) -> SessionReport:
        device = request.backend.name or "ibm_torino"
        if request.action == "open":
            if self.refusal is not None:
                return self.refusal
            self.opened.append(f"s-{len(self.opened) + 1}")
            return SessionReport(id=self.opened[-1], backend=device, accepting=True)
        if request.action == "close":
            assert request.id is not None
            self.closed.append(request.id)
            return SessionReport(id=request.id, backend=device, closed=True, usage="7")
        return SessionReport(
            **{"id": request.id, "backend": device, "accepting": True} | self.report
        )

    async def run(self, pod: Pod) -> None:
        """The pod of a job."""
        chosen = await assigned(pod)
        if self.tells:
            sold = Submission(ticket=1, attempt=1, id=f"at-ibm-{pod.owner}", state="Queued")
            body = {"data": {submission_key(1): json.dumps(to_wire(sold))}}
            await pod.client.patch(CONFIGMAPS, names.record_name(pod.owner), pod.namespace, body)
        self.ran.append((pod.owner, chosen.session))
        self._inside.add(pod.owner)
        self.most = max(self.most, len(self._inside))
        try:
            await self.gate.wait()
            self._inside.discard(pod.owner)
            await run_on(pod, chosen)
        finally:
            self._inside.discard(pod.owner)


@pytest.fixture
async def provider(cluster: Cluster) -> Provider:
    """An account of two devices, whose jobs execute at once."""
    made = Provider()
    made.gate.set()
    cluster.story, cluster.probe_story = made.run, made.asked
    backend = account(probe={"interval": "1h"})
    await cluster.client.create(QISKITBACKENDS, backend, cluster.namespace)
    return made


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "LOOK_SOON", timedelta(seconds=0.2))
    monkeypatch.setattr(decision, "RETRY", timedelta(seconds=0.1))


def job(name: str, priority: str = "normal", **spec: Any) -> Object:
    given = {
        "backend": {"type": "ibm_quantum"},
        "credentials": {"secretRef": {"name": "ibm-key"}},
        "backendSelection": {"weights": {"cost": 1.0}},
        "execution": {"priority": priority},
        "session": {"name": "vqe", "maxTime": 600, "mode": "dedicated"},
    }
    return qiskitjob(name, **given | spec)


def session(name: str = "vqe", **spec: Any) -> Object:
    return {
        "apiVersion": "quantum.io/v1",
        "kind": "QiskitSession",
        "metadata": {"name": name},
        "spec": {
            "backend": {"name": "ibm_fez"},
            "credentials": {"secretRef": {"name": "ibm-key"}},
            **spec,
        },
    }


async def found(cluster: Cluster, name: str = "vqe") -> Object | None:
    try:
        return await cluster.client.get(QISKITSESSIONS, name, cluster.namespace)
    except NotFound:
        return None


async def session_until(cluster: Cluster, what: str, **fields: Any) -> Object:
    async def holds() -> bool:
        status = ((await found(cluster)) or {}).get("status") or {}
        return all(status.get(key) == value for key, value in fields.items())

    await eventually(holds, what)
    made = await found(cluster)
    assert made is not None
    return made


async def session_gone(cluster: Cluster) -> None:
    async def gone() -> bool:
        left = (await cluster.client.list(JOBS, cluster.namespace))["items"]
        errands = [each for each in left if each["metadata"]["name"] == "qiskit-session-vqe"]
        return await found(cluster) is None and not errands

    await eventually(gone, "the session is gone, with all it had")


async def told(cluster: Cluster) -> list[str]:
    """The reasons of the Events about QiskitSessions, in order."""
    listed = await cluster.client.list(
        EVENTS, cluster.namespace, field_selector="involvedObject.kind=QiskitSession"
    )
    items = sorted(listed["items"], key=lambda each: int(each["metadata"]["resourceVersion"]))
    return [each["reason"] for each in items]


async def test_a_job_makes_its_session_and_runs_in_it(
    cluster: Cluster, provider: Provider, watcher: Watcher
) -> None:
    client, namespace = cluster.client, cluster.namespace
    async with SessionReplica(client, namespace):
        await client.create(QISKITJOBS, job("bell"), namespace)
        done = await watcher.finished("bell")
        assert phase_of(done) == "Completed"
        where = done["status"]["session"]
        assert (where["name"], where["id"]) == ("vqe", "s-1")
        assert where["since"] < where["entered"]
        assert conditions(done)["SessionReady"]["status"] == "True"
        assert reason_of(done, "BackendSelected") == "OptimalBackend"
        assert done["status"]["backend"] == "ibm_fez"
        assert provider.ran == [("bell", "s-1")]
        made = await session_until(
            cluster, "it is empty", jobs={"waiting": 0, "running": 0, "finished": 1}
        )
        assert made["metadata"]["labels"][names.MANAGED_BY] == names.MANAGER
        assert made["metadata"]["annotations"] == {"quantum.io/made-for": "bell"}
        assert made["spec"]["backend"]["name"] == "ibm_fez"
        assert made["spec"]["maxTime"] == 600
        assert made["status"]["phase"] == "Active"
        assert made["status"]["openings"] == 1
        reasons = [
            each["reason"] for each in await events_until(client, namespace, "bell", "Completed")
        ]
        assert reasons.index("SessionOpening") < reasons.index("BackendSelected")
        assert await told(cluster) == ["Accepted", "Opening", "Opened", "JobAdmitted"]


async def test_jobs_go_in_one_by_one_in_order_of_priority(
    cluster: Cluster, provider: Provider, watcher: Watcher
) -> None:
    client, namespace = cluster.client, cluster.namespace
    provider.gate.clear()
    priorities = ("low", "normal", "urgent", "high", "normal")
    async with SessionReplica(client, namespace):
        await client.create(QISKITSESSIONS, session(), namespace)
        await client.create(QISKITJOBS, job("first", "low"), namespace)
        await watcher.until("first", lambda each: (each["status"].get("session") or {}).get("id"))
        for number, priority in enumerate(priorities):
            await client.create(QISKITJOBS, job(f"j{number}-{priority}", priority), namespace)
        await session_until(cluster, "five wait", jobs={"waiting": 5, "running": 1, "finished": 0})
        waiting = await watcher.until(
            "j2-urgent", lambda each: reason_of(each, "SessionReady") == "WaitingForTurn"
        )
        assert "session" in waiting["status"]
        provider.gate.set()
        for number, priority in enumerate(priorities):
            done = await watcher.finished(f"j{number}-{priority}")
            assert phase_of(done) == "Completed"
        await session_until(
            cluster, "all have left", jobs={"waiting": 0, "running": 0, "finished": 6}
        )
    assert [name for name, _ in provider.ran] == [
        "first",
        "j2-urgent",
        "j3-high",
        "j1-normal",
        "j4-normal",
        "j0-low",
    ]
    assert provider.most == 1
    assert {each for _, each in provider.ran} == {"s-1"}
    assert provider.opened == ["s-1"]


@pytest.mark.parametrize(("mode", "places"), [("dedicated", 2), ("shared", 5)])
async def test_the_next_goes_in_when_ibm_has_those_before_it(
    cluster: Cluster, provider: Provider, watcher: Watcher, mode: str, places: int
) -> None:
    client, namespace = cluster.client, cluster.namespace
    provider.gate.clear()
    provider.tells = True
    async with SessionReplica(client, namespace):
        await client.create(QISKITSESSIONS, session(mode=mode), namespace)
        for number in range(7):
            await client.create(QISKITJOBS, job(f"j{number}"), namespace)
        full = {"waiting": 7 - places, "running": places, "finished": 0}
        await session_until(cluster, "it is full", jobs=full)

        async def all_are_there() -> bool:
            return provider.most == places

        await eventually(all_are_there, "IBM has them")
        provider.gate.set()
        for number in range(7):
            assert phase_of(await watcher.finished(f"j{number}")) == "Completed"
    assert provider.most == places


async def test_one_that_expires_while_jobs_wait(
    cluster: Cluster, provider: Provider, watcher: Watcher, quick_looks: None
) -> None:
    client, namespace = cluster.client, cluster.namespace
    provider.gate.clear()
    async with SessionReplica(client, namespace):
        await client.create(QISKITSESSIONS, session(maxTime=60), namespace)
        await client.create(QISKITJOBS, job("inside"), namespace)
        await watcher.until("inside", lambda each: (each["status"].get("session") or {}).get("id"))
        await client.create(QISKITJOBS, job("outside"), namespace)
        await watcher.until(
            "outside", lambda each: reason_of(each, "SessionReady") == "WaitingForTurn"
        )
        provider.report = {"accepting": False, "closed": True, "expires_at": format_time(now())}
        provider.gate.set()
        # Whether it got in at the last moment or not is a matter of when it is looked at; so it is
        # the one that waits which is looked at first.
        await client.patch(
            QISKITSESSIONS,
            "vqe",
            namespace,
            {"status": {"expiresAt": format_time(now()), "lastLook": format_time(now())}},
            subresource="status",
        )
        ended = await watcher.finished("outside")
        assert phase_of(ended) == "Failed"
        assert reason_of(ended, "Failed") == "SessionClosed"
        message = conditions(ended)["Failed"]["message"]
        assert message.startswith("session vqe (s-1) reached its maxTime of 60 s at ")
        assert "delete QiskitSession vqe" in message
        assert reason_of(ended, "SessionReady") == "SessionClosed"
        made = await session_until(cluster, "it is closed", phase="Closed")
        assert "Expired" in await told(cluster)
        # It is its user's to delete; whoever names it is told so.
        await client.create(QISKITJOBS, job("late"), namespace)
        late = await watcher.finished("late")
        assert reason_of(late, "Failed") == "SessionClosed"
        assert made["metadata"]["uid"] == (await found(cluster) or {})["metadata"]["uid"]
    assert provider.opened == ["s-1"]


async def test_one_of_ours_that_has_ended_is_made_anew_for_a_later_job(
    cluster: Cluster, provider: Provider, watcher: Watcher
) -> None:
    client, namespace = cluster.client, cluster.namespace
    provider.refusal = SessionReport(reason=Reason.BACKEND_DENIED, message="api-key is wrong")
    async with SessionReplica(client, namespace):
        await client.create(QISKITJOBS, job("early"), namespace)
        early = await watcher.finished("early")
        assert reason_of(early, "Failed") == "SessionFailed"
        assert "api-key is wrong" in conditions(early)["Failed"]["message"]
        first = await session_until(cluster, "it has failed", phase="Failed")
        provider.refusal = None
        await asyncio.sleep(1.1)  # Kubernetes tells the age of things in whole seconds.
        await client.create(QISKITJOBS, job("later"), namespace)
        assert phase_of(await watcher.finished("later")) == "Completed"
        second = await found(cluster)
        assert second is not None
        assert second["metadata"]["uid"] != first["metadata"]["uid"]


async def test_without_jobs_it_closes_and_opens_again(
    cluster: Cluster, provider: Provider, watcher: Watcher
) -> None:
    client, namespace = cluster.client, cluster.namespace
    async with SessionReplica(client, namespace):
        await client.create(QISKITSESSIONS, session(ttl="1s"), namespace)
        closed = await session_until(cluster, "it is closed", phase="Closed", sessionId="s-1")
        assert reason_of(closed, "Ready") == "Idle"
        await client.create(QISKITJOBS, job("bell"), namespace)
        assert phase_of(await watcher.finished("bell")) == "Completed"
        closed = await session_until(cluster, "it is closed again", phase="Closed", openings=2)
        assert closed["status"]["usage"] == "14"
    assert provider.closed == ["s-1", "s-2"]
    assert provider.ran == [("bell", "s-2")]


async def test_deletion_ends_those_who_wait_and_closes_it(
    cluster: Cluster, provider: Provider, watcher: Watcher
) -> None:
    client, namespace = cluster.client, cluster.namespace
    provider.gate.clear()
    async with SessionReplica(client, namespace):
        await client.create(QISKITSESSIONS, session(), namespace)
        await client.create(QISKITJOBS, job("inside"), namespace)
        await watcher.until("inside", lambda each: (each["status"].get("session") or {}).get("id"))
        await client.create(QISKITJOBS, job("outside"), namespace)
        await watcher.until(
            "outside", lambda each: reason_of(each, "SessionReady") == "WaitingForTurn"
        )
        await client.delete(QISKITSESSIONS, "vqe", namespace)
        ended = await watcher.finished("outside")
        assert reason_of(ended, "Failed") == "SessionClosed"
        provider.gate.set()
        assert phase_of(await watcher.finished("inside")) == "Completed"
        await session_gone(cluster)
    assert provider.closed == ["s-1"]
    assert [name for name, _ in provider.ran] == ["inside"]


async def test_a_job_that_is_cancelled_or_deleted_gives_up_its_place(
    cluster: Cluster, provider: Provider, watcher: Watcher
) -> None:
    client, namespace = cluster.client, cluster.namespace
    provider.gate.clear()
    async with SessionReplica(client, namespace):
        await client.create(QISKITSESSIONS, session(), namespace)
        for name in ("a", "b", "c"):
            await client.create(QISKITJOBS, job(name), namespace)
            await watcher.until(name, lambda each: reason_of(each, "SessionReady") != "")
            await asyncio.sleep(1.1)  # So that they differ in age.
        await watcher.until("a", lambda each: (each["status"].get("session") or {}).get("id"))
        await client.patch(QISKITJOBS, "a", namespace, {"spec": {"cancel": True}})
        await watcher.until("b", lambda each: (each["status"].get("session") or {}).get("id"))
        await client.delete(QISKITJOBS, "b", namespace)
        await watcher.until("c", lambda each: (each["status"].get("session") or {}).get("id"))
        provider.gate.set()
        assert phase_of(await watcher.finished("c")) == "Completed"


# Each takes three seconds, so every second one is left to the longer tests.
@pytest.mark.parametrize(
    "at",
    [
        *range(1, 62, 8),
        *(pytest.param(n, marks=pytest.mark.extended) for n in range(5, 62, 8)),
    ],
)
async def test_a_crash_after_any_write_opens_it_once(
    cluster: Cluster, provider: Provider, watcher: Watcher, at: int
) -> None:
    """From the first write to the last: two jobs in a session, and its deletion."""
    client, namespace = cluster.client, cluster.namespace
    faults = FaultyClient(client, at)
    first = await SessionReplica(client, namespace, faults=faults).__aenter__()
    for name in ("one", "two"):
        await client.create(QISKITJOBS, job(name), namespace)

    async def died_or_done() -> bool:
        ended = [watcher.states.get(name, [{"status": {}}])[-1] for name in ("one", "two")]
        return faults.crashed.is_set() or all(phase_of(each) == "Completed" for each in ended)

    await eventually(died_or_done, "it died, or is through")
    await first.die()
    async with SessionReplica(client, namespace):
        for name in ("one", "two"):
            done = await watcher.finished(name)
            assert phase_of(done) == "Completed", done["status"]["message"]
            assert done["status"]["session"]["id"] == "s-1"
        await session_until(
            cluster, "both have left", jobs={"waiting": 0, "running": 0, "finished": 2}
        )
        await client.delete(QISKITSESSIONS, "vqe", namespace)
        await session_gone(cluster)
    assert provider.opened == ["s-1"]
    assert provider.closed == ["s-1"]
    assert sorted(name for name, _ in provider.ran) == ["one", "two"]
    assert provider.most == 1


@pytest.mark.parametrize("at", range(1, 7))
async def test_a_crash_while_it_is_deleted_leaves_nothing(
    cluster: Cluster, provider: Provider, at: int
) -> None:
    client, namespace = cluster.client, cluster.namespace
    async with SessionReplica(client, namespace):
        await client.create(QISKITSESSIONS, session(), namespace)
        await session_until(cluster, "it is open", phase="Active")
    faults = FaultyClient(client, at)
    second = await SessionReplica(client, namespace, faults=faults).__aenter__()
    await client.delete(QISKITSESSIONS, "vqe", namespace)

    async def died_or_gone() -> bool:
        return faults.crashed.is_set() or await found(cluster) is None

    await eventually(died_or_gone, "it died, or is through")
    await second.die()
    async with SessionReplica(client, namespace):
        await session_gone(cluster)
    assert provider.opened == ["s-1"]
    assert set(provider.closed) == {"s-1"}
