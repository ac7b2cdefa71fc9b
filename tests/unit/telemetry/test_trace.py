from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiskit_controller.telemetry.trace import (
    ANNOTATION,
    SpanContext,
    note_call,
    note_wait,
    parse,
    recorded_calls,
    span_id_of,
    trace_of,
    waited_in_queue,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def metadata(uid: str = "uid-1", **annotations: str) -> dict[str, Any]:
    return {"uid": uid, "annotations": annotations}


# The examples of the standard, and what it says of other versions.
@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", True),
        (f"  00-{TRACE}-{SPAN}-01\n", True),
    ],
)
def test_a_traceparent_is_read(text: str, sampled: bool) -> None:
    assert parse(text) == SpanContext(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE[1:]}-{SPAN}-01",
    ],
)
def test_what_is_no_traceparent_is_none(text: object) -> None:
    assert parse(text) is None


@given(st.uuids().map(str))
def test_a_job_has_a_trace_of_its_own_whoever_asks(uid: str) -> None:
    trace = trace_of({"uid": uid})
    assert trace == trace_of({"uid": uid, "annotations": None})
    assert trace.parent is None
    # It is one that the standard knows, and it is read back as what it was.
    assert parse(str(trace.root)) == trace.root
    assert trace_of(metadata(uid, **{ANNOTATION: str(trace.root)})) == trace
    assert trace.trace_id != trace_of({"uid": uid + "x"}).trace_id


def test_a_users_span_becomes_the_parent_and_stays_it() -> None:
    given_ = f"00-{TRACE}-{SPAN}-01"
    trace = trace_of(metadata(traceparent=given_))
    assert trace.trace_id == TRACE
    assert trace.parent == SpanContext(TRACE, SPAN)
    assert trace.root.span_id not in (SPAN, "0" * 16)
    written = {ANNOTATION: str(trace.root)}
    assert trace_of(metadata(traceparent=given_, **written)) == trace
    # What is changed later changes nothing.
    later = trace_of(metadata(traceparent=f"00-{'1' * 32}-{SPAN}-01", **written))
    assert later.root == trace.root
    assert later.parent is None


def test_not_to_be_sampled_is_inherited() -> None:
    trace = trace_of(metadata(traceparent=f"00-{TRACE}-{SPAN}-00"))
    assert not trace.root.sampled
    assert str(trace.root).endswith("-00")
    assert not trace.span("attempt", 1).sampled


def test_an_annotation_that_was_copied_from_another_job_is_none() -> None:
    other = trace_of(metadata("another"))
    copied = trace_of(metadata("uid-1", **{ANNOTATION: str(other.root)}))
    assert copied == trace_of(metadata("uid-1"))
    assert copied.trace_id != other.trace_id


def test_spans_are_named_by_what_they_are_about() -> None:
    names = {
        span_id_of("u", *about)
        for about in (("job",), ("attempt", 1), ("attempt", 2), ("attempt", 1, "stage", "source"))
    }
    names |= {span_id_of("v", "job")}
    assert len(names) == 5
    assert span_id_of("u", "attempt", 1) == span_id_of("u", "attempt", 1)
    assert all(len(each) == 16 and int(each, 16) for each in names)


async def test_a_reconcile_hears_of_its_own_writes_only() -> None:
    async def work(name: str) -> list[str]:
        note_wait(float(len(name)))
        with recorded_calls() as calls:
            for verb in ("get", "create", "list", "update"):
                await asyncio.sleep(0)
                note_call(verb, name, 200, 0.5)
            assert waited_in_queue() == len(name)
        note_call("delete", name, 200, 0.5)
        assert all((each.end - each.start).total_seconds() == 0.5 for each in calls)
        return [f"{each.verb} {each.resource}" for each in calls]

    both = await asyncio.gather(
        asyncio.create_task(work("jobs")), asyncio.create_task(work("configmaps"))
    )
    assert both == [
        ["create jobs", "update jobs"],
        ["create configmaps", "update configmaps"],
    ]
