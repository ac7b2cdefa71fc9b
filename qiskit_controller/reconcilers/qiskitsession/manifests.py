"""The Kubernetes Job that opens, looks at or closes a session, as a dict."""

from __future__ import annotations

import json

from qiskit_controller.api import names, qiskitsession
from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.run import SESSION_ENV, SessionRequest
from qiskit_controller.reconcilers.errands import Manifest, Owner, errand_job
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings

SESSION_KEY = "quantum.io/session"


def errand_name(session: str) -> str:
    """The Kubernetes Job that asks about a QiskitSession; there is one at a time."""
    return names.fit(f"qiskit-session-{session}")


def session_job(
    namespace: str,
    name: str,
    uid: str,
    secret: str | None,
    request: SessionRequest,
    settings: Settings,
) -> Manifest:
    """The Job of an errand."""
    return errand_job(
        Owner(kind=qiskitsession.KIND, key=SESSION_KEY, namespace=namespace, name=name, uid=uid),
        errand_name(name),
        "qiskit-session",
        "session",
        {SESSION_ENV: json.dumps(to_wire(request))},
        secret,
        settings,
        action=request.action,
        outlives=request.action == "close",
    )
