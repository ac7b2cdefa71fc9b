"""Circuits in every format and with parameters, through the untrusted stage."""

from __future__ import annotations

import io
from collections.abc import Mapping

import pytest
from qiskit import QuantumCircuit, qasm2, qasm3, qpy
from qiskit.circuit import Parameter, ParameterVector

from qiskit_controller.api.run import Reason
from qiskit_controller.runner.circuit_child import format_of

from .support import BELL, Pod, Ran, bell, qpy_of, run_together

QASM2 = qasm2.dumps(bell())
QASM3 = qasm3.dumps(bell())

# Name of the file and its content.
READ: dict[str, tuple[str, str | bytes]] = {
    "OpenQASM 2": ("bell.qasm", QASM2),
    "OpenQASM 3": ("bell.qasm", QASM3),
    "OpenQASM 3 without a header": ("bell.qasm", QASM3.replace("OPENQASM 3.0;\n", "")),
    "QPY": ("bell.qpy", qpy_of(bell())),
    "Python by content": ("bell", BELL),
    "OpenQASM by content": ("bell", "// a comment\n/* and\n another */\n" + QASM3),
    "QPY by content": ("bell", qpy_of(bell())),
}


def _written(pod: Pod) -> QuantumCircuit:
    (circuit,) = qpy.load(io.BytesIO((pod.paths.work / "circuit.qpy").read_bytes()))
    return circuit


@pytest.fixture(scope="module")
def read(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, tuple[Pod, Ran]]:
    def lay_out(pod: Pod, what: str) -> None:
        file, source = READ[what]
        pod.plan(source, file=file)

    return run_together(request, tmp_path_factory, "test_formats", lay_out)


@pytest.mark.parametrize("what", READ)
def test_formats(read: Mapping[str, tuple[Pod, Ran]], what: str) -> None:
    pod, ran = read[what]
    assert pod.outcome().reason is None, ran.printed
    assert _written(pod).count_ops() == bell().count_ops()


def test_an_older_qpy_is_written_anew(pod: Pod) -> None:
    buffer = io.BytesIO()
    qpy.dump(bell(), buffer, version=13)
    pod.plan(buffer.getvalue(), file="bell.qpy")
    pod.circuit()
    content = (pod.paths.work / "circuit.qpy").read_bytes()
    assert content[6] == qpy.QPY_VERSION


BAD: dict[str, tuple[str, str | bytes, Reason, str]] = {
    "OpenQASM 2": (
        "bell.qasm",
        QASM2.replace("h q[0]", "hh q[0]"),
        Reason.CIRCUIT_SYNTAX_ERROR,
        "bell.qasm, line 5: 'hh' is not defined",
    ),
    "OpenQASM 3": (
        "bell.qasm",
        QASM3.replace("h q[0];", "h q[0"),
        Reason.CIRCUIT_SYNTAX_ERROR,
        "bell.qasm, line 6: no viable alternative",
    ),
    "OpenQASM 3 that means nothing": (
        "bell.qasm",
        QASM3.replace("h q[0];", "hh q[0];"),
        Reason.CIRCUIT_SYNTAX_ERROR,
        "bell.qasm, line 5: gate 'hh' is not defined",
    ),
    "OpenQASM 4": ("bell.qasm", "OPENQASM 4.0;", Reason.CIRCUIT_SYNTAX_ERROR, "OpenQASM 4"),
    "not text": ("bell.qasm", b"\xff\xfe", Reason.CIRCUIT_SYNTAX_ERROR, "not text in UTF-8"),
    "QPY": ("bell.qpy", qpy_of(bell())[:-30], Reason.CIRCUIT_INVALID, "cannot be read as QPY"),
    "no QPY": ("bell.qpy", b"", Reason.CIRCUIT_INVALID, "bell.qpy cannot be read as QPY"),
    "two in QPY": (
        "bell.qpy",
        qpy_of(bell(), bell()),
        Reason.AMBIGUOUS_CIRCUIT,
        "bell.qpy holds 2 circuits; exactly one can be run",
    ),
    "nothing measured": (
        "bell.qasm",
        'OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[1];\nh q[0];\n',
        Reason.NO_MEASUREMENT,
        "measure_all()",
    ),
}


@pytest.fixture(scope="module")
def bad(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, tuple[Pod, Ran]]:
    def lay_out(pod: Pod, what: str) -> None:
        file, source, _, _ = BAD[what]
        pod.plan(source, file=file)

    return run_together(request, tmp_path_factory, "test_bad_files", lay_out)


@pytest.mark.parametrize("what", BAD)
def test_bad_files(bad: Mapping[str, tuple[Pod, Ran]], what: str) -> None:
    _, _, reason, part = BAD[what]
    pod, ran = bad[what]
    assert ran.code == 0
    outcome = pod.outcome()
    assert outcome.reason == reason, outcome.message
    assert part in outcome.message


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("a.py", b"OPENQASM 3;", "python"),
        ("a.QASM", b"", "qasm"),
        ("a.qpy", b"", "qpy"),
        ("a.txt", b"QISKIT\x0f", "qpy"),
        ("a.txt", b"\n// x\nOPENQASM 2.0;", "qasm"),
        ("a.inc", b"x = 1 # OPENQASM 2.0", "python"),
        ("a", b"", "python"),
    ],
)
def test_the_format_is_told_by_the_ending_then_by_the_content(
    file: str, source: bytes, expected: str
) -> None:
    assert format_of(file, source) == expected


def _with_parameters() -> bytes:
    circuit = QuantumCircuit(1)
    circuit.rx(Parameter("phi"), 0)
    theta = ParameterVector("theta", 2)
    circuit.ry(theta[0] + 2 * theta[1], 0)
    circuit.measure_all()
    return qpy_of(circuit)


def test_parameters_are_bound(pod: Pod) -> None:
    values = {"phi": 1, "theta[0]": 0.5, "theta[1]": -0.25}
    pod.plan(_with_parameters(), file="a.qpy", spec={"circuit": {"parameters": values}})
    ran = pod.circuit()
    assert pod.outcome().reason is None, ran.printed
    circuit = _written(pod)
    assert [float(each.operation.params[0]) for each in circuit.data[:2]] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "reason", "message"),
    [
        (
            {"phi": 1.0, "theta": 2.0},
            Reason.UNKNOWN_PARAMETERS,
            "spec.circuit.parameters: the circuit has no theta; its parameters are: phi, "
            "theta[0], theta[1]",
        ),
        (
            {"phi": 1.0},
            Reason.UNBOUND_PARAMETERS,
            "the circuit's parameters have no value: theta[0], theta[1]; give each a number in "
            "spec.circuit.parameters or call assign_parameters()",
        ),
    ],
)
def test_parameters_that_do_not_fit(
    pod: Pod, values: Mapping[str, float], reason: Reason, message: str
) -> None:
    pod.plan(_with_parameters(), file="a.qpy", spec={"circuit": {"parameters": values}})
    pod.circuit()
    outcome = pod.outcome()
    assert (outcome.reason, outcome.message) == (reason, message)
