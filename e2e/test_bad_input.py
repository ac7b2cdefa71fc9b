"""Whatever a user writes, the job says what is wrong with it, and the controller is unharmed."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from .harness import (
    Controller,
    Kubectl,
    as_list,
    condition_of,
    events_of,
    eventually,
    quantum_job,
    wait_phase,
)


@attrs.frozen
class Case:
    """Code that ends its job in Failed.

    Attributes:
        reason: of the condition Failed.
        message: how the condition's message begins.
        says: what else it has to say.
    """

    name: str
    code: str
    reason: str
    message: str
    says: tuple[str, ...] = ()
    spec: dict[str, Any] = attrs.field(factory=dict)


CASES = (
    Case(
        "syntax-error",
        "from qiskit import QuantumCircuit\nqc = QuantumCircuit(2\n",
        "CircuitSyntaxError",
        "circuit.py, line 2: SyntaxError: '(' was never closed: qc = QuantumCircuit(2",
    ),
    Case(
        "import-error",
        "\nimport qiskit_machine_learning\n",
        "CircuitImportError",
        "circuit.py, line 2: ModuleNotFoundError: No module named 'qiskit_machine_learning'; "
        "the runner image has qiskit ",
        ("qiskit-aer ", "numpy "),
    ),
    Case(
        "exception",
        "from qiskit import QuantumCircuit\n\n\ndef build():\n"
        "    return QuantumCircuit(1).h(7)\n\n\nqc = build()\n",
        "CircuitException",
        "circuit.py, line 5: CircuitError: 'Index 7 out of range for size 1.'",
    ),
    Case(
        "no-circuit",
        "answer = 42\n",
        "NoCircuit",
        "circuit.py makes no circuit: after it ran, there is no QuantumCircuit among its global "
        "variables; assign the circuit to the variable qc",
    ),
    Case(
        "two-circuits",
        "from qiskit import QuantumCircuit\nfirst = QuantumCircuit(1, 1)\n"
        "second = QuantumCircuit(2, 2)\n",
        "AmbiguousCircuit",
        "circuit.py makes several circuits: first, second; name the one to run qc",
    ),
    Case(
        "infinite-loop",
        "turns = 0\nwhile True:\n    turns += 1\n",
        "CircuitTimeout",
        "circuit.py, line ",
        ("the code was still running after 40 s, which is the limit for making a circuit",),
        # The others want to run too.
        {"resources": {"limits": {"cpu": "500m"}}},
    ),
    Case(
        "two-gibibytes",
        "big = bytearray(2 << 30)\n",
        "CircuitOutOfMemory",
        "circuit.py, line 1: MemoryError; raise spec.resources.limits.memory or use less",
    ),
    Case(
        "ten-megabytes-of-prints",
        "for line in range(100_000):\n    print('x' * 100)\n",
        "CircuitOutputTooLarge",
        "circuit.py, line ",
        ("the code printed more than 1000000 bytes",),
    ),
    Case(
        "os-exit",
        "import os\nos._exit(0)\n",
        "CircuitExited",
        "circuit.py: the code ended its process with exit code 0 before there was a circuit; "
        "do not call os._exit()",
    ),
)

# Refused by the API server, which names the field.
REFUSED = {
    "unknown-backend-type": (
        {"backend": {"type": "abacus"}},
        'spec.backend.type: Unsupported value: "abacus": supported values: "ibm_quantum", '
        '"ibm_simulator", "aws_braket", "local_simulator"',
    ),
    "shots-0": (
        {"execution": {"shots": 0}},
        "spec.execution.shots: Invalid value: 0: spec.execution.shots in body should be greater "
        "than or equal to 1",
    ),
    "negative-timeout": (
        {"execution": {"timeout": "-5m"}},
        'spec.execution.timeout: Invalid value: "-5m": spec.execution.timeout in body should match',
    ),
    "timeout-soon": (
        {"execution": {"timeout": "soon"}},
        'spec.execution.timeout: Invalid value: "soon": spec.execution.timeout in body should '
        "match",
    ),
}


@attrs.frozen
class Submitted:
    """All cases, running side by side."""

    kubectl: Kubectl
    restarts_before: dict[str, int]


@pytest.fixture(scope="module")
def submitted(module_namespace: Kubectl, controller: Controller) -> Submitted:
    """Every bad job, submitted at once."""
    controller.wait_ready()
    restarts = controller.restarts()
    module_namespace.apply(*(quantum_job(case.name, case.code, **case.spec) for case in CASES))
    return Submitted(module_namespace, restarts)


@pytest.mark.parametrize(("spec", "message"), REFUSED.values(), ids=REFUSED)
def test_is_refused_at_apply(
    submitted: Submitted, spec: dict[str, Any], message: str, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    refused = submitted.kubectl.run(
        *("apply", "-f", "-"),
        stdin=as_list([quantum_job(name, **spec)]),
        check=False,
    )
    print(refused.err)
    assert refused.code != 0
    assert message in refused.err
    assert submitted.kubectl.get("qiskitjob", name) is None


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_fails_with_a_message_that_helps(submitted: Submitted, case: Case) -> None:
    kubectl = submitted.kubectl
    job = wait_phase(kubectl, case.name, "Failed")
    failed = condition_of(job, "Failed")
    assert failed is not None
    print(f"{failed['reason']}: {failed['message']}")
    assert (failed["status"], failed["reason"]) == ("True", case.reason)
    assert failed["message"].startswith(case.message)
    for said in case.says:
        assert said in failed["message"]
    assert job["status"]["message"] == f"{case.reason}: {failed['message']}"
    complete = condition_of(job, "Complete")
    assert complete is not None
    assert (complete["status"], complete["reason"]) == ("False", case.reason)
    # A wrong circuit is not tried again, and leaves no empty results behind.
    assert len(job["status"]["attempts"]) == 1
    assert kubectl.get("configmap", f"{case.name}-results") is None

    eventually(
        lambda: case.reason in [each["reason"] for each in events_of(kubectl, case.name)],
        "there is an Event about it",
    )
    description = kubectl("describe", "qiskitjob", case.name)
    assert "Traceback" not in description
    assert 'File "' not in description
    warning = next(line for line in description.splitlines() if "Warning " in line)
    assert case.reason in warning
    assert f"Failed     {case.reason}: {failed['message']}" in kubectl(
        "logs", f"job/qiskit-job-{case.name}"
    )


def test_the_controller_is_unharmed(submitted: Submitted, controller: Controller) -> None:
    for case in CASES:
        wait_phase(submitted.kubectl, case.name, "Failed")
    submitted.kubectl.apply(quantum_job("good"))
    wait_phase(submitted.kubectl, "good", "Completed")
    assert controller.ready()
    restarts = controller.restarts()
    print(restarts)
    assert restarts == submitted.restarts_before
    assert set(restarts.values()) == {0}
    for name in restarts:
        assert "Traceback" not in controller.kubectl("logs", name)
