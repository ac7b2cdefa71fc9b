"""The rooms of the house: which may look into which, and what each program carries along."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "qiskit_controller"

# What a room may import of the others. A lower room never imports a higher one.
MAY_IMPORT: dict[str, set[str]] = {
    "api": set(),
    "kube": set(),
    "telemetry": {"api"},
    "scheduling": {"api"},
    "drivers": {"api", "scheduling", "telemetry"},
    "runner": {"api", "drivers", "telemetry"},
    "reconcilers": {"api", "drivers", "kube", "scheduling", "telemetry"},
    "cli": {"api", "kube", "telemetry"},
    "alerts": {"reconcilers"},
    "manager": {"alerts", "api", "drivers", "kube", "reconcilers", "scheduling", "telemetry"},
    "__main__": {"api", "kube", "manager", "reconcilers", "scheduling", "telemetry"},
}
# A backend's runner half works inside the pod, so it may use what is there.
RUNNER_HALF = {"runner"}
# Nothing but the standard library and these.
THIRD_PARTY: dict[str, set[str]] = {
    "api": {"attrs", "cattrs", "yaml"},
    "kube": {"aiohttp", "attrs", "kubernetes_asyncio", "structlog"},
    "telemetry": {"attrs", "prometheus_client", "structlog", "opentelemetry"},
    "scheduling": {"attrs"},
    "reconcilers": {"attrs", "structlog", "opentelemetry"},
    "alerts": {"aiohttp", "attrs", "structlog"},
    "__main__": {"structlog"},
}
SDKS = {"qiskit", "qiskit_aer", "qiskit_ibm_runtime", "braket", "boto3", "google", "requests"}


def _modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }


MODULES = _modules()


def _room(module: str) -> str:
    return module.split(".")[0]


def _imports(tree: ast.AST) -> Iterator[str]:
    """Whole names of the modules that are imported, wherever it is done; not for typing only."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.dump(tree.test):
        return
    if isinstance(tree, ast.Import):
        yield from (each.name for each in tree.names)
    elif isinstance(tree, ast.ImportFrom):
        assert tree.level == 0, "imports are absolute here"
        yield from (f"{tree.module}.{each.name}" for each in tree.names)
    for child in ast.iter_child_nodes(tree):
        yield from _imports(child)


def _ours(module: str) -> set[str]:
    """The rooms that a module imports from."""
    found = (name.split(".") for name in _imports(MODULES[module]))
    return {parts[1] for parts in found if parts[0] == PACKAGE.name and len(parts) > 1}


def test_every_room_is_listed() -> None:
    rooms = {_room(module) for module in MODULES} - {"__init__"}
    assert rooms <= set(MAY_IMPORT)
    assert {"api", "kube", "reconcilers", "drivers", "runner", "telemetry", "manager"} <= rooms


@pytest.mark.parametrize("module", [each for each in MODULES if each != "__init__"])
def test_a_module_imports_only_from_rooms_below(module: str) -> None:
    room = _room(module)
    allowed = MAY_IMPORT[room] | {room}
    # Beside its two halves, a driver may have modules that its runner half is made of.
    if room == "drivers" and module.count(".") > 1 and not module.endswith(".controller"):
        allowed |= RUNNER_HALF
    assert _ours(module) <= allowed


@pytest.mark.parametrize("module", [each for each in MODULES if _room(each) in THIRD_PARTY])
def test_a_module_imports_only_the_packages_of_its_room(module: str) -> None:
    packages = {name.split(".")[0] for name in _imports(MODULES[module])}
    foreign = packages - set(sys.stdlib_module_names) - {PACKAGE.name}
    assert foreign <= THIRD_PARTY[_room(module)]


def test_the_rooms_stand_on_each_other_without_circles() -> None:
    for room, below in MAY_IMPORT.items():
        for other in below:
            assert room not in MAY_IMPORT[other], f"{room} and {other}"


@pytest.mark.parametrize("module", [each for each in MODULES if each.endswith(".controller")])
def test_the_controller_half_of_a_driver_never_imports_an_sdk(module: str) -> None:
    packages = {name.split(".")[0] for name in _imports(MODULES[module])}
    assert not packages & SDKS


def _loaded_by(statement: str) -> set[str]:
    """What a fresh Python has imported after the statement: top names, and ours in full."""
    script = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    names = set(done.stdout.split())
    return {name.split(".")[0] for name in names} | names


def test_the_controller_carries_no_sdk() -> None:
    loaded = _loaded_by(
        "import qiskit_controller.__main__\n"
        "from qiskit_controller.drivers import controller_driver\n"
        "controller_driver('local_simulator')"
    )
    assert "kubernetes_asyncio" in loaded
    assert "qiskit_controller.drivers.local_simulator.controller" in loaded
    assert not loaded & {*SDKS, "numpy", "scipy", "rustworkx"}
    assert not any(name.startswith("qiskit_controller.runner") for name in loaded)
    assert not any(name.endswith("local_simulator.runner") for name in loaded)


def test_the_runner_carries_no_kubernetes_client() -> None:
    every = [f"import qiskit_controller.{each}" for each in MODULES if _room(each) == "runner"]
    loaded = _loaded_by(
        "\n".join(each.removesuffix(".__init__") for each in every)
        + "\nfrom qiskit_controller.drivers import runner_driver\nrunner_driver('local_simulator')"
    )
    assert "qiskit_controller.runner.executor" in loaded
    assert not loaded & {"kubernetes_asyncio", "aiohttp", "prometheus_client"}
    assert not any(
        name.startswith(f"qiskit_controller.{room}")
        for name in loaded
        for room in ("kube", "reconcilers", "manager")
    )


def test_the_untrusted_stage_carries_no_way_to_the_api_server() -> None:
    loaded = _loaded_by("import qiskit_controller.runner.circuit_stage")
    assert "requests" not in loaded
    assert "qiskit_controller.runner.cluster" not in loaded
