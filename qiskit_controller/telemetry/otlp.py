"""Sends spans and metrics to an OpenTelemetry collector, by OTLP over HTTP.

Configured by the standard environment (``OTEL_EXPORTER_OTLP_ENDPOINT`` and the rest of it). It
is OpenTelemetry's SDK that reads it, batches, encodes and sends. Without an endpoint nothing of
that is imported.

A collector that is slow, or gone, costs nobody anything: spans wait in a queue of bounded size,
a thread of its own sends them, each try is bounded in time, and what cannot be sent is dropped.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

import structlog

from qiskit_controller.telemetry.logs import scrub
from qiskit_controller.telemetry.trace import Span, SpanContext

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanContext as SdkContext

log = structlog.get_logger(__name__)

Signal = Literal["TRACES", "METRICS"]
_SCOPE = "qiskit_controller"
_PROTOCOL = "http/protobuf"
# What a job's pod is told of the collector. Not OTEL_EXPORTER_OTLP_HEADERS, nor keys: whoever may
# read pods of a namespace would read the credential.
PASSED_ON = (
    "OTEL_SDK_DISABLED",
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
)


def configured(signal: Signal, environment: Mapping[str, str] | None = None) -> bool:
    """Whether the environment names a collector for traces or metrics.

    The SDK's own default, a collector on this very host, is meant only where the exporter
    ``otlp`` is asked for by name.
    """
    given = os.environ if environment is None else environment
    if given.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = given.get(f"OTEL_{signal}_EXPORTER", "").strip()
    if exporter:
        wanted = exporter == "otlp"
    else:
        own = given.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
        wanted = bool(own or given.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
    protocol = given.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or given.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", _PROTOCOL
    )
    if wanted and protocol != _PROTOCOL:
        log.warning("only OTLP over HTTP is spoken; nothing is sent", protocol=protocol)
        return False
    return wanted


def passed_on(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for the trusted stages of a job's pod; empty without a collector."""
    given = os.environ if environment is None else environment
    if not configured("TRACES", given):
        return {}
    return {name: given[name] for name in PASSED_ON if given.get(name)}


def nanoseconds(moment: datetime) -> int:
    """Since the epoch, exactly: a float has not enough digits for microseconds of today."""
    return int(moment.timestamp()) * 10**9 + moment.microsecond * 1000


class SpanSender:
    """Takes spans that are over and sends them in the background."""

    def __init__(self, service: str, *, seconds: float = 5.0) -> None:
        """Begin.

        Args:
            service: ``service.name``, unless the environment has another.
            seconds: for one try at the collector, all repetitions included.
        """
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._ids = _generator()
        self._provider = TracerProvider(
            resource=resource(service), id_generator=self._ids, shutdown_on_exit=False
        )
        # SpanLimits and the sampler are the SDK's own, from the environment; so is the batch,
        # but for its delay: five seconds of spans are too many to lose with a process.
        delay = None if os.environ.get("OTEL_BSP_SCHEDULE_DELAY") else 1000
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(timeout=seconds), schedule_delay_millis=delay)
        )
        self._tracer = self._provider.get_tracer(_SCOPE, _version())

    def send(self, spans: Iterable[Span]) -> None:
        """Queue spans. From one thread only; it never blocks and never raises."""
        try:
            for span in spans:
                if span.context.sampled:
                    self._send(span)
        # Telemetry is no reason to fail for what is being told of.
        except Exception as error:
            log.warning("a span was lost", error=f"{type(error).__name__}: {error}")

    def _send(self, span: Span) -> None:
        from opentelemetry.trace import StatusCode

        self._ids.following = span.context
        made = self._tracer.start_span(
            span.name,
            context=_around(span.parent),
            start_time=nanoseconds(span.start),
            attributes={name: _clean(value) for name, value in span.attributes.items()},
        )
        if span.error is not None:
            made.set_status(StatusCode.ERROR, scrub(span.error))
            made.set_attribute("error.type", span.error_type or "error")
        made.end(max(nanoseconds(span.start), nanoseconds(span.end)))

    def sampled(self, trace_id: str) -> bool:
        """Whether a trace that begins here is to be sent, as ``OTEL_TRACES_SAMPLER`` says."""
        from opentelemetry.sdk.trace.sampling import Decision

        result = self._provider.sampler.should_sample(None, int(trace_id, 16), "")
        return result.decision is Decision.RECORD_AND_SAMPLE

    def close(self, seconds: float) -> None:
        """Send what waits, for as long as that; the rest is dropped."""
        # The SDK's own shutdown waits for 30 seconds.
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(seconds)


def resource(service: str) -> Any:
    """Who sends: service.* and what ``OTEL_RESOURCE_ATTRIBUTES`` adds or overrides."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    own = {
        "service.name": service,
        "service.version": _version(),
        "service.instance.id": f"{platform.node()}-{os.getpid()}",
    }
    given = OTELResourceDetector().detect()
    return Resource(own).merge(given)


def _clean(value: str | int | float | bool) -> str | int | float | bool:
    return scrub(value) if isinstance(value, str) else value


def _around(parent: SpanContext | None) -> Context:
    """The context in which a span is a child of `parent`, or a root."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    if parent is None:
        return Context()
    return set_span_in_context(NonRecordingSpan(_sdk_context(parent)), Context())


def _sdk_context(context: SpanContext) -> SdkContext:
    from opentelemetry.trace import SpanContext as SdkContext
    from opentelemetry.trace import TraceFlags

    return SdkContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(context.sampled)),
    )


def _generator() -> Any:
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class Given(IdGenerator):
        """Gives the identifiers that the next span has already."""

        following: SpanContext

        def generate_trace_id(self) -> int:
            return int(self.following.trace_id, 16)

        def generate_span_id(self) -> int:
            return int(self.following.span_id, 16)

    return Given()


def _version() -> str:
    try:
        return version("qiskit-controller")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
