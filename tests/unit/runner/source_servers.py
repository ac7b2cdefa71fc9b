"""Real servers to fetch from: a web server with every bad habit, git over http, git over ssh.

Used by the unit tests in this process's network, and by the e2e tests in the cluster's:
``python -m tests.unit.runner.source_servers ADDRESS FOLDER`` serves until it is ended, and
says where in one line of JSON.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import io
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import attrs

USER, PASSWORD = "ada", "correct horse&battery:staple"
NAME = "code.example"  # what the certificate is for

BELL = """\
from qiskit import QuantumCircuit
qc = QuantumCircuit(2, 2)
qc.h(0)
qc.cx(0, 1)
qc.measure([0, 1], [0, 1])
"""
QASM2 = """\
OPENQASM 2.0;
include "qelib1.inc";
qreg q[2];
creg c[2];
h q[0];
cx q[0], q[1];
measure q -> c;
"""
QASM3 = """\
OPENQASM 3.0;
include "stdgates.inc";
qubit[2] q;
bit[2] c;
h q[0];
cx q[0], q[1];
c = measure q;
"""


def qpy() -> bytes:
    """The Bell circuit as QPY."""
    from qiskit import qasm2
    from qiskit import qpy as format_

    buffer = io.BytesIO()
    format_.dump(qasm2.loads(QASM2), buffer)
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    """What is served, by name: each format with its ending and without."""
    return {
        "bell.py": BELL.encode(),
        "bell2.qasm": QASM2.encode(),
        "bell3.qasm": QASM3.encode(),
        "bell.qpy": qpy(),
        "bell": BELL.encode(),
        "latin1.py": b"name = 'caf\xe9'\n" + BELL.encode(),
        "page": b"<!DOCTYPE html><html><body>bell.py</body></html>",
        "empty.py": b"\n",
    }


# --- Repositories -----------------------------------------------------------------------------


@attrs.frozen
class Repository:
    """A bare repository, and commits in it by name."""

    path: Path
    commits: Mapping[str, str]


def git(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """Run git as its author would."""
    done = subprocess.run(
        ["git", *map(str, arguments)],
        cwd=cwd,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(cwd),
            "GIT_CONFIG_NOSYSTEM": "1",
            **{
                f"GIT_{who}_{what}": value
                for who in ("AUTHOR", "COMMITTER")
                for what, value in (("NAME", "Ada"), ("EMAIL", "ada@example.org"))
            },
            **environment,
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def make_repository(folder: Path, content: Mapping[str, bytes], *, filters: bool) -> Repository:
    """``<folder>/quantum.git``: circuits, and everything that no one should follow.

    Args:
        filters: whether the server does partial clones.
    """
    work = folder / "work"
    (work / "circuits").mkdir(parents=True)
    git("init", "--quiet", "--initial-branch=main", cwd=work)
    (work / "circuits" / "bell.py").write_text("# the first version\n" + BELL)
    git("add", ".", cwd=work)
    git("commit", "--quiet", "-m", "first", cwd=work)
    commits = {"first": git("rev-parse", "HEAD", cwd=work)}
    for name, text in content.items():
        (work / "circuits" / name).write_bytes(text)
    (work / "circuits" / "a name with blanks.py").write_text(BELL)
    (work / "circuits" / "lfs.py").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    (work / "huge.py").write_bytes(os.urandom(3_000_000))
    (work / "link.py").symlink_to("circuits/bell.py")
    (work / "passwd").symlink_to("/etc/passwd")
    (work / "up").symlink_to("../../..")
    (work / ".gitmodules").write_text(
        '[submodule "sub"]\n\tpath = sub\n\turl = ext::sh -c "touch /tmp/pwned"\n'
    )
    git("add", ".", cwd=work)
    git("update-index", "--add", "--cacheinfo", f"160000,{commits['first']},sub", cwd=work)
    git("commit", "--quiet", "-m", "second", cwd=work)
    commits["main"] = git("rev-parse", "HEAD", cwd=work)
    git("tag", "-a", "v1", "-m", "one", commits["first"], cwd=work)
    git("tag", "light", commits["first"], cwd=work)
    git("checkout", "--quiet", "-b", "feature/x", commits["first"], cwd=work)
    (work / "circuits" / "x.py").write_text(BELL)
    git("add", ".", cwd=work)
    git("commit", "--quiet", "-m", "x", cwd=work)
    commits["feature/x"] = git("rev-parse", "HEAD", cwd=work)
    bare = folder / "quantum.git"
    git("clone", "--quiet", "--bare", work, bare, cwd=folder)
    git("symbolic-ref", "HEAD", "refs/heads/main", cwd=bare)
    # What nobody's branch or tag leads to, but the server still has.
    tree = git("rev-parse", "main^{tree}", cwd=bare)
    commits["orphan"] = git("commit-tree", tree, "-m", "orphan", cwd=bare)
    git("config", "uploadpack.allowFilter", "true" if filters else "false", cwd=bare)
    hook = bare / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch /tmp/pwned\n")
    hook.chmod(0o755)
    return Repository(bare, commits)


# --- Web --------------------------------------------------------------------------------------


@attrs.define
class Web:
    """A running web server.

    Attributes:
        seen: the requests so far: path, and headers in lower case.
    """

    root: Path
    content: Mapping[str, bytes]
    seen: list[tuple[str, Mapping[str, str]]] = attrs.field(factory=list)
    scheme: str = "http"
    port: int = 0
    visits: dict[str, int] = attrs.field(factory=dict)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.web.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        first, _, rest = path.lstrip("/").partition("/")
        handler: Callable[[str, str], None] | None = getattr(
            self, f"_get_{first.replace('-', '_')}", None
        )
        # Whoever asks may hang up in the middle.
        with contextlib.suppress(OSError):
            if handler is None:
                self._answer(404, b"no such thing")
            else:
                handler(rest, query)

    do_POST = do_GET  # noqa: N815

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _get_files(self, name: str, _query: str) -> None:
        content = self.web.content.get(unquote(name))
        self._answer(404) if content is None else self._answer(200, content)

    def _get_status(self, code: str, _query: str) -> None:
        self._answer(int(code))

    def _get_redirect(self, _rest: str, query: str) -> None:
        self._answer(302, Location=parse_qs(query)["to"][0])

    def _get_hops(self, left: str, _query: str) -> None:
        there = f"/hops/{int(left) - 1}" if int(left) > 0 else "/files/bell.py"
        self._answer(302, Location=there)

    def _get_loop(self, _rest: str, _query: str) -> None:
        self._answer(301, Location="/loop")

    def _get_endless(self, _rest: str, _query: str) -> None:
        self._start_stream()
        while True:
            self.wfile.write(b"# more and more\n" * 4096)

    def _get_drip(self, _rest: str, _query: str) -> None:
        self._start_stream()
        while True:
            self.wfile.write(b"#")
            self.wfile.flush()
            time.sleep(0.05)

    def _get_drip_headers(self, _rest: str, _query: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def _get_silent(self, _rest: str, _query: str) -> None:
        time.sleep(60)

    def _get_gzip(self, _rest: str, _query: str) -> None:
        self._answer(200, b"\x1f\x8b", Content_Encoding="gzip")

    def _get_cut(self, _rest: str, _query: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"# cut\n")
        self.close_connection = True

    def _get_changing(self, _rest: str, _query: str) -> None:
        count = self.web.visits["changing"] = self.web.visits.get("changing", 0) + 1
        self._answer(200, f"# visit {count}\n{BELL}".encode())

    def _get_echo_auth(self, _rest: str, _query: str) -> None:
        self._answer(200, self.headers.get("Authorization", "none").encode())

    def _start_stream(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    # Repositories: open, with a password, and in ways that must not be followed.

    def _get_git(self, rest: str, query: str) -> None:
        self._backend(rest, query)

    def _get_v0(self, rest: str, query: str) -> None:
        """As a server from before protocol version 2."""
        del self.headers["Git-Protocol"]
        self._backend(rest, query)

    def _get_private(self, rest: str, query: str) -> None:
        wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != wanted:
            # Some servers are so kind as to repeat what they were given.
            body = f"remote: not {self.headers.get('Authorization')}".encode()
            self._answer(401, body, WWW_Authenticate='Basic realm="git"')
        else:
            self._backend(rest, query)

    def _get_moved(self, rest: str, query: str) -> None:
        self._answer(301, Location=f"/git/{rest}?{query}")

    def _get_away(self, rest: str, query: str) -> None:
        """To the same server under another name."""
        self._answer(302, Location=self.web.url(f"/private/{rest}?{query}", "127.0.0.2"))

    def _get_later(self, rest: str, query: str) -> None:
        """An honest first answer, then away to somewhere forbidden."""
        count = self.web.visits["later"] = self.web.visits.get("later", 0) + 1
        if count == 1:
            self._backend(rest, query)
        else:
            self._answer(302, Location=f"http://169.254.169.254/{rest}?{query}")

    def _get_dumb(self, rest: str, _query: str) -> None:
        path = self.web.root / rest
        self._answer(200, path.read_bytes()) if path.is_file() else self._answer(404)

    def _backend(self, path: str, query: str) -> None:
        body = self._body()
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.web.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "PATH_INFO": "/" + unquote(path),
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "REMOTE_ADDR": self.client_address[0],
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(
            ["git", "http-backend"], input=body, env=environment, capture_output=True, check=False
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
        status = int(headers.pop("Status", "200 OK").split()[0])
        self._answer(status, content, **headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever asks may hang up."""


