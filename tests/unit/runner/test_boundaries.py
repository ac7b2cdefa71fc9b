"""Which rooms of the house the runner may enter."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import qiskit_controller

PACKAGE = Path(qiskit_controller.__file__).parent
FORBIDDEN = ("kube", "reconcilers", "scheduling", "cli")


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield from (f"{node.module}.{each.name}" for each in node.names)


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "runner").rglob("*.py")), ids=lambda path: path.stem
)
def test_the_runner_imports_no_machinery(path: Path) -> None:
    for name in _imports(ast.parse(path.read_text())):
        assert not name.startswith(tuple(f"qiskit_controller.{each}" for each in FORBIDDEN)), name
        assert not name.startswith(("kubernetes_asyncio", "pickle.load", "dill", "marshal")), name


def test_only_the_formats_know_pickle_and_only_one_process_runs_code() -> None:
    users: dict[str, set[str]] = {"pickle": set(), "exec": set()}
    for path in (PACKAGE / "runner").rglob("*.py"):
        tree = ast.parse(path.read_text())
        if "pickle" in set(_imports(tree)):
            users["pickle"].add(path.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "__import__")
                if node.func.id == "exec":
                    users["exec"].add(path.name)
    assert users == {"pickle": {"formats.py"}, "exec": {"circuit_child.py"}}
