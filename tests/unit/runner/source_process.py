"""The stage ``source`` as the container runs it, with a resolver of the test's.

``python -m tests.unit.runner.source_process ROOT``; QUANTUM_TEST_HOSTS is a JSON object of
addresses by host, a list of lists where each look-up is answered differently.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from qiskit_controller.runner.plan import read_plan
from qiskit_controller.runner.pod import Paths
from qiskit_controller.runner.source_stage import run_stage

_HOSTS = json.loads(os.environ.get("QUANTUM_TEST_HOSTS", "{}"))


def resolve(host: str, _port: int) -> Sequence[str]:
    found = _HOSTS.get(host)
    if not found:
        raise OSError(-2, "Name or service not known")
    if isinstance(found[0], list):
        return list(found.pop(0) if len(found) > 1 else found[0])
    return list(found)


if __name__ == "__main__":
    paths = Paths.under(Path(sys.argv[1]))
    sys.exit(run_stage(read_plan(paths), paths, resolve_name=resolve))
