"""What stands in for kube-controller-manager and the kubelet, and a replica of the controller.

There is a real API server and nothing else: no pod is made for a Job, nothing is collected. The
:class:`Cluster` here does that, for one namespace, and lets each pod live a story that the test
chooses. A :class:`Replica` is what `manager.py` wires up, without the election.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import attrs

from qiskit_controller.api import names
from qiskit_controller.api.qiskitjob import FINISHED
from qiskit_controller.api.run import Reason, Stage
from qiskit_controller.kube.client import (
    CONFIGMAPS,
    EVENTS,
    JOBS,
    PODS,
    ROLEBINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    Client,
    ConnectionFailed,
    NotFound,
    Resource,
)
from qiskit_controller.kube.controller import Controller, Result
from qiskit_controller.kube.events import EventRecorder
from qiskit_controller.kube.informer import Informer
from qiskit_controller.kube.queue import WorkQueue
from qiskit_controller.kube.ratelimit import ItemExponentialBackoff
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings
from qiskit_controller.reconcilers.qiskitjob.reconciler import (
    QISKITJOBS,
    Caches,
    QiskitJobReconciler,
)

from ...unit.reconcilers import kubelet  # noqa: TID252 - tests are no package to be imported from

Object = dict[str, Any]
Story = Callable[["Pod"], Awaitable[None]]

OWNED: tuple[Resource, ...] = (JOBS, CONFIGMAPS, SERVICE_ACCOUNTS, ROLES, ROLEBINDINGS)
# Seconds. Where there is nothing else to do for the machine, no wait takes one.
PATIENCE = 150.0


def now() -> datetime:
    return datetime.now(UTC)


class Tasks:
    """Tasks that live as long as a `with` block; an exception in one ends the test."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failed: list[BaseException] = []

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed.append(error)

    async def cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._failed:
            raise self._failed[0]


@attrs.define(eq=False)
class Handler:
    """An informer's handler that is one function of (object, whether it is gone)."""

    told: Callable[[Object, bool], None]

    def on_add(self, obj: Object, is_initial: bool) -> None:
        self.told(obj, False)

    def on_update(self, old: Object, new: Object) -> None:
        self.told(new, False)

    def on_delete(self, obj: Object) -> None:
        self.told(obj, True)


@attrs.define(eq=False)
class Pod:
    """The pod of an attempt, for the story that it lives."""

    client: Client
    namespace: str
    name: str
    job: Object
    reached: str = ""

    @property
    def attempt(self) -> int:
        return int(self.job["metadata"]["labels"][names.ATTEMPT_LABEL])

    @property
    def owner(self) -> str:
        name: str = self.job["metadata"]["annotations"][names.JOB_ANNOTATION]
        return name

    async def status(self, status: Object) -> None:
        await self.client.patch(
            PODS, self.name, self.namespace, {"status": status}, subresource="status"
        )

    async def tell(self, stage: Stage) -> None:
        """The executor writes its progress."""
        body = {"data": kubelet.progress_data(self.attempt, stage)}
        await self.client.patch(CONFIGMAPS, names.record_name(self.owner), self.namespace, body)

    async def store(self, output: str | None = None) -> None:
        """The executor writes its result."""
        body = {"data": {"counts": '{"00": 500, "11": 524}', "attempt": str(self.attempt)}}
        name = output or names.default_output(self.owner)
        await self.client.patch(CONFIGMAPS, name, self.namespace, body)


async def idle(pod: Pod) -> None:
    """It is never started."""


async def succeed(pod: Pod, output: str | None = None) -> None:
    """All goes well."""
    await reach(pod, "Running")
    await pod.store(output)
    message = kubelet.success(pod.attempt, now())
    await pod.status(
        kubelet.pod_status(kubelet.terminated(now()), kubelet.terminated(now(), message=message))
    )


async def succeed_at_once(pod: Pod) -> None:
    """All goes well, before anybody has looked."""
    await pod.store()
    message = kubelet.success(pod.attempt, now())
    await pod.status(
        kubelet.pod_status(kubelet.terminated(now()), kubelet.terminated(now(), message=message))
    )


async def reach(pod: Pod, phase: str) -> None:
    """It goes as far as to bring the job into that phase, and no further."""
    done = kubelet.terminated(now())
    steps: dict[str, Callable[[], Awaitable[None]]] = {
        "Pending": lambda: pod.status({"phase": "Pending"}),
        "Validating": lambda: pod.status(kubelet.pod_status(kubelet.running(now()))),
        "Executor": lambda: pod.status(kubelet.pod_status(done, kubelet.running(now()))),
        "Scheduling": lambda: pod.tell("Validated"),
        "Running": lambda: pod.tell("Executing"),
    }
    for name, step in steps.items():
        await step()
        if name == phase:
            return