@contextlib.contextmanager
def web_server(
    root: Path,
    content: Mapping[str, bytes],
    address: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> Iterator[Web]:
    """A web server on a port of its own; `root` holds the repositories."""
    web = Web(root, content)
    handler = type("Handler", (_Handler,), {"web": web})
    server = _Server((address, 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        web.scheme = "https"
    web.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


@attrs.frozen
class Authority:
    """A certificate authority of the test's own."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    @classmethod
    def create(cls, folder: Path) -> Authority:
        folder.mkdir()
        _openssl(
            "req", "-x509", "-subj", "/CN=test", "-keyout", "ca.key", "-out", "ca.crt", at=folder
        )
        return cls(folder)

    def context(self, *names: str) -> ssl.SSLContext:
        """For a server of these names."""
        stem = names[0]
        _openssl(
            "req",
            "-subj",
            f"/CN={stem}",
            "-keyout",
            f"{stem}.key",
            "-out",
            f"{stem}.csr",
            at=self.folder,
        )
        extension = self.folder / f"{stem}.ext"
        extension.write_text("subjectAltName=" + ",".join(names_of(names)))
        subprocess.run(
            ["openssl", "x509", "-req", "-days", "2", "-in", f"{stem}.csr", "-CA", "ca.crt",
             "-CAkey", "ca.key", "-CAcreateserial", "-extfile", extension, "-out", f"{stem}.crt"],
            cwd=self.folder, check=True, capture_output=True,
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{stem}.crt", self.folder / f"{stem}.key")
        return context


def names_of(names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        yield f"IP:{name}" if name[0].isdigit() else f"DNS:{name}"


def _openssl(*arguments: str, at: Path) -> None:
    subprocess.run(
        ["openssl", *arguments, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"],
        cwd=at,
        check=True,
        capture_output=True,
    )


# --- ssh --------------------------------------------------------------------------------------


@attrs.frozen
class Ssh:
    """A running sshd, and what a client needs.

    Attributes:
        key, stranger: private keys; the second opens nothing.
        known_hosts: for `address`.
    """

    address: str
    port: int
    user: str
    key: Path
    stranger: Path
    known_hosts: str

    def url(self, path: Path | str, user: str | None = None) -> str:
        return f"ssh://{user or self.user}@{self.address}:{self.port}{path}"


@contextlib.contextmanager
def ssh_server(
    folder: Path, address: str = "127.0.0.1", *, version_2: bool = True
) -> Iterator[Ssh]:
    """A real sshd on a port of its own, for the user that runs the tests.

    Args:
        version_2: let clients ask for git's protocol version 2.
    """
    folder.mkdir(parents=True)
    for name in ("host", "user", "stranger"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    Path("/run/sshd").mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress {address}\nPort {port}\nHostKey {folder / 'host'}\n"
        f"AuthorizedKeysFile {folder / 'user.pub'}\nPidFile none\nUsePAM no\nStrictModes no\n"
        "PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        + ("AcceptEnv GIT_PROTOCOL\n" if version_2 else "")
    )
    server = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-e", "-f", config], stderr=(folder / "log").open("wb")
    )
    try:
        _wait_port(address, port)
        key = " ".join((folder / "host.pub").read_text().split()[:2])
        yield Ssh(
            address,
            port,
            getpass.getuser(),
            folder / "user",
            folder / "stranger",
            f"[{address}]:{port} {key}\n",
        )
    finally:
        server.terminate()
        server.wait(10)


def _wait_port(address: str, port: int) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((address, port), 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


# --- All of it --------------------------------------------------------------------------------


def main() -> None:
    """Serve all of it until ended; see the module's words."""
    address, folder = sys.argv[1], Path(sys.argv[2])
    content = files()
    repository = make_repository(folder, content, filters=True)
    with web_server(folder, content, address) as web, ssh_server(folder / "ssh", address) as ssh:
        said: dict[str, Any] = {
            "web": web.url("", address),
            "ssh": ssh.url(""),
            "repository": str(repository.path),
            "commits": dict(repository.commits),
            "key": ssh.key.read_text(),
            "stranger": ssh.stranger.read_text(),
            "known_hosts": ssh.known_hosts,
        }
        print(json.dumps(said), flush=True)
        # Unwinds the contexts, so that sshd ends too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.pause()


if __name__ == "__main__":
    main()
