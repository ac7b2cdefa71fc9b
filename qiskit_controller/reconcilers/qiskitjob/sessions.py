"""The shell around :mod:`.session`: finding a job's QiskitSession, making it, and entering it."""

from __future__ import annotations

import contextlib
from http import HTTPStatus

import attrs
import structlog

from qiskit_controller.api import qiskitjob, qiskitsession
from qiskit_controller.api.codec import DecodeError, from_wire, to_wire
from qiskit_controller.api.qiskitjob import QiskitJobStatus
from qiskit_controller.api.qiskitsession import QiskitSessionSpec, QiskitSessionStatus
from qiskit_controller.api.quantities import parse_time
from qiskit_controller.api.run import Plan
from qiskit_controller.kube.client import Client
from qiskit_controller.kube.errors import AlreadyExists, Conflict, NotFound
from qiskit_controller.kube.informer import Informer
from qiskit_controller.kube.objects import Object
from qiskit_controller.kube.resources import Resource
from qiskit_controller.reconcilers.qiskitjob import provider
from qiskit_controller.reconcilers.qiskitjob.session import (
    Existing,
    SessionSeen,
    is_ours,
    manifest,
)

log = structlog.get_logger(__name__)

QISKITSESSIONS = Resource(
    qiskitjob.GROUP, qiskitjob.VERSION, qiskitsession.PLURAL, qiskitsession.KIND
)


@attrs.define
class Sessions:
    """The QiskitSessions of the cluster, for jobs.

    Attributes:
        sessions: the cache of them.
    """

    client: Client
    sessions: Informer

    async def seen(self, plan: Plan, job: Object, status: QiskitJobStatus) -> SessionSeen | None:
        """The session that a job is to run in; None for a job that needs none."""
        given = plan.spec.session
        if given is None:
            return None
        namespace, name = plan.job.namespace, given.name or plan.job.name
        found = self.sessions.get(f"{namespace}/{name}")
        if found is None:
            # One that was made just now may not be in the cache, and is not to be missed.
            with contextlib.suppress(NotFound):
                found = await self.client.get(QISKITSESSIONS, name, namespace)
        credentials = plan.spec.credentials
        own = credentials.secret_ref.name if credentials and credentials.secret_ref else None
        known = status.provider
        return SessionSeen(
            name=name,
            existing=_view(found) if found is not None else None,
            job_uid=plan.job.uid,
            created=parse_time(job["metadata"]["creationTimestamp"]),
            secret=plan.secret or own,
            waited=status.session is not None,
            submitted=known is not None and known.submission == provider.ticket(status.attempts),
        )

    async def create(self, namespace: str, name: str, spec: QiskitSessionSpec, job: str) -> None:
        """Make the session that a job describes; another job may have done so."""
        with contextlib.suppress(AlreadyExists):
            await self.client.create(QISKITSESSIONS, manifest(namespace, name, spec, job))
            log.info("made a session", session=name)

    async def delete(self, namespace: str, name: str, uid: str) -> None:
        """Delete one that has ended."""
        with contextlib.suppress(NotFound):
            await self.client.delete(QISKITSESSIONS, name, namespace, uid=uid)

    async def enter(self, plan: Plan, session_id: str) -> None:
        """Take the job's place in the session, so that nobody else is given it.

        Raises:
            Conflict: it is not the job's turn any more.
        """
        given = plan.spec.session
        name = (given.name if given is not None else None) or plan.job.name
        conflict = Conflict(HTTPStatus.CONFLICT, "Conflict", f"session {name} has changed")
        try:
            session = await self.client.get(QISKITSESSIONS, name, plan.job.namespace)
        except NotFound:
            raise conflict from None
        status = from_wire(session.get("status") or {}, QiskitSessionStatus)
        mine = next((each for each in status.members if each.uid == plan.job.uid), None)
        gone = "deletionTimestamp" in session["metadata"]
        if gone or mine is None or status.phase != "Active" or status.session_id != session_id:
            raise conflict
        if mine.entered:
            return
        members = tuple(
            attrs.evolve(each, entered=True) if each is mine else each for each in status.members
        )
        entered = to_wire(attrs.evolve(status, members=members))
        await self.client.replace(QISKITSESSIONS, session | {"status": entered}, "status")


def _view(session: Object) -> Existing:
    metadata = session["metadata"]
    try:
        spec: QiskitSessionSpec | None = from_wire(session["spec"], QiskitSessionSpec)
    except DecodeError:
        spec = None  # What is wrong with it, its own status says.
    return Existing(
        uid=metadata["uid"],
        ours=is_ours(session),
        deleting="deletionTimestamp" in metadata,
        spec=spec,
        status=from_wire(session.get("status") or {}, QiskitSessionStatus),
    )
