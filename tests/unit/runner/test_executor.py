"""The trusted stage: what it makes of what the untrusted one left, and what it tells."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.run import MAX_REPORT_BYTES, Limits, Plan, Progress, Reason, Report
from qiskit_controller.drivers import RunFailed, RunResult
from qiskit_controller.runner import executor, keeping, storing
from qiskit_controller.runner.cluster import Cluster
from qiskit_controller.runner.stores import configmap

from .support import (
    BELL,
    OUTPUT,
    RECORD,
    REPOSITORY,
    UID,
    ApiServer,
    Pod,
    Request,
    bell,
    no_timer,
    qpy_of,
)

Run = Callable[..., Report]


@pytest.fixture
def run(pod: Pod, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the stage in this process."""
    for seconds in ("CHECK_SECONDS", "KEPT_SECONDS", "UNKEPT_SECONDS"):
        monkeypatch.setattr(storing, seconds, 1.5)
    monkeypatch.setattr(configmap, "FORBIDDEN_SECONDS", 0.3)
    monkeypatch.setattr(configmap, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(keeping, "KEEP_SECONDS", 0.3)
    monkeypatch.setattr(executor, "PROGRESS_SECONDS", 0.3)

    def once(attempt: int = 1) -> Report:
        (pod.paths.token / "token").write_text(server.token)
        (pod.paths.token / "ca.crt").touch()
        code = executor.run_stage(
            pod.paths, attempt, no_timer(), lambda paths, ns: Cluster(server.url, paths.token, ns)
        )
        report = pod.report()
        assert code == (0 if report.reason is None else 1)
        return report

    return once


def test_a_bell_state_through_both_stages(pod: Pod, server: ApiServer) -> None:
    plan = pod.plan(BELL + "print('hello from the code')\n")
    assert pod.circuit().code == 0
    ran = pod.executor(server, attempt=2)
    assert ran.code == 0, ran.printed

    report = pod.report()
    assert (report.reason, report.attempt, report.shots, report.outcomes) == (None, 2, 1024, 2)
    assert set(report.counts) == {"00", "11"}
    # Five standard deviations of a fair coin.
    assert abs(report.counts["00"] - 512) < 80
    assert report.backend == "aer_simulator"
    assert report.circuit_metrics is not None
    assert (report.circuit_metrics.qubits, report.circuit_metrics.gates) == (2, 4)
    assert json.loads(server.data()["counts"]) == report.counts
    document = json.loads(server.data()["results.json"])
    assert document["counts"] == report.counts
    assert document["job"] == {"namespace": "default", "name": "bell", "uid": UID, "attempt": 2}
    assert report.stored is not None
    assert report.stored.location == f"configmap/{OUTPUT}"
    assert report.stored.size == len(server.data()["results.json"])

    progress = [
        from_wire(json.loads(each.body["data"]["progress-2"]), Progress)
        for each in server.patches(RECORD)
    ]
    assert [each.stage for each in progress] == ["Validated", "Executing", "Executed"]
    assert [each.backend for each in progress] == [None, "aer_simulator", "aer_simulator"]
    assert progress[0].circuit_metrics == report.circuit_metrics

    for told in (
        "default/bell",
        "attempt 2",
        plan.source.sha256,
        "  | hello from the code",
        "┤ H ├",
        "depth 3",
        "Executing  on aer_simulator",
        "1024 shots, 2 outcomes",
        f"configmap/{OUTPUT}",
        "Completed",
    ):
        assert told in ran.printed
    assert server.token not in ran.printed


# --- what the user did wrong ------------------------------------------------------------------


def test_the_verdict_of_the_untrusted_stage_is_told(
    pod: Pod, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    pod.plan(BELL)
    message = "circuit.py, line 3: SyntaxError: invalid syntax"
    said = {"reason": "CircuitSyntaxError", "message": message, "printed": "last words\n"}
    (pod.paths.work / "outcome.json").write_text(json.dumps(said))
    report = run()
    assert (report.reason, report.message) == (Reason.CIRCUIT_SYNTAX_ERROR, message)
    story = capsys.readouterr().out
    assert f"Failed     CircuitSyntaxError: {message}" in story
    assert "  | last words" in story
    assert "apply a new QiskitJob" in story


def _without_measurement() -> QuantumCircuit:
    circuit = QuantumCircuit(1, 1)
    circuit.h(0)
    return circuit


def _with_parameter() -> QuantumCircuit:
    circuit = QuantumCircuit(1)
    circuit.rx(Parameter("phi"), 0)
    circuit.measure_all()
    return circuit


# What lies in the work folder, though the outcome says that all is well.
CLAIMED: dict[str, tuple[bytes, Reason, str]] = {
    "no measurement": (qpy_of(_without_measurement()), Reason.NO_MEASUREMENT, "measure_all()"),
    "a parameter": (qpy_of(_with_parameter()), Reason.UNBOUND_PARAMETERS, "phi"),
    "nothing": (b"", Reason.CIRCUIT_INVALID, "it has no header"),
    "other bytes": (b"x" * 1000, Reason.CIRCUIT_INVALID, "it has no header"),
    "two circuits": (qpy_of(bell(), bell()), Reason.CIRCUIT_INVALID, "it holds 2 circuits"),
    "half a circuit": (qpy_of(bell())[:-40], Reason.CIRCUIT_INVALID, "cannot be read as QPY"),
}


@pytest.mark.parametrize("what", CLAIMED)
def test_the_circuit_is_judged_here_again(pod: Pod, run: Run, what: str) -> None:
    content, reason, part = CLAIMED[what]
    pod.plan(BELL)
    pod.leave(content)
    report = run()
    assert report.reason == reason
    assert part in report.message


LEFT: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a huge file": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 40),
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("name", ["circuit.qpy", "outcome.json"])
@pytest.mark.parametrize("what", LEFT)
def test_files_that_are_none(pod: Pod, run: Run, what: str, name: str) -> None:
    pod.plan(BELL)
    pod.leave(bell())
    (pod.paths.work / name).unlink()
    LEFT[what](pod.paths.work / name)
    report = run()
    assert report.reason == Reason.CIRCUIT_INVALID
    assert name in report.message or "outcome" in report.message


def test_a_reason_that_the_code_may_not_give(pod: Pod, run: Run) -> None:
    pod.plan(BELL)
    pod.leave(bell(), json.dumps({"reason": "PodLost", "message": "again, please"}))
    report = run()
    assert (report.reason, report.message) == (Reason.CIRCUIT_INVALID, "again, please")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
outcomes = st.one_of(
    st.binary(max_size=200),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {}, optional={"reason": json_values, "message": json_values, "printed": json_values}
    ).map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {
            "reason": st.sampled_from([each.value for each in Reason]),
            "message": st.text(max_size=8000),
            "printed": st.text(max_size=8000),
        }
    ).map(lambda value: json.dumps(value).encode()),
)


