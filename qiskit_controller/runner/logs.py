"""Logs of the trusted stages: what the vendors' SDKs and other libraries have to say.

Our own account for people is :mod:`story`, on standard output. What libraries log goes to
standard error, as the controller's logs do and with the same names, so that one filter finds a
job's lines in both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import structlog

from qiskit_controller.api.run import ATTEMPT_ENV
from qiskit_controller.runner import tracing
from qiskit_controller.runner.plan import read_plan
from qiskit_controller.runner.pod import Paths
from qiskit_controller.telemetry import logs

# A key of a service account is 2 KiB; what is larger is no credential.
_MAX_SECRET_BYTES = 65_536


def configure(paths: Paths, stage: str) -> None:
    """Route all logs, with the job's names on each line and its secrets on none."""
    logs.configure("INFO", "json")
    for folder in (paths.credentials, paths.git, paths.token):
        logs.conceal(_secrets(folder))
    bound = {"stage": stage, "attempt": os.environ.get(ATTEMPT_ENV), "trace_id": tracing.trace_id()}
    try:
        job = read_plan(paths).job
        bound |= {"job": f"{job.namespace}/{job.name}", "uid": job.uid}
    except (OSError, ValueError):
        pass  # the stage itself says so
    structlog.contextvars.bind_contextvars(**{k: v for k, v in bound.items() if v is not None})


def _secrets(folder: Path) -> Iterator[str]:
    """What is in a mounted Secret; the certificate and the namespace of a token are none."""
    if not folder.is_dir():
        return
    for file in folder.iterdir():
        if file.name in ("ca.crt", "namespace") or not file.is_file():
            continue
        content = file.read_bytes()
        if len(content) <= _MAX_SECRET_BYTES:
            yield content.decode(errors="replace")
