"""The CRD: what Kubernetes 1.20 to the newest accepts, and what kubectl shows of it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from qiskit_controller.api import crd

from . import wire

REPOSITORY = Path(__file__).parents[3]
RULES = "x-kubernetes-validations"
# What apiextensions.k8s.io/v1 refuses in a structural schema, or ignores.
FORBIDDEN = {
    "$ref",
    "allOf",
    "definitions",
    "dependencies",
    "deprecated",
    "discriminator",
    "id",
    "not",
    "oneOf",
    "patternProperties",
    "readOnly",
    "writeOnly",
    "xml",
}
BEHIND_AN_UNION = [{"type": "integer"}, {"type": "string"}]


def nodes(schema: wire.Schema, path: str = "") -> Iterator[tuple[str, wire.Schema]]:
    """Every schema in the schema, with its path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for inside in ("items", "additionalProperties"):
        if isinstance(schema.get(inside), dict):
            yield from nodes(schema[inside], f"{path}[]")


ALL = dict(nodes(wire.ROOT))


def test_the_walk_reaches_the_depths() -> None:
    assert ".spec.backendSelection.weights.queueTime" in ALL
    assert ".status.conditions[].lastTransitionTime" in ALL
    assert len(ALL) > 90


@pytest.mark.parametrize("path", ALL)
def test_the_schema_is_structural(path: str) -> None:
    schema = ALL[path]
    if schema.get("x-kubernetes-int-or-string"):
        assert schema["anyOf"] == BEHIND_AN_UNION
        assert "type" not in schema
    else:
        assert schema["type"] in ("object", "array", "string", "integer", "number", "boolean")
        assert "anyOf" not in schema
    assert not FORBIDDEN & set(schema)
    assert not {"properties", "additionalProperties"} <= set(schema)
    assert ("items" in schema) == (schema.get("type") == "array")
    assert set(schema.get("required", ())) <= set(schema.get("properties", {}))
    assert schema.get("uniqueItems") is not True
    if "x-kubernetes-list-map-keys" in schema:
        # The keys must always be there, or two items without them would be one.
        assert set(schema["x-kubernetes-list-map-keys"]) <= set(schema["items"]["required"])


def test_every_field_is_described() -> None:
    fields = {path for path in ALL if path and not path.endswith("[]")}
    server_side = {".apiVersion", ".kind", ".metadata"}
    bare = {path for path in fields - server_side if not ALL[path].get("description", "").strip()}
    assert not bare
    assert all(ALL[path]["description"].endswith(".") for path in fields - server_side)


def test_every_default_is_valid_and_not_required() -> None:
    for path, schema in ALL.items():
        for name, inner in schema.get("properties", {}).items():
            if "default" not in inner:
                continue
            assert name not in schema.get("required", ()), f"{path}.{name}"
            if "enum" in inner:
                assert inner["default"] in inner["enum"]


def test_what_the_user_writes_is_bounded() -> None:
    # Unbounded strings and lists make the cost of a CEL rule unbounded, and the rule refused.
    for path, schema in ALL.items():
        if not path.startswith(".spec"):
            continue
        if schema.get("type") == "string" and "enum" not in schema:
            assert schema.get("maxLength") or schema.get("pattern") == "^[0-9a-f]{64}$", path
        if schema.get("type") == "array":
            assert schema.get("maxItems"), path
        if "additionalProperties" in schema:
            assert schema.get("maxProperties"), path
        if schema.get("type") == "integer" and not path.endswith("[]"):
            assert {"minimum", "maximum"} <= set(schema), path


def test_names_versions_and_the_status_subresource() -> None:
    assert wire.CRD["apiVersion"] == "apiextensions.k8s.io/v1"
    assert wire.CRD["metadata"]["name"] == "qiskitjobs.quantum.io"
    spec = wire.CRD["spec"]
    assert spec["scope"] == "Namespaced"
    assert spec["names"]["shortNames"] == ["qj"]
    assert spec["names"]["categories"] == ["quantum"]
    (version,) = spec["versions"]
    assert (version["name"], version["served"], version["storage"]) == ("v1", True, True)
    assert version["subresources"] == {"status": {}}
    assert wire.ROOT["required"] == ["spec"]
    assert wire.ROOT["properties"]["metadata"] == {"type": "object"}


