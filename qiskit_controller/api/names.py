"""Names and labels of what belongs to a QiskitJob. Deterministic, so that a create that meets
AlreadyExists has succeeded before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

FINALIZER = "quantum.io/cleanup"
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "qiskit-controller"
# A namespace's owner makes it; its annotations are what jobs are at a cloud provider.
IDENTITY_ACCOUNT = "qiskit-executor"
JOB_LABEL = "quantum.io/job"
UID_LABEL = "quantum.io/job-uid"
ATTEMPT_LABEL = "quantum.io/attempt"
CANCEL_LABEL = "quantum.io/cancel"  # on the Kubernetes Job that cancels at a provider
JOB_ANNOTATION = "quantum.io/job"  # the whole name; the label may be cut

# A Job's name becomes a label of its pods.
_MAX = 63


def fit(name: str, limit: int = _MAX) -> str:
    """`name` itself, or, where it is too long, its beginning and a hash of the whole."""
    if len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: limit - 9].rstrip('-.')}-{digest}"


def base_name(job: str) -> str:
    """The name of a QiskitJob's service account, role and first Kubernetes Job."""
    return fit(f"qiskit-job-{job}")


def job_name(job: str, attempt: int) -> str:
    """The Kubernetes Job of an attempt, counted from 1."""
    return base_name(job) if attempt == 1 else fit(f"qiskit-job-{job}-{attempt}")


def cancel_name(job: str) -> str:
    """The Kubernetes Job that cancels at a provider what the QiskitJob has there."""
    return fit(f"qiskit-job-{job}-cancel")


def input_name(job: str) -> str:
    """The ConfigMap with the plan and the code."""
    return fit(f"qiskit-job-{job}-input")


def record_name(job: str) -> str:
    """The ConfigMap that takes the executor's progress."""
    return fit(f"qiskit-job-{job}-record")


def default_output(job: str) -> str:
    """The ConfigMap for results, when ``spec.output.location`` names none."""
    return fit(f"{job}-results", 253)


def labels(job: str, uid: str) -> dict[str, str]:
    """The labels of everything that belongs to a QiskitJob."""
    return {
        "app.kubernetes.io/name": "qiskit-job",
        MANAGED_BY: MANAGER,
        JOB_LABEL: fit(job),
        UID_LABEL: uid,
    }


def belongs_to(obj: Mapping[str, object], uid: str) -> bool:
    """Whether the QiskitJob with that UID owns the object."""
    metadata = obj.get("metadata")
    references = metadata.get("ownerReferences") if isinstance(metadata, Mapping) else None
    return any(each.get("uid") == uid for each in references or ())
