"""What is wrong with a spec beyond what its schema says.

The API server checks the same rules where it knows CEL (Kubernetes 1.25 and later); the
controller checks them always.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import attrs

from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.fields import describe, rules_of, wire_name
from qiskit_controller.api.outputs import problems_of_output
from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.api.quantities import parse_duration, parse_quantity
from qiskit_controller.api.sources import problems_of_source


def problems_of(spec: QiskitJobSpec) -> list[str]:
    """Each problem as ``spec.<field>: <what to do>``; none when the spec can be run."""
    problems = [
        *_broken_rules(spec, "spec"),
        *problems_of_source(spec),
        *problems_of_output(spec.output),
    ]
    for path, text in _durations(spec):
        try:
            parse_duration(text)
        except ValueError as error:
            problems.append(f"{path}: {error}")
    return [*problems, *_resources(spec)]


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


def _resources(spec: QiskitJobSpec) -> Iterator[str]:
    """What is no quantity although it looks like one, and requests over their limits, which the
    API server would refuse in the pod."""
    amounts: dict[tuple[str, str], Decimal] = {}
    for kind, given in to_wire(spec.resources).items() if spec.resources else ():
        for name, text in given.items():
            try:
                amounts[kind, name] = parse_quantity(text)
            except ValueError as error:
                yield f"spec.resources.{kind}.{name}: {error}"
    for (kind, name), request in amounts.items():
        limit = amounts.get(("limits", name))
        if kind == "requests" and limit is not None and request > limit:
            wire = to_wire(spec.resources)
            yield (
                f"spec.resources.requests.{name}: {wire['requests'][name]} is more than the "
                f"limit {wire['limits'][name]}"
            )