def test_printer_columns() -> None:
    (version,) = wire.CRD["spec"]["versions"]
    columns = version["additionalPrinterColumns"]
    assert [each["name"] for each in columns if not each.get("priority")] == [
        "Phase",
        "Backend",
        "Shots",
        "Cost",
        "Age",
    ]
    assert [each["name"] for each in columns if each.get("priority")] == ["Location", "Message"]
    for column in columns:
        if column["jsonPath"].startswith(".metadata"):
            continue
        found = ALL[column["jsonPath"]]
        assert found["type"] == column["type"], column["name"]


@pytest.mark.parametrize(
    ("path", "keywords"),
    [
        (".spec.execution.shots", {"default": 1024, "minimum": 1}),
        (".spec.execution.optimizationLevel", {"default": 1, "minimum": 0, "maximum": 3}),
        (
            ".spec.execution.priority",
            {"default": "normal", "enum": ["low", "normal", "high", "urgent"]},
        ),
        (".spec.execution.timeout", {"default": "1h"}),
        (".spec.execution.maxRetries", {"default": 3, "minimum": 0}),
        (
            ".spec.output.type",
            {"default": "configmap", "enum": ["configmap", "pvc", "s3", "gcs"]},
        ),
        (".spec.output.format", {"default": "json", "enum": ["json", "pickle", "qpy", "csv"]}),
        (
            ".spec.backend.type",
            {"enum": ["ibm_quantum", "ibm_simulator", "aws_braket", "local_simulator"]},
        ),
        (".spec.circuit.source", {"enum": ["inline", "configmap", "url", "git"]}),
        (".spec.session.mode", {"enum": ["dedicated", "shared"]}),
        (
            ".status.phase",
            {
                "enum": [
                    "Pending",
                    "Validating",
                    "Scheduling",
                    "Running",
                    "Completed",
                    "Failed",
                    "Cancelled",
                ]
            },
        ),
    ],
)
def test_the_schema_says_what_the_reference_says(path: str, keywords: dict[str, Any]) -> None:
    assert {key: ALL[path].get(key) for key in keywords} == keywords


def test_the_patch_for_old_servers_removes_every_rule_and_nothing_else() -> None:
    patched = copy.deepcopy(wire.CRD)
    for operation in crd.without_cel(wire.CRD):
        assert operation["op"] == "remove"
        *parents, last = (
            part.replace("~1", "/").replace("~0", "~")
            for part in operation["path"].removeprefix("/").split("/")
        )
        node: Any = patched
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        del node[last]
    assert RULES in yaml.safe_dump(wire.CRD)
    assert patched == _stripped(wire.CRD)


def _stripped(node: Any) -> Any:
    if isinstance(node, list):
        return [_stripped(each) for each in node]
    if isinstance(node, dict):
        return {key: _stripped(each) for key, each in node.items() if key != RULES}
    return node


def test_the_generated_files_say_what_the_types_say() -> None:
    texts = {str(path): yaml.safe_load(text) for path, text in crd.files().items()}
    assert texts["crd/qiskitjobs.yaml"] == wire.CRD
    patch = texts["components/kubernetes-before-1.25/qiskitjobs-without-cel.yaml"]
    assert patch == crd.without_cel(wire.CRD)


def test_generate_writes_and_then_finds_nothing_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert crd.main(["--check", str(tmp_path)]) == 1
    assert "crd/qiskitjobs.yaml" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "a check writes nothing"
    assert crd.main([str(tmp_path)]) == 0
    assert crd.main(["--check", str(tmp_path)]) == 0
    file = tmp_path / "crd" / "qiskitjobs.yaml"
    file.write_text(file.read_text() + "\n")
    assert crd.main(["--check", str(tmp_path)]) == 1


def test_the_files_in_the_repository_are_up_to_date() -> None:
    done = subprocess.run(
        [REPOSITORY / "hack" / "generate", "--check"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
