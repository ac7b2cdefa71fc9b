"""Pushes the metrics of a Prometheus registry to a collector, by OTLP.

What is pushed is what ``/metrics`` shows: one account of everything, in two forms.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from typing import Any, NoReturn, cast

import structlog
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric as Family
from prometheus_client.samples import Sample

from qiskit_controller.telemetry.otlp import resource

log = structlog.get_logger(__name__)

_CUMULATIVE = AggregationTemporality.CUMULATIVE
_INTERVAL_MILLISECONDS = 60_000.0
_SCOPE = InstrumentationScope("qiskit_controller")
_UNITS = {"_seconds": "s", "_bytes": "By", "_usd": "USD", "_ratio": "1"}


# What the encoder leaves out; Prometheus does not keep them.
_UNKNOWN = cast(float, None)


async def push(registry: CollectorRegistry, service: str) -> NoReturn:
    """Push every ``OTEL_METRIC_EXPORT_INTERVAL`` milliseconds, until cancelled.

    A push that fails is the SDK's to log; the next one has the same counters and more.
    """
    exporter = OTLPMetricExporter(timeout=5.0)
    sender, begun = resource(service), time.time_ns()
    seconds = _interval()
    try:
        while True:
            await asyncio.sleep(seconds)
            data = metrics_data(registry.collect(), sender, begun, time.time_ns())
            await asyncio.to_thread(exporter.export, data)
    finally:
        exporter.shutdown()


def _interval() -> float:
    given = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "")
    try:
        return max(1.0, float(given or _INTERVAL_MILLISECONDS) / 1000)
    except ValueError:
        log.warning("OTEL_METRIC_EXPORT_INTERVAL is no number; taking 60000", given=given)
        return _INTERVAL_MILLISECONDS / 1000


def metrics_data(families: Iterable[Family], sender: Any, begun: int, now: int) -> MetricsData:
    """Prometheus' families as OTLP's metrics.

    Args:
        sender: the SDK's Resource.
        begun, now: nanoseconds since the epoch; counters began at zero at the first.
    """
    found = [each for family in families for each in _metrics(family, begun, now)]
    scope = ScopeMetrics(scope=_SCOPE, metrics=found, schema_url="")
    return MetricsData([ResourceMetrics(resource=sender, scope_metrics=[scope], schema_url="")])


def _metrics(family: Family, begun: int, now: int) -> Iterable[Metric]:
    data: Sum | Gauge | Histogram
    if family.type == "counter":
        points = [_number(each, begun, now) for each in family.samples if _is(each, "_total")]
        data = Sum(points, _CUMULATIVE, is_monotonic=True)
        name = f"{family.name}_total"
    elif family.type == "histogram":
        data = Histogram(_histograms(family.samples, begun, now), _CUMULATIVE)
        name = family.name
    else:
        data = Gauge([_number(each, now, now) for each in family.samples])
        name = family.name
    if data.data_points:
        unit = next((u for end, u in _UNITS.items() if family.name.endswith(end)), "")
        yield Metric(name=name, description=family.documentation, unit=unit, data=data)


def _is(sample: Sample, ending: str) -> bool:
    return sample.name.endswith(ending)


def _number(sample: Sample, begun: int, now: int) -> NumberDataPoint:
    return NumberDataPoint(
        attributes=dict(sample.labels),
        start_time_unix_nano=begun,
        time_unix_nano=now,
        value=sample.value,
        exemplars=[],
    )


def _histograms(samples: Iterable[Sample], begun: int, now: int) -> list[HistogramDataPoint]:
    """Prometheus' buckets hold all that is below their bound; OTLP's what is between two."""
    by_labels: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for each in samples:
        labels = {name: value for name, value in each.labels.items() if name != "le"}
        point = by_labels.setdefault(tuple(sorted(labels.items())), {"below": {}})
        if _is(each, "_bucket"):
            point["below"][float(each.labels["le"])] = int(each.value)
        elif _is(each, "_sum"):
            point["sum"] = each.value
        elif _is(each, "_count"):
            point["count"] = int(each.value)
    points = []
    for key, point in by_labels.items():
        below = sorted(point["below"].items())
        counts = [count for _, count in below]
        points.append(
            HistogramDataPoint(
                attributes=dict(key),
                start_time_unix_nano=begun,
                time_unix_nano=now,
                count=point.get("count", counts[-1] if counts else 0),
                sum=point.get("sum", 0.0),
                bucket_counts=[b - a for a, b in zip([0, *counts], counts, strict=False)],
                explicit_bounds=[bound for bound, _ in below[:-1]],
                min=_UNKNOWN,
                max=_UNKNOWN,
                exemplars=[],
            )
        )
    return points
