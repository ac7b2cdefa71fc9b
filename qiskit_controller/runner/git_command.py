"""Runs git so that neither the repository nor its server, nor who named them, gets more of it
than objects of one repository.

git is given an environment of its own and no configuration but ours: no file of the image or
of a home folder is read, no hook, helper, pager or submodule is run, and one protocol is
allowed. Its process group ends with the call, and what it writes to the disk and to its pipes
is bounded.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import signal
import subprocess  # fixed command lines, refs and paths are checked before
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from qiskit_controller.api.run import Reason
from qiskit_controller.api.sources import Repository
from qiskit_controller.runner.addresses import Address
from qiskit_controller.runner.fetched import SourceFailed
from qiskit_controller.runner.git_credentials import GitCredentials
from qiskit_controller.runner.hostile import clean

CONNECT_SECONDS = 10
# Of what git says for itself; the end of it is what matters.
_STDERR_BYTES = 16_384
_POLL_SECONDS = 0.2
_PATH = "/usr/local/bin:/usr/bin:/bin"
# http.curloptResolve, without which git would resolve the host a second time.
_OLDEST = (2, 37)

_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.askPass": "",
    "core.fsmonitor": "false",
    # Objects above this are not held in memory.
    "core.bigFileThreshold": "4m",
    "credential.helper": "",
    "fetch.fsckObjects": "true",
    # Old tools wrote such objects into repositories that many still use; they do no harm here.
    "fetch.fsck.zeroPaddedFilemode": "ignore",
    "fetch.fsck.badTimezone": "ignore",
    "fetch.fsck.missingSpaceBeforeDate": "ignore",
    "fetch.recurseSubmodules": "false",
    "fetch.uriProtocols": "",
    "gc.auto": "0",
    "http.cookieFile": "",
    "http.emptyAuth": "false",
    # Redirects were followed, and each hop checked, before git runs.
    "http.followRedirects": "false",
    "http.proxy": "",
    "http.sslVerify": "true",
    "maintenance.auto": "false",
    "pack.threads": "1",
    "protocol.version": "2",
    "submodule.recurse": "false",
    "transfer.bundleURI": "false",
}


class GitFailed(Exception):
    """git ended with an error; `text` is what it said, without credentials."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


