"""The shell around the decision: reads what is, performs what was decided."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import attrs

from qiskit_controller.api import qiskitbackend, qiskitjob
from qiskit_controller.api.codec import DecodeError, from_wire, to_wire
from qiskit_controller.api.qiskitbackend import QiskitBackendSpec, QiskitBackendStatus
from qiskit_controller.api.quantities import parse_duration
from qiskit_controller.kube.client import Client
from qiskit_controller.kube.controller import Enqueue, Result
from qiskit_controller.kube.errors import AlreadyExists, ApiError, ConnectionFailed, NotFound
from qiskit_controller.kube.events import EventRecorder
from qiskit_controller.kube.informer import Informer
from qiskit_controller.kube.objects import Object
from qiskit_controller.kube.queue import WorkQueue
from qiskit_controller.kube.resources import JOBS, Resource
from qiskit_controller.reconcilers.errands import Errands
from qiskit_controller.reconcilers.qiskitbackend import manifests
from qiskit_controller.reconcilers.qiskitbackend.decision import Decision, Seen, decide
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings

QISKITBACKENDS = Resource(
    qiskitjob.GROUP, qiskitjob.VERSION, qiskitbackend.PLURAL, qiskitbackend.KIND
)


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

    _errands: Errands = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._errands = Errands(
            manifests.BACKEND_KEY, self.client, self.kubernetes_jobs, self.pods, self.clock
        )

    def feed(self, queue: WorkQueue[str]) -> None:
        """Queue a backend whenever it, or its probe, changes."""
        self.backends.add_handler(Enqueue(queue))
        for informer in (self.kubernetes_jobs, self.pods):
            informer.add_handler(Enqueue(queue, self._errands.owners))

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
            probe = manifests.probe_name(metadata["name"])
            await self._errands.delete(metadata["namespace"], probe, seen.probe.uid)
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
            probe=await self._errands.find(
                metadata["namespace"],
                metadata["uid"],
                manifests.probe_name(metadata["name"]),
            ),
            now=self.clock(),
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


def _reference(backend: Object) -> dict[str, Any]:
    return {
        "apiVersion": qiskitjob.API_VERSION,
        "kind": qiskitbackend.KIND,
        "metadata": backend["metadata"],
    }
