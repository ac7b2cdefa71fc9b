from __future__ import annotations

import contextlib
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiskit_controller.api.codec import DecodeError, from_wire, to_wire
from qiskit_controller.api.fields import describe
from qiskit_controller.api.qiskitjob import (
    ExecutionSpec,
    OutputSpec,
    QiskitJob,
    QiskitJobSpec,
    QiskitJobStatus,
)
from qiskit_controller.api.run import (
    JobIdentity,
    Outcome,
    Plan,
    PlannedSource,
    Progress,
    Reason,
    Report,
)

from . import wire

MINIMAL: dict[str, Any] = {
    "backend": {"type": "local_simulator"},
    "circuit": {"source": "inline", "code": "qc = 1"},
}


@settings(max_examples=50)
@given(wire.specs)
def test_a_spec_from_the_server_comes_back_as_it_was(spec: wire.Wire) -> None:
    stored = wire.defaulted(wire.SPEC, spec)
    assert wire.omit_empty(to_wire(from_wire(stored, QiskitJobSpec))) == wire.omit_empty(stored)


@settings(max_examples=50)
@given(wire.specs)
def test_python_and_the_schema_have_the_same_defaults(spec: wire.Wire) -> None:
    # A server older than a field does not default it; the decoded object is the same.
    stored = wire.defaulted(wire.SPEC, spec)
    assert from_wire(spec, QiskitJobSpec) == from_wire(stored, QiskitJobSpec)


@settings(max_examples=25)
@given(wire.statuses)
def test_a_status_comes_back_as_it_was(status: wire.Wire) -> None:
    once = from_wire(status, QiskitJobStatus)
    assert wire.omit_empty(to_wire(once)) == wire.omit_empty(wire.defaulted(wire.STATUS, status))
    assert to_wire(from_wire(to_wire(once), QiskitJobStatus)) == to_wire(once)


@settings(max_examples=25)
@given(wire.specs, st.sampled_from([None, *Reason]))
def test_the_messages_between_controller_and_pod_come_back(
    spec: wire.Wire, reason: Reason | None
) -> None:
    read = from_wire(wire.omit_empty(spec), QiskitJobSpec)
    plan = Plan(
        job=JobIdentity(namespace="ns", name="bell", uid="u"),
        spec=read,
        source=PlannedSource(file="circuit.py", sha256="0" * 64),
        record="record",
        output_location="results",
    )
    report = Report(attempt=2, reason=reason, message="why", counts={"00 1": 5}, started="then")
    assert from_wire(to_wire(plan), Plan) == plan
    assert from_wire(to_wire(report), Report) == report
    assert to_wire(report).get("reason") == (reason.value if reason else None)


def test_names_are_camel_case_and_what_is_empty_is_left_out() -> None:
    spec = from_wire(MINIMAL, QiskitJobSpec)
    assert to_wire(spec) == {
        "backend": {"type": "local_simulator"},
        "circuit": {"source": "inline", "code": "qc = 1"},
        "execution": {
            "shots": 1024,
            "optimizationLevel": 1,
            "priority": "normal",
            "timeout": "1h",
            "maxRetries": 3,
        },
        "output": {"type": "configmap", "format": "json", "memory": False},
        "cancel": False,
    }


def test_zero_and_false_are_values_and_not_left_out() -> None:
    spec = from_wire(
        MINIMAL
        | {"execution": {"maxRetries": 0, "seedSimulator": 0}, "ttlSecondsAfterFinished": 0}
        | {"resources": {"requests": {"cpu": 0}}, "cancel": False},
        QiskitJobSpec,
    )
    sent = to_wire(spec)
    assert sent["execution"]["maxRetries"] == 0
    assert sent["execution"]["seedSimulator"] == 0
    assert sent["ttlSecondsAfterFinished"] == 0
    assert sent["resources"] == {"requests": {"cpu": 0}}
    assert sent["cancel"] is False


def test_null_means_absent_and_unknown_fields_are_ignored() -> None:
    spec = MINIMAL | {"execution": None, "session": None, "newerField": {"a": 1}}
    assert from_wire(spec, QiskitJobSpec) == from_wire(MINIMAL, QiskitJobSpec)


def test_defaults_are_those_of_the_reference() -> None:
    assert ExecutionSpec() == ExecutionSpec(
        shots=1024, optimization_level=1, priority="normal", timeout="1h", max_retries=3
    )
    assert OutputSpec() == OutputSpec(type="configmap", format="json")
    stored = wire.defaulted(wire.SPEC, MINIMAL)
    assert stored["execution"] == {
        "shots": 1024,
        "optimizationLevel": 1,
        "priority": "normal",
        "timeout": "1h",
        "maxRetries": 3,
    }
    assert stored["output"]["type"] == "configmap"
    assert stored["output"]["format"] == "json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": None}, "spec.backend: is required"),
        ({"circuit": {}}, "spec.circuit.source: is required"),
        ({"circuit": "code"}, "spec.circuit: must be an object, not str"),
        (
            {"execution": {"priority": "asap"}},
            "spec.execution.priority: must be one of low, normal, high, urgent, not 'asap'",
        ),
        ({"execution": {"shots": "5"}}, "spec.execution.shots: must be an integer, not '5'"),
        ({"execution": {"shots": 1.5}}, "spec.execution.shots: must be an integer, not 1.5"),
        ({"execution": {"shots": True}}, "spec.execution.shots: must be an integer, not True"),
        ({"execution": {"timeout": 5}}, "spec.execution.timeout: must be a string, not 5"),
        ({"cancel": "yes"}, "spec.cancel: must be true or false, not 'yes'"),
        (
            {"execution": {"initialLayout": [0, "a"]}},
            "spec.execution.initialLayout[1]: must be an integer, not 'a'",
        ),
        (
            {"circuit": {"source": "git", "gitRef": {"branch": "main"}}},
            "spec.circuit.gitRef.repository: is required",
        ),
        (
            {"backendSelection": {"weights": {"queueTime": "high"}}},
            "spec.backendSelection.weights.queueTime: must be a number, not 'high'",
        ),
    ],
)
def test_a_decode_error_names_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        from_wire(MINIMAL | change, QiskitJobSpec, "spec")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_decode_error_names_every_field() -> None:
    spec = {
        "circuit": {"source": "inline", "code": 5},
        "execution": {"shots": "x", "maxRetries": []},
    }
    with pytest.raises(DecodeError) as caught:
        from_wire(spec, QiskitJobSpec, "spec")
    found = {line.split(":")[0] for line in str(caught.value).split("; ")}
    assert found == {
        "spec.backend",
        "spec.circuit.code",
        "spec.execution.shots",
        "spec.execution.maxRetries",
    }


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["spec", "backend", "type", "circuit", "source", "shots", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("cls", [QiskitJobSpec, QiskitJobStatus, Progress, Report, Outcome, Plan])
@given(value=_JSON)
def test_whatever_json_there_is_only_a_decode_error_comes_of_it(cls: type, value: Any) -> None:
    with contextlib.suppress(DecodeError):
        from_wire(value, cls)


def _api_types(cls: type) -> set[type]:
    found = {cls}
    for attribute in describe(cls):
        for inner in attribute.type.__args__ if hasattr(attribute.type, "__args__") else ():
            found |= _api_types(inner) if attrs.has(inner) else set()
        if attrs.has(attribute.type):
            found |= _api_types(attribute.type)
    return found


def test_api_types_are_immutable() -> None:
    types = _api_types(QiskitJob) | _api_types(Plan) | _api_types(Report)
    assert len(types) > 20
    for each in types:
        name = describe(each)[0].name
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(object.__new__(each), name, None)
