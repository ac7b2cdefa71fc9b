"""Executors as processes of their own, made quickly: forked from one that has imported everything.

``python -m tests.unit.runner.nursery`` reads one order a line, as JSON, and prints ``[pid, order]``
when a process was made and ``[pid, null]`` when it has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
from pathlib import Path
from typing import Any

from qiskit_controller.drivers import runner_driver
from qiskit_controller.drivers.ibm_quantum import account
from qiskit_controller.drivers.ibm_quantum import runner as ibm_runner
from qiskit_controller.runner import executor
from qiskit_controller.runner.cluster import Cluster
from qiskit_controller.runner.pod import Paths
from qiskit_controller.runner.remote import Pace

from .support import no_timer

# What a request may take at most, and what is waited for one that was not answered: as in a real
# pod, the second is the larger.
account.CONNECT_SECONDS = ibm_runner.CONNECT_SECONDS = 1.0
account.READ_SECONDS = ibm_runner.READ_SECONDS = 6.0
ibm_runner.LISTING_SECONDS = 1.0
PACE = Pace(
    before=120.0,
    submitting=2.0,
    first=0.1,
    longest=1.0,
    queued=(0.3, 2.0),
    running=(0.2, 1.0),
    telling=1.0,
    cluster=60.0,
)


def main() -> None:
    # What would be imported and made by each of them.
    import qiskit.transpiler
    import qiskit_ibm_runtime

    _ = qiskit.transpiler, qiskit_ibm_runtime
    runner_driver("ibm_quantum")
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], 0.05)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                tell(ended, None)
        if not ready:
            continue
        # Unbuffered, as select knows nothing of what was read ahead.
        line = os.read(sys.stdin.fileno(), 1 << 16)
        if not line:
            return
        for order in map(json.loads, line.splitlines()):
            pid = os.fork()
            if pid == 0:
                execute(order)
            tell(pid, order)


def tell(pid: int, order: Any) -> None:
    print(json.dumps([pid, order]), flush=True)


def execute(order: dict[str, Any]) -> None:
    """The executor of one pod; it does not return."""
    root = Path(order["root"])
    paths = Paths.under(root)
    log = os.open(root / f"log-{order['attempt']}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(0)
    code = executor.run_stage(
        paths,
        order["attempt"],
        no_timer(),
        lambda paths, namespace: Cluster(order["server"], paths.token, namespace),
        ticket=order["ticket"],
        pace=PACE,
    )
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
