"""Where downloads, builds and cluster state live.

All of it is outside the checkout, under one root, so that a fresh clone finds
what an earlier one built. Each product has a directory named after its version
and appears there in one rename: a directory that exists is complete. Products
are made under a file lock, so that two runs at the same time do the work once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from localcluster.proc import ClusterError, say


def root() -> Path:
    """The cache folder: ``$QISKIT_CACHE``, else ``qiskit-controller`` in the user's cache."""
    chosen = os.environ.get("QISKIT_CACHE")
    if chosen:
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base).absolute() / "qiskit-controller"


def path(*parts: str) -> Path:
    """A path in the cache whose parent exists. Raises ClusterError if it cannot."""
    target = root().joinpath(*parts)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClusterError(
            f"could not create {target.parent}: {error.strerror}\n"
            "  Set QISKIT_CACHE to a folder that can be written."
        ) from error
    return target


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the machine-wide lock ``name``, waiting for whoever has it.

    The kernel drops the lock with the process, so a killed run leaves none.
    """
    with path("locks", f"{name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that holds the lock {name!r}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch(label: str) -> Iterator[Path]:
    """A temporary directory inside the cache (same file system), removed at the end."""
    folder = path("tmp", "x").parent
    made = Path(tempfile.mkdtemp(prefix=f"{label}-", dir=folder))
    try:
        made.chmod(0o755)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def product(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The directory ``kind/key``, made by ``make`` if it is not there yet.

    ``make`` fills an empty temporary directory, which is then renamed into
    place. If it raises, nothing is left and the next run starts afresh.
    """
    target = path(kind, key)
    if target.is_dir():
        return target
    with locked(f"{kind}-{key}"):
        if target.is_dir():
            return target
        with scratch(kind) as work:
            out = work / "out"
            out.mkdir()
            make(out)
            out.rename(target)
    return target
