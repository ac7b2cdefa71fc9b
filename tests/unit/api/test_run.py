from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.qiskitjob import CircuitMetrics
from qiskit_controller.api.run import (
    MAX_REPORT_BYTES,
    Reason,
    Report,
    Retry,
    SourceReport,
    StoredResult,
    encode_report,
    encode_source_report,
    progress_key,
)

_text = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
_long = st.builds(lambda text, n: (text or "ä") * n, _text, st.integers(0, 400))
_outcomes = st.dictionaries(
    st.text("01 ", min_size=1, max_size=90), st.integers(1, 10**7), max_size=60
)

reports = st.builds(
    Report,
    attempt=st.integers(1, 100),
    reason=st.none() | st.sampled_from(list(Reason)),
    message=_text | _long,
    circuit_metrics=st.none()
    | st.builds(CircuitMetrics, qubits=st.integers(0, 100), hash=st.just("0" * 64)),
    backend=st.none() | st.just("aer_simulator"),
    started=st.none() | st.just("2026-01-01T00:00:00.000001+00:00"),
    execution_time=st.none() | st.floats(0, 1e6),
    shots=st.none() | st.integers(0, 10**7),
    counts=_outcomes,
    outcomes=st.integers(0, 2**40),
    stored=st.none()
    | st.builds(
        StoredResult,
        location=st.text("a/", max_size=1000),
        size=st.integers(0, 10**9),
        sha256=st.just("0" * 64),
    ),
)


@settings(max_examples=60)
@given(reports, st.sampled_from([MAX_REPORT_BYTES, 2048, 3000]))
def test_a_report_fits_and_keeps_the_most_frequent_counts(report: Report, limit: int) -> None:
    text = encode_report(report, limit)
    assert len(text.encode()) <= limit
    read = from_wire(json.loads(text), Report)
    assert (read.attempt, read.reason, read.outcomes) == (
        report.attempt,
        report.reason,
        report.outcomes,
    )
    assert (read.stored, read.started) == (report.stored, report.started)
    assert report.message.startswith(read.message)
    ranked = sorted(report.counts.items(), key=lambda item: (-item[1], item[0]))
    assert list(read.counts.items()) == ranked[: len(read.counts)]


@settings(max_examples=40)
@given(reports)
def test_nothing_is_left_out_without_need(report: Report) -> None:
    whole = encode_report(report, 10**9)
    read = from_wire(json.loads(whole), Report)
    assert read == report
    assert encode_report(report, len(whole.encode())) == whole
    if report.counts and len(report.message) < 100:
        shorter = from_wire(json.loads(encode_report(report, len(whole.encode()) - 1)), Report)
        assert len(shorter.counts) == len(report.counts) - 1
        assert shorter.message == report.message


def test_the_counts_of_many_outcomes_fill_the_room() -> None:
    counts = {f"{n:020b}": 10_000 - n for n in range(5000)}
    text = encode_report(Report(attempt=1, counts=counts, outcomes=5000, message="done"))
    read = from_wire(json.loads(text), Report)
    assert MAX_REPORT_BYTES - 40 < len(text.encode()) <= MAX_REPORT_BYTES
    assert list(read.counts.values()) == [10_000 - n for n in range(len(read.counts))]
    assert len(read.counts) > 60
    assert read.message == "done"


def test_the_closed_list_of_reasons_and_what_they_mean_for_a_retry() -> None:
    by_retry = {retry: {each.value for each in Reason if each.retry is retry} for retry in Retry}
    assert by_retry[Retry.FREE] == {"PodLost", "Evicted"}
    assert by_retry[Retry.COUNTED] == {
        "BackendUnavailable",
        "ExecutorFailed",
        "OutputDenied",
        "OutputFailed",
        "OutputFull",
        "OutputNotFound",
        "OutputUnavailable",
        "ProviderJobFailed",
        "SourceFailed",
        "SourceUnavailable",
        "StageFailed",
    }
    for each in Reason:
        assert each.value.isalnum()
        assert str(each) == each.value
        assert Reason(each.value) is each


def test_each_attempt_tells_its_progress_under_its_own_key() -> None:
    assert progress_key(1) == "progress-1"
    assert len({progress_key(n) for n in range(1, 50)}) == 49


@pytest.mark.parametrize("message", ["", "short", "\N{HIRAGANA LETTER A}" * 1000, '"' * 3000])
def test_what_the_source_stage_says_is_never_cut_by_the_kubelet(message: str) -> None:
    report = SourceReport(reason=Reason.SOURCE_NOT_FOUND, message=message)
    text = encode_source_report(report)
    assert len(text.encode()) <= MAX_REPORT_BYTES
    read = from_wire(json.loads(text), SourceReport)
    assert read.reason is Reason.SOURCE_NOT_FOUND
    assert message.startswith(read.message)
    assert len(message) < 1000 or len(read.message) > 400
