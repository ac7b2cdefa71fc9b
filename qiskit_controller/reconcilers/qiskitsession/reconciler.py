"""The shell around the decision: reads what is, performs what was decided."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import attrs
import structlog

from qiskit_controller.api import names, qiskitjob, qiskitsession
from qiskit_controller.api.codec import DecodeError, from_wire, to_wire
from qiskit_controller.api.conditions import find
from qiskit_controller.api.qiskitjob import FINISHED, ExecutionSpec, QiskitJobStatus
from qiskit_controller.api.qiskitsession import QiskitSessionSpec, QiskitSessionStatus
from qiskit_controller.api.quantities import parse_duration, parse_time
from qiskit_controller.api.run import Reason, SessionAction
from qiskit_controller.kube.client import Client
from qiskit_controller.kube.controller import Enqueue, Result
from qiskit_controller.kube.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    NotFound,
)
from qiskit_controller.kube.events import EventRecorder
from qiskit_controller.kube.informer import Informer
from qiskit_controller.kube.objects import Object, key_of
from qiskit_controller.kube.queue import WorkQueue
from qiskit_controller.kube.resources import JOBS, Resource
from qiskit_controller.reconcilers.errands import LOOK_AGAIN, Errands
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings
from qiskit_controller.reconcilers.qiskitjob.sessions import QISKITSESSIONS
from qiskit_controller.reconcilers.qiskitsession import manifests
from qiskit_controller.reconcilers.qiskitsession.decision import (
    Decision,
    Seen,
    decide,
    not_started,
    request,
)
from qiskit_controller.reconcilers.qiskitsession.turns import JobSeen

log = structlog.get_logger(__name__)

QISKITJOBS = Resource(qiskitjob.GROUP, qiskitjob.VERSION, qiskitjob.PLURAL, qiskitjob.KIND)
_BY_SESSION = "session"


def sessions_informer(client: Client) -> Informer:
    """QiskitSessions of all namespaces."""
    return Informer(client, QISKITSESSIONS, resync_period=600)


def sessions_of(job: Object) -> Iterable[str]:
    """The key of the QiskitSession that a QiskitJob names, or describes."""
    given = job.get("spec", {}).get("session")
    if given is not None:
        metadata = job["metadata"]
        yield f"{metadata['namespace']}/{given.get('name') or metadata['name']}"


@attrs.define
class QiskitSessionReconciler:
    """Opens, watches and closes one session, and says whose turn it is.

    Attributes:
        jobs: the cache of QiskitJobs.
        kubernetes_jobs, pods: the caches of what carries our label.
        clock: the time now, with a time zone.
    """

    client: Client
    sessions: Informer
    jobs: Informer
    kubernetes_jobs: Informer
    pods: Informer
    events: EventRecorder
    settings: Settings
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _errands: Errands = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._errands = Errands(
            manifests.SESSION_KEY, self.client, self.kubernetes_jobs, self.pods, self.clock
        )
        self.jobs.add_indexer(_BY_SESSION, sessions_of)

    def feed(self, queue: WorkQueue[str], jobs_queue: WorkQueue[str]) -> None:
        """Queue a session whenever it, its errand or a job of it changes; and its jobs in turn."""
        self.sessions.add_handler(Enqueue(queue))
        self.jobs.add_handler(Enqueue(queue, sessions_of))
        for informer in (self.kubernetes_jobs, self.pods):
            informer.add_handler(Enqueue(queue, self._errands.owners))
        self.sessions.add_handler(Enqueue(jobs_queue, self._waiting))

    def _waiting(self, session: Object) -> Iterable[str]:
        for job in self.jobs.by_index(_BY_SESSION, key_of(session)):
            if (job.get("status") or {}).get("phase") == "Scheduling":
                yield key_of(job)

    async def reconcile(self, key: str) -> Result:
        """One step for the QiskitSession with that key; see :class:`Controller`."""
        cached = self.sessions.get(key)
        if cached is None:
            return Result()
        session = {**cached, "metadata": dict(cached["metadata"])}
        metadata = session["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        structlog.contextvars.bind_contextvars(session=key, uid=metadata["uid"])
        seen = await self._observe(session)
        decision = decide(seen)
        if decision.add_finalizer:
            await self._set_finalizers(session, add=True)
        current = await self._write_status(session, seen.status, decision)
        if decision.delete_errand and seen.errand is not None:
            errand = manifests.errand_name(name)
            await self._errands.delete(namespace, errand, seen.errand.uid)
        requeue = decision.requeue_after
        if decision.start is not None:
            if not current:
                # The cache may be behind what was written; twice is one session too many.
                await self._check_current(session)
            if not await self._start(session, seen, decision):
                requeue = LOOK_AGAIN
        if decision.remove_finalizer:
            await self._errands.sweep(namespace, manifests.errand_name(name), metadata["uid"])
            await self._set_finalizers(session, add=False)
        if decision.delete:
            with contextlib.suppress(NotFound):
                await self.client.delete(QISKITSESSIONS, name, namespace, uid=metadata["uid"])
        return Result(requeue_after=requeue.total_seconds() if requeue is not None else None)

    # --- reading ------------------------------------------------------------------------

    async def _observe(self, session: Object) -> Seen:
        metadata = session["metadata"]
        spec, problem = None, ""
        try:
            spec = from_wire(session["spec"], QiskitSessionSpec, "spec")
            parse_duration(spec.ttl)
        except DecodeError as error:
            problem = str(error)
        except ValueError as error:
            spec, problem = None, f"spec.ttl: {error}"
        status = from_wire(session.get("status") or {}, QiskitSessionStatus)
        deleted = metadata.get("deletionTimestamp")
        return Seen(
            name=metadata["name"],
            generation=metadata.get("generation", 0),
            spec=spec,
            problem=problem,
            status=status,
            errand=await self._errands.find(
                metadata["namespace"], metadata["uid"], manifests.errand_name(metadata["name"])
            ),
            jobs=await self._jobs(session, status),
            deleted=parse_time(deleted) if deleted else None,
            finalized=names.FINALIZER in metadata.get("finalizers", ()),
            now=self.clock(),
        )

    async def _jobs(self, session: Object, status: QiskitSessionStatus) -> list[JobSeen]:
        """The jobs that name it, and of those whose turn it is certainly how they fare."""
        metadata = session["metadata"]
        found = {
            each["metadata"]["uid"]: view_job(each, metadata["name"])
            for each in self.jobs.by_index(_BY_SESSION, key_of(session))
        }
        for member in status.members:
            if member.uid in found:
                continue
            # A new leader's cache may be behind what the old one knew.
            try:
                job = await self.client.get(QISKITJOBS, member.name, metadata["namespace"])
            except NotFound:
                continue
            if job["metadata"]["uid"] == member.uid:
                found[member.uid] = view_job(job, metadata["name"])
        return list(found.values())

    # --- writing ------------------------------------------------------------------------

    async def _start(self, session: Object, seen: Seen, decision: Decision) -> bool:
        """Send the errand; returns whether it is on its way."""
        action: SessionAction | None = decision.start
        status = decision.status
        if action is None or status.opened_with is None:
            raise ValueError("nothing was decided to be done")
        metadata = session["metadata"]
        credentials = status.opened_with.credentials
        job = manifests.session_job(
            metadata["namespace"],
            metadata["name"],
            metadata["uid"],
            credentials.secret_ref.name if credentials and credentials.secret_ref else None,
            request(metadata["name"], status, action),
            self.settings,
        )
        try:
            await self.client.create(JOBS, job)
            log.info("asking the provider", action=action)
        except AlreadyExists:
            return False  # Not in the cache yet, or one before that is still going.
        except ApiError as error:
            terminating = isinstance(error, Forbidden) and "being terminated" in error.message
            if terminating and seen.deleted is not None:
                # Nothing is created any more in a namespace that goes; its Secrets go as well.
                why = f"namespace {metadata['namespace']!r} is being deleted"
                given_up = not_started(attrs.evolve(seen, status=status), why)
                await self._write_status(session, status, given_up)
                return False
            # A quota or a policy is told; a server that is away is simply asked again.
            if isinstance(error, ConnectionFailed) or error.status >= 500:
                raise
            self.events.event(_reference(session), "Warning", "ErrandNotCreated", error.message)
            return False
        return True

    async def _check_current(self, session: Object) -> None:
        metadata = session["metadata"]
        try:
            now = await self.client.get(QISKITSESSIONS, metadata["name"], metadata["namespace"])
        except NotFound as error:
            raise Conflict(HTTPStatus.CONFLICT, "Conflict", error.message) from None
        if now["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise Conflict(HTTPStatus.CONFLICT, "Conflict", "the cache is behind")

    async def _set_finalizers(self, session: Object, *, add: bool) -> None:
        metadata = session["metadata"]
        others = [each for each in metadata.get("finalizers", ()) if each != names.FINALIZER]
        body = {
            "metadata": {
                "finalizers": [*others, names.FINALIZER] if add else others,
                # Someone else's finalizer, added meanwhile, must not be lost.
                "resourceVersion": metadata["resourceVersion"],
            }
        }
        try:
            written = await self.client.patch(
                QISKITSESSIONS, metadata["name"], metadata["namespace"], body
            )
        except NotFound:
            return
        # The status is written over this version next.
        metadata["resourceVersion"] = written["metadata"]["resourceVersion"]

    async def _write_status(
        self, session: Object, old: QiskitSessionStatus, decision: Decision
    ) -> bool:
        """Write it if it has changed, then tell of it; returns whether it was written."""
        written = decision.status != old
        if written:
            try:
                answer = await self.client.replace(
                    QISKITSESSIONS, session | {"status": to_wire(decision.status)}, "status"
                )
            except NotFound:
                return False
            session["metadata"]["resourceVersion"] = answer["metadata"]["resourceVersion"]
            if decision.status.phase != old.phase:
                log.info("phase", phase=decision.status.phase, message=decision.status.message)
        for note in decision.notes:
            self.events.event(_reference(session), note.type, note.reason, note.message)
        return written


def view_job(job: Object, session: str) -> JobSeen:
    """A QiskitJob as far as the session of that name is concerned."""
    metadata = job["metadata"]
    try:
        status = from_wire(job.get("status") or {}, QiskitJobStatus)
        priority = from_wire(job["spec"].get("execution") or {}, ExecutionSpec).priority
    except DecodeError as error:
        log.warning("QiskitJob cannot be read", job=key_of(job), error=str(error))
        status, priority = QiskitJobStatus(), "normal"
    over = status.phase in FINISHED
    wanted = status.session is not None and status.session.name == session
    deleting = "deletionTimestamp" in metadata
    failed = find(status.conditions, "Failed")
    ended = status.completion_time
    away = over and failed is not None and failed.reason == Reason.SESSION_CLOSED
    inside = status.session is not None and status.session.id is not None
    return JobSeen(
        name=metadata["name"],
        uid=metadata["uid"],
        created=parse_time(metadata["creationTimestamp"]),
        priority=priority,
        waiting=wanted and not inside and status.phase == "Scheduling" and not deleting,
        running=status.phase == "Running",
        submitted=status.provider is not None and status.provider.job_id is not None,
        over=over,
        elsewhere=not wanted,
        turned_away=parse_time(ended) if away and inside and ended else None,
    )


def _reference(session: Object) -> dict[str, Any]:
    return {
        "apiVersion": qiskitjob.API_VERSION,
        "kind": qiskitsession.KIND,
        "metadata": session["metadata"],
    }
