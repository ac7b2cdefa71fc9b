"""CEL for new servers and Python for old ones: the same rules, held against each other."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import attrs
import cel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.fields import Rule, describe, rules_of
from qiskit_controller.api.qiskitjob import QiskitJob, QiskitJobSpec
from qiskit_controller.api.qiskitsession import FIXED, FIXED_IN, QiskitSession, QiskitSessionSpec
from qiskit_controller.api.schema import object_schema
from qiskit_controller.reconcilers.qiskitjob.reconciler import _changes
from qiskit_controller.reconcilers.qiskitsession.decision import changed_fields

from . import wire

_programs: dict[str, Any] = {}


def evaluate(expression: str, **variables: Any) -> bool:
    program = _programs.get(expression)
    if program is None:
        program = _programs[expression] = cel.compile(expression)
    result = program.execute(variables)
    assert isinstance(result, bool)
    return result


def _types(cls: type) -> set[type]:
    found = {cls}
    for attribute in describe(cls):
        for inner in (attribute.type, *getattr(attribute.type, "__args__", ())):
            if attrs.has(inner):
                found |= _types(inner)
    return found


RULED = sorted(
    (each for each in _types(QiskitJobSpec) if rules_of(each)), key=lambda each: each.__name__
)


def test_the_types_with_rules_are_found() -> None:
    assert {each.__name__ for each in RULED} == {"CircuitSpec", "OutputSpec", "QiskitJobSpec"}


@pytest.mark.parametrize("cls", RULED, ids=lambda cls: cls.__name__)
def test_cel_and_python_agree(cls: type) -> None:
    schema = object_schema(cls)
    outcomes: dict[Rule, set[bool]] = defaultdict(set)

    # Derandomized, because the last line needs both outcomes of each rule in every run.
    @settings(max_examples=120, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(wire.values(schema))
    def agree(value: wire.Wire) -> None:
        stored = wire.defaulted(schema, value)
        decoded = from_wire(stored, cls)
        for rule in rules_of(cls):
            expected = rule.holds(decoded)
            assert evaluate(rule.cel, self=stored) == expected, rule.message
            outcomes[rule].add(expected)

    agree()
    one_sided = [rule.message for rule in rules_of(cls) if outcomes[rule] != {True, False}]
    assert not one_sided, "the generated objects never show the other outcome"


def test_messages_begin_with_a_field_of_the_object() -> None:
    for cls in RULED:
        fields = set(object_schema(cls)["properties"])
        for rule in rules_of(cls):
            field, _, what = rule.message.partition(": ")
            assert field in fields
            assert what


# --- what may change, and when ----------------------------------------------------------------

TRANSITIONS = rules_of(QiskitJob)
_spec = wire.specs.map(
    # What is empty is absent for us and present for CEL, which may be the stricter.
    lambda spec: to_wire(from_wire(wire.omit_empty(spec), QiskitJobSpec))
)


def broken(old: wire.Wire, new: wire.Wire) -> set[str]:
    """The fields that an update from `old` to `new` is refused for."""
    return {
        rule.message.partition(":")[0]
        for rule in TRANSITIONS
        if not evaluate(rule.cel, self=new, oldSelf=old)
    }


def test_every_field_of_spec_is_guarded_or_mutable() -> None:
    guarded = {rule.message.partition(":")[0].removeprefix("spec.") for rule in TRANSITIONS}
    assert guarded | {"cancel", "ttlSecondsAfterFinished"} == set(wire.SPEC["properties"])
    assert not guarded & {"cancel", "ttlSecondsAfterFinished"}


def test_after_the_start_cel_refuses_what_the_controller_would_ignore() -> None:
    seen: set[str] = set()

    @settings(max_examples=120, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        _spec,
        _spec,
        st.sets(st.sampled_from(sorted(wire.SPEC["properties"]))),
        st.sampled_from(["Validating", "Scheduling", "Running", "Completed", "Failed"]),
    )
    def agree(before: wire.Wire, other: wire.Wire, taken: set[str], phase: str) -> None:
        after = {k: v for k, v in before.items() if k not in taken} | {
            k: v for k, v in other.items() if k in taken
        }
        after = (
            to_wire(from_wire(after, QiskitJobSpec))
            if {"backend", "circuit"} <= set(after)
            else before
        )
        old = {"spec": before, "status": {"phase": phase}}
        new = {"spec": after, "status": {"phase": phase}}
        refused = broken(old, new)
        assert refused == set(_changes(from_wire(before, QiskitJobSpec), after))
        seen.update(refused)

    agree()
    assert len(seen) == len(TRANSITIONS), "not every rule was ever broken"


@settings(max_examples=25)
@given(_spec, _spec, st.sampled_from([{}, {"status": {}}, {"status": {"phase": "Pending"}}]))
def test_until_it_runs_everything_may_change(
    before: wire.Wire, after: wire.Wire, status: wire.Wire
) -> None:
    assert broken({"spec": before} | status, {"spec": after} | status) == set()


@settings(max_examples=25)
@given(_spec, st.booleans(), st.integers(0, 1000))
def test_cancel_and_ttl_may_always_change(spec: wire.Wire, cancel: bool, ttl: int) -> None:
    old = {"spec": spec, "status": {"phase": "Running"}}
    new = {
        "spec": spec | {"cancel": cancel, "ttlSecondsAfterFinished": ttl},
        "status": {"phase": "Running"},
    }
    assert broken(old, new) == set()


@settings(max_examples=25)
@given(_spec)
def test_the_controllers_own_status_writes_pass(spec: wire.Wire) -> None:
    old = {"spec": spec, "status": {"phase": "Running"}}
    assert broken(old, {"spec": spec, "status": {"phase": "Completed"}}) == set()


# --- the same for a session -------------------------------------------------------------------

SESSION_TRANSITIONS = rules_of(QiskitSession)
_SESSION = object_schema(QiskitSessionSpec)
_session = wire.values(_SESSION).map(
    lambda spec: to_wire(from_wire(wire.omit_empty(spec), QiskitSessionSpec))
)


def broken_of_session(old: wire.Wire, new: wire.Wire) -> list[str]:
    return [
        rule.message.partition(":")[0]
        for rule in SESSION_TRANSITIONS
        if not evaluate(rule.cel, self=new, oldSelf=old)
    ]


def test_of_an_open_session_cel_refuses_what_the_controller_would_ignore() -> None:
    seen: set[str] = set()

    @settings(max_examples=120, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(_session, _session, st.sampled_from(sorted(FIXED_IN)))
    def agree(before: wire.Wire, after: wire.Wire, phase: str) -> None:
        old = {"spec": before, "status": {"phase": phase}}
        refused = broken_of_session(old, {"spec": after, "status": {"phase": phase}})
        opened_with = from_wire(before, QiskitSessionSpec)
        assert refused == changed_fields(opened_with, from_wire(after, QiskitSessionSpec))
        seen.update(refused)

    agree()
    assert seen == {f"spec.{each}" for each in FIXED}


@settings(max_examples=25)
@given(
    _session,
    _session,
    st.sampled_from(
        [{}, {"status": {}}, *({"status": {"phase": p}} for p in ("Pending", "Opening", "Closed"))]
    ),
)
def test_a_session_that_is_not_open_may_change(
    before: wire.Wire, after: wire.Wire, status: wire.Wire
) -> None:
    assert broken_of_session({"spec": before} | status, {"spec": after} | status) == []


@settings(max_examples=25)
@given(_session, st.integers(0, 1000))
def test_how_long_it_stays_may_always_change(spec: wire.Wire, ttl: int) -> None:
    old = {"spec": spec, "status": {"phase": "Active"}}
    new = {
        "spec": spec | {"ttl": "1h", "ttlSecondsAfterFinished": ttl},
        "status": {"phase": "Active"},
    }
    assert broken_of_session(old, new) == []
