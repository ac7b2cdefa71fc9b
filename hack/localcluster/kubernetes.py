"""Compile the Kubernetes components from Debian's source package.

Debian has no binary package of them, only the complete upstream tree. Three
things stand between that tree and working binaries:

- its vendored ``reflect2`` 1.0.1 corrupts memory when compiled by Go 1.18 or
  later (the API server dies hours later in a map iteration), so Debian's own
  1.0.2 takes its place;
- the archive lacks one generated file, the OpenAPI definitions, so the
  generator is built first and run;
- its go.mod is too old for module mode, so it is built in GOPATH mode.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from localcluster import apt, cache
from localcluster.proc import ClusterError, run, say

VERSION = "1.20.2"
_DEBIAN_VERSION = "1.20.5+really1.20.2-1.1+deb12u1"
_COMPONENTS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
)
_GO = Path("/usr/lib/go-1.19/bin/go")
_NICE = ("nice", "-n", "10")  # the machine is also used for other work
_REFLECT2 = Path("/usr/share/gocode/src/github.com/modern-go/reflect2")
_TOOLCHAIN = ("golang-1.19-go", "golang-github-modern-go-reflect2-dev", "gcc", "libc6-dev")
# Change this when the way of building changes, so that cached binaries are rebuilt.
_RECIPE = "2"
# Packages that carry the OpenAPI tag but belong to other programs.
_NOT_IN_OPENAPI = ("code-generator", "sample-apiserver", "kube-openapi", "testdata")


def key() -> str:
    """The name of the build in the cache: version and a hash of how it is made."""
    recipe = "\n".join((_DEBIAN_VERSION, _RECIPE, *_COMPONENTS, *_TOOLCHAIN))
    return f"{VERSION}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def binaries() -> Path:
    """The folder with the compiled components and ``pause``, built on first use.

    The first use takes five to ten minutes on two cores. Raises ClusterError
    with the path of the build's log.
    """
    return cache.product("kubernetes", key(), _build)


def _build(out: Path) -> None:
    say(f"building Kubernetes {VERSION} (once; about 5 to 10 minutes on two cores)")
    log = cache.path("logs", f"kubernetes-{key()}.log")
    log.write_text("")
    apt.ensure_installed(_TOOLCHAIN, "compile Kubernetes")
    gopath = out.parent / "go"
    tree = gopath / "src/k8s.io/kubernetes"
    tree.parent.mkdir(parents=True)
    say("downloading the source")
    apt.source("kubernetes", _DEBIAN_VERSION, tree)
    vendored = tree / "vendor/github.com/modern-go/reflect2"
    shutil.rmtree(vendored)
    shutil.copytree(_REFLECT2, vendored)
    # The test files of the replacement would ask for packages that are not vendored.
    for test in vendored.rglob("*_test.go"):
        test.unlink()

    env = _go_env(out.parent, gopath)
    _generate_openapi(tree, env, log)
    say("compiling " + ", ".join(_COMPONENTS))
    run(
        [
            *_NICE,
            *(_GO, "build", "-trimpath", "-ldflags", _linker_flags(), "-o", f"{out}/"),
            # All at once: they share most of their packages.
            *(f"k8s.io/kubernetes/cmd/{name}" for name in _COMPONENTS),
        ],
        what=f"compile Kubernetes {VERSION}",
        env=env,
        cwd=tree,
        log=log,
    )
    pause = tree / "build/pause/linux/pause.c"
    run(
        ["gcc", "-Os", "-Wall", "-static", f"-DVERSION={VERSION}", "-o", out / "pause", pause],
        what="compile the pause program",
        hint="Install gcc and libc6-dev.",
        log=log,
    )
    missing = [name for name in (*_COMPONENTS, "pause") if not (out / name).is_file()]
    if missing:
        raise ClusterError(f"could not compile {', '.join(missing)}\n  log: {log}")
    say("Kubernetes built")


def _linker_flags() -> str:
    """Strip the binaries, and have them know their version, as kubectl asks for it."""
    major, minor, _ = VERSION.split(".")
    stamps = {
        "gitVersion": f"v{VERSION}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "archive",
    }
    # The aggregator, which answers /version, has a copy of its own.
    packages = ("client-go/pkg/version", "component-base/version")
    return "-s -w " + " ".join(
        f"-X k8s.io/kubernetes/vendor/k8s.io/{package}.{name}={value}"
        for package in packages
        for name, value in stamps.items()
    )


def _go_env(work: Path, gopath: Path) -> dict[str, str]:
    temporary = work / "gotmp"
    temporary.mkdir()
    return {
        "GOPATH": str(gopath),
        "GOCACHE": str(work / "gocache"),
        "GOTMPDIR": str(temporary),
        "GOENV": "off",
        "GOFLAGS": "",
        "GO111MODULE": "off",
        "GOPROXY": "off",
        "CGO_ENABLED": "0",
        "HOME": str(work),
    }


def _generate_openapi(tree: Path, env: dict[str, str], log: Path) -> None:
    """Write ``pkg/generated/openapi/zz_generated.openapi.go``, which the archive lacks."""
    target = tree / "pkg/generated/openapi/zz_generated.openapi.go"
    if target.is_file():
        return
    say("generating the OpenAPI definitions")
    generator = tree.parent / "openapi-gen"
    program = "k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen"
    run(
        [*_NICE, _GO, "build", "-o", generator, program],
        what="compile openapi-gen",
        env=env,
        cwd=tree,
        log=log,
    )
    run(
        [
            *(*_NICE, generator, "--logtostderr"),
            *("-i", ",".join(_openapi_packages(tree))),
            *("-p", "k8s.io/kubernetes/pkg/generated/openapi"),
            *("-O", "zz_generated.openapi"),
            *("-h", "hack/boilerplate/boilerplate.generatego.txt"),
            *("-r", tree.parent / "openapi-violations.txt"),
        ],
        what="generate the OpenAPI definitions",
        env={**env, "PATH": f"{_GO.parent}:/usr/sbin:/usr/bin:/sbin:/bin"},
        cwd=tree,
        log=log,
    )
    if not target.is_file():
        raise ClusterError(f"could not generate {target.name}: it was not written\n  log: {log}")


def _openapi_packages(tree: Path) -> list[str]:
    """Import paths of all packages of ``tree`` that carry the OpenAPI tag."""
    staged = sorted((tree / "vendor/k8s.io").iterdir())  # links into staging/
    roots = [entry for entry in staged if entry.is_dir() and entry.name not in _NOT_IN_OPENAPI]
    found = set()
    for top in [*roots, tree / "pkg", tree / "cmd"]:
        for file in top.rglob("*.go"):
            relative = file.parent.relative_to(tree)
            if "testdata" in relative.parts or file.parent in found:
                continue
            if b"// +k8s:openapi-gen=" in file.read_bytes():
                found.add(file.parent)
    return sorted(f"k8s.io/kubernetes/{folder.relative_to(tree)}" for folder in found)
