"""The stages of the pod as real processes, and a collector that hears of them, or does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import attrs
import pytest

from qiskit_controller.api.quantities import parse_time
from qiskit_controller.runner import executor, tracing
from qiskit_controller.runner.cluster import Cluster
from qiskit_controller.runner.remote import Remote
from qiskit_controller.telemetry.trace import SpanContext
from tests.otlp.client import Collector, Span, running

from .support import BELL, ApiServer, Pod, bell
from .test_remote import FAST, Books

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
    """What came, by name; each step is there once, but for those with a progress."""
    found: dict[str, Span] = {}
    for each in collector.every_span():
        progress = each.attributes.get("quantum.progress")
        name = f"{each.name} {progress}" if progress else each.name
        assert name not in found
        found[name] = each
    return found


def test_the_executor_tells_where_its_time_went(
    pod: Pod, server: ApiServer, collector: Collector
) -> None:
    pod.plan(BELL)
    assert pod.circuit().code == 0
    ran = pod.executor(server, **environment(collector))
    assert ran.code == 0, ran.printed
    found = by_name(collector)
    before = ["start", "load", "connect to collector", "prepare", "tell controller Validated"]
    run = ["check", "load backend", "tell controller Executing", "transpile", "execute"]
    steps = [*before, *run, "store"]
    assert set(found) == set(steps)
    assert {each.parent for each in found.values()} == {PARENT.span_id}
    assert {each.trace for each in found.values()} == {PARENT.trace_id}
    assert found["execute"].attributes["quantum.backend.name"] == "aer_simulator"
    assert found["execute"].attributes["quantum.shots"] == 1024
    assert found["load"].resource["k8s.pod.name"] == "p"
    assert found["load"].resource["service.name"] == "qiskit-runner"
    # From the first breath of the process to its report, without a pause worth speaking of.
    report = pod.report()
    assert report.begun is not None
    assert report.ended is not None
    begun, ended = (parse_time(each).timestamp() for each in (report.begun, report.ended))
    assert found["start"].start == pytest.approx(begun, abs=1e-3)
    spans = [found[name] for name in steps]
    for one, following in pairwise(spans):
        assert one.end <= following.start
        # Nothing to wait for is in between; the tests beside this one may take their time.
        assert following.start - one.end < 0.5, (one.name, following.name)
    assert found["store"].end <= ended + 1e-3


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
    # The second, and an interpreter with Qiskit in it that ends on a busy machine. The SDK's own
    # patience is ten seconds for a request and thirty for its end.
    assert late < 6.0


@pytest.mark.parametrize("how", ["hang", "refuse", "drop"])
def test_the_last_words_are_bounded(telling: Collector, how: str) -> None:
    tracing.connect()
    telling.behave(how)
    for _ in range(1000):
        with tracing.span("x"):
            pass
    begun = time.monotonic()
    tracing.finish()
    took = time.monotonic() - begun
    print(f"{how}: {took:.2f} s")
    assert took < tracing.LAST_WORDS_SECONDS + 1.0


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


@pytest.fixture
def telling(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """This process tells, as a stage does."""
    for name, value in environment(collector).items():
        monkeypatch.setenv(name, value)
    tracing.begin()
    tracing.start()
    yield collector
    tracing.finish()


def test_a_providers_job_is_told_step_by_step(
    pod: Pod, server: ApiServer, telling: Collector
) -> None:
    plan = pod.plan(BELL, spec={"backend": {"name": "device"}})
    (pod.paths.token / "token").write_text(server.token)
    (pod.paths.token / "ca.crt").touch()
    remote = Remote(
        driver=Books(),
        plan=plan,
        cluster=Cluster(server.url, pod.paths.token, "default"),
        credentials=pod.paths.credentials,
        attempt=1,
        number=1,
        job_id=None,
        check=lambda: None,
        executing=lambda _: None,
        waiting=lambda _: None,
        pace=FAST,
    )
    started = datetime.now(UTC)
    result = attrs.evolve(remote.run(bell()), queued=started - timedelta(seconds=30))
    executor._tell_times(result)
    tracing.finish()
    found = by_name(telling)
    assert set(found) - {"start", "connect to collector"} == {
        *("connect to provider", "transpile", "submit", "wait for provider", "fetch result"),
        *("provider queue", "execute"),
    }
    order = ["connect to provider", "transpile", "submit", "wait for provider", "fetch result"]
    for one, following in pairwise(found[name] for name in order):
        assert one.end <= following.start
    queue, execute = found["provider queue"], found["execute"]
    assert queue.end == execute.start == pytest.approx(result.started.timestamp(), abs=1e-5)
    assert execute.end - execute.start == pytest.approx(result.execution_time, abs=1e-5)
    assert queue.start == pytest.approx(started.timestamp() - 30, abs=1e-5)
    assert found["wait for provider"].attributes["quantum.provider.job"] == "job-1"


def test_what_is_told_before_the_connection_is_not_lost(telling: Collector) -> None:
    with tracing.span("before"):
        pass
    assert telling.requests() == 0
    tracing.connect()
    with tracing.span("after"):
        pass
    tracing.finish()
    assert set(by_name(telling)) == {"start", "before", "connect to collector", "after"}
