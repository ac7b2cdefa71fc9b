"""The stage ``executor``: validate the circuit, run it, store the result, report.

The only stage with a token and credentials. What the untrusted stage left is read through
:mod:`hostile` and :mod:`hostile_qpy`, and nothing else of it is touched; every number about the
circuit is computed here.

The report is written to the termination message in every case but one: a pod that is told to
stop (:mod:`supervisor`) says nothing, so that the controller sees it lost and starts another
that costs the user nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import attrs

from qiskit_controller.api.billing import format_amounts
from qiskit_controller.api.codec import DecodeError, from_wire, to_wire
from qiskit_controller.api.qiskitjob import CircuitMetrics
from qiskit_controller.api.quantities import parse_duration
from qiskit_controller.api.run import (
    CIRCUIT_FILE,
    OUTCOME_FILE,
    Outcome,
    Plan,
    Progress,
    Reason,
    Report,
    Stage,
    encode_report,
    progress_key,
    timeout_message,
)
from qiskit_controller.drivers import (
    BackendDown,
    NoDriver,
    RunFailed,
    RunnerDriver,
    RunResult,
    placed,
    runner_driver,
)
from qiskit_controller.drivers.remote import RemoteDriver
from qiskit_controller.runner import rules, story, tracing
from qiskit_controller.runner.assignment import Assignments, is_dynamic, special_operations
from qiskit_controller.runner.cluster import ApiError, Cluster
from qiskit_controller.runner.fetched import Code, locate
from qiskit_controller.runner.formats import Run, counts_json, write
from qiskit_controller.runner.hostile import MESSAGE_CHARACTERS, Unreadable, clean, read_file
from qiskit_controller.runner.hostile_qpy import load_circuit
from qiskit_controller.runner.plan import read_plan
from qiskit_controller.runner.pod import Paths
from qiskit_controller.runner.remote import Pace, Remote
from qiskit_controller.runner.results import document
from qiskit_controller.runner.stores import StoreFailed, open_store
from qiskit_controller.runner.storing import Storing
from qiskit_controller.runner.supervisor import Timer

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

OUTCOME_BYTES = 65_536
PRINTED_CHARACTERS = 4096
PROGRESS_SECONDS = 10.0
# Tries at the store are bounded by themselves, but not what one on a hung volume takes.
_CHECK = (
    180.0,
    Reason.OUTPUT_UNAVAILABLE,
    "the store did not answer within 3 minutes, before the circuit was run",
)

# Makes the client, of the pod's folders and the job's namespace.
ClusterOf = Callable[[Paths, str], Cluster]


def run_stage(
    paths: Paths,
    attempt: int,
    timer: Timer,
    cluster_of: ClusterOf = Cluster.of_pod,
    *,
    ticket: int = 1,
    provider_job: str | None = None,
    pace: Pace | None = None,
) -> int:
    """Run the stage.

    Args:
        timer: ends this process when executing takes longer than it may.
        cluster_of: makes the client, of the paths and the namespace; a test has its own.
        ticket: which submission to a provider this is.
        provider_job: the provider's job of that submission, if it is known.
        pace: of what is asked of a provider; a test has no time.

    Returns:
        The exit code: 0 when the result is stored, 1 when the report says why not.
    """
    begun = time.monotonic()
    tracing.start()
    execution = _Execution(
        paths, attempt, timer, cluster_of, ticket, provider_job or None, pace or Pace()
    )
    report = execution.run()
    story.show_end(report, time.monotonic() - begun)
    report = attrs.evolve(report, begun=tracing.begun(), ended=tracing.now())
    paths.termination_log.write_text(encode_report(report))
    tracing.finish()
    return 0 if report.reason is None else 1


@attrs.define
class _Execution:
    """One attempt; `report` grows with what is known."""

    paths: Paths
    attempt: int
    timer: Timer
    cluster_of: ClusterOf
    ticket: int = 1
    provider_job: str | None = None
    pace: Pace = attrs.field(factory=Pace)
    traits: Mapping[str, Any] = attrs.field(factory=dict, init=False)  # of the circuit
    report: Report = attrs.field(
        default=attrs.Factory(lambda self: Report(attempt=self.attempt), takes_self=True)
    )

    def run(self) -> Report:
        """Everything, and the report of it."""
        try:
            self._run()
        except (rules.BadCircuit, RunFailed, StoreFailed) as error:
            self._fail(error.reason, error.message)
        except NoDriver as error:
            self._fail(Reason.UNSUPPORTED, f"spec.backend.type: {error}")
        except MemoryError:
            self._fail(
                Reason.OUT_OF_MEMORY,
                "the executor ran out of memory; raise spec.resources.limits.memory",
            )
        # The last line of defence: whatever it is, the controller gets a report of it, and the
        # log the traceback. BaseException: a panic in Qiskit's Rust code is no Exception.
        except BaseException as error:
            traceback.print_exc()
            self._fail(Reason.EXECUTOR_FAILED, f"{type(error).__name__}: {error}")
        return self.report

    def _fail(self, reason: Reason, message: str) -> None:
        self.report = attrs.evolve(
            self.report, reason=reason, message=clean(message, MESSAGE_CHARACTERS)
        )

    def _run(self) -> None:
        with tracing.span("load") as about:
            plan = read_plan(self.paths)
            code = locate(plan, self.paths)
            story.show_job(plan, self.attempt, code)
            _check_source(plan.source.file, code)
            outcome = _read_outcome(self.paths)
            story.show_printed(outcome.printed)
            if outcome.reason is not None:
                raise rules.BadCircuit(_reason(outcome.reason), outcome.message)

            circuit, metrics = self._load(plan)
            about["quantum.circuit.qubits"] = metrics.qubits
            self.report = attrs.evolve(self.report, circuit_metrics=metrics)
            story.show_circuit(circuit, metrics)
            rules.check_bound(circuit)
            rules.check_measured(circuit)

        # Reading the circuit forks.
        tracing.connect()
        with tracing.span("prepare", quantum_backend_type=plan.spec.backend.type):
            cluster = self.cluster_of(self.paths, plan.job.namespace)
            storing = Storing(plan, self.attempt, cluster, open_store(plan, cluster, self.paths))
            runner_driver(plan.spec.backend.type)  # so that a missing one is told of at once
            self.traits = {
                "dynamic": is_dynamic(circuit),
                "operations": special_operations(circuit),
            }
        self._progress(cluster, plan, "Validated", metrics)

        def executing(backend: str) -> None:
            self.report = attrs.evolve(self.report, backend=backend)
            story.say(f"Executing  on {backend}")
            self._progress(cluster, plan, "Executing", metrics, backend)

        def waiting(what: str) -> None:
            stage: Stage = "Executing" if self.report.backend else "Validated"
            self._progress(cluster, plan, stage, metrics, self.report.backend, what)

        def check() -> None:
            with (
                self._bound(*_CHECK),
                tracing.span("check", quantum_output_type=plan.spec.output.type),
            ):
                storing.check(circuit)

        def run(chosen: Plan) -> RunResult:
            driver = placed(runner_driver(chosen.spec.backend.type), chosen)
            if not isinstance(driver, RemoteDriver):
                check()
                return self._run_here(driver, circuit, chosen, executing)
            # How long it may execute is seen to by the controller, which also has to cancel.
            return Remote(
                driver=driver,
                plan=chosen,
                cluster=cluster,
                credentials=self.paths.credentials,
                attempt=self.attempt,
                number=self.ticket,
                job_id=self.provider_job,
                check=check,
                executing=executing,
                waiting=waiting,
                pace=self.pace,
                another=choosing.chosen,
            ).run(circuit)

        known = self._known("Validated", metrics)
        choosing = Assignments(plan, self.paths, cluster, known)
        result = self._execute(choosing, run)
        _tell_times(result)
        with tracing.span("store", quantum_output_type=plan.spec.output.type):
            self._ran(result)
            made = document(plan, code, self.attempt, metrics, result)
            formatted = write(Run(made, circuit, result.circuit), plan.spec.output.format)
            stored = storing.keep_and_put(formatted, counts_json(made), self.report, metrics)
            story.show_stored(stored)
        self.report = attrs.evolve(self.report, stored=stored)

    def _run_here(
        self,
        driver: RunnerDriver,
        circuit: QuantumCircuit,
        plan: Plan,
        executing: Callable[[str], None],
    ) -> RunResult:
        timeout = parse_duration(plan.spec.execution.timeout)
        with contextlib.ExitStack() as bound:

            def begin(backend: str) -> None:
                executing(backend)
                bound.enter_context(
                    self._bound(timeout.total_seconds(), Reason.TIMEOUT, timeout_message(timeout))
                )

            return driver.run(circuit, plan, attempt=self.attempt, executing=begin)

    @contextlib.contextmanager
    def _bound(self, seconds: float, reason: Reason, message: str) -> Iterator[None]:
        """This process is ended, with that report, if the block takes longer."""
        self.timer.start(seconds, attrs.evolve(self.report, reason=reason, message=message))
        try:
            yield
        finally:
            self.timer.stop()

    def _execute(self, choosing: Assignments, run: Callable[[Plan], RunResult]) -> RunResult:
        """Run on the plan's backend, or on the one that the controller chooses."""
        while True:
            plan = choosing.take()
            # What is told from now on says so too.
            self.traits = {
                **self.traits,
                "assignment": choosing.progress.assignment,
                "refused": choosing.progress.refused,
            }
            try:
                return run(plan)
            except BackendDown as down:
                name = plan.spec.backend.name
                if not choosing.chosen or name is None:
                    raise
                choosing.refuse(name, down.message)

    def _load(self, plan: Plan) -> tuple[QuantumCircuit, CircuitMetrics]:
        try:
            content = read_file(self.paths.work, CIRCUIT_FILE, plan.limits.circuit_bytes)
        except Unreadable as error:
            raise rules.BadCircuit(Reason.CIRCUIT_INVALID, f"the circuit: {error}") from None
        return load_circuit(content)

    def _ran(self, result: RunResult) -> None:
        transpiled = result.circuit
        operations = ", ".join(
            f"{n} {clean(str(name), 40)}" for name, n in list(transpiled.count_ops().items())[:12]
        )
        story.say(
            f"Ran        {transpiled.num_qubits} qubits, depth {transpiled.depth()} after "
            f"transpiling ({operations}), {result.execution_time:.3f} s"
            + (f", seed {result.seed}" if result.seed is not None else "")
        )
        story.show_counts(result.counts)
        self.report = attrs.evolve(
            self.report,
            backend=result.backend,
            started=result.started.isoformat(timespec="microseconds"),
            execution_time=result.execution_time,
            shots=sum(result.counts.values()),
            counts=dict(result.counts),
            outcomes=len(result.counts),
            usage=format_amounts(result.usage),
            message=f"{sum(result.counts.values())} shots on {result.backend} in "
            f"{result.execution_time:.3g} s, {len(result.counts)} outcomes",
        )

    def _progress(
        self,
        cluster: Cluster,
        plan: Plan,
        stage: Stage,
        metrics: CircuitMetrics,
        backend: str | None = None,
        waiting: str = "",
    ) -> None:
        """Tell the controller; without an answer the work goes on, the report says it all again."""
        progress = self._known(stage, metrics, backend, waiting)
        patch = {"data": {progress_key(self.attempt): json.dumps(to_wire(progress))}}
        try:
            with tracing.span("tell controller", quantum_progress=stage):
                cluster.patch_config_map(plan.record, patch, seconds=PROGRESS_SECONDS)
        except ApiError as error:
            story.say(f"Note       the progress {stage} could not be told: {error}")

    def _known(
        self,
        stage: Stage,
        metrics: CircuitMetrics,
        backend: str | None = None,
        waiting: str = "",
    ) -> Progress:
        return Progress(
            attempt=self.attempt,
            stage=stage,
            circuit_metrics=metrics,
            backend=backend,
            waiting=waiting,
            **self.traits,
        )


