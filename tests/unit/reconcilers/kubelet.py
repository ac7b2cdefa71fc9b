"""What the kubelet, the Job controller and the executor write, for tests that stand in for them.

Pure functions that make statuses; the real ones write the same, and `e2e/` shows that they do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.qiskitjob import CircuitMetrics
from qiskit_controller.api.quantities import format_microtime, format_time
from qiskit_controller.api.run import (
    Progress,
    Reason,
    Report,
    Stage,
    StoredResult,
    encode_report,
    progress_key,
)

Object = dict[str, Any]

METRICS = CircuitMetrics(qubits=2, clbits=2, depth=3, gates=4, hash="c" * 64)
COUNTS = {"00": 500, "11": 524}


def waiting(reason: str = "PodInitializing", message: str = "") -> Object:
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def running(at: datetime) -> Object:
    return {"running": {"startedAt": format_time(at)}}


def terminated(at: datetime, code: int = 0, reason: str | None = None, message: str = "") -> Object:
    state: Object = {
        "exitCode": code,
        "reason": reason or ("Error" if code else "Completed"),
        "startedAt": format_time(at),
        "finishedAt": format_time(at),
    }
    return {"terminated": state | ({"message": message} if message else {})}


def pod_status(
    circuit: Object | None = None,
    executor: Object | None = None,
    *,
    source: Object | None = None,
    start: datetime | None = None,
    conditions: Mapping[str, str | tuple[str, str, str]] = {},
    **more: Any,
) -> Object:
    """The status of a pod whose containers are in these states.

    Args:
        conditions: status, or (status, reason, message), by type.
    """
    init = {"source": source} if source is not None else {}
    init["circuit"] = circuit or waiting()
    status: Object = {
        "phase": _phase(init, executor),
        "initContainerStatuses": [_container(name, state) for name, state in init.items()],
        "containerStatuses": [_container("executor", executor or waiting())],
        "conditions": [_condition(type_, given) for type_, given in conditions.items()],
    }
    if start is not None:
        status["startTime"] = format_time(start)
    return status | more


def _phase(init: Mapping[str, Object], executor: Object | None) -> str:
    ended = [state.get("terminated") for state in init.values()]
    last = (executor or {}).get("terminated")
    if any(each and each["exitCode"] for each in ended) or (last and last["exitCode"]):
        return "Failed"
    if last:
        return "Succeeded"
    return "Running" if executor and "running" in executor else "Pending"


def _container(name: str, state: Object) -> Object:
    return {
        "name": name,
        "state": state,
        "ready": False,
        "restartCount": 0,
        "image": "i",
        "imageID": "",
    }


def _condition(type_: str, given: str | tuple[str, str, str]) -> Object:
    status, reason, message = given if isinstance(given, tuple) else (given, "", "")
    return {"type": type_, "status": status, "reason": reason, "message": message}


def unschedulable(message: str = "0/1 nodes are available: 1 Insufficient cpu.") -> Object:
    """The status of a pod that no node has room for."""
    return {
        "phase": "Pending",
        "conditions": [_condition("PodScheduled", ("False", "Unschedulable", message))],
    }


def evicted(message: str = "The node was low on resource: memory.") -> Object:
    """The status of a pod that the kubelet has evicted: it says nothing of the containers."""
    return {"phase": "Failed", "reason": "Evicted", "message": message}


def job_condition(type_: str, at: datetime, reason: str = "", message: str = "") -> Object:
    """A Job's own Complete or Failed condition."""
    return {
        "type": type_,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": format_time(at),
        "lastProbeTime": format_time(at),
    }


def failed_job(at: datetime) -> Object:
    """The status of a Job with backoffLimit 0 whose pod has failed."""
    message = "Job has reached the specified backoff limit"
    return {"conditions": [job_condition("Failed", at, "BackoffLimitExceeded", message)]}


def complete_job(at: datetime) -> Object:
    """The status of a Job whose pod has succeeded."""
    return {"conditions": [job_condition("Complete", at)], "succeeded": 1}


def success(attempt: int, at: datetime, **more: Any) -> str:
    """The termination message of an executor that has stored its result."""
    fields: dict[str, Any] = {
        "attempt": attempt,
        "message": "1024 shots",
        "circuit_metrics": METRICS,
        "backend": "aer_simulator",
        "started": format_microtime(at),
        "execution_time": 0.25,
        "shots": sum(COUNTS.values()),
        "counts": COUNTS,
        "outcomes": len(COUNTS),
        "stored": StoredResult(location="configmap/bell-results", size=100, sha256="d" * 64),
    }
    return encode_report(Report(**fields | more))


def failure(attempt: int, reason: Reason, message: str = "that is why", **more: Any) -> str:
    """The termination message of an executor that has not."""
    return encode_report(Report(attempt=attempt, reason=reason, message=message, **more))


def progress(attempt: int, stage: Stage) -> Progress:
    """What the executor tells on its way."""
    backend = "aer_simulator" if stage == "Executing" else None
    return Progress(attempt=attempt, stage=stage, circuit_metrics=METRICS, backend=backend)


def progress_data(attempt: int, stage: Stage) -> dict[str, str]:
    """The same as it stands in the record's data."""
    return {progress_key(attempt): json.dumps(to_wire(progress(attempt, stage)))}