@attrs.frozen
class Git:
    """git for one repository.

    Attributes:
        folder: for the object database; made by :meth:`init`.
        peers: the addresses of the repository's host that may be connected to.
        max_bytes: what the folder may take up.
    """

    folder: Path
    repository: Repository
    peers: Sequence[Address]
    credentials: GitCredentials
    max_bytes: int

    def init(self) -> None:
        """Make an empty repository."""
        self.run("init", "--quiet", "--bare", "--template=", str(self.folder))

    def run(self, *arguments: str, limit: int = 1_000_000) -> bytes:
        """What git prints.

        Args:
            limit: bytes of that; more are an error.

        Raises:
            GitFailed: it ended with an error.
            SourceFailed: SourceTooLarge.
        """
        process = subprocess.Popen(  # noqa: S603  no shell; see the module's words
            ["git", *arguments],  # noqa: S607  of the PATH below
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment(),
            cwd=self.folder.parent,
            start_new_session=True,
        )
        try:
            out, said = self._follow(process, limit)
            code = process.wait()
        finally:
            # Also when the stage's deadline is raised in here. ssh and git-remote-https are of
            # the same group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code != 0:
            raise GitFailed(self.credentials.redact(said.decode(errors="replace")))
        return out

    def _follow(self, process: subprocess.Popen[bytes], limit: int) -> tuple[bytes, bytes]:
        assert process.stdout is not None  # noqa: S101  for the type checker: asked for
        assert process.stderr is not None  # noqa: S101
        out, said = bytearray(), bytearray()
        measured = time.monotonic()
        with selectors.DefaultSelector() as selector, process.stdout, process.stderr:
            for pipe, buffer in ((process.stdout, out), (process.stderr, said)):
                selector.register(pipe, selectors.EVENT_READ, buffer)
            while selector.get_map():
                for key, _ in selector.select(_POLL_SECONDS):
                    chunk = os.read(key.fd, 65_536)
                    key.data.extend(chunk)
                    if not chunk:
                        selector.unregister(key.fileobj)
                del said[:-_STDERR_BYTES]
                if len(out) > limit:
                    raise SourceFailed(
                        Reason.SOURCE_TOO_LARGE, f"git's answer has more than {limit} bytes"
                    )
                if time.monotonic() - measured > _POLL_SECONDS:
                    self._check_size()
                    measured = time.monotonic()
        self._check_size()
        return bytes(out), bytes(said)

    def _check_size(self) -> None:
        total = 0
        for folder, _, files in os.walk(self.folder):
            for name in files:
                # git removes its temporary files meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    total += (Path(folder) / name).lstat().st_size
        if total > self.max_bytes:
            raise SourceFailed(
                Reason.SOURCE_TOO_LARGE,
                f"the repository takes up more than {self.max_bytes} bytes, even without history",
            )

    def _environment(self) -> Mapping[str, str]:
        config = dict(_CONFIG)
        config["remote.origin.url"] = self.repository.url
        # There is nothing to resolve in an address, and curl would take IPv6's colons for its own.
        if self.repository.protocol != "ssh" and ":" not in self.repository.host:
            config["http.curloptResolve"] = self._resolution()
        if self.credentials.ca_file is not None:
            config["http.sslCAInfo"] = str(self.credentials.ca_file)
        elif "SSL_CERT_FILE" in os.environ:  # as Python's ssl has it
            config["http.sslCAInfo"] = os.environ["SSL_CERT_FILE"]
        environment = {
            "PATH": _PATH,
            "HOME": str(self.folder.parent),
            "LC_ALL": "C",
            "GIT_DIR": str(self.folder),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": str(self.credentials.askpass or "/bin/false"),
            # Takes the place of every protocol.* setting: nothing else is allowed.
            "GIT_ALLOW_PROTOCOL": self.repository.protocol,
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_SSH_VARIANT": "ssh",
            "GIT_SSH_COMMAND": self._ssh_command(),
            "GIT_CONFIG_COUNT": str(len(config)),
        }
        for index, (key, value) in enumerate(config.items()):
            environment[f"GIT_CONFIG_KEY_{index}"] = key
            environment[f"GIT_CONFIG_VALUE_{index}"] = value
        return environment

    def _resolution(self) -> str:
        shown = ",".join(f"[{each}]" if each.version == 6 else str(each) for each in self.peers)
        return f"{self.repository.host}:{self.repository.port}:{shown}"

    def _ssh_command(self) -> str:
        if self.repository.protocol != "ssh":
            return "/bin/false"
        host, port = self.repository.host, self.repository.port
        options = {
            # To the address that was checked, while the key is still that of the name.
            "HostName": str(self.peers[0]),
            "HostKeyAlias": host if port == 22 else f"[{host}]:{port}",
            "Port": str(port),
            "BatchMode": "yes",
            "CanonicalizeHostname": "no",
            "CheckHostIP": "no",
            "ClearAllForwardings": "yes",
            "ConnectTimeout": str(CONNECT_SECONDS),
            "ControlMaster": "no",
            "ControlPath": "none",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "IdentityFile": self.credentials.identity_file(),
            "KbdInteractiveAuthentication": "no",
            "PasswordAuthentication": "no",
            "PermitLocalCommand": "no",
            "PreferredAuthentications": "publickey",
            "ProxyCommand": "none",
            "ProxyJump": "none",
            "ServerAliveInterval": "15",
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",
            # Without one in the Secret there is still the image's /etc/ssh/ssh_known_hosts.
            "UserKnownHostsFile": str(self.credentials.known_hosts or os.devnull),
        }
        words = ["ssh", "-F", os.devnull, "-T"]
        for name, value in options.items():
            words += ["-o", f"{name}={value}"]
        return shlex.join(words)


def check_version() -> None:
    """git is there and recent enough to be told which address to connect to.

    Raises:
        SourceFailed: it is not; the operator's image is to blame.
    """
    try:
        said = subprocess.run(
            ["git", "version"],  # noqa: S607
            env={"PATH": _PATH},
            capture_output=True,
            check=True,
        ).stdout.decode()
    except (OSError, subprocess.CalledProcessError) as error:
        raise SourceFailed(
            Reason.SOURCE_FAILED, f"the runner image has no git that runs: {error}"
        ) from None
    found = re.search(r"(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < _OLDEST:
        raise SourceFailed(
            Reason.SOURCE_FAILED,
            f"the runner image has {clean(said, 80)}; {'.'.join(map(str, _OLDEST))} is needed",
        )
