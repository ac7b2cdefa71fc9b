"""``qiskit-runner <stage>``: one stage of a job's pod."""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path

from qiskit_controller.api.run import ATTEMPT_ENV, PROVIDER_JOB_ENV, STORE_ENV, TICKET_ENV
from qiskit_controller.runner.pod import Cgroup, Paths


def main(arguments: list[str] | None = None) -> int:
    """Run a stage; the exit code is the container's."""
    parser = argparse.ArgumentParser(
        prog="qiskit-runner", description="One stage of the pod of a QiskitJob."
    )
    stages = ("source", "circuit", "executor", "cancel", "probe", "session")
    parser.add_argument("stage", choices=stages)
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        help="folder below which the pod's folders are, to run a stage outside a pod",
    )
    given = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Circuits are drawn with box characters, whatever locale the image has.
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    _set_threads()
    paths = Paths.under(given.root)
    # Each stage imports its own needs only: what is imported is what the job waits for.
    if given.stage != "circuit":
        from qiskit_controller.runner import logs, tracing

        tracing.begin()
        logs.configure(paths, given.stage)
    if given.stage == "source":
        from qiskit_controller.runner import source_stage
        from qiskit_controller.runner.plan import read_plan

        return source_stage.run_stage(read_plan(paths), paths)
    if given.stage == "circuit":
        from qiskit_controller.runner import circuit_stage
        from qiskit_controller.runner.plan import read_plan

        circuit_stage.run_stage(read_plan(paths), paths)
        return 0
    ticket = int(os.environ.get(TICKET_ENV, "1"))
    provider_job = os.environ.get(PROVIDER_JOB_ENV)
    if given.stage == "cancel":
        from qiskit_controller.runner import cancel_stage

        return cancel_stage.run_stage(paths, ticket, provider_job)
    if given.stage == "probe":
        from qiskit_controller.runner.devices import run_probe

        return run_probe(paths)
    if given.stage == "session":
        from qiskit_controller.runner.sessions import run_session

        return run_session(paths)
    from qiskit_controller.runner.supervisor import Timer, supervise

    attempt = int(os.environ.get(ATTEMPT_ENV, "1"))

    kept_by = os.environ.get(STORE_ENV)

    def work(timer: Timer) -> int:
        if kept_by is not None:
            from qiskit_controller.runner import store_stage

            return store_stage.run_stage(paths, attempt, int(kept_by))
        from qiskit_controller.runner import executor

        return executor.run_stage(paths, attempt, timer, ticket=ticket, provider_job=provider_job)

    return supervise(work, paths.termination_log, attempt)


def _set_threads() -> None:
    """Size thread pools by the container's CPUs; they would take the node's."""
    cpus = str(Cgroup().cpus())
    for name, value in (
        ("OMP_NUM_THREADS", cpus),
        ("RAYON_NUM_THREADS", cpus),
        # Before numpy is imported: its pool would be made at once, and never used.
        ("OPENBLAS_NUM_THREADS", "1"),
        # One circuit: no pool of processes.
        ("QISKIT_PARALLEL", "FALSE"),
    ):
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    sys.exit(main())
