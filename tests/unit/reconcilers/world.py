"""A cluster in miniature: one QiskitJob, its Kubernetes Jobs and pods, and caches that lag.

What is there is kept as the API server would keep it. The reconciler's shell is rebuilt in a few
lines around the real decision: it observes through caches that each lag by themselves, performs
the actions one write at a time, can crash between any two, and meets a conflict when its cache
of the QiskitJob was old. Every write is checked against what must never happen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, get_args

import attrs

from qiskit_controller.api import names
from qiskit_controller.api.conditions import MAX_MESSAGE, find
from qiskit_controller.api.qiskitjob import (
    FINISHED,
    Phase,
    QiskitJobSpec,
    QiskitJobStatus,
)
from qiskit_controller.api.quantities import format_time, parse_time
from qiskit_controller.api.run import Progress, Reason, Retry, Submission
from qiskit_controller.reconcilers.qiskitjob import provider
from qiskit_controller.reconcilers.qiskitjob.decision import (
    AddFinalizer,
    CleanUp,
    Decision,
    DeleteJob,
    EventNote,
    RemoveFinalizer,
    Start,
    StartAttempt,
    StartCancel,
    StopCancel,
    StopRuns,
    decide,
    refuse,
)
from qiskit_controller.reconcilers.qiskitjob.observed import (
    Canceller,
    Observed,
    Run,
    Source,
    view_run,
)

from . import kubelet
from .support import LIMITS, NOW, observed, spec

Object = dict[str, Any]
UID = "0f6b0a5c-7c2f-4f0e-9d7c-1f6f0a5c7c2f"

ALL_PHASES = ["Pending", "Validating", "Scheduling", "Running", "Completed"]
MISHAPS = (
    "evicted",
    "deleted",
    "gone",
    "oom",
    "exit 1",
    "exit 137",
    "exit 143",
    "unschedulable",
    "image",
    "nonsense",
    "cut off",
)
_ORDER: dict[str | None, int] = {None: -1} | {each: n for n, each in enumerate(get_args(Phase))}


# How long a submission without an answer is looked for, and how soon it follows its intent; as in
# the executor, where the first is larger than the second.
SETTLING = timedelta(seconds=105)
SUBMITTING = timedelta(seconds=15)
OVER = ("Done", "Failed", "Cancelled")


class Crash(Exception):
    """The controller was killed between two writes."""


class Conflict(Exception):
    """The object has changed since it was read."""


@attrs.define
class Stored:
    """The QiskitJob as it is stored."""

    spec: QiskitJobSpec
    status: QiskitJobStatus = attrs.field(factory=QiskitJobStatus)
    version: int = 1
    generation: int = 1
    finalized: bool = False
    deleting: bool = False


@attrs.define
class Sold:
    """A job in the provider's ledger."""

    id: str
    ticket: int
    state: str = "Queued"


