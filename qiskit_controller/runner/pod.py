"""The pod as its own processes see it: the folders, and the limits the kernel holds them to."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import attrs

from qiskit_controller.api import run

# cgroup v1 writes "no limit" as the largest multiple of a page that fits into 63 bits.
_UNLIMITED = 1 << 60


@attrs.frozen
class Paths:
    """The folders of :mod:`qiskit_controller.api.run`, as real paths."""

    input: Path
    work: Path
    source: Path
    git: Path
    token: Path
    storage: Path
    credentials: Path
    termination_log: Path

    @classmethod
    def under(cls, root: Path = Path("/")) -> Paths:
        """The same layout below another folder, to run a stage outside a pod."""

        def place(path: PurePosixPath) -> Path:
            return root / path.relative_to("/")

        return cls(
            input=place(run.INPUT_DIR),
            work=place(run.WORK_DIR),
            source=place(run.SOURCE_DIR),
            git=place(run.GIT_DIR),
            token=place(run.TOKEN_DIR),
            storage=place(run.STORAGE_DIR),
            credentials=place(run.CREDENTIALS_DIR),
            termination_log=place(run.TERMINATION_LOG),
        )


def memory_use() -> Mapping[str, int]:
    """Bytes that this process uses: ``VmRSS``, ``VmData`` and the rest of /proc/self/status."""
    use = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            use[name] = int(value.split()[0]) * 1024
    return use


def free_memory() -> int | None:
    """Bytes that the container may still use, if it has a limit and this process is all in it."""
    limit = Cgroup().memory_limit()
    return None if limit is None else max(0, limit - memory_use()["VmRSS"])


@attrs.frozen
class Cgroup:
    """The control group of this process; version 1 and 2."""

    root: Path = Path("/sys/fs/cgroup")
    membership: Path = Path("/proc/self/cgroup")

    def memory_limit(self) -> int | None:
        """Bytes that the container may use, or None without a limit."""
        return self._number("memory.max", "memory", "memory.limit_in_bytes")

    def cpus(self) -> int:
        """Whole CPUs that are worth a thread each: the quota rounded up, at least 1."""
        here = len(os.sched_getaffinity(0))
        quota = self._cpu_quota()
        return here if quota is None else max(1, min(here, math.ceil(quota)))

    def oom_kills(self) -> int:
        """How many processes of the container the kernel has killed for want of memory."""
        for text in (self._read("", "memory.events"), self._read("memory", "memory.oom_control")):
            for line in text.splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill" and value.isdigit():
                    return int(value)
        return 0

    def _cpu_quota(self) -> float | None:
        quota, _, period = self._read("", "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            return int(quota) / int(period)
        old = self._read("cpu", "cpu.cfs_quota_us"), self._read("cpu", "cpu.cfs_period_us")
        if old[0].isdigit() and old[1].isdigit():  # -1 is "no quota"
            return int(old[0]) / int(old[1])
        return None

    def _number(self, v2_file: str, v1_controller: str, v1_file: str) -> int | None:
        for text in (self._read("", v2_file), self._read(v1_controller, v1_file)):
            if text.isdigit():
                return int(text) if int(text) < _UNLIMITED else None
        return None

    def _read(self, controller: str, file: str) -> str:
        """A file of the group; in a container it is mounted at the root, elsewhere below."""
        for folder in (self._own_folder(controller), ""):
            try:
                return (self.root / controller / folder / file).read_text().strip()
            except OSError:
                continue
        return ""

    def _own_folder(self, controller: str) -> str:
        try:
            lines = self.membership.read_text().splitlines()
        except OSError:
            return ""
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                return path.lstrip("/")
        return ""
