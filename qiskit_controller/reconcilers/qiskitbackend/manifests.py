"""The Kubernetes Job of a probe, as a dict; see :mod:`~qiskit_controller.reconcilers.errands`."""

from __future__ import annotations

import json

from qiskit_controller.api import names, qiskitbackend
from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.qiskitbackend import QiskitBackendSpec
from qiskit_controller.api.qiskitjob import BackendSpec
from qiskit_controller.api.run import PROBE_ENV, ProbeRequest
from qiskit_controller.reconcilers.errands import Manifest, Owner, errand_job
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings

BACKEND_KEY = "quantum.io/backend"


def probe_name(backend: str) -> str:
    """The Kubernetes Job that probes a QiskitBackend."""
    return names.fit(f"qiskit-probe-{backend}")


def probe_job(
    namespace: str, name: str, uid: str, spec: QiskitBackendSpec, settings: Settings
) -> Manifest:
    """The Job of a probe."""
    backend = BackendSpec(type=spec.type, name=spec.name, instance=spec.instance)
    credentials = spec.credentials
    return errand_job(
        Owner(kind=qiskitbackend.KIND, key=BACKEND_KEY, namespace=namespace, name=name, uid=uid),
        probe_name(name),
        "qiskit-probe",
        "probe",
        {PROBE_ENV: json.dumps(to_wire(ProbeRequest(backend=backend)))},
        credentials.secret_ref.name if credentials and credentials.secret_ref else None,
        settings,
    )
