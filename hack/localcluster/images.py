"""Container images without a registry: the base image, builds, and loading.

Everything is done by buildah with a storage of its own inside the cache. Each
buildah runs in a private mount namespace, so that whatever it mounts ends with
it, even if it is killed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from localcluster import apt, cache
from localcluster.node import Cluster
from localcluster.proc import ClusterError, require_root, run, say

TARGETS = ("controller", "runner")
BASE_IMAGE = "localhost/debian-base:bookworm"
_SUITE = "bookworm"
_PACKAGES = ("python3", "python3-venv", "python3-pip", "ca-certificates", "git", "openssh-client")
_REPOSITORY = Path(__file__).resolve().parents[2]
_ID_LABEL = "qiskit-controller/image-id"
# Not needed in a container; what is left is the licences, which have to stay.
_PRUNE = (
    "find var/cache/apt/archives var/lib/apt/lists var/log -type f -delete; "
    "find usr/share/doc -type f ! -name copyright -delete; "
    "rm -rf usr/share/man/* usr/share/info/* usr/share/locale/* debootstrap; "
    # The mirror is the machine's business, not the image's.
    "echo '# none' > etc/apt/sources.list; "
    # Builds bind pip's settings here; a mount point of their own would stay in the image.
    "echo '# none' > etc/pip.conf; "
    "rm -f etc/hostname etc/resolv.conf etc/machine-id var/cache/ldconfig/aux-cache"
)
_BUILD = ("build", "--isolation", "chroot", "--format", "docker")
_PRIVATE_MOUNTS = ("unshare", "--mount", "--propagation", "private")
# sh -c ... sh COUNT SOURCE TARGET ... COMMAND
_BIND_THEN_RUN = (
    "n=$1; shift; "
    'while [ "$n" -gt 0 ]; do mount --bind "$1" "$2" || exit; shift 2; n=$((n-1)); done; '
    'exec "$@"'
)


def base_image() -> str:
    """The name of the base image, made with debootstrap on first use (about two minutes)."""
    require_root("make the base image")
    archive = _root_filesystem()
    label = archive.parent.name
    with cache.locked("base-image"):
        if _inspect(BASE_IMAGE, '{{index .Docker.Config.Labels "rootfs"}}') == label:
            return BASE_IMAGE
        say(f"making the image {BASE_IMAGE}")
        with cache.scratch("base-image") as work:
            recipe = work / "Containerfile"
            # The context is the tar's own folder.
            recipe.write_text(
                "FROM scratch\n"
                "ADD rootfs.tar /\n"
                f"LABEL rootfs={label}\n"
                "ENV LANG=C.UTF-8\n"
                'CMD ["python3"]\n'
            )
            _buildah(
                [*_BUILD, "--file", recipe, "--tag", BASE_IMAGE, archive.parent],
                what=f"make the image {BASE_IMAGE}",
            )
    return BASE_IMAGE


def build(target: str) -> str:
    """Build the Containerfile's ``target`` and return the image's name.

    Layers are kept, so that building without a change takes seconds. pip's
    configuration and the machine's certificates are there during the build and
    are no part of the image. Raises ClusterError with the log's path.
    """
    recipe = _REPOSITORY / "Containerfile"
    if not recipe.is_file():
        raise ClusterError(f"could not build {target}: there is no {recipe}")
    base = base_image()
    name = f"localhost/qiskit-{target}:dev"
    log = cache.path("logs", f"build-{target}.log")
    with cache.locked(f"build-{target}"), cache.scratch("build") as work:
        log.write_text("")
        volumes, binds = _pip_access(work)
        say(f"building {name}")
        _buildah(
            [
                *(*_BUILD, "--network", "host", "--layers", "--pull-never"),
                *("--build-arg", f"BASE_IMAGE={base}"),
                *("--file", recipe, "--target", target, "--tag", name),
                *volumes,
                _REPOSITORY,
            ],
            what=f"build {name}",
            binds=binds,
            log=log,
        )
    say(f"built {name}")
    return name


def export(image: str, archive: Path) -> None:
    """Write ``image`` from buildah's storage to ``archive``. Raises ClusterError."""
    _require(image)
    _buildah(
        ["push", "--quiet", image, f"docker-archive:{archive}:{image}"],
        what=f"export {image}",
    )


def load(cluster: Cluster, image: str) -> None:
    """Copy ``image``, or a docker-archive, to the node unless it has just that already.

    Raises ClusterError.
    """
    given = Path(image)
    if given.is_file():
        names = _names_in(given)
        identity = _digest(given)
    else:
        names = [image]
        identity = _require(image)
    label = f"{_ID_LABEL}={identity}"
    with cache.locked(f"load-{cluster.name}"):
        present = cluster.images()
        if names and all(label in present.get(name, "") for name in names):
            say(f"{', '.join(names)}: the node has it")
            return
        say(f"loading {', '.join(names) or image}")
        archive = cluster.state / "load.tar"
        try:
            if given.is_file():
                shutil.copyfile(given, archive)
            else:
                export(image, archive)
            cluster.import_images(archive.name)
        finally:
            archive.unlink(missing_ok=True)
        for name in names:
            cluster.label_image(name, label)
    say(f"loaded {', '.join(names) or image}")