@given(outcome=outcomes)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_outcome_breaks_the_executor(
    pod: Pod, run: Run, capsys: pytest.CaptureFixture[str], outcome: bytes
) -> None:
    """None but the circuit's reasons come of it, in words that a terminal can show."""
    pod.plan(BELL)
    # No circuit: an outcome that claims one ends in a verdict as well, and sooner.
    (pod.paths.work / "outcome.json").write_bytes(outcome)
    report = run()
    assert report.reason in executor.rules.CIRCUIT_REASONS
    assert report.message.isprintable()
    assert len(report.message) <= 1000
    assert all(each.isprintable() or each in "\n\t" for each in capsys.readouterr().out)


def test_a_source_that_is_not_the_planned_one(pod: Pod, run: Run) -> None:
    pod.plan(BELL)
    pod.leave(bell())
    (pod.paths.input / "circuit.py").write_text("#" + BELL)
    assert run().reason == Reason.SOURCE_HASH_MISMATCH


# --- storing ----------------------------------------------------------------------------------


def _fail(*answers: int, method: str, name: str = OUTPUT) -> Any:
    """Answer the first requests of a kind with these statuses."""
    left = list(answers)

    def interfere(request: Request, _before: int) -> tuple[int, Mapping[str, Any]] | None:
        if left and request.method == method and request.path.endswith("/" + name):
            return left.pop(0), {"message": "not now"}
        return None

    return interfere


