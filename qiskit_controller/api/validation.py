"""What is wrong with a spec beyond what its schema says.

The API server checks the same rules where it knows CEL (Kubernetes 1.25 and later); the
controller checks them always.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from qiskit_controller.api.fields import describe, rules_of, wire_name
from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.api.quantities import parse_duration


def problems_of(spec: QiskitJobSpec) -> list[str]:
    """Each problem as ``spec.<field>: <what to do>``; none when the spec can be run."""
    problems = list(_broken_rules(spec, "spec"))
    for path, text in _durations(spec):
        try:
            parse_duration(text)
        except ValueError as error:
            problems.append(f"{path}: {error}")
    return problems


def _broken_rules(value: Any, path: str) -> Iterator[str]:
    for rule in rules_of(type(value)):
        if not rule.holds(value):
            yield f"{path}.{rule.message}"
    for attribute in describe(type(value)):
        inner = getattr(value, attribute.name)
        if attrs.has(type(inner)):
            yield from _broken_rules(inner, f"{path}.{wire_name(attribute.name)}")


def _durations(spec: QiskitJobSpec) -> Iterator[tuple[str, str]]:
    yield "spec.execution.timeout", spec.execution.timeout
    selection = spec.backend_selection
    if selection and selection.requirements and selection.requirements.max_queue_time:
        yield (
            "spec.backendSelection.requirements.maxQueueTime",
            selection.requirements.max_queue_time,
        )
