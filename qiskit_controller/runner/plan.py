"""Read the plan, which all stages have in their input folder."""

from __future__ import annotations

import json

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.run import PLAN_FILE, RESERVED_FILES, Plan
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