@pytest.mark.parametrize(
    ("answers", "method"),
    [((503, 500, 429), "PATCH"), ((0, 0), "GET"), ((409,), "PATCH"), ((404, 404), "GET")],
)
def test_storing_is_tried_again(
    pod: Pod, server: ApiServer, run: Run, answers: tuple[int, ...], method: str
) -> None:
    server.interfere = _fail(*answers, method=method)
    pod.plan(BELL)
    pod.leave(bell())
    report = run()
    assert report.reason is None, report.message
    assert sum(json.loads(server.data()["counts"]).values()) == 1024


def test_an_answer_that_was_lost(pod: Pod, server: ApiServer, run: Run) -> None:
    """The patch arrived, its answer did not: the second one meets a newer version."""

    def interfere(request: Request, _before: int) -> tuple[int, Mapping[str, Any]] | None:
        if request.method == "PATCH" and request.path.endswith(OUTPUT):
            server.interfere = lambda _request, _before: None
            server.requests.pop()
            assert server.answer(request)[0] == 200
            return 0, {}
        return None

    server.interfere = interfere
    pod.plan(BELL)
    pod.leave(bell())
    report = run()
    assert report.reason is None
    assert json.loads(server.data()["counts"]) == report.counts


def test_what_is_not_ours_is_not_overwritten(pod: Pod, server: ApiServer, run: Run) -> None:
    server.create(OUTPUT, labels={"quantum.io/job-uid": "another"})
    pod.plan(BELL)
    pod.leave(bell())
    report = run()
    assert report.reason == Reason.OUTPUT_CONFLICT
    assert OUTPUT in report.message
    assert server.patches() == []
    # Known before it ran.
    assert report.shots is None


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (403, Reason.OUTPUT_DENIED),
        (401, Reason.OUTPUT_DENIED),
        (404, Reason.OUTPUT_FAILED),
        (503, Reason.OUTPUT_UNAVAILABLE),
        (422, Reason.OUTPUT_FAILED),
        (413, Reason.OUTPUT_TOO_LARGE),
    ],
)
def test_storing_that_fails_for_good(
    pod: Pod, server: ApiServer, run: Run, status: int, reason: Reason
) -> None:
    server.interfere = _fail(*[status] * 1000, method="PATCH")
    pod.plan(BELL)
    pod.leave(bell())
    begun = time.monotonic()
    report = run()
    assert time.monotonic() - begun < 6
    assert report.reason == reason
    assert str(status) in report.message
    assert sum(report.counts.values()) == 1024


def test_a_result_that_is_too_large(pod: Pod, server: ApiServer, run: Run) -> None:
    circuit = QuantumCircuit(25)
    circuit.h(range(25))
    circuit.measure_all()
    pod.plan(BELL, spec={"execution": {"shots": 40_000, "seedSimulator": 1}})
    pod.leave(circuit)
    report = run()
    assert report.reason == Reason.OUTPUT_TOO_LARGE
    assert "spec.output.type" in report.message
    assert report.outcomes > 39_000
    assert 50 < len(report.counts) < 200
    assert report.shots == 40_000
    assert server.patches() == []


def test_the_record_may_be_out_of_reach(pod: Pod, server: ApiServer, run: Run) -> None:
    server.interfere = _fail(*[503] * 1000, method="PATCH", name=RECORD)
    pod.plan(BELL)
    pod.leave(bell())
    assert run().reason is None


