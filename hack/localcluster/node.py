"""One cluster: bringing its single node up, looking at it, taking it down.

A cluster's state is one directory in the cache (etcd's data, the container
store, keys, logs, pid records). It lasts from ``up`` to ``down``; a node that
died, or the machine that restarted, begins afresh.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import platform
import re
import shutil
import socket
import ssl
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from localcluster import binaries, cache, cgroups, components, daemon, network, pki
from localcluster.proc import ClusterError, require_root, run, say, tail

_MS_BIND = 4096
_MS_REC = 16384
_MS_SLAVE = 1 << 19
_MS_SHARED = 1 << 20
_API_PORT = 6443


class Cluster:
    """The cluster called ``name``, whether or not it is up.

    Raises ClusterError for a name that cannot be one.
    """

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?", name):
            raise ClusterError(
                f"could not use the cluster name {name!r}\n"
                "  Take up to 30 lower-case letters, digits and dashes."
            )
        self.name = name
        self.node = f"{name}-node"
        self.state = cache.path("clusters", name)
        self.logs = cache.path("logs", name, "x").parent
        self.kubeconfig = self.state / "kubeconfig"
        # Names on the host must differ between caches too.
        digest = hashlib.sha256(str(self.state).encode()).hexdigest()[:8]
        self._cgroup = f"qiskit-cluster-{digest}"
        self._interface = f"qc{digest}"
        self._init = daemon.Process(self.state / "pids" / "init.json")

    # Looking

    @property
    def running(self) -> bool:
        """Whether the node's namespaces are there (its components may still be starting)."""
        return self._init.pid is not None

    @property
    def link(self) -> network.Link:
        """The addresses of host and node. Raises ClusterError when the cluster is not up."""
        self._require_up()
        return network.Link(**json.loads((self.state / "link.json").read_text()))

    def states(self) -> dict[str, int | None]:
        """The pid of every component, None for those that do not run."""
        return {name: self._process(name).pid for name in components.NAMES}

    def ready(self) -> bool:
        """Whether the API server answers, the node is Ready and pods can be made."""
        try:
            node = self.api(f"/api/v1/nodes/{self.node}")
            self.api("/api/v1/namespaces/default/serviceaccounts/default")
        except (OSError, ClusterError, http.client.HTTPException):
            return False
        conditions = node.get("status", {}).get("conditions", [])
        return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)

    def api(self, path: str) -> Any:
        """GET ``path`` from the API server as its administrator, parsed if it is JSON.

        Raises OSError when it is not reachable and ClusterError unless it answers 200.
        """
        folder = self.state / "pki"
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        context.load_cert_chain(str(folder / "admin.crt"), str(folder / "admin.key"))
        connection = http.client.HTTPSConnection(
            self.link.inside, _API_PORT, context=context, timeout=5
        )
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        if answer.status != http.client.OK:
            raise ClusterError(f"could not get {path}: the API server said {answer.status}")
        return json.loads(body) if body[:1] == b"{" else body.decode()

    def inside(self, *command: str | Path, what: str) -> str:
        """Run ``command`` on the node and return its output. Raises ClusterError."""
        enter = ["nsenter", "--target", str(self._require_up())]
        enter += ["--net", "--uts", "--pid", "--mount", "--", "env", "-i"]
        enter += [f"{key}={value}" for key, value in components.ENVIRONMENT.items()]
        return run([*enter, *command], what=what)

    # Changing

    def up(self) -> None:
        """Bring the cluster up, or whatever of it is missing. Raises ClusterError."""
        require_root("bring a cluster up")
        with cache.locked(f"cluster-{self.name}"):
            programs = binaries.node_programs()
            if not self.running:
                self._clean()
                self._create(programs)
            network.connect(self.link, self._require_up())
            self._start("etcd")
            self._start("containerd")
            self._wait("etcd", "answers", 30, lambda: self._listens("127.0.0.1", 2379))
            self._start("kube-apiserver")
            self._wait("containerd", "answers", 30, self._containerd_answers)
            self._import_pause()
            self._start("kubelet")  # it takes five seconds before it needs the API server
            self._wait("kube-apiserver", "is ready", 90, self._api_ready)
            for name in components.NAMES:
                self._start(name)
            self._wait("kubelet", "reports the node Ready", 90, self.ready)
            say(f"the cluster {self.name!r} is up")

    def down(self) -> None:
        """Take the cluster down and remove its state. Raises ClusterError."""
        require_root("take a cluster down")
        with cache.locked(f"cluster-{self.name}"):
            existed = self.state.exists()
            self._clean()
        say(f"the cluster {self.name!r} is {'down' if existed else 'not there'}")

    def stop(self, component: str) -> None:
        """Stop one component and leave it so. Raises ClusterError."""
        self._require_up()
        self._known(component)
        self._process(component).end()
        say(f"{component} stopped")

    def start(self, component: str) -> None:
        """Start one component that was stopped or died. Raises ClusterError."""
        self._require_up()
        self._known(component)
        self._start(component)

    def enter_network(self) -> None:
        """Move this process into the node's network, to be ended by ``down`` at the latest."""
        init = self._require_up()
        require_root("enter the node's network")
        cgroups.join(self._cgroup, cgroups.GUESTS)
        daemon.enter_network(init)

    # Parts of up and down

    def _create(self, programs: dict[str, Path]) -> None:
        say(f"creating the cluster {self.name!r}")
        for folder in ("", "pids", "bin", "home", "tmpfs", "var-log", "var-lib"):
            (self.state / folder).mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.rmtree(self.logs, ignore_errors=True)  # those of the cluster before
        self.logs.mkdir(parents=True)
        in_cache = Path(components.CACHE)
        for name, file in programs.items():
            (self.state / "bin" / name).symlink_to(in_cache / file.relative_to(cache.root()))
        plugins = binaries.cni_plugins().relative_to(cache.root())
        (self.state / "cni-bin").symlink_to(in_cache / plugins)
        with cache.locked("network"):
            link = network.choose_link(self.name, self._interface)
            self._write_keys(link)
            components.write_configuration(self.state, node=self.node, cgroup=self._cgroup)
            (self.state / "link.json").write_text(json.dumps(asdict(link)))
            cgroups.create(self._cgroup)
            init = daemon.start_init(
                self._init,
                log=self.logs / "init.log",
                before=self._join_cgroup,
                prepare=self._prepare_mounts,
                argv=[f"{components.STATE}/bin/pause"],
            )
            network.connect(link, init)
        say(f"node network: {link.outside} (host) to {link.inside} (node)")

    def _write_keys(self, link: network.Link) -> None:
        folder = self.state / "pki"
        authority = pki.Authority(folder)
        authority.signing_key("service-accounts")
        authority.issue(
            "apiserver",
            user="kube-apiserver",
            addresses=[link.inside, *components.API_ADDRESSES],
            names=[self.node, *components.API_NAMES],
        )
        authority.issue("apiserver-kubelet", user="kube-apiserver", group="system:masters")
        authority.issue("admin", user="kubernetes-admin", group="system:masters")
        authority.issue(
            "kubelet",
            user=f"system:node:{self.node}",
            group="system:nodes",
            addresses=[network.GATEWAY],
            names=[self.node],
        )
        for name in ("controller-manager", "scheduler"):
            authority.issue(name, user=f"system:kube-{name}")
        authority.issue("kube-proxy", user="system:kube-proxy")
        local = f"https://127.0.0.1:{_API_PORT}"
        for name in ("kubelet", "controller-manager", "scheduler", "kube-proxy"):
            text = pki.kubeconfig(folder, name, local, "local")
            (folder / f"{name}.conf").write_text(text)
        server = f"https://{link.inside}:{_API_PORT}"
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(pki.kubeconfig(folder, "admin", server, f"qiskit-{self.name}"))

    def _join_cgroup(self) -> None:
        cgroups.join(self._cgroup, cgroups.NODE)

    def _prepare_mounts(self) -> None:
        """Arrange the node's file system: the machine's, with a few places of its own.

        Runs in the new mount namespace. What the machine mounts later shows up
        in here, nothing that is mounted in here shows up outside.
        """
        daemon.mount("none", "/", flags=_MS_REC | _MS_SLAVE)
        daemon.mount("none", "/", flags=_MS_REC | _MS_SHARED)
        # Built aside and then moved over /run, since the state may itself be below /run.
        ours = self.state / "tmpfs"
        daemon.mount("tmpfs", ours, "tmpfs")
        for folder in ("node", "cache", "containerd", "lock", "netns", "sysctl"):
            (ours / folder).mkdir()
        daemon.mount(self.state, ours / "node", flags=_MS_BIND)
        daemon.mount(cache.root(), ours / "cache", flags=_MS_BIND)
        daemon.mount(ours, "/run", flags=_MS_BIND | _MS_REC)
        # Paths that Kubernetes and CNI have built in.
        daemon.mount(f"{components.STATE}/var-log", "/var/log", flags=_MS_BIND)
        daemon.mount(f"{components.STATE}/var-lib", "/var/lib", flags=_MS_BIND)
        names = Path("/etc/resolv.conf")
        if names.is_file():
            configured = f"{components.STATE}/config/resolv.conf"
            daemon.mount(configured, names.resolve(), flags=_MS_BIND)
        daemon.mount("proc", "/proc", "proc")
        for setting, value in components.KERNEL_SETTINGS.items():
            real = Path("/proc/sys") / setting
            if not real.exists():
                continue
            seen = Path("/run/sysctl") / setting.replace("/", ".")
            seen.write_text(f"{value}\n")
            daemon.mount(seen, real, flags=_MS_BIND)
        socket.sethostname(self.node)
        os.chdir("/")

    def _start(self, component: str) -> None:
        process = self._process(component)
        if process.pid is not None:
            return
        log = self.logs / f"{component}.log"
        pid = daemon.spawn(
            process,
            init=self._require_up(),
            log=log,
            before=self._join_cgroup,
            argv=components.command(component, node=self.node),
            env=components.environment(component),
        )
        say(f"started {component} (pid {pid})")

    def _wait(
        self, component: str, what: str, seconds: float, condition: Callable[[], bool]
    ) -> None:
        """Wait for ``condition``, or for ``component`` to die trying. Raises ClusterError."""
        deadline = time.monotonic() + seconds
        process = self._process(component)
        while not condition():
            dead = process.pid is None
            if dead or time.monotonic() > deadline:
                log = self.logs / f"{component}.log"
                why = f"{component} ended" if dead else f"it took over {seconds:.0f} s"
                shown = tail(log.read_text(errors="replace")) if log.exists() else ""
                raise ClusterError(
                    f"could not wait until {component} {what}: {why}\n{shown}\n  log: {log}\n"
                    "  Try again; if that does not help: hack/cluster down, then up."
                )
            time.sleep(0.1)
        say(f"{component} {what}")

    def _listens(self, address: str, port: int) -> bool:
        """Whether something on the node listens on ``port``."""
        script = f"exec 3<>/dev/tcp/{address}/{port}"
        try:
            self.inside("/bin/bash", "-c", script, what="connect")
        except ClusterError:
            return False
        return True

    def _containerd_answers(self) -> bool:
        try:
            self._ctr("version")
        except ClusterError:
            return False
        return True

    def _api_ready(self) -> bool:
        try:
            self.api("/readyz")
        except (OSError, ClusterError, http.client.HTTPException):
            return False
        return True

    def _import_pause(self) -> None:
        if components.PAUSE_IMAGE in self.images():
            return
        archive = self.state / "pause.tar"
        _write_image(archive, components.PAUSE_IMAGE, self.state_program("pause"))
        self.import_images(archive.name)

    def state_program(self, name: str) -> Path:
        """The host's path of a program in the node's ``bin``."""
        link = (self.state / "bin" / name).readlink()
        return cache.root() / link.relative_to(components.CACHE)

    # Images on the node

    def images(self) -> dict[str, str]:
        """Names of the images on the node, each with its labels as containerd prints them."""
        lines = self._ctr("images", "ls").splitlines()[1:]
        return {line.split()[0]: line.split()[-1] for line in lines if line.strip()}

    def import_images(self, archive: str, *labels: str) -> None:
        """Import ``archive``, a path relative to the state directory."""
        path = f"{components.STATE}/{archive}"
        self._ctr("images", "import", *(f"--label={label}" for label in labels), path)

    def label_image(self, image: str, label: str) -> None:
        """Put ``key=value`` on an image of the node."""
        self._ctr("images", "label", image, label)

    def _ctr(self, *arguments: str) -> str:
        return self.inside(
            *("ctr", "--address", components.CONTAINERD_SOCKET, "--namespace", "k8s.io"),
            *arguments,
            what=f"talk to containerd (ctr {' '.join(arguments[:2])})",
        )

    # Ending

    def _clean(self) -> None:
        """Leave nothing of the node behind, in whatever state it is."""
        self._init.end(grace=0)  # and with it all that is in its PID namespace
        cgroups.remove(self._cgroup)  # and what exec-netns started
        if shutil.which("ip"):
            network.disconnect(self._interface)
        shutil.rmtree(self.state, ignore_errors=True)
        if self.state.exists():
            shutil.rmtree(self.state)

    def _process(self, component: str) -> daemon.Process:
        return daemon.Process(self.state / "pids" / f"{component}.json")

    def _known(self, component: str) -> None:
        if component not in components.NAMES:
            raise ClusterError(
                f"could not find the component {component!r}\n"
                f"  There are: {', '.join(components.NAMES)}."
            )

    def _require_up(self) -> int:
        pid = self._init.pid
        if pid is None:
            raise ClusterError(
                f"could not find the cluster {self.name!r}: it is not up\n"
                f"  Bring it up: hack/cluster up --name {self.name}"
            )
        return pid


def all_names() -> list[str]:
    """Names of the clusters that have state in the cache."""
    folder = cache.path("clusters", "x").parent
    return sorted(entry.name for entry in folder.glob("*") if entry.is_dir())


def _write_image(archive: Path, name: str, program: Path) -> None:
    """Write a docker-archive of an image that holds and runs one static program."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as inner:
        entry = tarfile.TarInfo(program.name)
        entry.mode, entry.size = 0o755, program.stat().st_size
        with program.open("rb") as content:
            inner.addfile(entry, content)
    machines = {"x86_64": "amd64", "aarch64": "arm64"}
    config = {
        "architecture": machines.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "User": "65535:65535"},
        "rootfs": {
            "type": "layers",
            "diff_ids": ["sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()],
        },
    }
    encoded = json.dumps(config).encode()
    config_name = hashlib.sha256(encoded).hexdigest() + ".json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as outer:
        for path, data in (
            ("layer.tar", layer.getvalue()),
            (config_name, encoded),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            outer.addfile(entry, io.BytesIO(data))
