from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.api.validation import problems_of

from . import wire

INLINE: dict[str, Any] = {"source": "inline", "code": "qc = 1"}
LOCAL: dict[str, Any] = {"type": "local_simulator"}


def problems(**spec: Any) -> list[str]:
    return problems_of(from_wire({"backend": LOCAL, "circuit": INLINE} | spec, QiskitJobSpec))


def test_a_sound_spec_has_no_problems() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"circuit": {"source": "inline"}}, "spec.circuit.code: required if source is inline"),
        (
            {"circuit": {"source": "inline", "code": ""}},
            "spec.circuit.code: required if source is inline",
        ),
        (
            {"circuit": {"source": "configmap"}},
            "spec.circuit.configMapRef: required if source is configmap",
        ),
        ({"circuit": {"source": "url"}}, "spec.circuit.url: required if source is url"),
        (
            {"circuit": {"source": "url", "url": "file:///etc/passwd"}},
            "spec.circuit.url: must begin with https:// or http://",
        ),
        ({"circuit": {"source": "git"}}, "spec.circuit.gitRef: required if source is git"),
        ({"output": {"type": "s3"}}, "spec.output.location: required if type is pvc, s3 or gcs"),
        (
            {"output": {"type": "s3", "location": "bucket/key"}},
            "spec.output.location: must begin with s3:// if type is s3",
        ),
        (
            {"output": {"type": "gcs", "location": "s3://b"}},
            "spec.output.location: must begin with gs:// if type is gcs",
        ),
        (
            {"output": {"location": "My_Results"}},
            "spec.output.location: must be the name of a Kubernetes object (lower case letters, "
            "digits, '-' and '.') if type is configmap or pvc",
        ),
        (
            {"session": {"name": "s"}},
            "spec.session: only backend type ibm_quantum has sessions",
        ),
        (
            {"execution": {"timeout": "soon"}},
            "spec.execution.timeout: 'soon' is not a duration; write for example 90s, 30m or 1h30m",
        ),
        (
            {"execution": {"timeout": "0s"}},
            "spec.execution.timeout: '0s' must be longer than zero and at most ten years",
        ),
        (
            {"backendSelection": {"requirements": {"maxQueueTime": "0m"}}},
            "spec.backendSelection.requirements.maxQueueTime: '0m' must be longer than zero and "
            "at most ten years",
        ),
        (
            {"resources": {"limits": {"cpu": "1e2.5"}}},
            "spec.resources.limits.cpu: '1e2.5' is not a quantity; write for example 500m or 4Gi",
        ),
        (
            {"resources": {"requests": {"memory": "4Gi"}, "limits": {"memory": "1Gi"}}},
            "spec.resources.requests.memory: 4Gi is more than the limit 1Gi",
        ),
    ],
)
def test_a_problem_names_the_field_and_what_to_do(spec: dict[str, Any], problem: str) -> None:
    assert problem in problems(**spec)


def test_all_problems_are_told_at_once() -> None:
    found = problems(
        circuit={"source": "inline"}, output={"type": "s3"}, execution={"timeout": "never"}
    )
    assert [each.split(":")[0] for each in found] == [
        "spec.circuit.code",
        "spec.output.location",
        "spec.execution.timeout",
    ]


@settings(max_examples=50)
@given(wire.specs)
def test_whatever_the_schema_lets_through_can_be_judged(spec: wire.Wire) -> None:
    for problem in problems_of(from_wire(spec, QiskitJobSpec)):
        assert problem.startswith("spec.")
        assert ": " in problem
