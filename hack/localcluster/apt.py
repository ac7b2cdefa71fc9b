"""Debian packages in the three forms the cluster needs them.

*Installed*: compilers, iptables, buildah, debootstrap. *Extracted* into the
cache: the programs that the cluster itself runs (etcd, containerd, runc, CNI
plugins). Extracting instead of installing keeps Debian from starting them as
services, and leaves the machine's own copy, if there is one, alone. *As
source*: Kubernetes, which Debian has in that form only.

apt checks the archive's signatures in all three cases. Every address comes from
the machine's own apt configuration.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from localcluster import cache
from localcluster.proc import ClusterError, require_root, run, say

# RUNLEVEL=1 makes invoke-rc.d believe that the machine is in single-user mode,
# so that a package's installation starts no service.
_QUIET = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1", "LC_ALL": "C"}
# It waits for another apt or dpkg for up to five minutes.
_APT_GET = ("apt-get", "-o", "DPkg::Lock::Timeout=300")
_CHECK_SOURCES = "Check the machine's apt sources (apt-get update, apt-cache policy)."


def installed(package: str) -> bool:
    """Whether ``package`` is installed and configured."""
    try:
        status = run(
            ["dpkg-query", "-W", "-f", "${db:Status-Status}", package],
            what=f"look for the Debian package {package}",
        )
    except ClusterError:
        return False
    return status.strip() == "installed"


def ensure_installed(packages: Iterable[str], purpose: str) -> None:
    """Install those of ``packages`` that are missing.

    ``purpose`` completes "... are needed to". Raises ClusterError without root,
    without apt, or when apt fails.
    """
    if shutil.which("apt-get") is None:
        _no_apt(purpose)
    missing = [package for package in packages if not installed(package)]
    if not missing:
        return
    require_root(f"install {' '.join(missing)}, needed to {purpose}")
    with cache.locked("apt"):
        missing = [package for package in missing if not installed(package)]
        if not missing:
            return
        say(f"installing {' '.join(missing)} (to {purpose})")
        _refresh(missing)
        run(
            [*_APT_GET, "install", "-y", "-q", "--no-install-recommends", *missing],
            what=f"install the Debian packages {' '.join(missing)}",
            hint=_CHECK_SOURCES,
            env=_QUIET,
            log=cache.path("logs", "apt.log"),
        )


def candidate(package: str) -> str:
    """The version of ``package`` that apt would install. Raises ClusterError if none."""
    if shutil.which("apt-cache") is None:
        _no_apt(f"find {package}")
    found = _candidate(package)
    if not found:
        with cache.locked("apt"):
            _refresh([package])
        found = _candidate(package)
    if not found:
        raise ClusterError(f"could not find the Debian package {package}\n  {_CHECK_SOURCES}")
    return found


def extracted(package: str) -> Path:
    """The folder with the unpacked files of ``package`` (as in ``/``), from the cache.

    Once one version is there it stays in use: a cached cluster must come up
    without asking the archive.
    """
    have = sorted(cache.path("debs", "x").parent.glob(f"{package}_*"))
    if have:
        return have[-1]
    version = candidate(package)

    def fetch(out: Path) -> None:
        say(f"downloading {package} {version}")
        work = out.parent
        run(
            ["apt-get", "-o", "APT::Sandbox::User=root", "download", f"{package}={version}"],
            what=f"download the Debian package {package}",
            hint=_CHECK_SOURCES,
            env=_QUIET,
            cwd=work,
        )
        (archive,) = work.glob("*.deb")
        run(["dpkg-deb", "-x", archive, out], what=f"unpack {archive.name}")

    return cache.product("debs", f"{package}_{version}", fetch)


def source(package: str, version: str, out: Path) -> None:
    """Unpack the source of ``package`` at exactly ``version`` into ``out``.

    The machine's apt usually lists binary packages only. A temporary source
    list is derived from its own, and used with temporary index files, so that
    the machine's configuration stays as it is.
    """
    ensure_installed(["dpkg-dev", "patch", "xz-utils"], f"unpack the source of {package}")
    with cache.scratch("apt-source") as work:
        parts = work / "sources.d"
        parts.mkdir()
        _write_source_lists(parts)
        (work / "lists" / "partial").mkdir(parents=True)
        (work / "archives" / "partial").mkdir(parents=True)
        options = [
            *("-o", "Dir::Etc::sourcelist=/dev/null"),
            *("-o", f"Dir::Etc::sourceparts={parts}"),
            *("-o", f"Dir::State::lists={work}/lists"),
            *("-o", f"Dir::Cache={work}"),
            *("-o", "APT::Sandbox::User=root"),
            *("-o", "APT::Get::List-Cleanup=false"),
            # Hooks of the machine (package kits and the like) are not ours to run.
            *("-o", "APT::Update::Post-Invoke-Success::="),
        ]
        run(
            ["apt-get", *options, "update", "-q"],
            what="read the indexes of the Debian source archive",
            hint=_CHECK_SOURCES + " They must carry source packages.",
            env=_QUIET,
        )
        run(
            ["apt-get", *options, "source", "-q", "--download-only", f"{package}={version}"],
            what=f"download the Debian source package {package} {version}",
            hint="If the archive has moved on, change the pinned version in"
            " hack/localcluster/kubernetes.py.",
            env=_QUIET,
            cwd=work,
        )
        (dsc,) = work.glob("*.dsc")
        run(
            ["dpkg-source", "--no-check", "-x", dsc, work / "tree"],
            what=f"unpack {dsc.name}",
        )
        (work / "tree").rename(out)


def mirror(suite: str) -> str:
    """The address from which apt gets ``suite``'s main component, for debootstrap."""
    wanted = "$(CODENAME) $(COMPONENT) $(REPO_URI)"
    listing = run(
        ["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"],
        what="read the apt configuration",
        hint=_CHECK_SOURCES,
        env=_QUIET,
    )
    for line in listing.splitlines():
        codename, component, address = line.split(maxsplit=2)
        if (codename, component) == (suite, "main"):
            return address.strip()
    raise ClusterError(
        f"could not find a source for Debian {suite} in the apt configuration\n  {_CHECK_SOURCES}"
    )


