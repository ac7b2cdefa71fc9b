"""Errands: short Kubernetes Jobs that ask a provider something with an account's credentials.

The controller itself talks to no provider. The probe of a QiskitBackend, and what opens, looks at
and closes the session of a QiskitSession, are Jobs of one container with the Secret and no token
of the cluster's: it has nothing to ask the API server for, and its answer is the container's last
word. They never retry by themselves; only the controller knows when to ask again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from qiskit_controller.api import names, qiskitjob
from qiskit_controller.api.quantities import parse_time
from qiskit_controller.api.run import CREDENTIALS_DIR, TERMINATION_LOG
from qiskit_controller.kube.client import Client
from qiskit_controller.kube.errors import NotFound
from qiskit_controller.kube.informer import Informer
from qiskit_controller.kube.objects import Object
from qiskit_controller.kube.resources import EVENTS, JOBS
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings

Manifest = dict[str, Any]

# Its Kubernetes Job is ended after it.
ERRAND_TIME = timedelta(minutes=5)
# A pod that cannot start is looked at again as often.
LOOK_AGAIN = timedelta(seconds=15)
LONGEST_BACKOFF = timedelta(hours=1)
# What the errand is to do, for who asks for several things.
ACTION_ANNOTATION = "quantum.io/action"
_UID = 65532
# A pod that has not started by then is looked into.
_POD_PATIENCE = timedelta(seconds=5)
# Nothing that happened to the Job meets a pod that was taken away with it.
_NO_POD = "its pod is gone"


@attrs.frozen
class Errand:
    """The Kubernetes Job of an errand, as it was last seen.

    Attributes:
        action: what it is to do, where its owner has several errands.
        begun: whether its container has begun.
        over: whether it has ended.
        message: the container's last word.
        problem: what keeps its pod from starting, or why it was ended.
    """

    uid: str
    created: datetime
    action: str = ""
    deleting: bool = False
    begun: bool = False
    over: bool = False
    message: str = ""
    problem: str = ""


def backoff(period: timedelta, failures: int, longest: timedelta = LONGEST_BACKOFF) -> timedelta:
    """How long after an errand the next one is sent: the period, doubled for each failure in a
    row, to `longest` at most, unless the period itself is longer."""
    return min(period * (1 << min(failures, 12)), max(period, longest))


@attrs.frozen(kw_only=True)
class Owner:
    """The object that an errand is for, and how its errands are told from others'.

    Attributes:
        key: of the label and the annotation with the object's name; the label may be cut.
    """

    kind: str
    key: str
    namespace: str
    name: str
    uid: str


def errand_job(
    owner: Owner,
    name: str,
    app: str,
    command: str,
    environment: Mapping[str, str],
    secret: str | None,
    settings: Settings,
    *,
    action: str = "",
    outlives: bool = False,
) -> Manifest:
    """The Kubernetes Job of an errand.

    Args:
        name: its own name.
        app: the recommended label ``app.kubernetes.io/name``.
        command: of qiskit-runner; also the container's name.
        secret: the credentials, where there are any.
        outlives: whether it is still needed when its owner is being deleted, also in the
            foreground; then nobody but the controller deletes it.
    """
    labels = {
        "app.kubernetes.io/name": app,
        names.MANAGED_BY: names.MANAGER,
        owner.key: names.fit(owner.name),
        names.UID_LABEL: owner.uid,
    }
    annotations = {owner.key: owner.name}
    if action:
        annotations[ACTION_ANNOTATION] = action
    reference = {
        "apiVersion": qiskitjob.API_VERSION,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [] if outlives else [reference],
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": int(ERRAND_TIME.total_seconds()),
            "template": {
                "metadata": {"labels": dict(labels), "annotations": dict(annotations)},
                "spec": _pod_spec(command, environment, secret, settings),
            },
        },
    }


def _pod_spec(
    command: str, environment: Mapping[str, str], secret: str | None, settings: Settings
) -> Manifest:
    container: Manifest = {
        "name": command,
        "image": settings.runner_image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["qiskit-runner", command],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": {
            "requests": {"cpu": "100m", "memory": "256Mi"},
            "limits": {"cpu": "1", "memory": "1Gi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePath": str(TERMINATION_LOG),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a path in the pod
        ],
    }
    pod: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "priorityClassName": "qiskit-normal",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _UID,
            "runAsGroup": _UID,
            "fsGroup": _UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}],
    }
    if secret is not None:
        volume = {"secretName": secret, "defaultMode": 0o400}
        pod["volumes"].append({"name": "credentials", "secret": volume})
        container["volumeMounts"].append(
            {"name": "credentials", "mountPath": str(CREDENTIALS_DIR), "readOnly": True}
        )
    return pod


@attrs.define
class Errands:
    """The errands of one kind.

    Attributes:
        key: see :class:`Owner`.
        kubernetes_jobs, pods: the caches of what carries our label.
        clock: the time now, with a time zone.
    """

    key: str
    client: Client
    kubernetes_jobs: Informer
    pods: Informer
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def __attrs_post_init__(self) -> None:
        for informer in (self.kubernetes_jobs, self.pods):
            informer.add_indexer(self.key, self._uid)

    def owners(self, obj: Object) -> Iterable[str]:
        """The key of the object that a Job or pod is an errand of."""
        metadata = obj["metadata"]
        name = (metadata.get("annotations") or {}).get(self.key)
        if name and (metadata.get("labels") or {}).get(names.MANAGED_BY) == names.MANAGER:
            yield f"{metadata['namespace']}/{name}"

    async def find(self, namespace: str, uid: str, name: str) -> Errand | None:
        """The newest errand of the object with that UID, if there is one.

        Args:
            name: of its Job; one that outlives its owner has nothing else to be known by.
        """
        jobs = [
            each
            for each in self.kubernetes_jobs.by_index(self.key, uid)
            if names.belongs_to(each, uid)
            or (each["metadata"]["name"] == name and not _owned(each))
        ]
        if not jobs:
            return None
        job = max(jobs, key=lambda each: str(each["metadata"]["creationTimestamp"]))
        metadata = job["metadata"]
        pods = [
            each
            for each in self.pods.by_index(self.key, uid)
            if names.belongs_to(each, metadata["uid"])
        ]
        pod = max(pods, key=lambda each: str(each["metadata"]["creationTimestamp"]), default=None)
        ended = _terminated(pod) if pod is not None else None
        failed = _failed(job, self.clock())
        errand = Errand(
            uid=metadata["uid"],
            created=parse_time(metadata["creationTimestamp"]),
            action=(metadata.get("annotations") or {}).get(ACTION_ANNOTATION, ""),
            deleting="deletionTimestamp" in metadata,
            begun=pod is not None and _has_begun(pod),
            over=ended is not None or failed is not None,
            message=(ended or {}).get("message", ""),
            problem=failed or (ended or {}).get("reason", "") or _waits_for(pod),
        )
        if not errand.over and pod is not None and not errand.problem:
            told = await self._why_it_waits(namespace, pod)
            errand = attrs.evolve(errand, problem=told)
        return errand

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

    async def delete(self, namespace: str, name: str, uid: str) -> None:
        """Delete the Job of that name, if it is the one with that UID."""
        with contextlib.suppress(NotFound):
            await self.client.delete(JOBS, name, namespace, uid=uid, propagation="Background")

    async def sweep(self, namespace: str, name: str, uid: str) -> None:
        """Delete the Job of that name, if it is one of the object with that UID: before the object
        goes, by the server's word, as nobody would delete one that outlives its owner."""
        with contextlib.suppress(NotFound):
            job = await self.client.get(JOBS, name, namespace)
            labels = job["metadata"].get("labels") or {}
            if labels.get(names.UID_LABEL) == uid and "deletionTimestamp" not in job["metadata"]:
                await self.delete(namespace, name, job["metadata"]["uid"])

    def _uid(self, obj: Object) -> Iterable[str]:
        metadata = obj["metadata"]
        if self.key in (metadata.get("annotations") or {}):
            yield metadata.get("labels", {}).get(names.UID_LABEL, "")


def _owned(obj: Object) -> bool:
    return bool(obj["metadata"].get("ownerReferences"))


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
