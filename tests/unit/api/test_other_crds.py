"""The CRDs beside the QiskitJob's: the same rules, their samples, and what kubectl shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qiskit_controller.api import crd
from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.qiskitbackend import QiskitBackend
from qiskit_controller.api.qiskitbudget import QiskitBudget
from qiskit_controller.api.qiskitsession import QiskitSession

from .test_crd import FORBIDDEN, nodes

REPOSITORY = Path(__file__).parents[3]
MADE = {
    "QiskitBackend": crd.qiskitbackend_crd(),
    "QiskitBudget": crd.qiskitbudget_crd(),
    "QiskitSession": crd.qiskitsession_crd(),
}
TYPES: dict[str, type] = {
    "QiskitBackend": QiskitBackend,
    "QiskitBudget": QiskitBudget,
    "QiskitSession": QiskitSession,
}


def schema_of(kind: str) -> dict[str, Any]:
    (version,) = MADE[kind]["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


@pytest.mark.parametrize("kind", MADE)
def test_the_schema_is_structural_described_and_bounded(kind: str) -> None:
    server_side = {".apiVersion", ".kind", ".metadata"}
    for path, schema in nodes(schema_of(kind)):
        assert schema["type"] in ("object", "array", "string", "integer", "number", "boolean")
        assert not FORBIDDEN & set(schema), path
        assert not {"properties", "additionalProperties"} <= set(schema), path
        assert set(schema.get("required", ())) <= set(schema.get("properties", {}))
        if path and not path.endswith("[]") and path not in server_side:
            assert schema["description"].endswith("."), path
        if "x-kubernetes-list-map-keys" in schema:
            assert set(schema["x-kubernetes-list-map-keys"]) <= set(schema["items"]["required"])
        if not path.startswith(".spec"):
            continue
        if schema["type"] == "string" and "enum" not in schema:
            assert schema.get("maxLength"), path
        if schema["type"] == "array":
            assert schema.get("maxItems"), path
        if schema["type"] == "integer":
            assert {"minimum", "maximum"} <= set(schema), path


@pytest.mark.parametrize("kind", MADE)
def test_columns_show_fields_that_are_there(kind: str) -> None:
    (version,) = MADE[kind]["spec"]["versions"]
    assert version["subresources"] == {"status": {}}
    every = dict(nodes(schema_of(kind)))
    for column in version["additionalPrinterColumns"]:
        if column["jsonPath"].startswith(".metadata"):
            continue
        shown = every[column["jsonPath"]]
        expected = "string" if column["type"] == "date" else column["type"]
        assert shown["type"] == expected, column["name"]


def test_a_budget_is_shown_at_a_glance() -> None:
    (version,) = MADE["QiskitBudget"]["spec"]["versions"]
    shown = [each["name"] for each in version["additionalPrinterColumns"] if "priority" not in each]
    assert shown == ["Period", "Limit", "Spent", "Reserved", "Remaining", "Age"]


def test_a_session_is_shown_at_a_glance() -> None:
    (version,) = MADE["QiskitSession"]["spec"]["versions"]
    shown = [each["name"] for each in version["additionalPrinterColumns"] if "priority" not in each]
    assert shown == ["Phase", "Mode", "Device", "Running", "Waiting", "Expires", "Age"]


def test_short_names_differ() -> None:
    every = [make()["spec"]["names"]["shortNames"][0] for make in crd.CRDS]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("file", ["qiskitbackend.yaml", "qiskitbudget.yaml", "qiskitsession.yaml"])
def test_the_samples_can_be_read_and_say_nothing_else(file: str) -> None:
    text = (REPOSITORY / "manifests" / "samples" / file).read_text()
    for wire in yaml.safe_load_all(text):
        read = from_wire({"spec": wire["spec"]}, TYPES[wire["kind"]])
        written = to_wire(read)["spec"]
        for key, value in wire["spec"].items():
            assert written[key] == value, key


def test_every_crd_is_installed() -> None:
    listed = yaml.safe_load((REPOSITORY / "manifests/crd/kustomization.yaml").read_text())
    made = {path.name for path in crd.files() if path.parent.name == "crd"}
    assert set(listed["resources"]) == made


def test_who_may_do_what() -> None:
    """Editors of a namespace cannot raise a budget, but open sessions, as they run jobs; the
    controller changes no spec."""
    rules: dict[str, dict[str, set[str]]] = {}
    for file in ("users.yaml", "controller.yaml"):
        for each in yaml.safe_load_all((REPOSITORY / "manifests" / "rbac" / file).read_text()):
            if each["kind"] != "ClusterRole":
                continue
            found = rules.setdefault(each["metadata"]["name"], {})
            for rule in each["rules"]:
                for resource in rule["resources"]:
                    found.setdefault(resource, set()).update(rule["verbs"])
    read = {"get", "list", "watch"}
    assert "qiskitbudgets" not in rules["qiskit-jobs-edit"]
    assert rules["qiskit-jobs-view"]["qiskitbudgets"] == read
    assert "update" in rules["qiskit-jobs-admin"]["qiskitbudgets"]
    for resource in ("qiskitbudgets", "qiskitbackends"):
        assert rules["qiskit-controller"][resource] == read
        assert rules["qiskit-controller"][f"{resource}/status"] == {"update"}
    assert {"create", "delete"} <= rules["qiskit-jobs-edit"]["qiskitsessions"]
    assert rules["qiskit-jobs-view"]["qiskitsessions"] == read
    assert rules["qiskit-controller"]["qiskitsessions"] == read | {"create", "patch", "delete"}
    assert rules["qiskit-controller"]["qiskitsessions/status"] == {"update"}
