"""The shell around the decision: reads what is, performs what was decided."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http import HTTPStatus
from typing import Any, Literal

import attrs
import structlog

from qiskit_controller.api import names, qiskitjob, sources
from qiskit_controller.api.codec import DecodeError, from_wire, to_wire
from qiskit_controller.api.qiskitjob import (
    MUTABLE,
    CredentialsSpec,
    QiskitJobSpec,
    QiskitJobStatus,
    SecretRef,
)
from qiskit_controller.api.quantities import format_money, format_time, parse_time
from qiskit_controller.api.run import (
    PLAN_FILE,
    RESERVED_FILES,
    Assignment,
    JobIdentity,
    Plan,
    PlannedSource,
    Progress,
    Reason,
    Submission,
)
from qiskit_controller.api.validation import problems_of
from qiskit_controller.drivers import NoDriver, Warns, controller_driver
from qiskit_controller.kube.client import Client
from qiskit_controller.kube.controller import Enqueue, Result
from qiskit_controller.kube.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
)
from qiskit_controller.kube.events import EventRecorder
from qiskit_controller.kube.informer import Informer
from qiskit_controller.kube.objects import Object, key_of
from qiskit_controller.kube.queue import WorkQueue
from qiskit_controller.kube.reflector import Tuning
from qiskit_controller.kube.resources import (
    CONFIGMAPS,
    EVENTS,
    JOBS,
    PODS,
    ROLEBINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    Resource,
)
from qiskit_controller.reconcilers.qiskitbudget.ledger import BrokenBudget
from qiskit_controller.reconcilers.qiskitbudget.reconciler import charge_of
from qiskit_controller.reconcilers.qiskitjob import decision as decisions
from qiskit_controller.reconcilers.qiskitjob import manifests, provider
from qiskit_controller.reconcilers.qiskitjob.decision import Decision, EventNote, decide
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings
from qiskit_controller.reconcilers.qiskitjob.market import Chosen, Selecting
from qiskit_controller.reconcilers.qiskitjob.observed import (
    Canceller,
    Observed,
    Run,
    Source,
    SourceMissing,
    ToFetch,
    kept_progress,
    newest_submission,
    read_progress,
    view_canceller,
    view_run,
)
from qiskit_controller.reconcilers.qiskitjob.sessions import Sessions
from qiskit_controller.reconcilers.qiskitjob.tracing import JobTracer, noted
from qiskit_controller.scheduling.budgets import OverBudget
from qiskit_controller.telemetry.trace import ANNOTATION, JobTrace, trace_of

log = structlog.get_logger(__name__)

QISKITJOBS = Resource(qiskitjob.GROUP, qiskitjob.VERSION, qiskitjob.PLURAL, qiskitjob.KIND)
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
# Urgent jobs are looked at before others; all of it stays above mere reminders.
_PRIORITIES = {"low": 0, "normal": 10, "high": 20, "urgent": 30}
_BY_UID = "job-uid"
_BY_CONFIG_MAP = "config-map"
# Code that is longer is not kept in the cache.
_SHORT_CODE = 4096
# An object may be 1.5 MB, and a page of them is in memory as a whole.
_SMALL_PAGES = Tuning(page_size=50)
# How soon to look again when an old owner's garbage is still being collected.
_GARBAGE_PATIENCE = timedelta(seconds=2)


class _Wait(Exception):
    """An action cannot be done yet; nothing is wrong."""


class _CannotCancel(Exception):
    """No pod can be run that would cancel at the provider."""


class _Refused(Exception):
    """An action cannot be done at all, for a reason the user must know."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@attrs.frozen
class Caches:
    """The informers that the reconciler reads.

    They hold of each object what a decision needs: of QiskitJobs all but long code, of pods the
    status, of ConfigMaps as much of the metadata as leads to a QiskitJob.
    """

    jobs: Informer  # QiskitJobs
    kubernetes_jobs: Informer
    pods: Informer
    config_maps: Informer

    @classmethod
    def create(cls, client: Client) -> Caches:
        """Informers over all namespaces, indexed and ready to run."""
        ours = f"{names.MANAGED_BY}={names.MANAGER}"
        caches = cls(
            jobs=Informer(
                client, QISKITJOBS, resync_period=600, transform=_slim_job, tuning=_SMALL_PAGES
            ),
            kubernetes_jobs=Informer(client, JOBS, label_selector=ours),
            pods=Informer(client, PODS, label_selector=ours, transform=_slim_pod),
            config_maps=Informer(client, CONFIGMAPS, metadata_only=True, transform=_slim_metadata),
        )
        caches.kubernetes_jobs.add_indexer(_BY_UID, _uid_label)
        caches.pods.add_indexer(_BY_UID, _uid_label)
        caches.jobs.add_indexer(_BY_CONFIG_MAP, _referenced_config_map)
        return caches

    def all(self) -> tuple[Informer, ...]:
        """Each of them, to be run."""
        return (self.jobs, self.kubernetes_jobs, self.pods, self.config_maps)

    def feed(self, queue: WorkQueue[str]) -> None:
        """Queue a QiskitJob whenever it, or something that it depends on, changes."""
        self.jobs.add_handler(_EnqueueJobs(queue, priority=_priority_of))
        for informer in (self.kubernetes_jobs, self.pods):
            informer.add_handler(Enqueue(queue, _belongs_to, priority=self._owner_priority))
        self.config_maps.add_handler(Enqueue(queue, self._users_of_config_map))

    def _owner_priority(self, obj: Object) -> int:
        owner = next((self.jobs.get(key) for key in _belongs_to(obj)), None)
        return _priority_of(owner) if owner is not None else 0

    def _users_of_config_map(self, config_map: Object) -> Iterable[str]:
        yield from _belongs_to(config_map)
        for job in self.jobs.by_index(_BY_CONFIG_MAP, key_of(config_map)):
            yield key_of(job)


