"""The stages of the pod as real processes, and a collector that hears of them, or does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from qiskit_controller.api.quantities import parse_time
from qiskit_controller.runner import tracing
from qiskit_controller.telemetry.trace import SpanContext
from tests.otlp.client import Collector, Span, running

from .support import BELL, ApiServer, Pod

PARENT = SpanContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running() as made:
        yield made


def environment(collector: Collector, **more: str) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=p,k8s.container.name=executor",
        "TRACEPARENT": str(PARENT),
        **more,
    }


def by_name(collector: Collector) -> dict[str, Span]:
    spans = collector.every_span()
    assert len({each.name for each in spans}) == len(spans)
    return {each.name: each for each in spans}


def test_the_executor_tells_where_its_time_went(
    pod: Pod, server: ApiServer, collector: Collector
) -> None:
    pod.plan(BELL)
    assert pod.circuit().code == 0
    ran = pod.executor(server, **environment(collector))
    assert ran.code == 0, ran.printed
    found = by_name(collector)
    top = ["start", "load", "connect to collector", "check", "run", "store"]
    assert {each.name for each in found.values() if each.parent == PARENT.span_id} == set(top)
    inner = {each.name for each in found.values() if each.parent == found["run"].id}
    assert inner == {"load backend", "transpile", "execute"}
    assert {each.trace for each in found.values()} == {PARENT.trace_id}
    assert found["run"].attributes["quantum.backend.name"] == "aer_simulator"
    assert found["execute"].attributes["quantum.shots"] == 1024
    assert found["run"].resource["k8s.pod.name"] == "p"
    assert found["run"].resource["service.name"] == "qiskit-runner"
    # From the first breath of the process to its report, without a pause worth speaking of.
    report = pod.report()
    assert report.begun is not None
    assert report.ended is not None
    begun, ended = (parse_time(each).timestamp() for each in (report.begun, report.ended))
    assert found["start"].start == pytest.approx(begun, abs=1e-3)
    spans = [found[name] for name in top]
    for one, following in pairwise(spans):
        assert one.end <= following.start
        assert following.start - one.end < 0.1, (one.name, following.name)
    assert found["store"].end <= ended + 1e-3
    for name in inner:
        assert found["run"].start <= found[name].start <= found[name].end <= found["run"].end


def test_a_failure_is_an_error_of_the_step_it_happened_in(
    pod: Pod, server: ApiServer, collector: Collector
) -> None:
    pod.plan("this is no Python\n")
    assert pod.circuit().code == 0
    assert pod.executor(server, **environment(collector)).code == 1
    found = by_name(collector)
    assert set(found) == {"start", "load"}
    assert found["load"].status == 2
    assert found["load"].attributes["error.type"] == "CircuitSyntaxError"


@pytest.mark.parametrize("how", ["hang", "refuse", "drop"])
def test_a_collector_that_does_not_answer_costs_a_second_at_most(
    pod: Pod, server: ApiServer, collector: Collector, how: str
) -> None:
    collector.behave(how)
    pod.plan(BELL)
    pod.circuit()
    ran = pod.executor(server, **environment(collector))
    over = time.time()
    assert ran.code == 0, ran.printed
    report = pod.report()
    assert report.ended is not None
    late = over - parse_time(report.ended).timestamp()
    print(f"{how}: the process ended {late:.2f} s after its report was made")
    # The second, and an interpreter with Qiskit in it that ends on a busy machine.
    assert late < 2.5


def test_without_a_collector_nothing_of_opentelemetry_is_imported() -> None:
    script = (
        "import sys\n"
        "from qiskit_controller.runner import executor, source_stage, store_stage, tracing\n"
        "tracing.begin(); tracing.start(); tracing.connect()\n"
        "with tracing.span('x', quantum_a=1):\n"
        "    tracing.told('y', *[tracing._current().begun] * 2)\n"
        "tracing.finish()\n"
        "print([each for each in sys.modules if each.startswith('opentelemetry')])\n"
    )
    for given in ({}, {"TRACEPARENT": str(PARENT)}):
        bare = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=bare | given,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "[]"


def test_the_untrusted_stage_has_nothing_to_tell_with() -> None:
    script = (
        "import sys\n"
        "from qiskit_controller.runner import circuit_stage, circuit_child\n"
        "print([each for each in sys.modules if each.split('.')[0] == 'opentelemetry' "
        "or each in ('qiskit_controller.runner.tracing', 'qiskit_controller.telemetry.otlp')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_trace_that_is_not_sampled_is_not_told(
    pod: Pod, server: ApiServer, collector: Collector
) -> None:
    pod.plan(BELL)
    pod.circuit()
    unsampled = str(SpanContext(PARENT.trace_id, PARENT.span_id, sampled=False))
    assert pod.executor(server, **environment(collector, TRACEPARENT=unsampled)).code == 0
    assert collector.requests() == 0


def test_a_process_knows_when_it_began() -> None:
    script = (
        "import sys, time\n"
        "asked = float(sys.argv[1])\n"
        "from qiskit_controller.runner import tracing\n"
        "time.sleep(0.3)\n"
        "tracing.begin()\n"
        "print(tracing._current().begun.timestamp() - asked)\n"
    )
    asked = time.time()
    done = subprocess.run(
        [sys.executable, "-c", script, str(asked)], capture_output=True, text=True, check=True
    )
    # The clock of processes has hundredths of a second.
    assert -0.05 < float(done.stdout) < 0.25


def test_where_proc_says_nothing_it_began_now(tmp_path: Path) -> None:
    now = parse_time("2026-01-01T12:00:00Z")
    for text in (None, "", "nonsense", "1 (a) b) S 1 2"):
        file = tmp_path / "stat"
        if text is not None:
            file.write_text(text)
        assert tracing._process_started(file, lambda: now) == now
