"""The same few operations with kind, where a container engine and kind are installed.

This path has not been run: the machines on which the project is built have no
container engine. It is kept to the plainest calls of kind's documented command
line. ``exec-netns``, ``stop`` and ``start`` have no counterpart here.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from localcluster import cache, images
from localcluster.proc import ClusterError, run, say, succeeds

_ENGINES = ("docker", "podman")


def chosen(name: str) -> bool:
    """Whether the cluster ``name`` is, or would be, kind's.

    ``QISKIT_CLUSTER_PROVIDER`` (``kind`` or ``debian``) decides if it is set; else
    a cluster that exists stays what it is, and a new one is kind's where it can be.
    Raises ClusterError for another value.
    """
    provider = os.environ.get("QISKIT_CLUSTER_PROVIDER", "")
    if provider not in ("", "kind", "debian"):
        raise ClusterError(
            f"could not use QISKIT_CLUSTER_PROVIDER={provider}\n  Set it to kind or debian."
        )
    if provider:
        return provider == "kind"
    if cache.path("clusters", name).exists() or shutil.which("kind") is None:
        return False
    # An engine that is installed but does not answer cannot be used.
    return any(succeeds([engine, "info"]) for engine in _ENGINES)


def up(name: str) -> None:
    """Create the cluster if it does not exist. Raises ClusterError."""
    if _kind_name(name) not in _clusters():
        say(f"kind creates the cluster {name!r}")
        run(
            ["kind", "create", "cluster", *_options(name), "--wait", "120s"],
            what="create a cluster with kind",
            hint="Set QISKIT_CLUSTER_PROVIDER=debian to do without kind.",
        )
    run(
        ["kind", "export", "kubeconfig", *_options(name)],
        what="get the kubeconfig from kind",
    )


def down(name: str) -> None:
    """Delete the cluster. Raises ClusterError."""
    run(
        ["kind", "delete", "cluster", *_options(name)],
        what="delete the cluster with kind",
    )
    kubeconfig(name).unlink(missing_ok=True)


def status(name: str) -> bool:
    """Print whether the cluster exists, and return it."""
    exists = _kind_name(name) in _clusters()
    print(f"cluster {name}: {'up (kind)' if exists else 'down (kind)'}")
    if exists:
        print(f"  kubeconfig   {kubeconfig(name)}")
    return exists


def kubeconfig(name: str) -> Path:
    """The path of the kubeconfig file, whether or not the cluster exists."""
    return cache.path("kind", f"{name}.kubeconfig")


def load(name: str, image: str) -> None:
    """Load an image from buildah's storage, or a docker-archive. Raises ClusterError."""
    with cache.scratch("load") as work:
        archive = Path(image)
        if not archive.is_file():
            archive = work / "image.tar"
            images.export(image, archive)
        run(
            ["kind", "load", "image-archive", archive, "--name", _kind_name(name)],
            what=f"load {image} with kind",
        )


def _clusters() -> list[str]:
    hint = "Set QISKIT_CLUSTER_PROVIDER=debian to do without kind."
    return run(["kind", "get", "clusters"], what="ask kind for its clusters", hint=hint).split()


def _options(name: str) -> list[str]:
    return ["--name", _kind_name(name), "--kubeconfig", str(kubeconfig(name))]


def _kind_name(name: str) -> str:
    return f"qiskit-{name}"
