"""Run one stage below another root, with what a test changes about it.

``python -m tests.unit.runner.stage <stage> <root>``: as ``qiskit-runner <stage> --root <root>``,
but against an API server without TLS, and with a memory limit where no container gives one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from qiskit_controller.runner.__main__ import _set_threads
from qiskit_controller.runner.pod import Paths
from qiskit_controller.runner.supervisor import Timer, supervise


def main() -> int:
    stage, root = sys.argv[1:]
    paths = Paths.under(Path(root))
    _set_threads()
    if stage == "circuit":
        from qiskit_controller.runner import circuit_stage
        from qiskit_controller.runner.plan import read_plan

        limit = os.environ.get("QUANTUM_TEST_MEMORY")
        circuit_stage.run_stage(read_plan(paths), paths, memory_limit=int(limit) if limit else None)
        return 0
    attempt = int(os.environ["QUANTUM_ATTEMPT"])
    return supervise(lambda timer: _execute(paths, attempt, timer), paths.termination_log, attempt)


def _execute(paths: Paths, attempt: int, timer: Timer) -> int:
    from qiskit_controller.runner import executor, keeping, storing
    from qiskit_controller.runner.cluster import Cluster
    from qiskit_controller.runner.stores import configmap

    # Patience is for real outages.
    storing.CHECK_SECONDS = storing.KEPT_SECONDS = storing.UNKEPT_SECONDS = 4.0
    configmap.FORBIDDEN_SECONDS, configmap.REQUEST_SECONDS = 1.0, 2.0
    keeping.KEEP_SECONDS = executor.PROGRESS_SECONDS = 5.0
    url = os.environ["QUANTUM_TEST_SERVER"]
    return executor.run_stage(
        paths, attempt, timer, lambda paths, namespace: Cluster(url, paths.token, namespace)
    )


if __name__ == "__main__":
    sys.exit(main())