def _tell_times(result: RunResult) -> None:
    """The backend's own times, as spans."""
    name, ended = result.backend, result.started + timedelta(seconds=result.execution_time)
    if result.queued is not None:
        tracing.told("provider queue", result.queued, result.started, quantum_backend_name=name)
    shots = sum(result.counts.values())
    tracing.told("execute", result.started, ended, quantum_backend_name=name, quantum_shots=shots)


def _check_source(file: str, code: Code) -> None:
    """The code is what was planned, or fetched."""
    found = hashlib.sha256(code.path.read_bytes()).hexdigest()
    if found != code.sha256:
        raise rules.BadCircuit(
            Reason.SOURCE_HASH_MISMATCH,
            f"{file} has SHA-256 {found}, and not {code.sha256} as planned",
        )


def _read_outcome(paths: Paths) -> Outcome:
    """What the untrusted stage says of itself; its text is still as it was found."""
    try:
        content = read_file(paths.work, OUTCOME_FILE, OUTCOME_BYTES)
        outcome = from_wire(json.loads(content), Outcome)
    # RecursionError: JSON that is nested deeply.
    except (Unreadable, DecodeError, ValueError, RecursionError) as error:
        raise rules.BadCircuit(
            Reason.CIRCUIT_INVALID,
            f"the code's outcome cannot be read, so it has been tampered with: {error}",
        ) from None
    return attrs.evolve(outcome, printed=outcome.printed[-PRINTED_CHARACTERS:])


def _reason(said: str) -> Reason:
    """The reason that the untrusted stage gives, if it is one that it can have."""
    known = {each.value: each for each in rules.CIRCUIT_REASONS}
    return known.get(said, Reason.CIRCUIT_INVALID)