def test_a_token_that_was_replaced(pod: Pod, server: ApiServer, run: Run) -> None:
    def interfere(request: Request, _before: int) -> None:
        server.token = "the-next-token"
        (pod.paths.token / "token").write_text(server.token)
        server.interfere = lambda _request, _before: None

    pod.plan(BELL)
    pod.leave(bell())
    server.interfere = interfere
    assert run().reason is None


def test_a_result_in_another_format_replaces_the_first(
    pod: Pod, server: ApiServer, run: Run
) -> None:
    pod.plan(BELL)
    pod.leave(bell())
    run()
    pod.plan(BELL, spec={"output": {"format": "pickle"}})
    run(2)
    assert set(server.data()) == {"counts"}
    assert set(server.objects[OUTPUT]["binaryData"]) == {"results.pickle"}


# --- what goes wrong here ---------------------------------------------------------------------


@attrs.frozen
class FailingDriver:
    error: BaseException

    def run(self, circuit: QuantumCircuit, plan: Plan, **_: Any) -> RunResult:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason", "message"),
    [
        (
            RunFailed(Reason.BACKEND_UNAVAILABLE, "come\nback"),
            Reason.BACKEND_UNAVAILABLE,
            "come back",
        ),
        (ValueError("x\x1b[2J" * 1000), Reason.EXECUTOR_FAILED, "ValueError: x"),
        (ValueError("\udc80"), Reason.EXECUTOR_FAILED, "ValueError: \N{REPLACEMENT CHARACTER}"),
        (MemoryError(), Reason.OUT_OF_MEMORY, "spec.resources.limits.memory"),
    ],
)
def test_a_driver_that_fails(
    pod: Pod,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    reason: Reason,
    message: str,
) -> None:
    monkeypatch.setattr(executor, "runner_driver", lambda _type: FailingDriver(error))
    pod.plan(BELL)
    pod.leave(bell())
    report = run()
    assert report.reason == reason
    assert message in report.message
    assert "\n" not in report.message
    assert report.circuit_metrics is not None


def test_a_backend_type_without_a_driver(pod: Pod, run: Run) -> None:
    pod.plan(BELL, spec={"backend": {"type": "my_cloud"}})
    pod.leave(bell())
    report = run()
    assert report.reason == Reason.UNSUPPORTED
    assert "'my_cloud'" in report.message
    assert "local_simulator" in report.message


def test_no_plan(pod: Pod, run: Run) -> None:
    pod.plan(BELL)
    (pod.paths.input / "plan.json").write_text("{}")
    report = run()
    assert report.reason == Reason.EXECUTOR_FAILED
    assert "job: is required" in report.message


@given(
    counts=st.dictionaries(st.text("01 ", min_size=1, max_size=40), st.integers(1, 10**7)),
    message=st.text(max_size=6000),
)
@settings(max_examples=200, deadline=None)
def test_no_report_exceeds_the_limit(counts: dict[str, int], message: str) -> None:
    report = Report(
        attempt=1,
        reason=Reason.EXECUTOR_FAILED,
        message=executor.clean(message, executor.MESSAGE_CHARACTERS),
        counts=counts,
        outcomes=len(counts),
    )
    text = executor.encode_report(report)
    assert len(text.encode()) <= MAX_REPORT_BYTES
    assert from_wire(json.loads(text), Report).outcomes == len(counts)


# --- the processes ----------------------------------------------------------------------------


