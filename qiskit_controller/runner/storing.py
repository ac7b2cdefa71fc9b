"""Check before the circuit runs; keep and store what came of it.

The stores try once. How often, and what becomes of a result that cannot be stored now, is
decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from qiskit_controller.api.qiskitjob import CircuitMetrics, OutputFormat
from qiskit_controller.api.run import (
    Plan,
    Progress,
    Reason,
    Report,
    Retry,
    StoredResult,
    fit_report,
    result_key,
)
from qiskit_controller.runner import story
from qiskit_controller.runner.cluster import Cluster
from qiskit_controller.runner.formats import Formatted
from qiskit_controller.runner.keeping import keep
from qiskit_controller.runner.stores.base import Store, StoreFailed, patiently

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

CHECK_SECONDS = 20.0
# Whoever watches the job learns soon what is wrong; the controller tries again later.
KEPT_SECONDS = 20.0
# Nobody tries again after this pod.
UNKEPT_SECONDS = 900.0

# Bytes around each outcome in the memory of shots, as each format writes it, and how often.
_MEMORY_FORMS: dict[OutputFormat, tuple[int, int]] = {
    "json": (8, 1),  # its own line, indented, in quotes
    "pickle": (3, 1),
    "qpy": (4, 2),  # in the metadata of both circuits
}


@attrs.frozen
class Storing:
    """What one attempt needs to store its result."""

    plan: Plan
    attempt: int
    cluster: Cluster
    store: Store

    def check(self, circuit: QuantumCircuit) -> None:
        """Find out what would keep the result from being stored, while nothing is paid yet.

        Raises:
            StoreFailed: and why; nothing has run.
        """
        least = least_bytes(self.plan, [len(each) for each in circuit.cregs])
        patiently(lambda: self.store.check(least), CHECK_SECONDS, _note)

    def keep_and_put(
        self, formatted: Formatted, counts: str, report: Report, metrics: CircuitMetrics
    ) -> StoredResult:
        """Keep the result in the record, then store it.

        Raises:
            StoreFailed: it is not stored; the message says whether it is kept.
        """
        progress = Progress(
            attempt=self.attempt,
            stage="Executed",
            circuit_metrics=metrics,
            backend=report.backend,
            report=fit_report(report),
        )
        lacking = keep(self.cluster, self.plan, progress, formatted, counts)
        if lacking is None:
            return self.put_kept(formatted, counts, self.attempt)
        _note(f"the result cannot be kept in the cluster: {lacking}; it is stored now or lost")
        try:
            return patiently(lambda: self.store.put(formatted, counts), UNKEPT_SECONDS, _note)
        except StoreFailed as error:
            # Another attempt would run the circuit again, and perhaps be paid again.
            never = error.reason.retry is Retry.NEVER
            raise StoreFailed(
                error.reason if never else Reason.RESULT_LOST,
                f"{error.message}. The result is not kept either: {lacking}",
            ) from None

    def put_kept(self, formatted: Formatted, counts: str, kept_by: int) -> StoredResult:
        """Store what is kept.

        Args:
            kept_by: the attempt that ran the circuit.

        Raises:
            StoreFailed: it is not stored; it stays kept.
        """
        try:
            return patiently(lambda: self.store.put(formatted, counts), KEPT_SECONDS, _note)
        except StoreFailed as error:
            raise StoreFailed(
                error.reason,
                f"{error.message}. The result is kept in ConfigMap {self.plan.record} under "
                f"{result_key(kept_by)}, and the circuit is not run again",
            ) from None


def least_bytes(plan: Plan, registers: Sequence[int]) -> int:
    """What the result will have at least; how many outcomes there will be is not known before.

    Args:
        registers: classical bits of each register.
    """
    output = plan.spec.output
    form = _MEMORY_FORMS.get(output.format)
    if not output.memory or form is None:
        return 0
    around, times = form
    # One blank between registers.
    outcome = sum(registers) + max(0, len(registers) - 1)
    return times * plan.spec.execution.shots * (outcome + around)


def _note(text: str) -> None:
    story.say(f"Note       {text}")
