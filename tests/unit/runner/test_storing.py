"""Nothing lost, nothing run twice: results that are kept, and attempts that only store."""

from __future__ import annotations

import base64
import json
import lzma
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest
from qiskit import QuantumCircuit

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.run import Plan, Progress, Reason, Report
from qiskit_controller.drivers import RunnerDriver, RunResult, runner_driver
from qiskit_controller.runner import executor, keeping, store_stage, storing
from qiskit_controller.runner.cluster import Cluster
from qiskit_controller.runner.stores import configmap

from .store_support import plan_for
from .support import BELL, OUTPUT, RECORD, ApiServer, Pod, Request, bell, no_timer

Stage = Callable[..., Report]


@attrs.define
class CountingDriver:
    """The real one; and how often it ran."""

    inner: RunnerDriver
    runs: int = 0

    def run(self, circuit: QuantumCircuit, plan: Plan, **how: Any) -> RunResult:
        self.runs += 1
        return self.inner.run(circuit, plan, **how)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> CountingDriver:
    counting = CountingDriver(runner_driver("local_simulator"))
    monkeypatch.setattr(executor, "runner_driver", lambda _type: counting)
    return counting


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHECK_SECONDS", "KEPT_SECONDS", "UNKEPT_SECONDS"):
        monkeypatch.setattr(storing, name, 0.6)
    monkeypatch.setattr(configmap, "REQUEST_SECONDS", 0.5)
    for name in ("KEEP_SECONDS", "TAKE_SECONDS"):
        monkeypatch.setattr(keeping, name, 0.5)
    monkeypatch.setattr(store_stage, "TAKE_SECONDS", 0.5)
    monkeypatch.setattr(executor, "PROGRESS_SECONDS", 0.3)


@pytest.fixture
def run(pod: Pod, server: ApiServer) -> Stage:
    """Run the executor, or with `kept_by` the stage that only stores, in this process."""

    def once(attempt: int = 1, kept_by: int | None = None) -> Report:
        (pod.paths.token / "token").write_text(server.token)
        (pod.paths.token / "ca.crt").touch()

        def cluster_of(paths: Any, namespace: str) -> Cluster:
            return Cluster(server.url, paths.token, namespace)

        if kept_by is None:
            executor.run_stage(pod.paths, attempt, no_timer(), cluster_of)
        else:
            store_stage.run_stage(pod.paths, attempt, kept_by, cluster_of)
        return pod.report()

    return once


def down(name: str, method: str = "PATCH") -> Callable[[Request, int], Any]:
    """Requests of a kind for a ConfigMap are not answered."""

    def interfere(request: Request, _before: int) -> tuple[int, Mapping[str, Any]] | None:
        hit = request.method == method and request.path.endswith("/" + name)
        return (503, {"message": "not now"}) if hit else None

    return interfere


def record(server: ApiServer, attempt: int = 1) -> Progress:
    return from_wire(json.loads(server.data(RECORD)[f"progress-{attempt}"]), Progress)


