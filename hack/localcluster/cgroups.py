"""The cluster's own part of the cgroup tree, for version 1, 2 and the two mixed.

One directory per cluster and hierarchy, ``/<cluster id>``, holds ``node`` (the
components), ``guests`` (what ``exec-netns`` started) and the kubelet's
``kubepods``. Besides limiting pods it is a second way to find everything that
belongs to the cluster.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from localcluster.daemon import wait_until
from localcluster.proc import ClusterError

NODE = "node"
GUESTS = "guests"


def create(cluster: str) -> None:
    """Make the cluster's directories in every hierarchy. Raises ClusterError."""
    found = _hierarchies()
    if not found:
        raise ClusterError(
            "could not find any cgroup hierarchy\n  Mount one: mount -t cgroup2 none /sys/fs/cgroup"
        )
    for base, version in found:
        top = base / cluster
        try:
            top.mkdir(exist_ok=True)
            if version == 2:
                _delegate(base)
                _delegate(top)
            for leaf in (top, top / NODE, top / GUESTS):
                leaf.mkdir(exist_ok=True)
                _fill_cpuset(leaf)
        except OSError as error:
            raise ClusterError(
                f"could not set up the cgroup {top}: {error.strerror}\n"
                "  The cluster needs root and a writable cgroup tree."
            ) from error


def join(cluster: str, leaf: str) -> None:
    """Move this process into the cluster's ``leaf`` in every hierarchy."""
    for base, _ in _hierarchies():
        (base / cluster / leaf / "cgroup.procs").write_text("0")


def members(cluster: str) -> set[int]:
    """Pids of all processes in the cluster's cgroups."""
    pids: set[int] = set()
    for base, _ in _hierarchies():
        for file in (base / cluster).rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                pids.update(int(line) for line in file.read_text().split())
    pids.discard(0)
    return pids


def remove(cluster: str) -> None:
    """End every process in the cluster's cgroups and remove them.

    Raises ClusterError with the remaining pids if that takes over a minute.
    """

    def gone() -> bool:
        for pid in members(cluster):
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(pid)
                try:
                    # Check again, now that the handle keeps the pid from being used anew.
                    if pid in members(cluster):
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                finally:
                    os.close(handle)
        left = False
        for base, _ in _hierarchies():
            top = base / cluster
            folders = [folder for folder in top.rglob("*") if folder.is_dir()]
            for folder in [*sorted(folders, reverse=True), top]:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            left = left or top.exists()
        return not left

    if not wait_until(gone, 60.0):
        raise ClusterError(
            f"could not remove the cgroups {cluster!r}: still in use by processes "
            f"{sorted(members(cluster))}"
        )


def _hierarchies() -> list[tuple[Path, int]]:
    """Mount point and version of every cgroup hierarchy of this machine."""
    found: dict[str, tuple[Path, int]] = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind not in ("cgroup", "cgroup2"):
            continue
        # The same hierarchy may be mounted twice; v1 ones differ in their options.
        found.setdefault(f"{kind}:{options}", (Path(where), 2 if kind == "cgroup2" else 1))
    return list(found.values())


def _delegate(folder: Path) -> None:
    """Let the children of a v2 ``folder`` have every controller that it can give away."""
    for name in (folder / "cgroup.controllers").read_text().split():
        # One that cannot be given is missed, if at all, by the kubelet, which says so.
        with contextlib.suppress(OSError):
            (folder / "cgroup.subtree_control").write_text(f"+{name}")


def _fill_cpuset(folder: Path) -> None:
    """A v1 cpuset takes no process before it has been given CPUs and memory nodes."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = folder / name
        if file.exists() and not file.read_text().strip():
            inherited = (folder.parent / name).read_text().strip()
            if inherited:
                file.write_text(inherited)