@attrs.define
class World:
    """See the module's description.

    Attributes:
        job: None when it is gone.
        jobs, pods: as the API server has them.
        replaces: whether a Job makes up for a pod that is deleted (before Kubernetes 1.23), or
            fails of it.
        remote: whether the circuit runs at a provider.
        ledger: what was submitted there.
        zombies: pods that the cluster has forgotten and that run all the same.
        key_works: whether the provider lets the pod that cancels in.
    """

    job: Stored | None = attrs.field(factory=lambda: Stored(spec()))
    jobs: dict[str, Object] = attrs.field(factory=dict)
    pods: dict[str, Object] = attrs.field(factory=dict)
    record: dict[int, Progress] = attrs.field(factory=dict)
    pinned: QiskitJobSpec | None = None
    helpers: bool = False  # the service account and its role
    output: str | None = None  # None: no ConfigMap; "" an empty one
    replaces: bool = False
    remote: bool = False
    ledger: list[Sold] = attrs.field(factory=list)
    submissions: dict[int, Submission] = attrs.field(factory=dict)
    zombies: list[Object] = attrs.field(factory=list)
    canceller: Object | None = None
    key_works: bool = True
    now: datetime = NOW
    events: list[EventNote] = attrs.field(factory=list)
    phases: list[str] = attrs.field(factory=list)
    started: list[tuple[int, datetime]] = attrs.field(factory=list)
    timer: datetime | None = NOW
    _made: int = 0
    _cached_job: Stored | None = None
    _cached_jobs: dict[str, Object] = attrs.field(factory=dict)
    _cached_pods: dict[str, Object] = attrs.field(factory=dict)
    _cached_canceller: Object | None = None

    def __attrs_post_init__(self) -> None:
        self.sync()

    # -- the caches -----------------------------------------------------------------

    def sync(self, job: bool = True, jobs: bool = True, pods: bool = True) -> None:
        """Let caches catch up; each change wakes the reconciler."""
        if job and self._cached_job != self.job:
            self._cached_job = copy.deepcopy(self.job)
            self.timer = self.now
        if jobs and self._cached_jobs != self.jobs:
            self._cached_jobs = copy.deepcopy(self.jobs)
            self.timer = self.now
        if jobs and self._cached_canceller != self.canceller:
            self._cached_canceller = copy.deepcopy(self.canceller)
            self.timer = self.now
        if pods and self._cached_pods != self.pods:
            self._cached_pods = copy.deepcopy(self.pods)
            self.timer = self.now

    @property
    def synced(self) -> bool:
        return (
            self._cached_job,
            self._cached_jobs,
            self._cached_pods,
            self._cached_canceller,
        ) == (self.job, self.jobs, self.pods, self.canceller)

    # -- the reconciler's shell -----------------------------------------------------

    def reconcile(self, writes: int | None = None) -> Decision | None:
        """One reconcile; with `writes`, it crashes after as many. None without an object."""
        self.timer = None
        cached = copy.deepcopy(self._cached_job)
        if cached is None:
            return None
        budget = _writes(writes)
        try:
            return self._reconcile(cached, budget)
        except (Crash, Conflict):
            self.timer = self.now
            return None
        except _Wait:
            self.timer = self.now + timedelta(seconds=2)
            return None

    def _reconcile(self, cached: Stored, budget: Iterator[None]) -> Decision:
        seen = self.observe(cached)
        decision = decide(seen, LIMITS)
        try:
            for action in decision.actions:
                self._perform(action, cached, seen, budget)
        except _Refused as refused:
            decision = refuse(seen, Reason.EXECUTOR_FAILED, str(refused))
            for action in decision.actions:
                self._perform(action, cached, seen, budget)
        if decision.status != seen.status:
            self._write_status(cached, decision, budget)
        if decision.requeue_after is not None:
            self.timer = self.now + decision.requeue_after
        waits = cached.deleting or decision.status.phase in FINISHED
        assert waits or decision.requeue_after is not None, "nothing would wake it up"
        return decision

    def observe(self, cached: Stored) -> Observed:
        runs: dict[int, Run] = {}
        for job in self._cached_jobs.values():
            attempt = int(job["metadata"]["labels"][names.ATTEMPT_LABEL])
            uid = job["metadata"]["uid"]
            mine = [each for each in self._cached_pods.values() if each["owner"] == uid]
            runs[attempt] = view_run(job, mine, attempt)
        status = cached.status
        active = status.phase is not None and status.phase not in FINISHED and not cached.deleting
        last = status.attempts[-1] if status.attempts else None
        underway = status.phase in ("Validating", "Scheduling", "Running")
        if active and underway and last and not last.completion_time and last.number not in runs:
            live = self.jobs.get(last.job_name)  # as the reconciler makes sure of it
            if live is not None:
                runs[last.number] = view_run(live, [], last.number)
        wanted = cached.spec
        changed: list[str] = []
        if active and self.pinned is not None:
            wanted = attrs.evolve(self.pinned, cancel=cached.spec.cancel)
            if self.pinned.execution != cached.spec.execution:
                changed.append("spec.execution")
        code = (wanted.circuit.code or "").encode()
        progress = None
        if active and last is not None and last.number in runs:
            pod = runs[last.number].pod
            if pod is not None and pod.executor_started and self.helpers:
                progress = self.record.get(last.number)
        submission = None
        reads = seen_to_run(runs, last) or status.phase in ("Scheduling", "Running")
        reads = reads or (last is not None and last.number > 1) or wanted.cancel
        if (last and status.phase not in FINISHED and self.helpers) and (reads or cached.deleting):
            newest = max(self.submissions, default=None)
            submission = self.submissions[newest] if newest is not None else None
        cancels = self._cached_canceller
        return observed(
            submission=submission,
            canceller=None if cancels is None else view_canceller(cancels),
            uid=UID,
            generation=cached.generation,
            deleting=cached.deleting,
            finalized=cached.finalized,
            spec=wanted,
            status=status,
            source=Source("circuit.py", code) if active else None,
            runs=runs,
            pods_left=len(self._cached_pods),
            progress=progress,
            spec_changed=changed,
            now=self.now,
        )

    def _perform(
        self, action: object, cached: Stored, seen: Observed, budget: Iterator[None]
    ) -> None:
        match action:
            case AddFinalizer():
                if not cached.finalized:
                    self._patch_finalizer(cached, True, budget)
            case RemoveFinalizer():
                self._patch_finalizer(cached, False, budget)
            case Start(source):
                self._check_current(cached)
                assert isinstance(source, Source)
                if self.pinned is None:
                    next(budget)
                    self.pinned = seen.spec
                self._make_job(1, seen, budget)
            case StartAttempt(number):
                self._check_current(cached)
                if self.pinned is None:
                    raise _Refused("the input was deleted")
                self._make_job(number, seen, budget)
            case StopRuns(job_names):
                for name in job_names:
                    self._stop(name, budget)
            case StartCancel(ticket, job_id):
                self._check_current(cached)
                if self.canceller is None:
                    next(budget)
                    self.canceller = {
                        "ticket": ticket,
                        "id": job_id,
                        "since": self.now,
                        "tries": 0,
                        "ended": None,
                    }
            case StopCancel():
                next(budget)
                self.canceller = None
            case CleanUp(output_unused):
                next(budget)
                self.helpers = False
                self.record.clear()
                self.submissions.clear()
                if output_unused and self.output == "":
                    self.output = None
            case DeleteJob():
                next(budget)
                self.delete()
            case _:
                raise AssertionError(action)

    def _check_current(self, cached: Stored) -> None:
        if self.job is None or self.job.version != cached.version:
            raise Conflict

    def _patch_finalizer(self, cached: Stored, present: bool, budget: Iterator[None]) -> None:
        self._check_current(cached)
        next(budget)
        assert self.job is not None
        self.job.finalized = present
        self.job.version += 1
        cached.version, cached.finalized = self.job.version, present
        self._collect()

    def _make_job(self, number: int, seen: Observed, budget: Iterator[None]) -> None:
        if not self.helpers:
            next(budget)
            self.helpers = True
        if self.output is None:
            next(budget)
            self.output = ""
        name = names.job_name("bell", number)
        if name in self.jobs:
            if "deletionTimestamp" in self.jobs[name]["metadata"]:
                raise _Wait
            return
        next(budget)
        assert self.job is not None
        status = self.job.status
        assert status.phase == "Pending", "a pod is started for a job that is beyond Pending"
        assert not self.job.spec.cancel, "a pod is started for a job that is cancelled"
        assert not self.job.deleting, "a pod is started for a job that is being deleted"
        running = [
            each
            for each in self.pods.values()
            if each["status"].get("phase") not in ("Succeeded", "Failed")
            and "deletionTimestamp" not in each["metadata"]
        ]
        assert not running, "two attempts run at a time"
        self._check_spacing(number)
        self._made += 1
        self.jobs[name] = {
            "metadata": {
                "name": name,
                "uid": f"job-{self._made}",
                "creationTimestamp": format_time(self.now),
                "labels": {names.ATTEMPT_LABEL: str(number)},
            },
            "status": {},
            "ticket": provider.ticket(seen.status.attempts),
        }
        self.started.append((number, self.now))

    def _check_spacing(self, number: int) -> None:
        assert self.job is not None
        closed = [each for each in self.job.status.attempts if each.number < number]
        assert len(closed) == number - 1
        if closed:
            ended = closed[-1].completion_time
            assert ended is not None, "the attempt before has not ended"
            waited = self.now - parse_time(ended)
            least = min(10.0 * 2 ** (len(closed) - 1), 360.0)
            assert waited >= timedelta(seconds=least), f"attempt {number} came after {waited}"

    def _stop(self, name: str, budget: Iterator[None]) -> None:
        if name not in self.jobs:
            return
        next(budget)
        job = self.jobs[name]
        job["metadata"].setdefault("deletionTimestamp", format_time(self.now))
        for pod in self.pods_of(job):
            pod["metadata"].setdefault("deletionTimestamp", format_time(self.now))

    def _write_status(self, cached: Stored, decision: Decision, budget: Iterator[None]) -> None:
        self._check_current(cached)
        next(budget)
        assert self.job is not None
        check_step(self.job.status, decision, self.job.spec, self.pinned)
        if decision.status.phase != self.job.status.phase:
            self.phases.append(str(decision.status.phase))
        self.job.status = decision.status
        self.job.version += 1
        self.events += decision.events

    # -- the user -------------------------------------------------------------------

    def cancel(self) -> None:
        if self.job is not None:
            self._edit(cancel=True)

    def edit(self, retries: int) -> None:
        """Change the spec, as a server without CEL lets one."""
        if self.job is not None:
            self._edit(execution=attrs.evolve(self.job.spec.execution, max_retries=retries))

    def _edit(self, **changes: Any) -> None:
        assert self.job is not None
        self.job.spec = attrs.evolve(self.job.spec, **changes)
        self.job.generation += 1
        self.job.version += 1

    def delete(self) -> None:
        if self.job is not None and not self.job.deleting:
            self.job.deleting = True
            self.job.version += 1
            self._collect()

    def _collect(self) -> None:
        """An object without finalizers goes, and what it owns goes with it."""
        if self.job is not None and self.job.deleting and not self.job.finalized:
            self.job = None
            self.pinned = self.output = None
            self.helpers = False
            self.record.clear()
            self.submissions.clear()
            for name in list(self.jobs):
                self._stop(name, _writes(None))

    # -- the Job controller and the kubelet -----------------------------------------

    def pods_of(self, job: Object) -> list[Object]:
        return [each for each in self.pods.values() if each["owner"] == job["metadata"]["uid"]]

    def control_jobs(self) -> None:
        """What kube-controller-manager does about Jobs and about garbage."""
        for name, job in list(self.jobs.items()):
            pods = self.pods_of(job)
            if "deletionTimestamp" in job["metadata"]:
                if not pods:
                    del self.jobs[name]
                continue
            if job["status"].get("conditions"):
                continue
            gone = job["status"].get("pods", 0) > len(pods)
            going = [each for each in pods if "deletionTimestamp" in each["metadata"]]
            phases = {each["status"].get("phase") for each in pods}
            if "Succeeded" in phases:
                job["status"] |= kubelet.complete_job(self.now)
            elif "Failed" in phases or ((gone or going) and not self.replaces):
                job["status"] |= kubelet.failed_job(self.now)
            elif len(pods) == len(going):
                self._make_pod(job)

    def _make_pod(self, job: Object) -> None:
        self._made += 1
        name = f"{job['metadata']['name']}-{self._made}"
        self.pods[name] = {
            "metadata": {"name": name, "creationTimestamp": format_time(self.now)},
            "owner": job["metadata"]["uid"],
            "status": {"phase": "Pending"},
            "attempt": int(job["metadata"]["labels"][names.ATTEMPT_LABEL]),
            "ticket": job["ticket"],
            "step": 0,
        }
        job["status"]["pods"] = 1

    def end_deletions(self) -> None:
        """The kubelet has ended what was to be deleted."""
        for name, pod in list(self.pods.items()):
            if "deletionTimestamp" in pod["metadata"]:
                del self.pods[name]

    def alive(self) -> list[Object]:
        """The pods in which something may still run."""
        return [
            each
            for each in self.pods.values()
            if each["status"].get("phase") not in ("Succeeded", "Failed")
        ]

    def step(self, pod: Object) -> None:
        """The pod does what comes next, all going well."""
        if "deletionTimestamp" in pod["metadata"]:
            return
        began = pod.setdefault("began", self.now)
        ran = kubelet.terminated(began)
        match pod["step"]:
            case 0:
                pod["status"] = kubelet.pod_status(kubelet.running(self.now))
            case 1:
                pod["status"] = kubelet.pod_status(ran)
            case 2:
                pod["status"] = kubelet.pod_status(ran, kubelet.running(self.now))
            case 3:
                self._tell(pod, "Validated")
            case 4 if self.remote:
                if not self._at_provider(pod):
                    return
                self._tell(pod, "Executing")
            case 5 if self.remote and not self._ran(pod):
                return
            case 4:
                self._tell(pod, "Executing")
            case _:
                self.output = "counts" if self.helpers else self.output
                told = kubelet.success(pod["attempt"], self.now)
                self.end(pod, 0, message=told)
        pod["step"] += 1

    # -- the executor at a provider -------------------------------------------------

    def _at_provider(self, pod: Object) -> bool:
        """One step on the way to a job that runs there; whether it does."""
        if not self.helpers:
            # The API server does not let it near the record any more.
            return False
        ticket, mine = pod["ticket"], pod["attempt"]
        # What it does next it does without another look at the record.
        blind = pod.get("doing") == "submitting" and self.now - pod["intended"] <= SUBMITTING
        if not blind and any(each.attempt > mine for each in self.submissions.values()):
            self.fail(pod, Reason.EXECUTOR_FAILED)
            return False
        known = self.submissions.get(ticket)
        match pod.setdefault("doing", "looking"):
            case "looking" if known is not None and known.id is not None:
                pod["doing"] = "waiting"
            case "looking":
                found = next((each for each in self.ledger if each.ticket == ticket), None)
                since = pod.setdefault("since", self.now)
                if found is not None:
                    self._note(pod, found)
                    pod["doing"] = "waiting"
                elif known is None or self.now - since >= SETTLING:
                    self._note(pod, None)
                    pod["intended"] = self.now
                    pod["doing"] = "submitting"
            case "submitting" if self.now - pod["intended"] > SUBMITTING:
                pod["doing"] = "looking"
                pod.pop("since")
            case "submitting":
                self._sell(ticket)
                pod["doing"] = "remembering"
            case "remembering":
                self._note(pod, self._sold(ticket))
                pod["doing"] = "waiting"
            case _:
                sold = self._sold(ticket)
                if sold.state == "Queued":
                    sold.state = "Running"
                self._note(pod, sold)
                return self._unless_failed(pod, sold)
        return False

    def _ran(self, pod: Object) -> bool:
        sold = self._sold(pod["ticket"])
        if sold.state == "Running":
            sold.state = "Done"
        if self.helpers:
            self._note(pod, sold)
        return self._unless_failed(pod, sold)

    def _unless_failed(self, pod: Object, sold: Sold) -> bool:
        if sold.state == "Cancelled":
            self.fail(pod, Reason.PROVIDER_JOB_CANCELLED)
        elif sold.state == "Failed":
            self.fail(pod, Reason.PROVIDER_JOB_FAILED)
        return sold.state in ("Running", "Done")

    def _sold(self, ticket: int) -> Sold:
        return next(each for each in self.ledger if each.ticket == ticket)

    def _sell(self, ticket: int) -> None:
        assert all(each.ticket != ticket for each in self.ledger), "paid twice"
        assert all(each.state == "Failed" for each in self.ledger), "two jobs at a time"
        self.ledger.append(Sold(f"sold-{len(self.ledger) + 1}", ticket))

    def _note(self, pod: Object, sold: Sold | None) -> None:
        self.submissions[pod["ticket"]] = Submission(
            ticket=pod["ticket"],
            attempt=pod["attempt"],
            id=sold.id if sold else None,
            backend="device" if sold else None,
            state=sold.state if sold else None,  # type: ignore[arg-type]
        )
        self.timer = self.now

    def step_zombies(self) -> None:
        """Pods on a node that is cut off from the cluster, but not from the provider."""
        for pod in self.zombies if self.remote else ():
            if pod["step"] == 4 and pod["status"].get("phase") not in ("Succeeded", "Failed"):
                self._at_provider(pod)

    def step_canceller(self) -> None:
        """The pod that cancels at the provider."""
        job = self.canceller
        if job is None or job["ended"] is not None:
            return
        if not self.key_works:
            job["tries"] += 1
            if job["tries"] >= provider.CANCEL_TRIES:
                job["ended"] = "failed"
            return
        found = [each for each in self.ledger if job["id"] == each.id]
        found += [each for each in self.ledger if job["ticket"] == each.ticket]
        if not found and self.now - job["since"] < SETTLING:
            return
        for each in found:
            if each.state not in OVER:
                each.state = "Cancelled"
        job["ended"] = "complete"

    def provider_mishap(self, how: str) -> None:
        """The newest job at the provider fails, or is cancelled there by somebody."""
        if self.ledger and self.ledger[-1].state not in OVER:
            self.ledger[-1].state = how

    def _tell(self, pod: Object, stage: Any) -> None:
        if self.helpers:
            self.record[pod["attempt"]] = kubelet.progress(pod["attempt"], stage)
            self.timer = self.now

    def end(self, pod: Object, code: int, reason: str | None = None, message: str = "") -> None:
        """The stage that runs ends so."""
        began = pod.setdefault("began", self.now)
        ended = kubelet.terminated(self.now, code, reason, message)
        if pod["step"] < 2:
            pod["status"] = kubelet.pod_status(ended)
        else:
            pod["status"] = kubelet.pod_status(kubelet.terminated(began), ended)

    def fail(self, pod: Object, reason: Reason) -> None:
        """The executor reports a failure."""
        pod["step"] = max(pod["step"], 2)
        self.end(pod, 1, message=kubelet.failure(pod["attempt"], reason))

    def mishap(self, how: str) -> None:
        """Something happens to the newest pod; MISHAPS lists what can."""
        pod = self.alive()[-1]
        match how:
            case "evicted":
                pod["status"] = kubelet.evicted()
            case "deleted":
                pod["metadata"]["deletionTimestamp"] = format_time(self.now)
            case "gone":
                del self.pods[pod["metadata"]["name"]]
            case "cut off":
                self.zombies.append(self.pods.pop(pod["metadata"]["name"]))
            case "oom":
                self.end(pod, 137, "OOMKilled")
            case "exit 1" | "exit 137" | "exit 143":
                self.end(pod, int(how.split()[1]))
            case "unschedulable" if pod["step"] == 0:
                pod["status"] = kubelet.unschedulable()
            case "image" if pod["step"] == 0:
                pod["status"] = kubelet.pod_status(kubelet.waiting("ImagePullBackOff", "no"))
            case "nonsense" if pod["step"] >= 2:
                self.end(pod, 0, message="{")

    def lose_job(self) -> None:
        """Somebody deletes the newest Kubernetes Job."""
        self._stop(next(reversed(self.jobs)), _writes(None))

    # -- fair play ------------------------------------------------------------------

    def turn(self, turns: int) -> None:
        """Everybody does what they do, that many times; a timer that is near comes up."""
        for _ in range(turns):
            self.sync()
            if self.timer is not None and self.timer <= self.now + timedelta(seconds=430):
                self.now = max(self.now, self.timer)
                self.reconcile()
            self.end_deletions()
            self.control_jobs()
            for pod in self.alive():
                self.step(pod)
            self.step_zombies()
            self.step_canceller()

    def settle(self, steps: int = 400) -> None:
        """No more mishaps: everybody does what they do, and time passes only for timers."""
        for _ in range(steps):
            if self.job is None:
                return
            self.sync()
            if self.timer is not None and self.timer <= self.now:
                self.reconcile()
                continue
            before = copy.deepcopy(self._moving())
            self.end_deletions()
            self.control_jobs()
            for pod in list(self.pods.values()):
                if pod["status"].get("phase") not in ("Succeeded", "Failed"):
                    self.step(pod)
            self.step_zombies()
            self.step_canceller()
            if self._moving() != before:
                continue
            if self.timer is None:
                return
            self.now = self.timer
        raise AssertionError(f"no end in sight: {self.phases[-10:]}, {self.job}")

    def _moving(self) -> tuple[object, ...]:
        return (
            self.jobs,
            self.pods,
            self.record,
            self.ledger,
            self.submissions,
            self.canceller,
            self.zombies,
        )

    def check_rest(self) -> None:
        """What must hold when nothing moves any more."""
        self._check_ledger()
        if self.job is None:
            self.end_deletions()
            self.control_jobs()
            assert not self.jobs
            assert not self.pods
            assert self.canceller is None, "a Kubernetes Job is left behind"
            return
        status = self.job.status
        assert not self.job.deleting, "deletion is waited for in vain"
        assert status.phase in FINISHED, f"stuck in {status.phase}: {status.message}"
        assert not self.alive(), "something runs after the end"
        assert not self.helpers, "a role that nobody needs is left"
        if status.phase == "Completed":
            assert self.output == "counts", "the result was lost"
        # Deciding on what was decided writes nothing.
        self.sync()
        decision = decide(self.observe(self.job), LIMITS)
        assert (decision.status, decision.actions, decision.events) == (status, (), ())

    def _check_ledger(self) -> None:
        """Whatever was paid for has ended, or the user was told."""
        told = any(each.reason == "NotCancelledAtProvider" for each in self.events)
        for each in self.ledger:
            assert each.state in OVER or told, f"{each.id} is left {each.state}"
        if told:
            assert not self.key_works
        tickets = [each.ticket for each in self.ledger]
        assert tickets == list(range(1, len(tickets) + 1))
        if self.remote and self.job is not None and self.job.status.phase == "Completed":
            assert self.ledger[-1].state == "Done"