def _candidate(package: str) -> str:
    policy = run(["apt-cache", "policy", package], what="ask apt", env=_QUIET)
    found = re.search(r"^\s*Candidate:\s*(\S+)", policy, re.MULTILINE)
    return found.group(1) if found and found.group(1) != "(none)" else ""


def _refresh(packages: Iterable[str]) -> None:
    """Update apt's indexes if one of ``packages`` is not in them."""
    if all(_candidate(package) for package in packages):
        return
    require_root("update the package lists")
    run(
        [*_APT_GET, "update", "-q"],
        what="update the package lists",
        hint=_CHECK_SOURCES,
        env=_QUIET,
        log=cache.path("logs", "apt.log"),
    )


def _write_source_lists(into: Path) -> None:
    """Write into ``into`` the machine's apt sources as sources of source packages."""
    etc = Path("/etc/apt")
    found = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    wrote = 0
    for entry in found:
        if not entry.is_file():
            continue
        if entry.suffix == ".list":
            text = as_source_list(entry.read_text())
        elif entry.suffix == ".sources":
            text = as_source_deb822(entry.read_text())
        else:
            continue
        if text.strip():
            (into / entry.name).write_text(text)
            wrote += 1
    if not wrote:
        raise ClusterError(f"could not find any apt source in {etc}\n  {_CHECK_SOURCES}")


def as_source_list(text: str) -> str:
    """One-line apt sources turned into their deb-src counterparts."""
    lines = (re.match(r"\s*deb(?:-src)?(\s.*)", line) for line in text.splitlines())
    unique = dict.fromkeys(f"deb-src{line.group(1).rstrip()}" for line in lines if line)
    return "".join(f"{line}\n" for line in unique)


def as_source_deb822(text: str) -> str:
    """Sources in deb822 form turned into their deb-src counterparts.

    Stanzas that are switched off are left out.
    """
    stanzas = []
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        body = "\n".join(lines)
        if not re.search(r"^Types:", body, re.MULTILINE | re.IGNORECASE):
            continue
        if re.search(r"^Enabled:\s*(no|false|off|0)\b", body, re.MULTILINE | re.IGNORECASE):
            continue
        stanzas.append(
            re.sub(r"^Types:.*$", "Types: deb-src", body, flags=re.MULTILINE | re.IGNORECASE)
        )
    return "\n\n".join(stanzas) + "\n" if stanzas else ""


def _no_apt(purpose: str) -> None:
    raise ClusterError(
        f"could not {purpose}: this machine has no apt\n"
        "  The cluster is built from Debian packages. On another system install a container\n"
        "  engine and kind, which are used instead."
    )
