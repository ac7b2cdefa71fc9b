"""The Kubernetes Job of a probe, as a dict.

Its pod holds the account's credentials and no token of the cluster's: it has nothing to ask the
API server for, and its answer is the container's last word.
"""

from __future__ import annotations

import json
from typing import Any

from qiskit_controller.api import names, qiskitbackend, qiskitjob
from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.qiskitbackend import QiskitBackendSpec
from qiskit_controller.api.qiskitjob import BackendSpec
from qiskit_controller.api.run import (
    CREDENTIALS_DIR,
    PROBE_ENV,
    TERMINATION_LOG,
    ProbeRequest,
)
from qiskit_controller.reconcilers.qiskitbackend.decision import PROBE_TIME
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings

Manifest = dict[str, Any]

PROBE = "probe"
BACKEND_LABEL = "quantum.io/backend"
BACKEND_ANNOTATION = "quantum.io/backend"  # the whole name; the label may be cut
_UID = 65532


def probe_name(backend: str) -> str:
    """The Kubernetes Job that probes a QiskitBackend."""
    return names.fit(f"qiskit-probe-{backend}")


def probe_job(
    namespace: str, name: str, uid: str, spec: QiskitBackendSpec, settings: Settings
) -> Manifest:
    """The Job; it never retries by itself, as only the controller knows when to ask again."""
    labels = {
        "app.kubernetes.io/name": "qiskit-probe",
        names.MANAGED_BY: names.MANAGER,
        BACKEND_LABEL: names.fit(name),
        names.UID_LABEL: uid,
    }
    annotations = {BACKEND_ANNOTATION: name}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": probe_name(name),
            "namespace": namespace,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [
                {
                    "apiVersion": qiskitjob.API_VERSION,
                    "kind": qiskitbackend.KIND,
                    "name": name,
                    "uid": uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": int(PROBE_TIME.total_seconds()),
            "template": {
                "metadata": {"labels": dict(labels), "annotations": annotations},
                "spec": _pod_spec(spec, settings),
            },
        },
    }


def _pod_spec(spec: QiskitBackendSpec, settings: Settings) -> Manifest:
    backend = BackendSpec(type=spec.type, name=spec.name, instance=spec.instance)
    container: Manifest = {
        "name": PROBE,
        "image": settings.runner_image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["qiskit-runner", PROBE],
        "env": [{"name": PROBE_ENV, "value": json.dumps(to_wire(ProbeRequest(backend=backend)))}],
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
    credentials = spec.credentials
    if credentials and credentials.secret_ref:
        secret = {"secretName": credentials.secret_ref.name, "defaultMode": 0o400}
        pod["volumes"].append({"name": "credentials", "secret": secret})
        container["volumeMounts"].append(
            {"name": "credentials", "mountPath": str(CREDENTIALS_DIR), "readOnly": True}
        )
    return pod
