"""The shell around the decision: reads what is, performs what was decided."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from qiskit_controller.api import names, qiskitbackend, qiskitjob
from qiskit_controller.api.codec import DecodeError, from_wire, to_wire
from qiskit_controller.api.qiskitbackend import QiskitBackendSpec, QiskitBackendStatus
from qiskit_controller.api.quantities import parse_duration, parse_time
from qiskit_controller.kube.client import Client
from qiskit_controller.kube.controller import Enqueue, Result
from qiskit_controller.kube.errors import AlreadyExists, ApiError, ConnectionFailed, NotFound
from qiskit_controller.kube.events import EventRecorder
from qiskit_controller.kube.informer import Informer
from qiskit_controller.kube.objects import Object
from qiskit_controller.kube.queue import WorkQueue
from qiskit_controller.kube.resources import EVENTS, JOBS, Resource
from qiskit_controller.reconcilers.qiskitbackend import manifests
from qiskit_controller.reconcilers.qiskitbackend.decision import Decision, Probe, Seen, decide
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings

QISKITBACKENDS = Resource(
    qiskitjob.GROUP, qiskitjob.VERSION, qiskitbackend.PLURAL, qiskitbackend.KIND
)
_BY_BACKEND = "backend-uid"
# A pod that has not started by then is looked into.
_POD_PATIENCE = timedelta(seconds=5)
# Nothing that happened to the Job meets a pod that was taken away with it.
_NO_POD = "its pod is gone"


def backends_informer(client: Client) -> Informer:
    """QiskitBackends of all namespaces."""
    return Informer(client, QISKITBACKENDS, resync_period=600)


@attrs.define
class QiskitBackendReconciler:
    """Keeps the status of one QiskitBackend true.

    Attributes:
        kubernetes_jobs, pods: the caches of what carries our label.
        clock: the time now, with a time zone.
    """

    client: Client
    backends: Informer
    kubernetes_jobs: Informer
    pods: Informer
    events: EventRecorder
    settings: Settings
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def __attrs_post_init__(self) -> None:
        for informer in (self.kubernetes_jobs, self.pods):
            informer.add_indexer(_BY_BACKEND, _backend_uid)

    def feed(self, queue: WorkQueue[str]) -> None:
        """Queue a backend whenever it, or its probe, changes."""
        self.backends.add_handler(Enqueue(queue))
        for informer in (self.kubernetes_jobs, self.pods):
            informer.add_handler(Enqueue(queue, _backend_of))

    async def reconcile(self, key: str) -> Result:
        """One step for the QiskitBackend with that key; see :class:`Controller`."""
        cached = self.backends.get(key)
        if cached is None or "deletionTimestamp" in cached["metadata"]:
            return Result()
        metadata = cached["metadata"]
        seen = await self._observe(cached)
        decision = decide(seen)
        await self._write_status(cached, seen.status, decision)
        if decision.delete_probe and seen.probe is not None:
            await self._delete(metadata["namespace"], metadata["name"], seen.probe.uid)
        requeue = decision.requeue_after
        if decision.start_probe and seen.spec is not None:
            job = manifests.probe_job(
                metadata["namespace"], metadata["name"], metadata["uid"], seen.spec, self.settings
            )
            try:
                await self.client.create(JOBS, job)
            except AlreadyExists:
                pass  # Not in the cache yet, or one of another that is still going.
            except ApiError as error:
                # A quota or a policy is told; a server that is away is simply asked again.
                if isinstance(error, ConnectionFailed) or error.status >= 500:
                    raise
                self.events.event(_reference(cached), "Warning", "ProbeNotCreated", error.message)
        return Result(requeue_after=requeue.total_seconds() if requeue is not None else None)

    async def _observe(self, backend: Object) -> Seen:
        metadata = backend["metadata"]
        spec, problem = None, ""
        try:
            spec = from_wire(backend["spec"], QiskitBackendSpec, "spec")
            parse_duration(spec.probe.interval)
        except DecodeError as error:
            problem = str(error)
        except ValueError as error:
            spec, problem = None, f"spec.probe.interval: {error}"
        return Seen(
            generation=metadata.get("generation", 0),
            spec=spec,
            problem=problem,
            status=from_wire(backend.get("status") or {}, QiskitBackendStatus),
            probe=await self._probe(metadata["namespace"], metadata["uid"]),
            now=self.clock(),
        )

    async def _probe(self, namespace: str, uid: str) -> Probe | None:
        jobs = [
            each
            for each in self.kubernetes_jobs.by_index(_BY_BACKEND, uid)
            if names.belongs_to(each, uid)
        ]
        if not jobs:
            return None
        job = max(jobs, key=lambda each: str(each["metadata"]["creationTimestamp"]))
        metadata = job["metadata"]
        pods = [
            each
            for each in self.pods.by_index(_BY_BACKEND, uid)
            if names.belongs_to(each, metadata["uid"])
        ]
        pod = max(pods, key=lambda each: str(each["metadata"]["creationTimestamp"]), default=None)
        ended = _terminated(pod) if pod is not None else None
        failed = _failed(job, self.clock())
        probe = Probe(
            uid=metadata["uid"],
            created=parse_time(metadata["creationTimestamp"]),
            deleting="deletionTimestamp" in metadata,
            over=ended is not None or failed is not None,
            message=(ended or {}).get("message", ""),
            problem=failed or (ended or {}).get("reason", "") or _waits_for(pod),
        )
        if not probe.over and pod is not None and not probe.problem:
            told = await self._why_it_waits(namespace, pod)
            probe = attrs.evolve(probe, problem=told)
        return probe

    async def _why_it_waits(self, namespace: str, pod: Object) -> str:
        """That a volume is missing, such as a Secret, is only told in Events."""
        since = pod.get("status", {}).get("startTime")
        if not since or _has_begun(pod) or self.clock() - parse_time(since) < _POD_PATIENCE:
            return ""
        name = pod["metadata"]["name"]
        found = await self.client.list(
            EVENTS,
            namespace,
            field_selector=f"involvedObject.kind=Pod,involvedObject.name={name},reason=FailedMount",
        )
        told = sorted(found["items"], key=lambda each: each.get("lastTimestamp") or "")
        return str(told[-1].get("message", "")) if told else ""

    async def _delete(self, namespace: str, name: str, uid: str) -> None:
        with contextlib.suppress(NotFound):
            await self.client.delete(
                JOBS, manifests.probe_name(name), namespace, uid=uid, propagation="Background"
            )

    async def _write_status(
        self, backend: Object, old: QiskitBackendStatus, decision: Decision
    ) -> None:
        if decision.status != old:
            try:
                await self.client.replace(
                    QISKITBACKENDS, backend | {"status": to_wire(decision.status)}, "status"
                )
            except NotFound:
                return
        for note in decision.notes:
            self.events.event(_reference(backend), note.type, note.reason, note.message)


def _terminated(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for each in pod.get("status", {}).get("containerStatuses") or ():
        ended = (each.get("state") or {}).get("terminated")
        if ended is not None:
            found: Mapping[str, Any] = ended
            return found
    return None


def _has_begun(pod: Mapping[str, Any]) -> bool:
    return any(
        "running" in (each.get("state") or {}) or "terminated" in (each.get("state") or {})
        for each in pod.get("status", {}).get("containerStatuses") or ()
    )


def _waits_for(pod: Mapping[str, Any] | None) -> str:
    """What keeps the pod from starting, as far as its status tells."""
    status = (pod or {}).get("status", {})
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message", ""))
    for each in status.get("containerStatuses") or ():
        waiting = (each.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}"
    return ""


def _failed(job: Mapping[str, Any], now: datetime) -> str | None:
    """Why the Job has ended without a pod that could tell, if it has.

    Two watches tell of the Job and of its pod; the pod's last word may come second.
    """
    for each in job.get("status", {}).get("conditions") or ():
        if each["type"] in ("Failed", "Complete") and each["status"] == "True":
            since = each.get("lastTransitionTime")
            if since and now < parse_time(since) + _POD_PATIENCE:
                continue
            return str(each.get("message") or each.get("reason") or _NO_POD)
    return None


def _backend_uid(obj: Object) -> Iterable[str]:
    metadata = obj["metadata"]
    if manifests.BACKEND_ANNOTATION in (metadata.get("annotations") or {}):
        yield metadata.get("labels", {}).get(names.UID_LABEL, "")


def _backend_of(obj: Object) -> Iterable[str]:
    metadata = obj["metadata"]
    name = (metadata.get("annotations") or {}).get(manifests.BACKEND_ANNOTATION)
    if name and (metadata.get("labels") or {}).get(names.MANAGED_BY) == names.MANAGER:
        yield f"{metadata['namespace']}/{name}"


def _reference(backend: Object) -> dict[str, Any]:
    return {
        "apiVersion": qiskitjob.API_VERSION,
        "kind": qiskitbackend.KIND,
        "metadata": backend["metadata"],
    }
