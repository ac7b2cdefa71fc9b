"""The executor of an attempt that only stores.

An earlier attempt ran the circuit and kept its result in the record, but could not store it, or
was lost before it had. This pod has no stages before it, runs nothing, and needs no Qiskit.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

import attrs

from qiskit_controller.api.run import Reason, Report, encode_report
from qiskit_controller.runner import story, tracing
from qiskit_controller.runner.cluster import Cluster
from qiskit_controller.runner.hostile import MESSAGE_CHARACTERS, clean
from qiskit_controller.runner.keeping import TAKE_SECONDS, take
from qiskit_controller.runner.plan import read_plan
from qiskit_controller.runner.pod import Paths
from qiskit_controller.runner.stores import StoreFailed, open_store
from qiskit_controller.runner.stores.base import patiently
from qiskit_controller.runner.storing import Storing

ClusterOf = Callable[[Paths, str], Cluster]


def run_stage(
    paths: Paths, attempt: int, kept_by: int, cluster_of: ClusterOf = Cluster.of_pod
) -> int:
    """Store what an earlier attempt kept.

    Args:
        kept_by: that attempt.
        cluster_of: makes the client, of the paths and the namespace; a test has its own.

    Returns:
        The exit code: 0 when the result is stored, 1 when the report says why not.
    """
    begun = time.monotonic()
    tracing.start()
    report = Report(attempt=attempt)
    try:
        report = _store(paths, attempt, kept_by, cluster_of)
    except StoreFailed as error:
        report = _failed(report, error.reason, error.message)
    # As in the executor: whatever it is, the controller gets a report of it.
    except Exception as error:
        traceback.print_exc()
        report = _failed(report, Reason.EXECUTOR_FAILED, f"{type(error).__name__}: {error}")
    story.show_end(report, time.monotonic() - begun)
    report = attrs.evolve(report, begun=tracing.begun(), ended=tracing.now())
    paths.termination_log.write_text(encode_report(report))
    tracing.finish()
    return 0 if report.reason is None else 1


def _store(paths: Paths, attempt: int, kept_by: int, cluster_of: ClusterOf) -> Report:
    plan = read_plan(paths)
    cluster = cluster_of(paths, plan.job.namespace)
    story.say(
        f"QiskitJob  {plan.job.namespace}/{plan.job.name}  (uid {plan.job.uid}), attempt {attempt}"
    )
    story.say(f"Storing    the result of attempt {kept_by}; the circuit is not run again")
    with tracing.span("load"):
        progress, formatted, counts = patiently(
            lambda: take(cluster, plan, kept_by), TAKE_SECONDS, story.say
        )
    storing = Storing(plan, attempt, cluster, open_store(plan, cluster, paths))
    with tracing.span("store", quantum_output_type=plan.spec.output.type):
        stored = storing.put_kept(formatted, counts, kept_by)
    story.show_stored(stored)
    ran = progress.report or Report(attempt=kept_by)
    return attrs.evolve(ran, attempt=attempt, stored=stored)


def _failed(report: Report, reason: Reason, message: str) -> Report:
    return attrs.evolve(report, reason=reason, message=clean(message, MESSAGE_CHARACTERS))
