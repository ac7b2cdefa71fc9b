"""Spans and metrics over real HTTP to a collector that decodes them, and to one that misbehaves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from qiskit_controller.telemetry import logs, otlp, otlp_metrics
from qiskit_controller.telemetry.trace import Span, SpanContext, trace_of
from tests.otlp.client import Collector, running

NOW = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
JOB = trace_of({"uid": "uid-1"})


@pytest.fixture(scope="module")
def module_collector() -> Iterator[Collector]:
    with running() as made:
        yield made


@pytest.fixture
def collector(module_collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the environment names."""
    for name in [each for each in os.environ if each.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", module_collector.endpoint)
    yield module_collector
    module_collector.behave("well")


def span(name: str, context: SpanContext, parent: SpanContext | None, **more: Any) -> Span:
    given = {"start": NOW, "end": NOW + timedelta(seconds=1.5)}
    return Span(**{"name": name, "context": context, "parent": parent, **given, **more})


def test_spans_arrive_as_they_were_made(collector: Collector) -> None:
    sender = otlp.SpanSender("a-test")
    child = JOB.span("attempt", 1)
    sender.send(
        [
            # The child first: its parent need not be there yet.
            span("attempt", child, JOB.root, error="it broke", error_type="PodLost"),
            span("job", JOB.root, None, attributes={"quantum.shots": 7, "quantum.job.name": "b"}),
            span("other", SpanContext("b" * 32, "c" * 16), SpanContext("b" * 32, "d" * 16)),
        ]
    )
    sender.close(10.0)
    found = {each.name: each for each in collector.every_span()}
    assert (found["job"].trace, found["job"].id) == (JOB.trace_id, JOB.root.span_id)
    assert found["job"].parent == ""
    assert (found["attempt"].id, found["attempt"].parent) == (child.span_id, JOB.root.span_id)
    assert found["other"].parent == "d" * 16
    assert found["job"].attributes == {"quantum.shots": 7, "quantum.job.name": "b"}
    assert found["job"].status == 0
    assert (found["attempt"].status, found["attempt"].message) == (2, "it broke")
    assert found["attempt"].attributes["error.type"] == "PodLost"
    # To the microsecond.
    assert found["job"].start == pytest.approx(NOW.timestamp(), abs=1e-6)
    assert found["job"].end - found["job"].start == pytest.approx(1.5, abs=1e-6)
    assert found["job"].resource["service.name"] == "a-test"
    assert found["job"].resource["service.version"]


def test_what_is_not_sampled_is_not_sent(collector: Collector) -> None:
    context = SpanContext("f" * 32, "f" * 16, sampled=False)
    before = len(collector.every_span())
    sender = otlp.SpanSender("a-test")
    sender.send([span("unseen", context, None)])
    sender.send([span("unseen", context, context)])
    sender.close(10.0)
    assert len(collector.every_span()) == before


def test_the_sampler_of_the_environment_decides(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert otlp.SpanSender("a-test").sampled(JOB.trace_id)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    sender = otlp.SpanSender("a-test")
    kept = sum(sender.sampled(trace_of({"uid": f"uid-{n}"}).trace_id) for n in range(400))
    assert 140 < kept < 260


def test_a_secret_is_in_no_span(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_concealed", set())
    logs.conceal(["open-sesame-42"])
    sender = otlp.SpanSender("a-test")
    error = "GET https://me:hunter2hunter2@example.com failed with open-sesame-42"
    attributes = {"quantum.note": "Authorization: Bearer abcdefgh12345678"}
    context = SpanContext("9" * 32, "9" * 16)
    sender.send([span("secretive", context, None, error=error, attributes=attributes)])
    sender.close(10.0)
    (found,) = (each for each in collector.every_span() if each.trace == "9" * 32)
    for secret in ("hunter2hunter2", "open-sesame-42", "abcdefgh12345678"):
        assert secret not in str(found)
    assert "example.com failed with [redacted]" in found.message


@pytest.mark.parametrize("how", ["hang", "refuse", "drop", "gone"])
def test_a_collector_that_is_lost_costs_a_bounded_time(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "gone":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    else:
        collector.behave(how)
    sender = otlp.SpanSender("a-test", seconds=1.0)
    begun = time.monotonic()
    # More than the queue holds: the rest is dropped.
    for _ in range(50):
        sender.send([span("lost", JOB.root, None)] * 100)
    sent = time.monotonic() - begun
    sender.close(0.5)
    closed = time.monotonic() - begun - sent
    print(f"{how}: 5000 spans taken in {sent:.2f} s, closed in {closed:.2f} s")
    assert sent < 5.0, "sending waits for nobody"
    assert closed < 1.5


def test_a_span_that_cannot_be_sent_raises_nothing(collector: Collector) -> None:
    sender = otlp.SpanSender("a-test")
    sender.send([span("wrong", SpanContext("no number", "none"), None)])
    sender.close(1.0)


# --- what is configured ---------------------------------------------------------------------

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("environment", "traces", "metrics"),
    [
        ({}, False, False),
        (ENDPOINT, True, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318/v1/metrics"}, False, True),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, False, False),
        ({**ENDPOINT, "OTEL_METRICS_EXPORTER": "none"}, True, False),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True, False),
        ({"OTEL_TRACES_EXPORTER": "console", **ENDPOINT}, False, True),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True, True),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False, False),
    ],
)
def test_the_environment_says_what_is_sent(
    environment: dict[str, str], traces: bool, metrics: bool
) -> None:
    assert otlp.configured("TRACES", environment) == traces
    assert otlp.configured("METRICS", environment) == metrics


def test_pods_are_told_of_the_collector_but_of_no_credential() -> None:
    environment = {
        **ENDPOINT,
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=hunter2hunter2",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "api-key=hunter2hunter2",
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": "/etc/key",
        "OTEL_RESOURCE_ATTRIBUTES": "a=b",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    }
    assert otlp.passed_on(environment) == {**ENDPOINT, "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
    assert otlp.passed_on({**environment, "OTEL_TRACES_EXPORTER": "none"}) == {}


def test_without_a_collector_nothing_of_it_is_imported() -> None:
    script = (
        "import asyncio, sys\n"
        "from prometheus_client import CollectorRegistry\n"
        "import qiskit_controller.__main__\n"
        "from qiskit_controller.manager import _telemetry\n"
        "async def main():\n"
        "    async with _telemetry(CollectorRegistry()) as spans:\n"
        "        assert spans is None\n"
        "        assert len(asyncio.all_tasks()) == 1\n"
        "asyncio.run(main())\n"
        "print([each for each in sys.modules if each.split('.')[0] in "
        "('opentelemetry', 'requests')])\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- metrics --------------------------------------------------------------------------------


async def test_what_is_pushed_is_what_is_shown(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "1000")
    registry = CollectorRegistry()
    Counter("shots_total", "Shots.", ("kind",), registry=registry).labels("a").inc(5)
    Gauge("jobs", "Jobs.", registry=registry).set(-2)
    took = Histogram("took_seconds", "Time.", buckets=(0.1, 1, 10), registry=registry)
    for value in (0.05, 0.5, 0.6, 99.0):
        took.observe(value)
    pushing = asyncio.create_task(otlp_metrics.push(registry, "a-test"))
    found: dict[str, dict[str, Any]] = {}
    for _ in range(100):
        await asyncio.sleep(0.1)
        found = {each["name"]: each for each in await asyncio.to_thread(collector.metrics)}
        if found:
            break
    pushing.cancel()
    assert set(found) == {"shots_total", "jobs", "took_seconds"}
    shots = found["shots_total"]["sum"]
    assert shots["isMonotonic"]
    assert shots["aggregationTemporality"] == "AGGREGATION_TEMPORALITY_CUMULATIVE"
    (point,) = shots["dataPoints"]
    assert point["asDouble"] == 5
    assert point["attributes"] == [{"key": "kind", "value": {"stringValue": "a"}}]
    assert int(point["startTimeUnixNano"]) <= int(point["timeUnixNano"])
    assert found["jobs"]["gauge"]["dataPoints"][0]["asDouble"] == -2
    (histogram,) = found["took_seconds"]["histogram"]["dataPoints"]
    assert histogram["explicitBounds"] == [0.1, 1, 10]
    assert [int(each) for each in histogram["bucketCounts"]] == [1, 2, 0, 1]
    assert not {"min", "max"} & set(histogram)
    assert (int(histogram["count"]), histogram["sum"]) == (4, pytest.approx(100.15))
    assert found["took_seconds"]["unit"] == "s"
