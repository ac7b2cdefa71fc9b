"""The Kubernetes objects of one QiskitJob, as dicts.

The pod has stages of two levels of trust. ``circuit`` runs the user's code and gets nothing:
no token, no credential, no Secret. ``executor`` holds those and runs none of the user's code.
The only thing they share is a volume that the first writes and the second reads with care.
Where the code has to be fetched, ``source`` comes first: trusted with Git credentials, it runs
nothing of what it fetches, and the others can only read what it leaves.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import attrs

from qiskit_controller.api import names
from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.qiskitjob import (
    API_VERSION,
    KIND,
    QiskitJobSpec,
    ResourceRequirements,
    SourceStatus,
)
from qiskit_controller.api.quantities import parse_quantity
from qiskit_controller.api.run import (
    ATTEMPT_ENV,
    COMMIT_ENV,
    CREDENTIALS_DIR,
    GIT_DIR,
    INPUT_DIR,
    PLAN_ENV,
    PLAN_FILE,
    PROVIDER_JOB_ENV,
    SHA256_ENV,
    SOURCE_DIR,
    STORAGE_DIR,
    STORE_ENV,
    TERMINATION_LOG,
    TICKET_ENV,
    TOKEN_DIR,
    WORK_DIR,
    Limits,
    Plan,
)
from qiskit_controller.reconcilers.qiskitjob.observed import (
    CIRCUIT,
    EXECUTOR,
    SOURCE,
    Source,
    ToFetch,
)
from qiskit_controller.reconcilers.qiskitjob.tracing import stage_span
from qiskit_controller.telemetry.trace import TRACEPARENT_ENV, JobTrace

Manifest = dict[str, Any]

# Any user but root; the images' own.
_UID = 65532
_TOKEN_SECONDS = 3600
_GRACE_SECONDS = 5
_CANCEL_TTL_SECONDS = 86_400
CANCEL = "cancel"


@attrs.frozen(kw_only=True)
class Settings:
    """What the operator decides for every pod.

    Attributes:
        runner_image: the image with qiskit and the vendors' SDKs.
        pull_policy: as for any container.
        pull_secrets: names of Secrets in the job's namespace, for pulling the image.
        requests, limits: for a job that says nothing of its own, by resource name.
        bounds: on the untrusted stage.
        telemetry: OTEL_* of the trusted stages; empty without a collector.
    """

    runner_image: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    requests: Mapping[str, str] = {"cpu": "250m", "memory": "512Mi"}
    limits: Mapping[str, str] = {"cpu": "2", "memory": "1Gi"}
    bounds: Limits = Limits()  # noqa: RUF009 - frozen, so it may be shared
    telemetry: Mapping[str, str] = {}


def owner_reference(name: str, uid: str) -> Manifest:
    """Ties an object's life to the QiskitJob's."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _metadata(plan: Plan, name: str) -> Manifest:
    return {
        "name": name,
        "namespace": plan.job.namespace,
        "labels": names.labels(plan.job.name, plan.job.uid),
        "annotations": {names.JOB_ANNOTATION: plan.job.name},
        "ownerReferences": [owner_reference(plan.job.name, plan.job.uid)],
    }


def input_config_map(plan: Plan, source: Source | ToFetch) -> Manifest:
    """The plan and, where it is at hand, the code: what every attempt runs. Immutable."""
    # Inline code stands in its own file; a second copy might not fit.
    slim = plan.spec
    if slim.circuit.source == "inline":
        slim = attrs.evolve(slim, circuit=attrs.evolve(slim.circuit, code=None))
    config_map: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(plan, names.input_name(plan.job.name)),
        "immutable": True,
        "data": {PLAN_FILE: json.dumps(to_wire(attrs.evolve(plan, spec=slim)), indent=1)},
    }
    if isinstance(source, ToFetch):
        return config_map
    try:
        config_map["data"][source.file] = source.content.decode()
    except UnicodeDecodeError:
        config_map["binaryData"] = {source.file: base64.b64encode(source.content).decode()}
    return config_map


def empty_config_map(plan: Plan, name: str) -> Manifest:
    """A ConfigMap for the executor to fill. It may not create any, so we do."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(plan, name)}


def wants_identity(spec: QiskitJobSpec) -> bool:
    """Whether the executor may have to be someone at a cloud provider without a Secret's keys."""
    return spec.output.type in ("s3", "gcs") or spec.backend.type == "aws_braket"


def service_account(plan: Plan, identity: Mapping[str, str] | None = None) -> Manifest:
    """Who the executor is.

    Args:
        identity: annotations that make it someone at a cloud provider.
    """
    metadata = _metadata(plan, names.base_name(plan.job.name))
    metadata["annotations"] = {**(identity or {}), **metadata["annotations"]}
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata,
        "automountServiceAccountToken": False,
    }


