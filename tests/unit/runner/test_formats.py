"""Each format, read back with the public tool for it."""

from __future__ import annotations

import csv
import io
import json
import pickle
import pickletools
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from qiskit import QuantumCircuit, qpy

from qiskit_controller.api.run import Plan
from qiskit_controller.drivers import RunResult
from qiskit_controller.runner.fetched import Code
from qiskit_controller.runner.formats import Formatted, Run, counts_json, write
from qiskit_controller.runner.metrics import metrics_of
from qiskit_controller.runner.results import document

from .support import BELL, Pod, bell

CODE = Code(Path("circuit.py"), sha256="5" * 64, commit="c" * 40)
COUNTS = {"11": 500, "00": 524}


@pytest.fixture
def plan(pod: Pod) -> Plan:
    return pod.plan(BELL)


@pytest.fixture
def run(plan: Plan) -> Run:
    circuit = bell()
    circuit.metadata = {"mine": 1}
    transpiled = QuantumCircuit(2, 2)
    transpiled.h(0)
    transpiled.cx(0, 1)
    transpiled.measure([0, 1], [0, 1])
    result = RunResult(
        counts=COUNTS,
        memory=["00", "11"],
        backend="aer_simulator",
        started=datetime(2025, 1, 17, tzinfo=UTC),
        execution_time=0.25,
        circuit=transpiled,
        seed=7,
    )
    return Run(document(plan, CODE, 2, metrics_of(circuit), result), circuit, transpiled)


def test_the_document_says_what_ran(run: Run) -> None:
    document = json.loads(write(run, "json").content)
    assert document["schemaVersion"] == 1
    assert document["counts"] == {"00": 524, "11": 500}
    assert document["memory"] == ["00", "11"]
    assert document["shots"] == 1024
    assert document["source"] == {"sha256": CODE.sha256, "commit": CODE.commit}
    assert document["transpiled"] == {
        "qubits": 2,
        "depth": 3,
        "size": 4,
        "ops": {"h": 1, "cx": 1, "measure": 2},
        "optimizationLevel": 1,
    }
    assert document["seed"] == 7
    assert document["times"] == {
        "started": "2025-01-17T00:00:00.000000+00:00",
        "executionTime": 0.25,
    }
    assert {"python", "qiskit", "qiskit-aer"} <= set(document["versions"])


def test_csv(run: Run) -> None:
    text = write(run, "csv").content.decode()
    assert text.splitlines()[0] == "bitstring,count,probability"
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["bitstring"] for row in rows] == ["00", "11"]
    assert {row["bitstring"]: int(row["count"]) for row in rows} == COUNTS
    assert sum(float(row["probability"]) for row in rows) == 1.0


def test_qpy(run: Run) -> None:
    circuit, transpiled = qpy.load(io.BytesIO(write(run, "qpy").content))
    assert circuit == run.circuit
    assert transpiled == run.transpiled
    for each in (circuit, transpiled):
        assert each.metadata["counts"] == COUNTS
        assert each.metadata["result"]["backend"] == "aer_simulator"
    assert circuit.metadata["mine"] == 1
    # What was run is as it was.
    assert run.circuit.metadata == {"mine": 1}


def test_pickle_needs_nothing_but_python(run: Run) -> None:
    content = write(run, "pickle").content
    assert pickle.loads(content) == dict(run.document)
    globals_ = [op.name for op, _, _ in pickletools.genops(content) if "GLOBAL" in op.name]
    assert globals_ == []
    read = "import pickle, sys; print(pickle.load(sys.stdin.buffer)['counts'])"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", read], input=content, capture_output=True, check=True
    )
    assert done.stdout == b"{'00': 524, '11': 500}\n"


def test_counts_are_one_line_in_order(run: Run) -> None:
    assert counts_json(run.document) == '{"00":524,"11":500}'


@pytest.mark.parametrize("output_format", ["json", "csv", "qpy", "pickle"])
def test_the_same_result_gives_the_same_bytes(run: Run, output_format: str) -> None:
    def written() -> Formatted:
        return write(run, output_format)  # type: ignore[arg-type]  parametrize gives any str

    first = written()
    assert first == written()
    assert first.file == f"results.{output_format}"
    assert first.text == (output_format in ("json", "csv"))