def seen_to_run(runs: dict[int, Run], last: Any) -> bool:
    """Whether the executor of the last attempt has begun, as far as the cache knows."""
    run = runs.get(last.number) if last is not None else None
    return run is not None and run.pod is not None and run.pod.executor_started is not None


def view_canceller(job: Object) -> Canceller:
    return Canceller(
        job_name=names.cancel_name("bell"),
        complete=job["ended"] == "complete",
        failed="it was tried too often" if job["ended"] == "failed" else None,
    )


class _Refused(Exception):
    pass


class _Wait(Exception):
    pass


def _writes(number: int | None) -> Iterator[None]:
    """Lets that many writes pass."""
    if number is None:
        while True:
            yield
    for _ in range(number):
        yield
    raise Crash


def check_step(
    old: QiskitJobStatus, decision: Decision, wanted: QiskitJobSpec, pinned: QiskitJobSpec | None
) -> None:
    """What must hold of every status that is written over another."""
    new = decision.status
    check_status(new)
    if old.phase in FINISHED:
        settled = attrs.evolve(old, observed_generation=new.observed_generation)
        assert new == settled, "what has ended has changed"
    if new.phase != old.phase:
        assert decision.events, f"no Event tells of {old.phase} -> {new.phase}"
        forward = _ORDER[new.phase] == _ORDER[old.phase] + 1 and new.phase != "Failed"
        back = new.phase == "Pending" and old.phase in ("Validating", "Scheduling", "Running")
        out = new.phase in ("Failed", "Cancelled") and old.phase is not None
        assert forward or back or out, f"{old.phase} -> {new.phase}"
        if back:
            assert new.attempts[-1].completion_time is not None
        if new.phase == "Cancelled":
            assert wanted.cancel
    closed = [each for each in old.attempts if each.completion_time]
    assert list(new.attempts[: len(closed)]) == closed, "the past has changed"
    assert len(new.attempts) - len(old.attempts) in (0, 1)
    allowed = (pinned or wanted).execution.max_retries
    failed = [each for each in new.attempts if each.counted]
    assert len(failed) <= 1 + allowed, f"{len(failed)} attempts, {allowed} retries allowed"


