"""Fetch below a folder as the stage ``source`` does in its container."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.run import Limits, PlannedSource, SourceReport
from qiskit_controller.api.sources import file_name
from qiskit_controller.runner.pod import Paths

from .support import REPOSITORY, Pod

LOOPBACK = ("127.0.0.1/32",)


@attrs.frozen
class Fetch:
    """A stage that has ended."""

    code: int
    printed: str
    report: SourceReport
    content: bytes | None
    seconds: float

    @property
    def said(self) -> str:
        """Everything that anyone gets to see."""
        return self.printed + self.report.message


def fetch(
    root: Path,
    circuit: Mapping[str, Any],
    *,
    allow: Sequence[str] = LOOPBACK,
    limits: Limits | None = None,
    secret: Mapping[str, str | bytes] | None = None,
    hosts: Mapping[str, Any] | None = None,
    file: str | None = None,
    **environment: str,
) -> Fetch:
    """Run the stage for ``spec.circuit``."""
    pod = Pod(root)
    limits = attrs.evolve(limits or Limits(source_seconds=100.0), source_allow_cidr=tuple(allow))
    address = circuit.get("url") or circuit["gitRef"]["path"]
    name = file or file_name(address.partition("?")[0])
    plan = pod.plan("", spec={"circuit": circuit}, limits=limits)
    plan = attrs.evolve(plan, source=PlannedSource(file=name, fetched=True))
    pod_paths: Paths = pod.paths
    write_plan(pod_paths, plan)
    pod_paths.source.mkdir(exist_ok=True)
    for each in pod_paths.source.iterdir():
        each.unlink()
    for key, value in (secret or {}).items():
        pod_paths.git.mkdir(exist_ok=True)
        path = pod_paths.git / key
        path.write_bytes(value.encode() if isinstance(value, str) else value)
    tmp = root / "tmp"
    tmp.mkdir(exist_ok=True)
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.runner.source_process", str(root)],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "TMPDIR": str(tmp),
            "PYTHONPATH": str(REPOSITORY),
            "QUANTUM_TEST_HOSTS": json.dumps(hosts or {}),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=150,
        check=False,
    )
    seconds = time.monotonic() - begun
    text = pod_paths.termination_log.read_text()
    assert len(text) <= 4096
    assert text, done.stdout.decode(errors="replace")
    assert not list(tmp.iterdir()), "something was left behind"
    found = pod_paths.source / name
    return Fetch(
        done.returncode,
        done.stdout.decode(errors="replace"),
        from_wire(json.loads(text), SourceReport),
        found.read_bytes() if found.exists() else None,
        seconds,
    )


def write_plan(paths: Paths, plan: Any) -> None:
    """Put a plan where a stage finds it."""
    from qiskit_controller.api.codec import to_wire

    (paths.input / "plan.json").write_text(json.dumps(to_wire(plan)))