def role(plan: Plan) -> Manifest:
    """What the executor may do: fill this job's own ConfigMaps, by name."""
    writable = [plan.record]
    if plan.spec.output.type == "configmap":
        writable.append(plan.output_location)
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": _metadata(plan, names.base_name(plan.job.name)),
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": writable,
                "verbs": ["get", "patch"],
            }
        ],
    }


def role_binding(plan: Plan) -> Manifest:
    """Gives the role to the service account."""
    name = names.base_name(plan.job.name)
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": _metadata(plan, name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": plan.job.namespace}],
    }


def kubernetes_job(
    plan: Plan,
    attempt: int,
    settings: Settings,
    fetched: SourceStatus | None = None,
    kept_by: int | None = None,
    ticket: int = 1,
    provider_job: str | None = None,
    trace: JobTrace | None = None,
) -> Manifest:
    """The Kubernetes Job of one attempt.

    It never retries by itself (``backoffLimit: 0``): only the controller knows which failures
    are worth another attempt.

    Args:
        fetched: the code of earlier attempts, which this one has to run as well.
        kept_by: the attempt whose result is in the record; this one runs nothing and stores it.
        ticket: which submission to a provider the attempt makes, or takes over.
        provider_job: the provider's job of that submission, if it is known.
        trace: the job's, for the stages that may tell of themselves.
    """
    metadata = _metadata(plan, names.job_name(plan.job.name, attempt))
    metadata["labels"][names.ATTEMPT_LABEL] = str(attempt)
    job: Manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": 0,
            "template": {
                "metadata": {
                    "labels": dict(metadata["labels"]),
                    "annotations": {
                        names.JOB_ANNOTATION: plan.job.name,
                        "kubectl.kubernetes.io/default-container": EXECUTOR,
                        # Amazon's webhook would give its token to the untrusted stage as well.
                        "eks.amazonaws.com/skip-containers": f"{SOURCE},{CIRCUIT}",
                    },
                },
                "spec": (
                    _pod_spec(plan, attempt, settings, fetched)
                    if kept_by is None
                    else _storing_pod_spec(plan, attempt, settings, kept_by)
                ),
            },
        },
    }
    (executor,) = job["spec"]["template"]["spec"]["containers"]
    executor["env"] += _submission_env(ticket, provider_job)
    _add_telemetry(job["spec"]["template"]["spec"], plan, attempt, settings, trace)
    return job


def _submission_env(ticket: int, provider_job: str | None) -> list[Manifest]:
    given = {TICKET_ENV: str(ticket) if ticket > 1 else None, PROVIDER_JOB_ENV: provider_job}
    return [{"name": name, "value": value} for name, value in given.items() if value]


def cancelling_job(
    plan: Plan,
    settings: Settings,
    ticket: int,
    provider_job: str | None,
    *,
    tries: int,
    seconds: float,
) -> Manifest:
    """The Kubernetes Job that cancels at a provider what a submission has there.

    It needs nothing else of the QiskitJob's, some of which may be gone already, and belongs to
    nobody: deleting the QiskitJob in the foreground would delete it first. The controller
    deletes it.

    Args:
        tries: how often its pod may run.
        seconds: how long all of that may take.
    """
    metadata = _metadata(plan, names.cancel_name(plan.job.name))
    del metadata["ownerReferences"]
    metadata["labels"][names.CANCEL_LABEL] = str(ticket)
    pod = _pod_spec(plan, 1, settings, None)
    (executor,) = pod["containers"]
    slim = attrs.evolve(plan.spec, circuit=attrs.evolve(plan.spec.circuit, code=None))
    text = json.dumps(to_wire(attrs.evolve(plan, spec=slim)))
    wanted = ("executor-tmp", "credentials")
    mounts = [each for each in executor["volumeMounts"] if each["name"] in wanted]
    executor |= {
        "name": CANCEL,
        "command": ["qiskit-runner", CANCEL],
        "env": [{"name": PLAN_ENV, "value": text}, *_submission_env(ticket, provider_job)],
        "volumeMounts": mounts,
    }
    # A job's own may be limited to what its circuit needs; this needs no more than a login.
    executor["resources"] = {
        "requests": dict(settings.requests),
        "limits": dict(settings.limits),
    }
    del pod["initContainers"]
    pod["volumes"] = [each for each in pod["volumes"] if each["name"] in wanted]
    for volume in pod["volumes"]:
        if "secret" in volume:
            # Without it the pod says so; waiting for it would say nothing.
            volume["secret"]["optional"] = True
    if _secret_of(plan) and plan.spec.backend.type != "aws_braket":
        # What it is at a cloud provider does not matter, so no account has to be there. At
        # Amazon's it may, as a Secret need not have keys.
        del pod["serviceAccountName"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": tries - 1,
            "activeDeadlineSeconds": int(seconds),
            # For the case that nobody is left to delete it.
            "ttlSecondsAfterFinished": _CANCEL_TTL_SECONDS,
            "template": {
                "metadata": {
                    "labels": dict(metadata["labels"]),
                    "annotations": {names.JOB_ANNOTATION: plan.job.name},
                },
                "spec": pod,
            },
        },
    }