def check_status(status: QiskitJobStatus) -> None:
    """What must hold of every status."""
    finished = status.phase in FINISHED
    assert (status.completion_time is not None) == finished
    assert status.start_time is not None
    for type_, phase in (
        ("Complete", "Completed"),
        ("Failed", "Failed"),
        ("Cancelled", "Cancelled"),
    ):
        found = find(status.conditions, type_)
        true = found is not None and found.status == "True"
        assert true == (status.phase == phase), f"{type_} in phase {status.phase}"
    assert len({each.type for each in status.conditions}) == len(status.conditions)
    assert status.results is not None or status.phase != "Completed"
    assert (status.running_time is not None) or status.phase != "Running"
    assert [each.number for each in status.attempts] == list(range(1, len(status.attempts) + 1))
    for each in status.attempts[:-1]:
        assert each.completion_time is not None
    if finished and status.attempts:
        assert status.attempts[-1].completion_time is not None
    for each in status.attempts:
        assert len(each.message or "") <= 512
        if each.reason not in (None, "Cancelled"):
            assert each.counted == (Reason(each.reason).retry is not Retry.FREE)
    for condition in status.conditions:
        assert len(condition.message) <= MAX_MESSAGE
        assert condition.reason.isalnum()
        assert condition.last_transition_time is not None
