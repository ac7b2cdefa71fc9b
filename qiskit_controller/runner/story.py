"""What ``kubectl logs job/qiskit-job-<name>`` shows: the run, told to the person who asked for it.

Everything here that comes from the user's circuit or code is cleaned of control characters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from qiskit_controller.api.qiskitjob import CircuitMetrics
from qiskit_controller.api.run import Plan, Report, Retry, StoredResult
from qiskit_controller.runner.fetched import Code
from qiskit_controller.runner.hostile import clean

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

# Larger circuits are not drawn.
DRAWN_QUBITS = 12
DRAWN_DEPTH = 40
DRAWN_GATES = 120
DRAWN_NAME = 40
DRAWN_PARAMETERS = 8
DRAWN_CHARACTERS = 8000
_WIDTH = 100

SHOWN_COUNTS = 16
_BAR = 40


def say(text: str = "") -> None:
    """One line, at once: the log is followed while the job runs."""
    print(text, flush=True)


def show_job(plan: Plan, attempt: int, code: Code) -> None:
    """Which job this is, and which code."""
    spec = plan.spec
    say(f"QiskitJob  {plan.job.namespace}/{plan.job.name}  (uid {plan.job.uid}), attempt {attempt}")
    at = f", commit {code.commit}" if code.commit else ""
    say(f"Code       {clean(plan.source.file)}, {spec.circuit.source}{at}, sha256 {code.sha256}")
    asked = f"{spec.execution.shots} shots, optimization level {spec.execution.optimization_level}"
    say(f"Asked for  {spec.backend.type}, {asked}")


def show_printed(printed: str) -> None:
    """The end of what the user's code printed."""
    text = clean(printed, lines=True).strip("\n")
    if text:
        say("Printed by the code (the end of it):")
        for line in text.splitlines():
            say(f"  | {line}")


def show_circuit(circuit: QuantumCircuit, metrics: CircuitMetrics) -> None:
    """The circuit as the user wrote it, drawn where it is small."""
    say(
        f"Circuit    {metrics.qubits} qubits, {metrics.clbits} classical bits, "
        f"depth {metrics.depth}, {metrics.gates} operations"
    )
    if _is_small(circuit, metrics):
        # A drawing is a courtesy; what it fails on is no matter.
        with contextlib.suppress(Exception):
            drawing = clean(str(circuit.draw("text", fold=_WIDTH)), lines=True)
            if len(drawing) <= DRAWN_CHARACTERS:
                say(drawing)


def _is_small(circuit: QuantumCircuit, metrics: CircuitMetrics) -> bool:
    return (
        metrics.qubits <= DRAWN_QUBITS
        and metrics.clbits <= 4 * DRAWN_QUBITS
        and metrics.depth <= DRAWN_DEPTH
        and len(circuit.data) <= DRAWN_GATES
        # Names and parameters are drawn too, and are as long as the user likes.
        and all(len(each.name) <= DRAWN_NAME for each in (*circuit.qregs, *circuit.cregs))
        and all(
            len(each.operation.name) <= DRAWN_NAME
            and len(getattr(each.operation, "label", None) or "") <= DRAWN_NAME
            and len(getattr(each.operation, "params", ())) <= DRAWN_PARAMETERS
            for each in circuit.data
        )
    )


def show_counts(counts: Mapping[str, int]) -> None:
    """The most frequent outcomes, with bars."""
    shots = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    say(f"Counts     {shots} shots, {len(ranked)} outcomes")
    most = ranked[0][1] if ranked else 1
    width = len(str(most))
    for outcome, count in ranked[:SHOWN_COUNTS]:
        bar = "\N{FULL BLOCK}" * max(1, round(_BAR * count / most))
        say(f"  {clean(outcome, 80)}  {count:>{width}}  {count / shots:6.1%}  {bar}")
    if len(ranked) > SHOWN_COUNTS:
        say(f"  and {len(ranked) - SHOWN_COUNTS} more outcomes")


def show_stored(stored: StoredResult) -> None:
    """Where the result is."""
    say(f"Stored     {stored.location}, {stored.size} bytes, sha256 {stored.sha256}")


def show_end(report: Report, seconds: float) -> None:
    """The verdict."""
    if report.reason is None:
        say(f"Completed  in {seconds:.2f} s")
        return
    say(f"Failed     {report.reason}: {report.message}")
    say(f"           {_NEXT[report.reason.retry]} ({seconds:.2f} s)")


_NEXT = {
    Retry.NEVER: "Trying again would fail again: change what the message names and apply a new "
    "QiskitJob.",
    Retry.COUNTED: "This may pass: it is tried again, up to spec.execution.maxRetries times.",
    Retry.FREE: "This is not the job's doing: it is tried again.",
}
