"""The limits of a container, in both versions of control groups."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from qiskit_controller.runner.pod import Cgroup, memory_use


@pytest.fixture
def cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))


def _cgroup(folder: Path, files: Mapping[str, str], membership: str = "") -> Cgroup:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (folder / "membership").write_text(membership)
    return Cgroup(folder, folder / "membership")


def test_version_2(tmp_path: Path, cpus: None) -> None:
    group = _cgroup(
        tmp_path,
        {
            "memory.max": "536870912",
            "cpu.max": "150000 100000",
            "memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 1",
        },
        "0::/\n",
    )
    assert (group.memory_limit(), group.cpus(), group.oom_kills()) == (512 << 20, 2, 2)


def test_version_2_without_limits(tmp_path: Path, cpus: None) -> None:
    group = _cgroup(tmp_path, {"memory.max": "max", "cpu.max": "max 100000"}, "0::/\n")
    assert (group.memory_limit(), group.cpus(), group.oom_kills()) == (None, 8, 0)


def test_version_1(tmp_path: Path, cpus: None) -> None:
    group = _cgroup(
        tmp_path,
        {
            "memory/memory.limit_in_bytes": "1073741824",
            "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5",
            "cpu/cpu.cfs_quota_us": "20000",
            "cpu/cpu.cfs_period_us": "100000",
        },
        "4:memory:/kubepods/x\n3:cpu,cpuacct:/kubepods/x\n0::/\n",
    )
    assert (group.memory_limit(), group.cpus(), group.oom_kills()) == (1 << 30, 1, 5)


def test_version_1_without_limits(tmp_path: Path, cpus: None) -> None:
    group = _cgroup(
        tmp_path,
        {
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert (group.memory_limit(), group.cpus()) == (None, 8)


def test_outside_a_container_the_group_is_below_the_root(tmp_path: Path, cpus: None) -> None:
    group = _cgroup(
        tmp_path,
        {"memory.max": "max", "a/b/memory.max": "268435456", "a/b/cpu.max": "1000 100000"},
        "0::/a/b\n",
    )
    assert (group.memory_limit(), group.cpus()) == (256 << 20, 1)


def test_no_control_groups_at_all(tmp_path: Path, cpus: None) -> None:
    group = Cgroup(tmp_path / "none", tmp_path / "none")
    assert (group.memory_limit(), group.cpus(), group.oom_kills()) == (None, 8, 0)


def test_this_process_uses_memory() -> None:
    use = memory_use()
    assert 1 << 20 < use["VmRSS"] <= use["VmHWM"]
    assert use["VmData"] > 1 << 20