class _EnqueueJobs(Enqueue):
    """What nobody has taken up yet is no reminder, also when it comes with the first list.

    After a time without a controller there may be many of these. Behind all that are under way,
    which come back again and again, they might never have their turn.
    """

    def on_add(self, obj: Object, is_initial: bool) -> None:
        super().on_add(obj, is_initial and bool((obj.get("status") or {}).get("phase")))


@attrs.define
class QiskitJobReconciler:
    """Brings one QiskitJob a step further each time it is called.

    Attributes:
        clock: the time now, with a time zone.
        on_written: told of each status that was written: the job, the old one, the new one.
        tracer: tells where a job's time went; None without a collector.
        selecting: chooses backends and keeps to budgets; without it, every job runs as it says.
        sessions: the QiskitSessions; without them, no job runs in one.
    """

    client: Client
    caches: Caches
    events: EventRecorder
    settings: Settings
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    on_written: Callable[[Object, QiskitJobStatus, QiskitJobStatus], None] = lambda job, old, new: (
        None
    )
    tracer: JobTracer | None = None
    selecting: Selecting | None = None
    sessions: Sessions | None = None

    async def reconcile(self, key: str) -> Result:
        """One step for the QiskitJob with that key; see :class:`Controller`."""
        cached = self.caches.jobs.get(key)
        if cached is None:
            return Result()
        # The cache is shared; the metadata is the one part that is changed on the way.
        job = {**cached, "metadata": dict(cached["metadata"])}
        # Whoever calls clears them; what becomes of an error is logged there, with these.
        structlog.contextvars.bind_contextvars(
            job=key, uid=job["metadata"]["uid"], trace_id=trace_of(job["metadata"]).trace_id
        )
        with self.tracer.reconcile(job) if self.tracer else contextlib.nullcontext():
            return await self._reconcile(job)

    async def _reconcile(self, job: Object) -> Result:
        seen = await self._observe(job)
        decision = decide(seen, self.settings.bounds)
        try:
            for action in decision.actions:
                await self._perform(action, job, seen)
        except _Wait as wait:
            log.info("waiting", why=str(wait))
            await self._write_status(job, seen, Decision(decisions.waiting(seen, str(wait))))
            return Result(requeue_after=_GARBAGE_PATIENCE.total_seconds())
        except _Refused as refused:
            decision = decisions.refuse(seen, refused.reason, refused.message)
            for action in decision.actions:
                await self._perform(action, job, seen)
        except _CannotCancel as cannot:
            decision = decisions.not_cancelled(seen, str(cannot))
        except OverBudget as refused:
            decision = decisions.over_budget(seen, str(refused))
            for action in decision.actions:
                await self._perform(action, job, seen)
        except BrokenBudget as error:
            decision = decisions.unassigned(seen, "BudgetInvalid", str(error))
        except ApiError as error:
            if not _is_a_ruling(error):
                raise
            # A quota or a policy: the user can do something about it, so the user is told.
            decision = decisions.blocked(seen, error.reason, error.message)
            if not seen.status.attempts and not seen.runs and not seen.deleting:
                # Perhaps by changing the spec, so it must not stay pinned.
                await self._delete(
                    CONFIGMAPS, names.input_name(seen.name), seen.namespace, seen.uid
                )
        await self._write_status(job, seen, decision)
        requeue = decision.requeue_after
        return Result(requeue_after=requeue.total_seconds() if requeue is not None else None)

    # --- reading ------------------------------------------------------------------------

    async def _observe(self, job: Object) -> Observed:
        metadata = job["metadata"]
        uid, namespace, name = metadata["uid"], metadata["namespace"], metadata["name"]
        deleting = "deletionTimestamp" in metadata
        status = _read_status(job, deleting)
        judged = _judge(name, job["spec"], lambda given: self._lent(namespace, given))
        spec = judged.spec
        runs = await self._confirmed(namespace, status, uid, self._runs(uid))
        source: Source | ToFetch | SourceMissing | None = None
        progress: Progress | None = None
        submission: Submission | None = None
        changed: list[str] = []
        selects, market, session = False, None, None
        active = status.phase not in (None, *qiskitjob.FINISHED) and not deleting
        if active:
            pinned = await self._pinned(namespace, name, uid)
            if pinned is not None:
                plan, source = pinned
                selects = plan.select
                changed = _changes(plan.spec, job["spec"])
                # What was started counts, whatever the object says now; but it may be
                # cancelled, and be given a time to live.
                judged = _judge_spec(name, plan.spec, plan.secret)
                spec = attrs.evolve(
                    plan.spec,
                    cancel=job["spec"].get("cancel") is True,
                    ttl_seconds_after_finished=spec.ttl_seconds_after_finished if spec else None,
                )
            elif not status.attempts and spec is not None and judged.sound:
                source = await self._source(job, spec)
        if active and status.attempts:
            number = status.attempts[-1].number
            current = runs.get(number)
            begun = current is not None and current.pod and current.pod.executor_started
            # What an earlier attempt has kept counts for every later one.
            underway = status.phase in ("Scheduling", "Running")
            if begun or number > 1 or underway or (spec and spec.cancel):
                record = await self._record_of(namespace, name)
                progress = kept_progress(record, number) or read_progress(record, number)
                submission = newest_submission(record)
        elif status.attempts and deleting and status.phase not in qiskitjob.FINISHED:
            # Of one that is deleted, all that counts is what it may have at a provider.
            submission = newest_submission(await self._record_of(namespace, name))
        canceller, cancel_pods = self._canceller(uid)
        if selects and pinned and progress and self.selecting and status.phase == "Scheduling":
            market = await self.selecting.market(pinned[0])
            if self.sessions:
                session = await self.sessions.seen(pinned[0], job, status)
        if active:
            runs = await self._explain_missing_pods(namespace, runs)
            runs = await self._explain_idle_pods(namespace, runs)
        return Observed(
            namespace=namespace,
            name=name,
            uid=uid,
            generation=metadata.get("generation", 0),
            deleting=deleting,
            finalized=names.FINALIZER in metadata.get("finalizers", ()),
            spec=spec,
            problems=judged.problems,
            unsupported=judged.unsupported,
            backend=judged.backend,
            cost=judged.cost,
            status=status,
            source=source,
            runs=runs,
            pods_left=self._pods_left(uid),
            progress=progress,
            spec_changed=changed,
            now=self.clock(),
            submission=submission,
            canceller=canceller,
            cancel_pods=cancel_pods,
            selects=selects,
            market=market,
            session=session,
            warnings=judged.warnings,
            trace=self._trace(job),
        )

    def _pods_left(self, uid: str) -> int:
        """Pods that the garbage collector will see to, or is at it.

        Those of a Job that is no longer ours, because the QiskitJob was deleted with
        ``--cascade=orphan``, stay with that Job.
        """
        orphans = {
            job["metadata"]["uid"]
            for job in self.caches.kubernetes_jobs.by_index(_BY_UID, uid)
            if not names.belongs_to(job, uid)
        }
        return sum(
            _is_of_a_job(pod) and not any(names.belongs_to(pod, each) for each in orphans)
            for pod in self.caches.pods.by_index(_BY_UID, uid)
            if not _is_of_canceller(pod)
        )

    def _canceller(self, uid: str) -> tuple[Canceller | None, int]:
        """The Job that cancels at the provider, and how many pods of it there are."""
        pods = [p for p in self.caches.pods.by_index(_BY_UID, uid) if _is_of_canceller(p)]
        for job in self.caches.kubernetes_jobs.by_index(_BY_UID, uid):
            if _is_of_canceller(job):
                mine = [pod for pod in pods if names.belongs_to(pod, job["metadata"]["uid"])]
                return view_canceller(job, mine), len(pods)
        return None, len(pods)

    def _runs(self, uid: str) -> dict[int, Run]:
        pods = self.caches.pods.by_index(_BY_UID, uid)
        runs = {}
        for job in self.caches.kubernetes_jobs.by_index(_BY_UID, uid):
            if not names.belongs_to(job, uid):
                continue  # someone copied our labels
            attempt = _attempt_of(job)
            mine = [pod for pod in pods if names.belongs_to(pod, job["metadata"]["uid"])]
            runs[attempt] = view_run(job, mine, attempt)
        return runs

    async def _confirmed(
        self, namespace: str, status: QiskitJobStatus, uid: str, runs: dict[int, Run]
    ) -> dict[int, Run]:
        """`runs`, and the one that was seen to run but is not in the cache, if it exists.

        A new leader's cache may still be behind what the old one knew. That a Job was deleted
        has to be certain, because another attempt is started for it.
        """
        if status.phase not in ("Validating", "Scheduling", "Running") or not status.attempts:
            return runs
        last = status.attempts[-1]
        if last.completion_time is not None:
            return runs
        known = runs.get(last.number)
        if known is not None:
            ended = known.failed is not None or known.complete
            told = known.pod is not None and known.pod.report is not None
            waited = known.ended is None or self.clock() >= known.ended + decisions.POD_PATIENCE
            if not ended or told or not waited:
                return runs
        try:
            job = await self.client.get(JOBS, last.job_name, namespace)
        except NotFound:
            return runs
        if not names.belongs_to(job, uid):
            return runs
        pods: Sequence[Object] = ()
        if known is not None:
            # Its pod has said nothing, as far as the cache knows; the watch of the pods may be
            # the one that is behind.
            label = f"job-name={last.job_name}"
            pods = (await self.client.list(PODS, namespace, label_selector=label))["items"]
        mine = [pod for pod in pods if names.belongs_to(pod, job["metadata"]["uid"])]
        return runs | {last.number: view_run(job, mine, last.number)}

    async def _source(self, job: Object, spec: QiskitJobSpec) -> Source | ToFetch | SourceMissing:
        namespace, circuit = job["metadata"]["namespace"], spec.circuit
        if circuit.source == "inline":
            code = circuit.code or ""
            if code.startswith(_FINGERPRINT):
                # Long code is not in the cache; or, of all things, this is the code.
                code = (await self._check_current(job))["spec"]["circuit"]["code"]
            return Source("circuit.py", code.encode())
        if circuit.source == "url" and circuit.url is not None:
            path = sources.parse_url(circuit.url).path
            return ToFetch(sources.file_name(path, RESERVED_FILES))
        if circuit.source == "git" and circuit.git_ref is not None:
            return ToFetch(sources.file_name(circuit.git_ref.path, RESERVED_FILES))
        reference = circuit.config_map_ref
        if reference is None:
            raise ValueError("validation lets no other source come here")
        try:
            config_map = await self.client.get(CONFIGMAPS, reference.name, namespace)
        except NotFound:
            return SourceMissing(
                "ConfigMapNotFound",
                f"ConfigMap {reference.name!r}, named by spec.circuit.configMapRef, does not "
                f"exist in namespace {namespace!r}; the job goes on when it does",
            )
        content = _value(config_map, reference.key)
        if content is None:
            keys = sorted(
                {**(config_map.get("data") or {}), **(config_map.get("binaryData") or {})}
            )
            return SourceMissing(
                "ConfigMapKeyNotFound",
                f"ConfigMap {reference.name!r} has no key {reference.key!r}, named by "
                f"spec.circuit.configMapRef; it has: {', '.join(keys[:20]) or 'none'}",
            )
        return Source(_file_name(reference.key), content)

    async def _pinned(
        self, namespace: str, name: str, uid: str
    ) -> tuple[Plan, Source | ToFetch] | None:
        """What was started, plan and code, unless nothing was, or someone spoiled it."""
        try:
            config_map = await self.client.get(CONFIGMAPS, names.input_name(name), namespace)
        except NotFound:
            return None
        if not names.belongs_to(config_map, uid):
            return None
        try:
            plan = from_wire(json.loads(config_map["data"][PLAN_FILE]), Plan)
        except (KeyError, ValueError) as error:
            log.warning("what was started cannot be read", error=str(error))
            return None
        if plan.source.fetched:
            return plan, ToFetch(plan.source.file)
        source = Source(plan.source.file, _value(config_map, plan.source.file) or b"")
        if plan.spec.circuit.source == "inline":
            circuit = attrs.evolve(plan.spec.circuit, code=source.content.decode())
            plan = attrs.evolve(plan, spec=attrs.evolve(plan.spec, circuit=circuit))
        return plan, source

    async def _record_of(self, namespace: str, name: str) -> Object:
        """What the executors have told; empty when it was cleaned up, or not made yet."""
        try:
            return await self.client.get(CONFIGMAPS, names.record_name(name), namespace)
        except NotFound:
            return {}

    async def _explain_missing_pods(self, namespace: str, runs: dict[int, Run]) -> dict[int, Run]:
        """Why a Job has no pod after a while is only told in the Job's Events (a quota, a
        policy, a missing PriorityClass)."""
        for attempt, run in runs.items():
            waited = self.clock() - run.created
            if run.pod or run.failed or run.deleting or waited < decisions.POD_PATIENCE:
                continue
            if run.no_pod:
                continue
            told = await self._latest_event(
                namespace, "Job", run.job_name, "FailedCreate", since=run.created
            )
            if told is not None:
                runs[attempt] = attrs.evolve(run, no_pod=("PodCreationFailed", told))
        return runs

    async def _explain_idle_pods(self, namespace: str, runs: dict[int, Run]) -> dict[int, Run]:
        """That a pod waits for a volume, such as a Secret that does not exist yet, is only told
        in the pod's Events; its status says ContainerCreating, as for every pod."""
        for attempt, run in runs.items():
            pod = run.pod
            if pod is None or pod.problem or pod.lost or pod.idle_since is None:
                continue
            if self.clock() - pod.idle_since < decisions.POD_PATIENCE:
                continue
            told = await self._latest_event(namespace, "Pod", pod.name, "FailedMount")
            if told is not None:
                pod = attrs.evolve(pod, problem=("FailedMount", told))
                runs[attempt] = attrs.evolve(run, pod=pod)
        return runs

    async def _latest_event(
        self, namespace: str, kind: str, name: str, reason: str, since: datetime | None = None
    ) -> str | None:
        """What the newest Event of that reason says of an object.

        Args:
            since: when the object was made. Older ones are about another of its name.
        """
        found = await self.client.list(
            EVENTS,
            namespace,
            field_selector=f"involvedObject.kind={kind},involvedObject.name={name},reason={reason}",
        )
        earliest = format_time(since) if since else ""
        latest = max(
            (each for each in found["items"] if (each.get("lastTimestamp") or "") >= earliest),
            key=lambda each: each.get("lastTimestamp") or "",
            default=None,
        )
        return None if latest is None else str(latest.get("message", ""))

    # --- writing ------------------------------------------------------------------------

    async def _perform(self, action: decisions.Action, job: Object, seen: Observed) -> None:
        name, namespace = seen.name, seen.namespace
        match action:
            case decisions.AddFinalizer():
                if not seen.finalized:
                    await self._set_finalizers(job, add=True)
            case decisions.RemoveFinalizer():
                await self._release(seen)
                await self._set_finalizers(job, add=False)
                if self.tracer:
                    self.tracer.gone(job, seen.status, seen.runs)
            case decisions.Start(source):
                await self._check_current(job)
                plan = self._plan(seen, source)
                await self._prepare(plan, source)
                await self._create_job(seen, plan, 1)
            case decisions.StartAttempt(number):
                await self._check_current(job)
                await self._restart(seen, number)
            case decisions.Assign(assignment):
                await self._assign(job, seen, assignment)
            case decisions.CreateSession() | decisions.DeleteSession():
                await self._change_session(action, seen)
            case decisions.StopRuns(job_names):
                for each in job_names:
                    await self._delete(JOBS, each, namespace, seen.uid, "Foreground")
            case decisions.StartCancel(ticket, job_id):
                await self._start_cancel(job, seen, ticket, job_id)
            case decisions.StopCancel(job_name):
                await self._stop_cancel(seen, job_name)
            case decisions.CleanUp(output_unused, keep_record):
                await self._clean_up(seen, output_unused=output_unused, keep_record=keep_record)
            case decisions.DeleteJob():
                with contextlib.suppress(NotFound):
                    await self.client.delete(QISKITJOBS, name, namespace, uid=seen.uid)

    async def _check_current(self, job: Object) -> Object:
        """The QiskitJob as it is stored. Before a pod is started: that the cache is not behind.

        Every other decision from a stale cache is undone by the conflict that its status meets.
        A pod would be running by then, perhaps of a job that has ended.

        Raises:
            Conflict: the QiskitJob has changed, or is gone.
        """
        metadata = job["metadata"]
        try:
            now = await self.client.get(QISKITJOBS, metadata["name"], metadata["namespace"])
        except NotFound as error:
            raise Conflict(HTTPStatus.CONFLICT, "Conflict", error.message) from None
        if now["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise Conflict(HTTPStatus.CONFLICT, "Conflict", "the cache is behind")
        return now

    async def _assign(self, job: Object, seen: Observed, assignment: Assignment) -> None:
        pinned = await self._pinned(seen.namespace, seen.name, seen.uid)
        if pinned is None or seen.market is None or self.selecting is None:
            raise Conflict(HTTPStatus.CONFLICT, "Conflict", "what was started is gone")

        async def check() -> None:
            await self._check_current(job)

        async def enter() -> None:
            if assignment.session is not None and self.sessions is not None:
                await self.sessions.enter(pinned[0], assignment.session)

        await self.selecting.assign(pinned[0], seen.market, assignment, check, enter)

    async def _change_session(
        self, action: decisions.CreateSession | decisions.DeleteSession, seen: Observed
    ) -> None:
        if self.sessions is None:
            raise ValueError("nothing waits for a session where there are none")
        match action:
            case decisions.CreateSession(name, spec):
                try:
                    await self.sessions.create(seen.namespace, name, spec, seen.name)
                except Invalid as error:
                    raise _Refused(Reason.INVALID_SPEC, error.message) from None
            case decisions.DeleteSession(name, uid):
                await self.sessions.delete(seen.namespace, name, uid)

    async def _release(self, seen: Observed) -> None:
        """Charge the budgets for a job that goes away, before nobody knows of it any more."""
        if self.selecting is None:
            return
        status, ended = seen.status, seen.now
        if status.phase in qiskitjob.FINISHED:
            amount: Decimal | None = charge_of(status)
            ended = parse_time(status.completion_time) if status.completion_time else ended
        else:
            number = status.attempts[-1].number if status.attempts else 1
            record = await self._record_of(seen.namespace, seen.name)
            progress = kept_progress(record, number) or read_progress(record, number)
            begun = progress is not None and progress.stage != "Validated"
            # What it was billed is not known any more: as much as was reserved.
            amount = None if begun or status.phase == "Running" else Decimal(0)
        await self.selecting.release(seen.namespace, seen.uid, amount, ended)

    def _lent(self, namespace: str, spec: QiskitJobSpec) -> str | None:
        """The Secret of a QiskitBackend, for a job that names none."""
        return self.selecting.at_start(namespace, spec).secret if self.selecting else None

    def _plan(self, seen: Observed, source: Source | ToFetch) -> Plan:
        if seen.spec is None:
            raise ValueError("nothing is started from a spec that could not be read")
        chosen = Chosen()
        if self.selecting is not None:
            chosen = self.selecting.at_start(seen.namespace, seen.spec)
        return Plan(
            job=JobIdentity(namespace=seen.namespace, name=seen.name, uid=seen.uid),
            spec=seen.spec,
            source=(
                PlannedSource(file=source.file, sha256=source.sha256)
                if isinstance(source, Source)
                else PlannedSource(file=source.file, fetched=True)
            ),
            record=names.record_name(seen.name),
            output_location=seen.spec.output.location or names.default_output(seen.name),
            limits=self.settings.bounds,
            select=chosen.select,
            probe=chosen.probe,
            secret=chosen.secret,
        )

    async def _prepare(self, plan: Plan, source: Source | ToFetch | None) -> None:
        """Everything a pod of this job needs, each made unless it is there."""
        if source is not None:
            await self._ensure(CONFIGMAPS, manifests.input_config_map(plan, source), plan)
        await self._ensure(CONFIGMAPS, manifests.empty_config_map(plan, plan.record), plan)
        if plan.spec.output.type == "configmap":
            await self._ensure(
                CONFIGMAPS,
                manifests.empty_config_map(plan, plan.output_location),
                plan,
                Reason.OUTPUT_CONFLICT,
            )
        identity = await self._identity(plan)
        await self._ensure(SERVICE_ACCOUNTS, manifests.service_account(plan, identity), plan)
        await self._ensure(ROLES, manifests.role(plan), plan)
        await self._ensure(ROLEBINDINGS, manifests.role_binding(plan), plan)

    async def _identity(self, plan: Plan) -> Mapping[str, str]:
        """What makes a job's pod someone at its cloud provider: the annotations of a service
        account that the namespace's owner has made for the purpose."""
        if not manifests.wants_identity(plan.spec):
            return {}
        try:
            account = await self.client.get(
                SERVICE_ACCOUNTS, names.IDENTITY_ACCOUNT, plan.job.namespace
            )
        except NotFound:
            return {}
        found: Mapping[str, str] = account["metadata"].get("annotations") or {}
        return {key: value for key, value in found.items() if "kubectl.kubernetes.io/" not in key}

    async def _restart(self, seen: Observed, number: int) -> None:
        pinned = await self._pinned(seen.namespace, seen.name, seen.uid)
        if pinned is None:
            raise _Refused(
                Reason.EXECUTOR_FAILED,
                f"ConfigMap {names.input_name(seen.name)!r}, which holds what this job runs, "
                "was deleted or overwritten",
            )
        plan, _ = pinned
        await self._prepare(plan, None)
        # Of the record as it is now: the attempt before may have written last just before it went.
        record = await self._record_of(seen.namespace, seen.name)
        progress = kept_progress(record, number)
        kept_by = progress.attempt if progress is not None else None
        await self._create_job(seen, plan, number, kept_by)

    async def _create_job(
        self, seen: Observed, plan: Plan, attempt: int, kept_by: int | None = None
    ) -> None:
        status = seen.status
        ticket, known = provider.ticket(status.attempts), status.provider
        job = manifests.kubernetes_job(
            plan,
            attempt,
            self.settings,
            status.source,
            kept_by,
            ticket,
            known.job_id if known and known.submission == ticket else None,
            seen.trace,
        )
        try:
            await self._ensure(JOBS, job, plan)
        except _Refused as refused:
            if refused.reason is not Reason.NAME_CONFLICT:
                raise
            # The second attempt of "x" and the first of "x-2" would have the same name. The
            # later one gets a name of its own.
            job["metadata"]["name"] = names.fit(f"{job['metadata']['name']}-{plan.job.uid[:8]}", 63)
            await self._ensure(JOBS, job, plan)

    async def _start_cancel(
        self, job: Object, seen: Observed, ticket: int, job_id: str | None
    ) -> None:
        """Run the pod that cancels at the provider.

        Raises:
            _CannotCancel: there will be none.
        """
        await self._check_current(job)
        pinned = await self._pinned(seen.namespace, seen.name, seen.uid)
        if pinned is None and seen.spec is None:
            raise _CannotCancel("what it was started with was deleted")
        plan = pinned[0] if pinned is not None else self._plan(seen, ToFetch("circuit.py"))
        if plan.select and seen.status.backend:
            # Where a provider is asked may depend on the device.
            backend = attrs.evolve(plan.spec.backend, name=seen.status.backend)
            plan = attrs.evolve(plan, spec=attrs.evolve(plan.spec, backend=backend))
        wanted = manifests.cancelling_job(
            plan,
            self.settings,
            ticket,
            job_id,
            tries=provider.CANCEL_TRIES,
            seconds=provider.CANCEL_PATIENCE.total_seconds(),
        )
        account = wanted["spec"]["template"]["spec"].get("serviceAccountName")
        if account is not None:
            identity = await self._identity(plan)
            await self._ensure(SERVICE_ACCOUNTS, manifests.service_account(plan, identity), plan)
        name = wanted["metadata"]["name"]
        for each in (name, names.fit(f"{name}-{seen.uid[:8]}", 63)):
            wanted["metadata"]["name"] = each
            try:
                await self.client.create(JOBS, wanted)
                return
            except AlreadyExists:
                with contextlib.suppress(NotFound):
                    existing = await self.client.get(JOBS, each, seen.namespace)
                    if seen.uid in _uid_label(existing) and _is_of_canceller(existing):
                        return
            except Forbidden as error:
                # Nothing is created any more in a namespace that goes; its Secrets go as well.
                if "being terminated" in error.message:
                    raise _CannotCancel(f"namespace {seen.namespace!r} is being deleted") from None
                raise
            except Invalid as error:
                raise _CannotCancel(error.message) from None
        raise _Wait(f"the name {name} is taken")

    async def _stop_cancel(self, seen: Observed, job_name: str) -> None:
        with contextlib.suppress(NotFound):
            existing = await self.client.get(JOBS, job_name, seen.namespace)
            if seen.uid in _uid_label(existing) and _is_of_canceller(existing):
                await self.client.delete(
                    JOBS,
                    job_name,
                    seen.namespace,
                    uid=existing["metadata"]["uid"],
                    propagation="Foreground",
                )

    async def _ensure(
        self,
        resource: Resource,
        obj: Object,
        plan: Plan,
        conflict: Reason = Reason.NAME_CONFLICT,
    ) -> None:
        """Create the object, or find that we did before.

        Raises:
            _Wait: what is there belonged to a QiskitJob that is gone, and will go too.
            _Refused: what is there is someone else's.
        """
        not_allowed: Forbidden | None = None
        try:
            await self.client.create(resource, obj)
            return
        except AlreadyExists:
            pass
        except Forbidden as error:
            # A full quota is met before the name that is taken, also by what we made before.
            not_allowed = error
        except Invalid as error:
            # What the schema of a QiskitJob lets through, but the pod's does not.
            raise _Refused(Reason.INVALID_SPEC, error.message) from None
        except ApiError as error:
            if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise _Refused(Reason.INVALID_SPEC, error.message) from None
            raise
        name, namespace = obj["metadata"]["name"], plan.job.namespace
        try:
            existing = await self.client.get(resource, name, namespace)
        except NotFound:
            if not_allowed is not None:
                raise not_allowed from None
            raise _Wait(f"{resource.kind} {name} went away just now") from None
        if names.belongs_to(existing, plan.job.uid):
            if "deletionTimestamp" in existing["metadata"]:
                raise _Wait(f"{resource.kind} {name} is being deleted")
            return
        owner = next(iter(existing["metadata"].get("ownerReferences") or ()), None)
        if owner is not None and owner.get("kind") == qiskitjob.KIND:
            alive = self.caches.jobs.get(f"{namespace}/{owner['name']}")
            if alive is None or alive["metadata"]["uid"] != owner["uid"]:
                raise _Wait(f"{resource.kind} {name} of a deleted QiskitJob is being collected")
        whose = f"{owner['kind']} {owner['name']!r}" if owner else "someone else"
        raise _Refused(
            conflict,
            f"{resource.kind} {name!r} exists already and belongs to {whose}; it is left as it is. "
            + (
                "Choose another spec.output.location, or delete it"
                if conflict is Reason.OUTPUT_CONFLICT
                else "Choose another name for the QiskitJob, or delete it"
            ),
        )

    async def _clean_up(self, seen: Observed, *, output_unused: bool, keep_record: bool) -> None:
        namespace, base = seen.namespace, names.base_name(seen.name)
        await self._delete(ROLEBINDINGS, base, namespace, seen.uid)
        await self._delete(ROLES, base, namespace, seen.uid)
        await self._delete(SERVICE_ACCOUNTS, base, namespace, seen.uid)
        if not keep_record:
            await self._delete_record(seen)
        if output_unused and seen.spec is not None and seen.spec.output.type == "configmap":
            output = seen.spec.output.location or names.default_output(seen.name)
            await self._delete(CONFIGMAPS, output, namespace, seen.uid, only_empty=True)

    async def _delete_record(self, seen: Observed) -> None:
        """Delete it, unless a pod that the cluster has lost sight of has written since.

        Raises:
            Conflict: a submission has come in, which is to be cancelled first.
        """
        name = names.record_name(seen.name)
        record = await self._record_of(seen.namespace, seen.name)
        if not names.belongs_to(record, seen.uid):
            return
        newest = newest_submission(record)
        if newest is not None and not newest.over and seen.status.provider is None:
            raise Conflict(HTTPStatus.CONFLICT, "Conflict", "something was submitted just now")
        metadata = record["metadata"]
        with contextlib.suppress(NotFound):
            await self.client.delete(
                CONFIGMAPS,
                name,
                seen.namespace,
                uid=metadata["uid"],
                resource_version=metadata["resourceVersion"],
            )

    async def _delete(
        self,
        resource: Resource,
        name: str,
        namespace: str,
        uid: str,
        propagation: Literal["Background", "Foreground"] = "Background",
        *,
        only_empty: bool = False,
    ) -> None:
        """Delete an object of the QiskitJob with that UID; one of somebody else's is left."""
        try:
            existing = await self.client.get(resource, name, namespace)
            if not names.belongs_to(existing, uid):
                return
            if only_empty and (existing.get("data") or existing.get("binaryData")):
                return
            await self.client.delete(
                resource,
                name,
                namespace,
                uid=existing["metadata"]["uid"],
                propagation=propagation,
            )
        except NotFound:
            pass

    async def _set_finalizers(self, job: Object, *, add: bool) -> None:
        metadata = job["metadata"]
        others = [each for each in metadata.get("finalizers", ()) if each != names.FINALIZER]
        body = {
            "metadata": {
                "finalizers": [*others, names.FINALIZER] if add else others,
                # Someone else's finalizer, added meanwhile, must not be lost.
                "resourceVersion": metadata["resourceVersion"],
            }
        }
        if add:
            # Once and for all, so that the trace can be found from the object.
            body["metadata"]["annotations"] = {ANNOTATION: str(self._trace(job).root)}
        try:
            written = await self.client.patch(
                QISKITJOBS, metadata["name"], metadata["namespace"], body
            )
        except NotFound:
            return
        # The status is written over this version next.
        metadata["resourceVersion"] = written["metadata"]["resourceVersion"]

    def _trace(self, job: Object) -> JobTrace:
        metadata = job["metadata"]
        return self.tracer.trace(metadata) if self.tracer else trace_of(metadata)

    async def _write_status(self, job: Object, seen: Observed, decision: Decision) -> None:
        old = seen.status
        new = noted(old, decision.status, self.clock())
        if new != old:
            body = {
                "apiVersion": qiskitjob.API_VERSION,
                "kind": qiskitjob.KIND,
                "metadata": {
                    each: job["metadata"][each]
                    for each in ("name", "namespace", "uid", "resourceVersion")
                },
                # The API server takes all else from the object that it has.
                "status": to_wire(new),
            }
            try:
                await self.client.replace(QISKITJOBS, body, "status")
            except NotFound:
                return
        for note in decision.events:
            self._record(job, note)
        if new.phase != old.phase:
            log.info("phase", phase=new.phase, message=new.message)
        if new != old:
            self.on_written(job, old, new)
        if self.tracer:
            self.tracer.written(job, old, new, seen.runs)

    def _record(self, job: Object, note: EventNote) -> None:
        reference = {
            "apiVersion": qiskitjob.API_VERSION,
            "kind": qiskitjob.KIND,
            "metadata": job["metadata"],
        }
        self.events.event(reference, note.type, note.reason, note.message)


# --- small things ---------------------------------------------------------------------------


@attrs.frozen
class _Judgement:
    """A spec and what can be said of it without looking at the cluster."""

    spec: QiskitJobSpec | None
    problems: Sequence[str] = ()
    unsupported: str | None = None
    backend: str = ""
    cost: str = ""
    warnings: Sequence[str] = ()

    @property
    def sound(self) -> bool:
        """Whether something may be started from it."""
        return self.spec is not None and not self.problems and not self.unsupported


# To look for it reads the metadata of every installed package, 5 ms and more each time.
_driver = functools.cache(controller_driver)


def _judge(name: str, wire: Object, lent: Callable[[QiskitJobSpec], str | None]) -> _Judgement:
    try:
        spec = from_wire(wire, QiskitJobSpec, "spec")
        return _judge_spec(name, spec, lent(spec))
    except DecodeError as error:
        return _Judgement(None, [str(error)])


def _judge_spec(name: str, spec: QiskitJobSpec, secret: str | None) -> _Judgement:
    """What is to be said of a spec.

    Args:
        secret: of a QiskitBackend, for a job without one of its own.
    """
    problems = problems_of(spec)
    if spec.output.type == "configmap" and spec.output.location in (
        names.input_name(name),
        names.record_name(name),
    ):
        problems.append(
            f"spec.output.location: {spec.output.location} is a ConfigMap of the controller's "
            "own; choose another name"
        )
    try:
        driver = _driver(spec.backend.type)
    except NoDriver as error:
        return _Judgement(spec, problems, f"spec.backend.type: {error}")
    lent = spec
    if secret is not None:
        given = spec.credentials or CredentialsSpec()
        lent = attrs.evolve(
            spec, credentials=attrs.evolve(given, secret_ref=SecretRef(name=secret))
        )
    return _Judgement(
        spec,
        [*problems, *driver.problems(lent)],
        None,
        driver.backend_name(spec),
        format_money(driver.cost(spec)),
        driver.warnings(spec) if isinstance(driver, Warns) else (),
    )


def _changes(started: QiskitJobSpec, spec: Mapping[str, Any]) -> list[str]:
    """The fields of spec that no longer are what was started."""
    try:
        now = to_wire(_without_code(from_wire(spec, QiskitJobSpec)))
    except DecodeError:
        return ["spec"]
    then = to_wire(_without_code(started))
    return [
        f"spec.{field}"
        for field in sorted({*then, *now})
        if field not in MUTABLE and then.get(field) != now.get(field)
    ]


def _value(config_map: Object, key: str) -> bytes | None:
    """What a ConfigMap holds under a key, as text or as binary."""
    text = (config_map.get("data") or {}).get(key)
    if text is not None:
        return str(text).encode()
    binary = (config_map.get("binaryData") or {}).get(key)
    return base64.b64decode(binary) if binary is not None else None


def _is_of_a_job(pod: Object) -> bool:
    """Whether the garbage collector will see to the pod; labels are easily copied."""
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(each.get("kind") == "Job" and each.get("controller") for each in owners)


def _is_of_canceller(obj: Object) -> bool:
    """Whether a Job or pod cancels at a provider, and runs nothing."""
    return names.CANCEL_LABEL in (obj["metadata"].get("labels") or {})


def _is_a_ruling(error: ApiError) -> bool:
    """Whether this is what the cluster thinks of the request, and not just a bad moment.

    Webhooks that deny without a code of their own answer 400, and those that cannot be reached
    make it 500.
    """
    if isinstance(error, Forbidden) or error.status == HTTPStatus.BAD_REQUEST:
        return True
    return error.status == HTTPStatus.INTERNAL_SERVER_ERROR and "webhook" in error.message


def _attempt_of(job: Object) -> int:
    label = job["metadata"].get("labels", {}).get(names.ATTEMPT_LABEL, "")
    return int(label) if label.isdecimal() else 0


def _file_name(key: str) -> str:
    """A ConfigMap key as a file name in the pod; some names are ours."""
    return f"circuit-{key}" if key in RESERVED_FILES else key


def _uid_label(obj: Object) -> Iterable[str]:
    uid = obj["metadata"].get("labels", {}).get(names.UID_LABEL)
    return (uid,) if uid else ()


def _belongs_to(obj: Object) -> Iterable[str]:
    metadata = obj["metadata"]
    if metadata.get("labels", {}).get(names.MANAGED_BY) == names.MANAGER:
        job = metadata.get("annotations", {}).get(names.JOB_ANNOTATION)
        if job:
            yield f"{metadata['namespace']}/{job}"


def _referenced_config_map(job: Object) -> Iterable[str]:
    reference = job.get("spec", {}).get("circuit", {}).get("configMapRef") or {}
    if reference.get("name"):
        yield f"{job['metadata']['namespace']}/{reference['name']}"


def _priority_of(job: Object) -> int:
    wanted = job.get("spec", {}).get("execution", {}).get("priority", "normal")
    return _PRIORITIES.get(wanted, 0)


# What stands for long code in the cache.
_FINGERPRINT = "sha256:"


def _short(code: str) -> str:
    if len(code) <= _SHORT_CODE:
        return code
    return _FINGERPRINT + hashlib.sha256(code.encode()).hexdigest()


def _without_code(spec: QiskitJobSpec) -> QiskitJobSpec:
    """`spec` as the cache has it."""
    if spec.circuit.code is None:
        return spec
    circuit = attrs.evolve(spec.circuit, code=_short(spec.circuit.code))
    return attrs.evolve(spec, circuit=circuit)


def _slim_job(job: Object) -> Object:
    """A QiskitJob without long code, of which there may be a megabyte in each."""
    metadata = dict(job["metadata"])
    annotations = metadata.get("annotations") or {}
    if _LAST_APPLIED in annotations:
        metadata["annotations"] = {k: v for k, v in annotations.items() if k != _LAST_APPLIED}
    slim = {**job, "metadata": metadata}
    circuit = (job.get("spec") or {}).get("circuit") or {}
    code = circuit.get("code")
    if isinstance(code, str) and len(code) > _SHORT_CODE:
        slim["spec"] = {**job["spec"], "circuit": {**circuit, "code": _short(code)}}
    return slim


def _read_status(job: Object, deleting: bool) -> QiskitJobStatus:
    """The status; of one that was edited by hand, or is from a newer version, only to let it go.

    Raises:
        DecodeError: it cannot be read.
    """
    try:
        return from_wire(job.get("status") or {}, QiskitJobStatus)
    except DecodeError:
        if not deleting:
            raise
        return QiskitJobStatus()


def _slim_pod(pod: Object) -> Object:
    """A pod without its spec: the cache holds one for each job there ever was."""
    return {
        "apiVersion": pod.get("apiVersion"),
        "kind": pod.get("kind"),
        "metadata": pod["metadata"],
        "status": pod.get("status", {}),
    }


def _slim_metadata(obj: Object) -> Object:
    """Of ConfigMaps, which may be many and strangers', only what leads to a QiskitJob."""
    metadata = obj["metadata"]
    kept = {
        each: metadata[each]
        for each in ("name", "namespace", "uid", "resourceVersion")
        if each in metadata
    }
    if metadata.get("labels", {}).get(names.MANAGED_BY) == names.MANAGER:
        kept["labels"] = {names.MANAGED_BY: names.MANAGER}
        job = metadata.get("annotations", {}).get(names.JOB_ANNOTATION)
        kept["annotations"] = {names.JOB_ANNOTATION: job} if job else {}
    return {"metadata": kept}
