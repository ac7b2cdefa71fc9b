"""A real etcd and kube-apiserver for the tests below, one pair for each session.

The binaries come from $KUBEBUILDER_ASSETS, as with envtest, or from `hack/cluster assets`,
which builds them once and caches them. There is no kubelet, no scheduler and no controller
manager: objects stay as they were written, nothing runs, namespaces never finish
terminating. Everything listens on 127.0.0.1 only, on ports that are free.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import attrs
import pytest

from qiskit_controller.kube.client import Client
from tests.kinds import NAMESPACES

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0


@attrs.define
class ApiServer:
    """An API server with an etcd of its own."""

    assets: Path
    folder: Path
    # Of a member of system:masters, and of someone who may do nothing.
    token: str = attrs.field(factory=lambda: secrets.token_hex(16))
    user_token: str = attrs.field(factory=lambda: secrets.token_hex(16))
    port: int = attrs.field(factory=lambda: _free_port())
    etcd_port: int = attrs.field(factory=lambda: _free_port())
    _processes: dict[str, subprocess.Popen[bytes]] = attrs.field(factory=dict)

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig of a cluster administrator."""
        return self.folder / "kubeconfig"

    def start_etcd(self) -> None:
        client_url = f"http://127.0.0.1:{self.etcd_port}"
        peer_url = f"http://127.0.0.1:{_free_port()}"
        self._spawn(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={client_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--unsafe-no-fsync",
            "--log-level=error",
        )
        self._wait_for(f"{client_url}/health", "etcd")

    def start(self) -> None:
        """Start the API server and wait until it is ready; the port stays the same."""
        self._spawn_apiserver()
        self._wait_for_apiserver()

    async def restart(self) -> None:
        """Kill the API server and start it again; etcd and all it holds stay."""
        self._end("kube-apiserver")
        # Here and not in a thread, with whose end the server would be killed.
        self._spawn_apiserver()
        await asyncio.to_thread(self._wait_for_apiserver)

    def _spawn_apiserver(self) -> None:
        certificates = self.folder / "certificates"
        tokens = self.folder / "tokens.csv"
        tokens.write_text(
            f'{self.token},test-admin,test-admin,"system:masters"\n'
            f"{self.user_token},test-user,test-user\n"
        )
        self._spawn(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            # Only the tests decide when history is compacted.
            "--etcd-compaction-interval=0",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--secure-port={self.port}",
            "--insecure-port=0",
            # It makes itself a certificate there, and its key signs the tokens as well.
            f"--cert-dir={certificates}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={certificates / 'apiserver.key'}",
            f"--service-account-signing-key-file={certificates / 'apiserver.key'}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            # Service accounts are made by the controller manager, which is not here.
            "--disable-admission-plugins=ServiceAccount",
        )

    def _wait_for_apiserver(self) -> None:
        self._wait_for(f"https://127.0.0.1:{self.port}/readyz", "kube-apiserver")
        self.write_kubeconfig("kubeconfig")

    def write_kubeconfig(
        self, name: str, *, port: int | None = None, token: str | None = None
    ) -> Path:
        """A kubeconfig of its own, for another port (a proxy's) or another user's token."""
        certificate = (self.folder / "certificates" / "apiserver.crt").read_bytes()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": f"https://127.0.0.1:{port or self.port}",
                        "certificate-authority-data": base64.b64encode(certificate).decode(),
                    },
                }
            ],
            "users": [{"name": "test", "user": {"token": token or self.token}}],
        }
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        return path

    def close(self) -> None:
        for name in reversed(list(self._processes)):
            self._end(name)

    def compact(self) -> None:
        """Drop the history in etcd, as the API server does every five minutes."""
        header = self._etcd("range", {"key": base64.b64encode(b"/").decode()})["header"]
        revision = header["revision"]  # type: ignore[index]
        self._etcd("compaction", {"revision": revision, "physical": True})

    def _etcd(self, call: str, body: dict[str, object]) -> dict[str, object]:
        url = f"http://127.0.0.1:{self.etcd_port}/v3/kv/{call}"
        with urllib.request.urlopen(url, data=json.dumps(body).encode(), timeout=10) as response:
            return json.load(response)

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [self.assets / name, *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,
            )

    def _end(self, name: str) -> None:
        # Nothing they keep is worth an orderly end, which takes them seconds.
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def _wait_for(self, url: str, name: str) -> None:
        insecure = ssl.create_default_context()
        insecure.check_hostname = False
        insecure.verify_mode = ssl.CERT_NONE
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.token}"})
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._processes[name].poll() is None:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(request, timeout=5, context=insecure),
            ):
                return
            time.sleep(0.1)
        log = (self.folder / f"{name}.log").read_text(errors="replace")
        pytest.fail(f"{name} did not become ready:\n{log[-4000:]}")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _die_with_parent() -> None:
    """Should this very process be killed, nobody else would end the servers."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with the binaries `etcd` and `kube-apiserver`."""
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    if not folder:
        command = [ROOT / "hack" / "cluster", "assets"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            pytest.fail("no binaries: set KUBEBUILDER_ASSETS, or see what hack/cluster said")
        folder = done.stdout.splitlines()[-1]
    return Path(folder)


@pytest.fixture(scope="session")
def apiserver(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A running API server."""
    server = ApiServer(assets, tmp_path_factory.mktemp("apiserver"))
    try:
        server.start_etcd()
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
async def client(apiserver: ApiServer) -> AsyncIterator[Client]:
    """A client with all rights."""
    async with await Client.connect(str(apiserver.kubeconfig)) as client:
        yield client


@pytest.fixture
async def namespace(client: Client) -> str:
    """A new namespace for the test alone. It is left behind, as etcd is thrown away."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    await client.create(NAMESPACES, {"metadata": {"name": name}})
    return name