def _root_filesystem() -> Path:
    """The base image's file system as a tar, from the cache or made now."""
    recipe = "\n".join((_SUITE, *_PACKAGES, _PRUNE))
    key = f"{_SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"

    def make(out: Path) -> None:
        apt.ensure_installed(["debootstrap", "tar"], "make the base image")
        tree = out.parent / "tree"
        log = cache.path("logs", "debootstrap.log")
        log.write_text("")
        say(f"debootstrap of Debian {_SUITE} (once; about two minutes)")
        keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
        signed = [f"--keyring={keyring}"] if keyring.exists() else []
        run(
            # It mounts /proc in the tree; in a namespace of its own that ends with it.
            [
                *(*_PRIVATE_MOUNTS, "debootstrap", *signed),
                *("--variant=minbase", f"--include={','.join(_PACKAGES)}"),
                *(_SUITE, tree, apt.mirror(_SUITE)),
            ],
            what=f"make a Debian {_SUITE} file system",
            hint="The machine's apt sources must carry it.",
            env={"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
            log=log,
        )
        run(["sh", "-c", _PRUNE], what="clean up the file system", cwd=tree)
        run(
            [
                *("tar", "--create", "--file", out / "rootfs.tar"),
                *("--numeric-owner", "--sort=name", "--xattrs"),
                *("--one-file-system", "--exclude=./dev/*", "--exclude=./proc/*"),
                *("--directory", tree, "."),
            ],
            what="pack the file system",
        )
        shutil.rmtree(tree)

    return cache.product("rootfs", key, make) / "rootfs.tar"


def _pip_access(work: Path) -> tuple[list[str], dict[Path, Path]]:
    """What lets pip inside a build reach what pip outside reaches.

    Returns options for buildah, and directories and files to be bound into
    ``work`` first. Local indexes and the like are all shown below one folder
    that every Debian image has, empty: a mount point made for a build would
    stay behind in the image.
    """
    python = "/usr/bin/python3" if Path("/usr/bin/pip3").exists() else sys.executable
    listed = run([python, "-m", "pip", "config", "list"], what="read pip's configuration")
    shown = work / "mnt"
    shown.mkdir()
    binds: dict[Path, Path] = {}

    def moved(word: str) -> str:
        place = Path(word.removeprefix("file://"))
        if not place.is_absolute() or not place.exists():
            return word
        # An index called "simple" links to files that lie beside it.
        source = place.parent if place.name == "simple" else place
        target = binds.setdefault(source, shown / str(len(binds)))
        inside = Path("/mnt") / target.name / place.relative_to(source)
        return f"file://{inside}" if word.startswith("file://") else str(inside)

    settings = {
        key: [moved(word) for word in text.split()] for key, text in pip_settings(listed).items()
    }
    settings["no-cache-dir"] = settings["disable-pip-version-check"] = ["true"]
    settings["root-user-action"] = ["ignore"]
    # A list goes on indented lines; where one value is expected, no newline may precede it.
    lines = [f"{key} = " + "\n    ".join(words) for key, words in settings.items()]
    configuration = work / "pip.conf"
    configuration.write_text("\n".join(["[global]", *lines, ""]))
    volumes = {shown: "/mnt", configuration: "/etc/pip.conf"}
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    if certificates.is_file():
        volumes[certificates] = str(certificates)
    return [f"--volume={source}:{target}:ro" for source, target in volumes.items()], binds


def pip_settings(listing: str) -> dict[str, str]:
    """Options for every command from the output of ``pip config list``.

    Environment variables come last in pip's order of precedence and win here too.
    """
    settings: dict[str, str] = {}
    from_environment: dict[str, str] = {}
    for line in listing.splitlines():
        name, found, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if not found or not key:
            continue
        try:
            text = str(ast.literal_eval(value))
        except (SyntaxError, ValueError):
            text = value
        if section == ":env:":
            from_environment[key] = text
        elif section in ("global", "install"):
            settings[key] = text
    ours = ("config-file", "no-cache-dir", "cache-dir", "target", "user", "prefix", "log")
    merged = {**settings, **from_environment}
    return {key: value for key, value in merged.items() if key not in ours}


def _require(image: str) -> str:
    """The id of ``image`` in buildah's storage. Raises ClusterError if it is not there."""
    identity = _inspect(image, "{{.FromImageID}}")
    if not identity:
        raise ClusterError(
            f"could not find the image {image} in buildah's storage\n"
            f"  Build it (hack/cluster build {'|'.join(TARGETS)}), or give the path of a"
            " docker-archive."
        )
    return identity


def _inspect(image: str, template: str) -> str:
    try:
        text = _buildah(
            ["inspect", "--type", "image", "--format", template, image], what="look at an image"
        )
    except ClusterError:
        return ""
    return text.strip()


def _buildah(
    arguments: Sequence[str | Path],
    *,
    what: str,
    log: Path | None = None,
    binds: Mapping[Path, Path] | None = None,
) -> str:
    """Run buildah, after binding each key of ``binds`` to its value. Raises ClusterError."""
    apt.ensure_installed(["buildah"], "handle container images")
    storage = cache.path("buildah", "root")
    pairs: list[Path] = []
    for source, target in (binds or {}).items():
        if source.is_dir():
            target.mkdir()
        else:
            target.touch()
        pairs += [source, target]
    return run(
        [
            *(*_PRIVATE_MOUNTS, "sh", "-c", _BIND_THEN_RUN, "sh"),
            str(len(pairs) // 2),
            *pairs,
            *("nice", "-n", "5", "buildah", "--storage-driver", "overlay"),
            *("--root", storage, "--runroot", storage.parent / "run", *arguments),
        ],
        what=what,
        env={"TMPDIR": str(cache.path("tmp", "x").parent), "BUILDAH_ISOLATION": "chroot"},
        log=log,
    )


def _names_in(archive: Path) -> list[str]:
    """Image names in a docker-archive. Raises ClusterError if it is none."""
    listing = run(
        ["tar", "--extract", "--to-stdout", "--file", archive, "manifest.json"],
        what=f"read {archive}",
        hint="It must be a docker-archive, as buildah push ... docker-archive:FILE makes it.",
    )
    return [name for entry in json.loads(listing) for name in entry.get("RepoTags") or []]


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
