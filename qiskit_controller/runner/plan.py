"""Read the plan, which all stages have in their input folder."""

from __future__ import annotations

import json

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.qiskitjob import BackendSpec, CircuitSpec, QiskitJobSpec
from qiskit_controller.api.run import (
    PLAN_FILE,
    RESERVED_FILES,
    JobIdentity,
    Plan,
    PlannedSource,
)
from qiskit_controller.runner.pod import Paths


def read_plan(paths: Paths) -> Plan:
    """The plan that the controller made.

    Raises:
        OSError, ValueError: it is missing or not of the plan's form.
    """
    plan = from_wire(json.loads((paths.input / PLAN_FILE).read_bytes()), Plan)
    if plan.source.file in ("", ".", "..", *RESERVED_FILES) or "/" in plan.source.file:
        raise ValueError(f"source.file: {plan.source.file!r} is not the name of a source")
    return plan


def plan_of_backend(backend: BackendSpec) -> Plan:
    """A plan of no job, for a driver to log in with."""
    return Plan(
        job=JobIdentity(namespace="", name="", uid=""),
        spec=QiskitJobSpec(backend=backend, circuit=CircuitSpec(source="inline")),
        source=PlannedSource(file=""),
        record="",
        output_location="",
    )