@pytest.mark.parametrize("output_format", ["json", "csv", "qpy", "pickle"])
def test_the_next_attempt_only_stores(
    pod: Pod,
    server: ApiServer,
    run: Stage,
    driver: CountingDriver,
    output_format: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pod.plan(BELL, spec={"output": {"format": output_format}})
    pod.leave(bell())
    server.interfere = down(OUTPUT)
    failed = run(1)
    assert failed.reason == Reason.OUTPUT_UNAVAILABLE
    assert "kept in ConfigMap qiskit-job-bell-record under result-1" in failed.message
    assert sum(failed.counts.values()) == 1024
    kept = record(server)
    assert (kept.stage, kept.report and kept.report.counts) == ("Executed", failed.counts)

    server.interfere = lambda _request, _before: None
    # There is no stage before it, so there is nothing in its folders.
    for each in pod.paths.work.iterdir():
        each.unlink()
    (pod.paths.input / "circuit.py").unlink()
    stored = run(2, kept_by=1)
    assert (stored.reason, stored.attempt) == (None, 2)
    # All but when the stage itself began and ended is what the first attempt told.
    own = {"attempt": 1, "stored": None, "begun": None, "ended": None}
    assert kept.report is not None
    assert attrs.evolve(stored, **own) == attrs.evolve(kept.report, **own)
    assert driver.runs == 1
    assert json.loads(server.data()["counts"]) == failed.counts
    name = f"results.{output_format}"
    found = server.objects[OUTPUT]
    content = (
        base64.b64decode(found["binaryData"][name])
        if output_format in ("qpy", "pickle")
        else found["data"][name].encode()
    )
    assert kept.kept is not None
    assert stored.stored is not None
    assert stored.stored.sha256 == kept.kept.sha256
    assert len(content) == stored.stored.size == kept.kept.size
    told = capsys.readouterr().out
    assert told.count("Executing  on") == 1
    assert "Storing    the result of attempt 1; the circuit is not run again" in told


def test_a_person_can_get_at_what_is_kept(
    pod: Pod, server: ApiServer, run: Stage, driver: CountingDriver
) -> None:
    pod.plan(BELL)
    pod.leave(bell())
    server.interfere = down(OUTPUT)
    run(1)
    text = server.objects[RECORD]["binaryData"]["result-1"]
    done = subprocess.run(
        ["sh", "-c", "base64 -d | xz -d"], input=text.encode(), capture_output=True, check=True
    )
    assert sum(json.loads(done.stdout)["counts"].values()) == 1024


def test_storing_only_needs_no_qiskit() -> None:
    code = (
        "import sys\nfrom qiskit_controller.runner import store_stage\n"
        "print([m for m in ('qiskit', 'numpy', 'boto3', 'google.cloud') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_storing_only_fails_as_storing_does(
    pod: Pod, server: ApiServer, run: Stage, driver: CountingDriver
) -> None:
    pod.plan(BELL)
    pod.leave(bell())
    server.interfere = down(OUTPUT)
    run(1)
    assert run(2, kept_by=1).reason == Reason.OUTPUT_UNAVAILABLE
    server.interfere = lambda _request, _before: None
    server.objects[OUTPUT]["metadata"]["labels"] = {}
    conflict = run(3, kept_by=1)
    assert conflict.reason == Reason.OUTPUT_CONFLICT
    assert "kept in ConfigMap" in conflict.message
    server.objects[RECORD]["binaryData"]["result-1"] = base64.b64encode(b"nonsense").decode()
    assert run(4, kept_by=1).reason == Reason.RESULT_LOST
    server.interfere = down(RECORD, "GET")
    assert run(5, kept_by=1).reason == Reason.OUTPUT_UNAVAILABLE
    assert driver.runs == 1


def test_what_cannot_be_kept_is_stored_now_or_lost(
    pod: Pod, server: ApiServer, run: Stage, driver: CountingDriver
) -> None:
    """Another attempt would run the circuit again, which is for the user to decide."""

    def both(request: Request, before: int) -> Any:
        return down(OUTPUT)(request, before) or down(RECORD)(request, before)

    pod.plan(BELL)
    pod.leave(bell())
    server.interfere = both
    report = run(1)
    assert report.reason == Reason.RESULT_LOST
    assert "is not kept either" in report.message
    assert sum(report.counts.values()) == 1024
    server.interfere = down(RECORD)
    assert run(2).reason is None


@pytest.mark.parametrize("output_format", ["json", "pickle"])
def test_too_large_is_known_before_it_runs(
    pod: Pod, server: ApiServer, run: Stage, driver: CountingDriver, output_format: str
) -> None:
    pod.plan(
        BELL,
        spec={
            "execution": {"shots": 300_000},
            "output": {"memory": True, "format": output_format},
        },
    )
    pod.leave(bell())
    report = run(1)
    assert report.reason == Reason.OUTPUT_TOO_LARGE
    assert "it will have at least" in report.message
    assert driver.runs == 0


@pytest.mark.parametrize("output_format", ["json", "pickle", "qpy", "csv"])
def test_the_least_size_is_no_more_than_the_size(
    pod: Pod, server: ApiServer, run: Stage, output_format: str
) -> None:
    plan = pod.plan(BELL, spec={"output": {"memory": True, "format": output_format}})
    pod.leave(bell())
    report = run(1)
    assert report.stored is not None
    least = storing.least_bytes(plan, [2])
    assert 0 <= least <= report.stored.size
    if output_format != "csv":
        assert least > 0.5 * report.stored.size - 8000


def test_a_wide_result_can_be_kept() -> None:
    """25 qubits, 100,000 shots, all outcomes alike: with the memory of every shot, too."""
    rng = random.Random(1)
    memory = [format(rng.getrandbits(25), "025b") for _ in range(100_000)]
    counts = dict(Counter(memory))
    for document, preset in (({"counts": counts}, 0), ({"counts": counts, "memory": memory}, 6)):
        content = json.dumps(document, indent=2, sort_keys=True).encode()
        packed = keeping.compress(content, keeping.MAX_KEPT_BYTES, preset)
        assert packed is not None
        assert lzma.decompress(packed) == content


def test_what_does_not_fit_is_given_up_early() -> None:
    assert keeping.compress(random.Random(1).randbytes(4 << 20), 1 << 20, 0) is None


def test_nothing_is_predicted_without_memory() -> None:
    assert storing.least_bytes(plan_for(type="configmap"), [25]) == 0