def until(phase: str) -> Story:
    """The pod brings the job into that phase, and stays there."""

    async def story(pod: Pod) -> None:
        await reach(pod, phase)

    return story


def fail(reason: Reason) -> Story:
    """The executor reports a failure."""

    async def story(pod: Pod) -> None:
        await reach(pod, "Running")
        message = kubelet.failure(pod.attempt, reason)
        await pod.status(
            kubelet.pod_status(
                kubelet.terminated(now()), kubelet.terminated(now(), 1, message=message)
            )
        )

    return story


async def be_evicted(pod: Pod) -> None:
    """The node is short of memory."""
    await reach(pod, "Running")
    await pod.status(kubelet.evicted())


def in_turn(*stories: Story) -> Story:
    """A story for each attempt."""

    async def story(pod: Pod) -> None:
        await stories[min(pod.attempt, len(stories)) - 1](pod)

    return story


class Cluster:
    """See the module's description.

    Attributes:
        story: what pods do from now on.
        probe_story: what those do that probe a QiskitBackend.
        made: how many Kubernetes Jobs were created, by QiskitJob and attempt.
    """

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.namespace = namespace
        self.story: Story = succeed
        self.probe_story: Story = idle
        self.made: Counter[tuple[str, int]] = Counter()
        self._tasks = Tasks()
        self._numbers = itertools.count()
        self._stories: dict[str, asyncio.Task[Any]] = {}
        self._known: set[str] = set()
        self._ending: set[str] = set()
        self._jobs = Informer(client, JOBS, namespace=namespace)
        self._pods = Informer(client, PODS, namespace=namespace)
        self._owners = Informer(client, QISKITJOBS, namespace=namespace)

    async def __aenter__(self) -> Self:
        self._jobs.add_handler(Handler(self._job_changed))
        self._pods.add_handler(Handler(self._pod_changed))
        self._owners.add_handler(Handler(self._owner_changed))
        informers = (self._jobs, self._pods, self._owners)
        for each in informers:
            self._tasks.start(each.run())
        for each in informers:
            await each.wait_synced(PATIENCE)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._tasks.cancel()
        except Exception:
            if error is None:
                raise

    # -- the Job controller ---------------------------------------------------------

    def _job_changed(self, job: Object, gone: bool) -> None:
        uid = job["metadata"]["uid"]
        if gone:
            return
        if uid not in self._known:
            self._known.add(uid)
            labels = job["metadata"]["labels"]
            owner = job["metadata"]["annotations"].get(names.JOB_ANNOTATION)
            if owner is not None:
                # 0 is the one that cancels at a provider.
                self.made[owner, int(labels.get(names.ATTEMPT_LABEL, 0))] += 1
            if "deletionTimestamp" not in job["metadata"]:
                self._tasks.start(self._make_pod(job))
        if "deletionTimestamp" in job["metadata"] and uid not in self._ending:
            self._ending.add(uid)
            self._tasks.start(self._end_job(job))

    async def _make_pod(self, job: Object) -> None:
        name = f"{job['metadata']['name']}-{next(self._numbers):05}"
        template = job["spec"]["template"]
        pod = {
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": template["metadata"]["labels"],
                "annotations": template["metadata"]["annotations"],
                "ownerReferences": [
                    {
                        "apiVersion": "batch/v1",
                        "kind": "Job",
                        "name": job["metadata"]["name"],
                        "uid": job["metadata"]["uid"],
                        "controller": True,
                    }
                ],
            },
            # On a node, or it would be deleted without a word to the kubelet.
            "spec": template["spec"] | {"nodeName": "nowhere"},
        }
        await self.client.create(PODS, pod)
        handle = Pod(self.client, self.namespace, name, job)
        self._stories[name] = self._tasks.start(self._live(handle))

    async def _live(self, pod: Pod) -> None:
        # A pod may go while it lives, and what it writes to as well.
        is_probe = names.JOB_ANNOTATION not in pod.job["metadata"]["annotations"]
        with contextlib.suppress(NotFound):
            await (self.probe_story if is_probe else self.story)(pod)

    def _pod_changed(self, pod: Object, gone: bool) -> None:
        name = pod["metadata"]["name"]
        phase = pod.get("status", {}).get("phase")
        going = gone or "deletionTimestamp" in pod["metadata"]
        if going and name in self._stories:
            self._stories.pop(name).cancel()
        if going and not gone:
            self._tasks.start(self._delete(PODS, name))
        uid = pod["metadata"]["ownerReferences"][0]["uid"]
        owner = pod["metadata"]["ownerReferences"][0]["name"]
        if going or phase in ("Succeeded", "Failed"):
            status = (
                kubelet.complete_job(now()) if phase == "Succeeded" else kubelet.failed_job(now())
            )
            if uid not in self._ending:
                self._tasks.start(self._end_of_pod(owner, uid, status))

    async def _end_of_pod(self, job: str, uid: str, status: Object) -> None:
        with contextlib.suppress(NotFound):
            current = await self.client.get(JOBS, job, self.namespace)
            if current["metadata"]["uid"] == uid and not current["status"].get("conditions"):
                await self.client.patch(
                    JOBS, job, self.namespace, {"status": status}, subresource="status"
                )

    # -- garbage --------------------------------------------------------------------

    async def _end_job(self, job: Object) -> None:
        """What deletion in the foreground waits for."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        found = await self.client.list(PODS, self.namespace)
        for pod in found["items"]:
            if names.belongs_to(pod, uid):
                await self._delete(PODS, pod["metadata"]["name"])
        with contextlib.suppress(NotFound):
            await self.client.patch(JOBS, name, self.namespace, {"metadata": {"finalizers": None}})

    def _owner_changed(self, job: Object, gone: bool) -> None:
        if gone:
            self._tasks.start(self._collect(job["metadata"]["uid"]))

    async def _collect(self, uid: str) -> None:
        for resource in OWNED:
            found = await self.client.list(resource, self.namespace)
            for each in found["items"]:
                if names.belongs_to(each, uid):
                    # So that a Job's pods go as well, by _end_job.
                    how = "Foreground" if resource is JOBS else "Background"
                    await self._delete(resource, each["metadata"]["name"], how)

    async def _delete(self, resource: Resource, name: str, propagation: Any = "Background") -> None:
        grace = 0 if resource is PODS else None
        with contextlib.suppress(NotFound):
            await self.client.delete(
                resource,
                name,
                self.namespace,
                propagation=propagation,
                grace_period_seconds=grace,
            )


class Crash(BaseException):
    """The process was killed."""


class FaultyClient:
    """A client of which something happens at the n-th write.

    Attributes:
        writes: how many there were.
        crashed: set when the process is to die: the write has happened, nothing after it does.
        lose_answer: whether only the answer to that write is lost, and life goes on.
    """

    def __init__(self, client: Client, at: int | None = None, *, lose_answer: bool = False) -> None:
        self._client = client
        self._at = at
        self._lose_answer = lose_answer
        self.writes = 0
        self.crashed = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def _write(self, verb: str, *args: Any, **kwargs: Any) -> Object:
        if self.crashed.is_set():
            await asyncio.Event().wait()
        # One that is refused changes nothing, and is no place of its own to crash at.
        result: Object = await getattr(self._client, verb)(*args, **kwargs)
        self.writes += 1
        if self.writes == self._at:
            if self._lose_answer:
                raise ConnectionFailed("the answer was lost")
            self.crashed.set()
            await asyncio.Event().wait()
        return result

    async def create(self, *args: Any, **kwargs: Any) -> Object:
        return await self._write("create", *args, **kwargs)

    async def replace(self, *args: Any, **kwargs: Any) -> Object:
        return await self._write("replace", *args, **kwargs)

    async def patch(self, *args: Any, **kwargs: Any) -> Object:
        return await self._write("patch", *args, **kwargs)

    async def delete(self, *args: Any, **kwargs: Any) -> Object:
        return await self._write("delete", *args, **kwargs)


class Replica:
    """The controller, for the jobs of one namespace."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        *,
        faults: FaultyClient | None = None,
        workers: int = 4,
    ) -> None:
        self._namespace = namespace
        self.caches = Caches.create(client)
        # Retries quick as a test wants them; how slow they become is tested elsewhere.
        self.queue: WorkQueue[str] = WorkQueue(ItemExponentialBackoff(base=0.002, cap=0.05))
        self.events = EventRecorder(client, "qiskit-controller", "test")
        self.reconciler = QiskitJobReconciler(
            client=faults or client,  # type: ignore[arg-type]
            caches=self.caches,
            events=self.events,
            settings=Settings(runner_image="runner"),
        )
        self._controller = Controller("test", self.queue, self._reconcile, workers)
        self._tasks = Tasks()

    async def _reconcile(self, key: str) -> Result:
        # Other tests leave their jobs behind.
        if not key.startswith(f"{self._namespace}/"):
            return Result()
        return await self.reconciler.reconcile(key)

    async def __aenter__(self) -> Self:
        self.caches.feed(self.queue)
        for informer in self.caches.all():
            self._tasks.start(informer.run())
        for informer in self.caches.all():
            await informer.wait_synced(PATIENCE)
        self._tasks.start(self._controller.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.cancel()
        await self.events.aclose(PATIENCE)

    async def die(self) -> None:
        """As if killed: whatever was not written is lost."""
        await self._tasks.cancel()
        await self.events.aclose(0)


class Watcher:
    """All states of the QiskitJobs of a namespace, as a watch tells them."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.namespace = namespace
        self.states: dict[str, list[Object]] = {}
        self.gone: set[str] = set()
        self._changed = asyncio.Condition()
        self._tasks = Tasks()
        self._informer = Informer(client, QISKITJOBS, namespace=namespace)

    async def __aenter__(self) -> Self:
        self._informer.add_handler(Handler(self._told))
        self._tasks.start(self._informer.run())
        await self._informer.wait_synced(PATIENCE)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.cancel()

    def _told(self, job: Object, gone: bool) -> None:
        name = job["metadata"]["name"]
        # A status from the start, so that whoever looks need not ask for it first.
        self.states.setdefault(name, []).append(job | {"status": job.get("status") or {}})
        if gone:
            self.gone.add(name)
        self._tasks.start(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(
        self, name: str, holds: Callable[[Object], object], what: str = "it happens"
    ) -> Object:
        """Wait for a state of the job."""

        def found() -> Object | None:
            return next((each for each in self.states.get(name, ()) if holds(each)), None)

        try:
            async with asyncio.timeout(PATIENCE), self._changed:
                await self._changed.wait_for(lambda: found() is not None)
        except TimeoutError:
            last = self.states.get(name, [{}])[-1]
            raise AssertionError(f"{name}: not until {what}: {last.get('status')}") from None
        state = found()
        assert state is not None
        return state

    async def phase(self, name: str, phase: str) -> Object:
        """Wait until the job is in that phase."""
        return await self.until(name, lambda job: phase_of(job) == phase, phase)

    async def finished(self, name: str) -> Object:
        """Wait until the job has ended."""
        return await self.until(name, lambda job: phase_of(job) in FINISHED, "its end")

    async def deleted(self, name: str) -> None:
        """Wait until there is no job of that name any more."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: name in self.gone)

    def phases(self, name: str) -> list[str]:
        """The phases that were seen, each once in a row."""
        seen = [phase_of(each) for each in self.states[name]]
        return [phase for phase, _ in itertools.groupby(seen) if phase]


def phase_of(job: Object) -> str:
    phase: str = job["status"].get("phase", "")
    return phase


def conditions(job: Object) -> dict[str, Object]:
    return {each["type"]: each for each in job["status"].get("conditions", ())}


def reason_of(job: Object, type_: str) -> str:
    """The reason of a condition; none when it is not there."""
    return str(conditions(job).get(type_, {}).get("reason", ""))


def qiskitjob(name: str = "bell", **spec: Any) -> Object:
    """A QiskitJob that runs, unless `spec` says otherwise."""
    return {
        "apiVersion": "quantum.io/v1",
        "kind": "QiskitJob",
        "metadata": {"name": name},
        "spec": {
            "backend": {"type": "local_simulator"},
            "circuit": {"source": "inline", "code": "qc = 1"},
        }
        | spec,
    }


async def events_of(client: Client, namespace: str, name: str) -> list[Object]:
    """The Events about a QiskitJob, oldest first."""
    found = await client.list(
        EVENTS,
        namespace,
        field_selector=f"involvedObject.kind=QiskitJob,involvedObject.name={name}",
    )
    items: list[Object] = found["items"]
    return sorted(items, key=lambda each: int(each["metadata"]["resourceVersion"]))


async def events_until(client: Client, namespace: str, name: str, last: str) -> list[Object]:
    """The same, once `last` is among the reasons: what happened is told after it is written."""

    async def has_come() -> bool:
        events = await events_of(client, namespace, name)
        return last in {each["reason"] for each in events}

    await eventually(has_come, f"{name} is told {last}")
    return await events_of(client, namespace, name)


async def left_over(client: Client, namespace: str) -> list[str]:
    """What there still is of any QiskitJob."""
    found: list[str] = []
    for resource in (*OWNED, PODS):
        listed = await client.list(
            resource, namespace, label_selector=f"{names.MANAGED_BY}={names.MANAGER}"
        )
        found += [f"{resource.kind} {each['metadata']['name']}" for each in listed["items"]]
    return found


async def nothing_left(client: Client, namespace: str) -> None:
    """Wait until the garbage collector is through."""

    async def done() -> bool:
        return not await left_over(client, namespace)

    await eventually(done, "nothing is left")


async def missing(client: Client, resource: Resource, name: str, namespace: str) -> bool:
    try:
        await client.get(resource, name, namespace)
    except NotFound:
        return True
    return False


async def eventually(holds: Callable[[], Awaitable[object]], what: str) -> None:
    """For what no watch of the test tells."""
    deadline = time.monotonic() + PATIENCE
    while not await holds():
        assert time.monotonic() < deadline, f"not until the end of patience: {what}"
        await asyncio.sleep(0.02)


def counted(events: Iterable[Object]) -> Counter[str]:
    """How many times each thing was told."""
    told: Counter[str] = Counter()
    for each in events:
        told[f"{each['reason']}: {each['message']}"] += each.get("count", 1)
    return told
