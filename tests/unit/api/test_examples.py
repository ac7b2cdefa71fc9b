"""Every example of the reference is read, valid, and means what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.fields import describe, wire_name
from qiskit_controller.api.qiskitjob import QiskitJobSpec, QiskitJobStatus
from qiskit_controller.api.validation import problems_of

from . import wire

EXAMPLES = Path(__file__).parent / "examples"
SAMPLES = Path(__file__).parents[3] / "manifests" / "samples"

# The fragments of the reference's chapter "Spec Fields", under their headings.
FRAGMENTS = """
backend:
  type: ibm_quantum
  name: ibm_brisbane
  instance: crn:v1:bluemix:public:quantum-computing:...
---
circuit:
  source: inline
  code: |
    from qiskit import QuantumCircuit
    qc = QuantumCircuit(2, 2)
    qc.h(0)
    qc.cx(0, 1)
    qc.measure([0, 1], [0, 1])
---
circuit:
  source: configmap
  configMapRef:
    name: my-circuit
    key: circuit.py
---
circuit:
  source: git
  gitRef:
    repository: https://github.com/org/quantum-algorithms
    branch: main
    path: circuits/bell_state.py
---
execution:
  shots: 8192
  optimizationLevel: 3
  priority: high
  timeout: 2h
  maxRetries: 5
---
session:
  name: vqe-session
  maxTime: 3600
  mode: dedicated
---
resources:
  requests:
    cpu: 500m
    memory: 1Gi
  limits:
    cpu: 2000m
    memory: 4Gi
---
budget:
  maxCost: "$50.00"
  costCenter: quantum-research
  project: drug-discovery
---
output:
  type: configmap
  location: my-results
  format: json
---
output:
  type: s3
  location: s3://my-bucket/results/job-123
  format: pickle
---
credentials:
  secretRef:
    name: ibm-quantum-credentials
---
backendSelection:
  weights:
    cost: 0.70
    queueTime: 0.15
    capability: 0.10
    availability: 0.05
  fallbackToSimulator: true
---
budget:
  maxCost: "$10.00"
  costCenter: team-alpha
"""

STATUS = """
phase: Failed
conditions:
  - type: Validated
    status: "True"
    reason: CircuitValid
    message: Circuit validation successful
  - type: BackendSelected
    status: "True"
    reason: OptimalBackend
    message: Selected ibm_brisbane based on cost
  - type: BudgetExceeded
    status: "True"
    message: Estimated cost $15.00 exceeds budget $10.00
results:
  counts:
    "00": 512
    "11": 512
  executionTime: 1.234
  queueTime: 45.67
  totalTime: 46.904
"""


def _jobs(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for file in sorted(folder.glob("*.yaml")):
        for each in yaml.safe_load_all(file.read_text()):
            if each and each.get("kind") == "QiskitJob":
                found[f"{file.name}:{each['metadata']['name']}"] = each["spec"]
    return found


SPECS = _jobs(EXAMPLES) | _jobs(SAMPLES)


def _unknown(schema: wire.Schema, value: Any, path: str) -> list[str]:
    """Fields that the API server would drop without a word."""
    if isinstance(value, list):
        return [each for item in value for each in _unknown(schema["items"], item, f"{path}[]")]
    if not isinstance(value, dict) or "additionalProperties" in schema:
        return []
    known = schema.get("properties", {})
    return [f"{path}.{name}" for name in value if name not in known] + [
        each
        for name in value.keys() & known.keys()
        for each in _unknown(known[name], value[name], f"{path}.{name}")
    ]


def _assert_sound(spec: dict[str, Any]) -> None:
    assert _unknown(wire.SPEC, spec, "spec") == []
    read = from_wire(spec, QiskitJobSpec, "spec")
    assert problems_of(read) == []
    stored = wire.defaulted(wire.SPEC, spec)
    assert to_wire(read) == wire.omit_empty(stored)


def test_the_examples_are_there() -> None:
    assert len(_jobs(EXAMPLES)) == 3


@pytest.mark.parametrize("name", SPECS)
def test_a_complete_example_is_sound(name: str) -> None:
    _assert_sound(SPECS[name])


@pytest.mark.parametrize(
    "fragment", list(yaml.safe_load_all(FRAGMENTS)), ids=lambda f: next(iter(f))
)
def test_a_fragment_is_sound(fragment: dict[str, Any]) -> None:
    spec: dict[str, Any] = {
        "backend": {"type": "ibm_quantum"},
        "circuit": {"source": "inline", "code": "qc = 1"},
    }
    _assert_sound(spec | fragment)


def test_the_status_of_the_reference_is_read() -> None:
    status = yaml.safe_load(STATUS)
    assert _unknown(wire.STATUS, status, "status") == []
    read = from_wire(status, QiskitJobStatus)
    assert read.results is not None
    assert read.results.counts == {"00": 512, "11": 512}
    assert read.conditions[0].reason == "CircuitValid"
    assert wire.omit_empty(to_wire(read))["results"]["totalTime"] == 46.904


def test_the_fields_of_spec_are_those_of_the_reference_and_those_of_the_design() -> None:
    reference = {
        "backend",
        "circuit",
        "execution",
        "session",
        "resources",
        "budget",
        "output",
        "credentials",
        "backendSelection",
    }
    ours = {"cancel", "ttlSecondsAfterFinished"}
    assert {wire_name(each.name) for each in describe(QiskitJobSpec)} == reference | ours
    for name in ours:
        assert "Additional field" in wire.SPEC["properties"][name]["description"]
