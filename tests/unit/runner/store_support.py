"""A result to store, and a plan that says where."""

from __future__ import annotations

from typing import Any

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.api.run import JobIdentity, Plan, PlannedSource
from qiskit_controller.runner.formats import Formatted

UID = "0f6b0a5c-7c2f-4f0e-9d7c-1f6f0a5c7c2f"
RESULT = Formatted("results.json", b'{"counts": {"00": 1}}\n', True, "application/json")
OTHER_RESULT = Formatted("results.json", b'{"counts": {"11": 1}}\n', True, "application/json")


def plan_for(uid: str = UID, **output: Any) -> Plan:
    """The plan of a job with that output."""
    spec = {
        "backend": {"type": "local_simulator"},
        "circuit": {"source": "inline", "code": "qc = 1"},
        "output": output,
    }
    return Plan(
        job=JobIdentity(namespace="default", name="bell", uid=uid),
        spec=from_wire(spec, QiskitJobSpec),
        source=PlannedSource(file="circuit.py", sha256="0" * 64),
        record="qiskit-job-bell-record",
        output_location=output.get("location", "bell-results"),
    )