def _supervise(pod: Pod, work: str) -> subprocess.Popen[bytes]:
    """A supervisor with other work."""
    code = (
        "import ctypes, os, pathlib, signal, sys, time\n"
        "from qiskit_controller.api.run import Report, Reason\n"
        "from qiskit_controller.runner.supervisor import supervise\n"
        "late = Report(attempt=3, reason=Reason.TIMEOUT, message='too late')\n"
        f"def work(timer):\n    {work}\n"
        "sys.exit(supervise(work, pathlib.Path(sys.argv[1]), 3))\n"
    )
    pod.paths.termination_log.parent.mkdir(parents=True, exist_ok=True)
    pod.paths.termination_log.touch()
    return subprocess.Popen(
        [sys.executable, "-c", code, str(pod.paths.termination_log)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
    )


def test_a_pod_that_is_told_to_stop_says_nothing(pod: Pod) -> None:
    # Native code that does not let go of the interpreter, as a simulator's.
    work = "print(os.getpid(), flush=True); ctypes.PyDLL(None).sleep(60)"
    with _supervise(pod, work) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 143
    assert pod.paths.termination_log.read_text() == ""
    deadline = time.monotonic() + 5
    while Path(f"/proc/{worker}/stat").exists() and time.monotonic() < deadline:
        if ") Z " in Path(f"/proc/{worker}/stat").read_text():
            break
        time.sleep(0.01)
    else:
        assert not Path(f"/proc/{worker}").exists()


def test_work_that_crashes_is_reported(pod: Pod) -> None:
    with _supervise(pod, "os.kill(os.getpid(), signal.SIGSEGV)") as process:
        assert process.wait(timeout=10) == 1
    report = pod.report()
    assert (report.attempt, report.reason) == (3, Reason.EXECUTOR_FAILED)
    assert "SIGSEGV" in report.message


@pytest.mark.parametrize("code", [0, 1, 7])
def test_the_exit_code_is_that_of_the_work(pod: Pod, code: int) -> None:
    with _supervise(pod, f"return {code}") as process:
        assert process.wait(timeout=10) == code


def test_work_that_takes_too_long_is_ended_and_reported(pod: Pod) -> None:
    # Native code that does not let go of the interpreter, as a simulator's.
    work = "timer.start(0.3, late); ctypes.PyDLL(None).sleep(60)"
    begun = time.monotonic()
    with _supervise(pod, work) as process:
        assert process.stdout is not None
        assert process.stdout.read().decode() == "Failed     Timeout: too late\n"
        assert process.wait(timeout=10) == 1
    assert 0.3 <= time.monotonic() - begun < 30
    report = pod.report()
    assert (report.attempt, report.reason, report.message) == (3, Reason.TIMEOUT, "too late")


def test_work_that_stopped_its_timer_may_take_its_time(pod: Pod) -> None:
    work = "timer.start(0.2, late); timer.stop(); time.sleep(0.6); return 0"
    with _supervise(pod, work) as process:
        assert process.wait(timeout=10) == 0
    assert pod.paths.termination_log.read_text() == ""


def test_execution_that_takes_longer_than_the_timeout(pod: Pod, server: ApiServer) -> None:
    endless = (
        "from qiskit import QuantumCircuit\n"
        "qc = QuantumCircuit(20)\n"
        "for n in range(4000):\n    qc.rx(0.1, n % 20); qc.cx(n % 20, (n + 1) % 20)\n"
        "qc.measure_all()\n"
    )
    pod.plan(endless, spec={"execution": {"timeout": "1s", "shots": 1_000_000}})
    assert pod.circuit().code == 0
    ran = pod.executor(server, attempt=1)
    assert ran.code == 1
    report = pod.report()
    assert report.reason == Reason.TIMEOUT
    assert report.message == "execution took longer than spec.execution.timeout (1s)"
    assert report.circuit_metrics is not None
    assert report.backend == "aer_simulator"
    assert "Failed     Timeout: execution took longer" in ran.printed


def test_limits_hold_for_the_circuit(pod: Pod, run: Run) -> None:
    pod.plan(BELL, limits=Limits(circuit_bytes=100))
    pod.leave(bell())
    report = run()
    assert report.reason == Reason.CIRCUIT_INVALID
    assert "100 are allowed" in report.message