def _pod_spec(
    plan: Plan, attempt: int, settings: Settings, fetched: SourceStatus | None
) -> Manifest:
    resources = _resources(plan.spec, settings)
    shared: Manifest = {
        "image": settings.runner_image,
        "imagePullPolicy": settings.pull_policy,
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePath": str(TERMINATION_LOG),
    }
    circuit = shared | {
        "name": CIRCUIT,
        "command": ["qiskit-runner", CIRCUIT],
        "volumeMounts": [
            {"name": "input", "mountPath": str(INPUT_DIR), "readOnly": True},
            {"name": "work", "mountPath": str(WORK_DIR)},
            {"name": "circuit-tmp", "mountPath": "/tmp"},  # noqa: S108 - a path in the pod
            # The pod's own is shared by all of its containers.
            {"name": "circuit-shm", "mountPath": "/dev/shm"},  # noqa: S108 - a path in the pod
        ],
    }
    executor = shared | {
        "name": EXECUTOR,
        "command": ["qiskit-runner", EXECUTOR],
        "env": [{"name": ATTEMPT_ENV, "value": str(attempt)}],
        "volumeMounts": [
            {"name": "input", "mountPath": str(INPUT_DIR), "readOnly": True},
            {"name": "work", "mountPath": str(WORK_DIR), "readOnly": True},
            {"name": "executor-tmp", "mountPath": "/tmp"},  # noqa: S108 - a path in the pod
            {"name": "token", "mountPath": str(TOKEN_DIR), "readOnly": True},
        ],
    }
    # Room for the largest circuit that is let through, and for what is written beside it.
    work_bytes = 2 * plan.limits.circuit_bytes
    pod = {
        "restartPolicy": "Never",
        # A stage that is told to stop does so at once, or is deep in a simulator's code, where
        # it hears nothing until it is killed.
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "serviceAccountName": names.base_name(plan.job.name),
        # The token is mounted by hand, so that only the executor gets one.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "priorityClassName": f"qiskit-{plan.spec.execution.priority}",
        "imagePullSecrets": [{"name": each} for each in settings.pull_secrets],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _UID,
            "runAsGroup": _UID,
            "fsGroup": _UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [circuit],
        "containers": [executor],
        "volumes": [
            {"name": "input", "configMap": {"name": names.input_name(plan.job.name)}},
            {"name": "work", "emptyDir": {"sizeLimit": str(work_bytes)}},
            # One each: the untrusted stage leaves nothing where the executor's Python looks.
            {"name": "circuit-tmp", "emptyDir": {"sizeLimit": "256Mi"}},
            {"name": "circuit-shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
            {"name": "executor-tmp", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "token", "projected": {"sources": _token_sources()}},
        ],
    }
    if plan.source.fetched:
        _add_source_stage(pod, plan, shared, fetched)
    _add_output(pod, plan)
    return pod


def _storing_pod_spec(plan: Plan, attempt: int, settings: Settings, kept_by: int) -> Manifest:
    """The executor alone: there is no code to fetch, and nothing to run."""
    pod = _pod_spec(plan, attempt, settings, None)
    del pod["initContainers"]
    (executor,) = pod["containers"]
    executor["env"].append({"name": STORE_ENV, "value": str(kept_by)})
    mounts = [each for each in executor["volumeMounts"] if each["name"] not in ("work", "source")]
    used = {each["name"] for each in mounts}
    executor["volumeMounts"] = mounts
    pod["volumes"] = [each for each in pod["volumes"] if each["name"] in used]
    return pod


def _secret_of(plan: Plan) -> str | None:
    """The Secret with the backend's credentials: the job's own, or that of a QiskitBackend."""
    credentials = plan.spec.credentials
    return credentials.secret_ref.name if credentials and credentials.secret_ref else plan.secret


def _add_telemetry(
    pod: Manifest, plan: Plan, attempt: int, settings: Settings, trace: JobTrace | None
) -> None:
    """Where spans and logs go, and whose they are; the untrusted stage is told nothing."""
    if trace is None:
        return
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        if container["name"] == CIRCUIT:
            continue
        env = container.setdefault("env", [])
        context = stage_span(trace, attempt, container["name"])
        env.append({"name": TRACEPARENT_ENV, "value": str(context)})
        if not settings.telemetry or not context.sampled:
            continue
        env += [{"name": name, "value": value} for name, value in settings.telemetry.items()]
        # The rest of who is speaking, in OpenTelemetry's own words.
        for name, path in (("K8S_POD_NAME", "metadata.name"), ("K8S_NODE_NAME", "spec.nodeName")):
            env.append({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
        attributes = {
            "k8s.namespace.name": plan.job.namespace,
            "k8s.pod.name": "$(K8S_POD_NAME)",
            "k8s.node.name": "$(K8S_NODE_NAME)",
            "k8s.container.name": container["name"],
        }
        text = ",".join(f"{name}={value}" for name, value in attributes.items())
        env.append({"name": "OTEL_RESOURCE_ATTRIBUTES", "value": text})


def _add_output(pod: Manifest, plan: Plan) -> None:
    """What storing takes, and a backend's credentials, in the executor and nowhere else."""
    (executor,) = pod["containers"]
    own = _secret_of(plan)
    if own:
        secret = {"secretName": own, "defaultMode": 0o400}
        pod["volumes"].append({"name": "credentials", "secret": secret})
        executor["volumeMounts"].append(
            {"name": "credentials", "mountPath": str(CREDENTIALS_DIR), "readOnly": True}
        )
    if plan.spec.output.type == "pvc":
        claim = {"claimName": plan.output_location}
        pod["volumes"].append({"name": "storage", "persistentVolumeClaim": claim})
        executor["volumeMounts"].append({"name": "storage", "mountPath": str(STORAGE_DIR)})
        # Else the kubelet changes the group of every file there is, for each pod.
        pod["securityContext"]["fsGroupChangePolicy"] = "OnRootMismatch"


def _add_source_stage(
    pod: Manifest, plan: Plan, shared: Manifest, fetched: SourceStatus | None
) -> None:
    """The container that fetches the code, before the others, which may only read it."""
    for container in (*pod["initContainers"], *pod["containers"]):
        container["volumeMounts"].append(
            {"name": "source", "mountPath": str(SOURCE_DIR), "readOnly": True}
        )
    known = {COMMIT_ENV: fetched.commit, SHA256_ENV: fetched.sha256} if fetched else {}
    container = shared | {
        "name": SOURCE,
        "command": ["qiskit-runner", SOURCE],
        "env": [{"name": name, "value": value} for name, value in known.items() if value],
        "volumeMounts": [
            {"name": "input", "mountPath": str(INPUT_DIR), "readOnly": True},
            {"name": "source", "mountPath": str(SOURCE_DIR)},
            {"name": "source-tmp", "mountPath": "/tmp"},  # noqa: S108 - a path in the pod
        ],
    }
    pod["initContainers"].insert(0, container)
    limits = plan.limits
    # The stage keeps below these by itself: a volume that is too full would evict the pod, and
    # that is no verdict on the code.
    pod["volumes"] += [
        {"name": "source", "emptyDir": {"sizeLimit": str(2 * limits.source_bytes)}},
        {"name": "source-tmp", "emptyDir": {"sizeLimit": str(2 * limits.git_bytes)}},
    ]
    credentials = plan.spec.credentials
    if plan.spec.circuit.source == "git" and credentials and credentials.git_secret_ref:
        container["volumeMounts"].append(
            {"name": "git", "mountPath": str(GIT_DIR), "readOnly": True}
        )
        secret = {"secretName": credentials.git_secret_ref.name, "defaultMode": 0o400}
        pod["volumes"].append({"name": "git", "secret": secret})


def _token_sources() -> list[Manifest]:
    return [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": _TOKEN_SECONDS}},
        {
            "configMap": {
                "name": "kube-root-ca.crt",
                "items": [{"key": "ca.crt", "path": "ca.crt"}],
            }
        },
        {
            "downwardAPI": {
                "items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]
            }
        },
    ]


def _resources(spec: QiskitJobSpec, settings: Settings) -> Manifest:
    """The job's own resources over the operator's defaults, with no request over its limit."""
    wanted = spec.resources or ResourceRequirements()
    limits = dict(settings.limits) | to_wire(wanted.limits or {})
    requests = dict(settings.requests) | to_wire(wanted.requests or {})
    asked = to_wire(wanted.requests or {})
    capped = to_wire(wanted.limits or {})
    for name, request in requests.items():
        if parse_quantity(request) <= parse_quantity(limits[name]):
            continue
        # Both by the user is a mistake that validation has refused; of a default and a
        # wish, the wish stands.
        if name in asked and name not in capped:
            limits[name] = request
        else:
            requests[name] = limits[name]
    return {"requests": requests, "limits": limits}
