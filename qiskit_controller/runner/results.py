"""The result document: what is stored of a run, before it takes a format.

A dict of JSON's types, with camelCase names. Readers should look at ``schemaVersion``: it grows
when a field changes its meaning or goes; new fields may come without that.

==================  =============================================================================
``schemaVersion``   1
``job``             ``namespace``, ``name``, ``uid`` of the QiskitJob, ``attempt`` from 1
``source``          ``sha256`` of the user's code, and ``commit`` for code from git
``backend``         name of what executed
``shots``           shots that came back
``counts``          shots by outcome: bit strings as Qiskit writes them, the highest classical bit
                    first, one blank between registers
``memory``          the outcome of each shot in order; only with ``output.memory``
``circuit``         the circuit as the user wrote it: ``qubits``, ``clbits``, ``depth``, ``gates``,
                    ``hash``
``transpiled``      the circuit that executed: ``qubits``, ``depth``, ``size``, ``ops`` (how many of
                    each operation), ``optimizationLevel``
``seed``            of the transpiler and the simulator; absent on hardware
``times``           ``started`` (RFC 3339), ``executionTime`` (seconds)
``versions``        of Python and of the packages that took part
==================  =============================================================================
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.qiskitjob import CircuitMetrics
from qiskit_controller.api.run import Plan
from qiskit_controller.drivers import RunResult
from qiskit_controller.runner.fetched import Code

SCHEMA_VERSION = 1

_PACKAGES = (
    "qiskit-controller",
    "qiskit",
    "qiskit-aer",
    "qiskit-ibm-runtime",
    "amazon-braket-sdk",
)

Document = Mapping[str, Any]


def document(
    plan: Plan, code: Code, attempt: int, metrics: CircuitMetrics, result: RunResult
) -> Document:
    """The result document of a run."""
    transpiled = result.circuit
    made: dict[str, Any] = {
        "schemaVersion": SCHEMA_VERSION,
        "job": to_wire(plan.job) | {"attempt": attempt},
        "source": {"sha256": code.sha256},
        "backend": result.backend,
        "shots": sum(result.counts.values()),
        "counts": {outcome: int(shots) for outcome, shots in sorted(result.counts.items())},
        "circuit": to_wire(metrics),
        "transpiled": {
            "qubits": transpiled.num_qubits,
            "depth": transpiled.depth(),
            "size": transpiled.size(),
            "ops": {str(name): int(n) for name, n in sorted(transpiled.count_ops().items())},
            "optimizationLevel": plan.spec.execution.optimization_level,
        },
        "times": {
            "started": result.started.isoformat(timespec="microseconds"),
            "executionTime": result.execution_time,
        },
        "versions": versions(),
    }
    if code.commit is not None:
        made["source"]["commit"] = code.commit
    if result.memory is not None:
        made["memory"] = list(result.memory)
    if result.seed is not None:
        made["seed"] = result.seed
    return made


def versions() -> dict[str, str]:
    """Of Python and of those of our packages that are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
