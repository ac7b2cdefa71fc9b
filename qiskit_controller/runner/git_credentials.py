"""What ``spec.credentials.gitSecretRef`` holds, and how git gets it.

Nothing of it is on a command line, in a URL or in the environment: a helper script prints the
user name and the password from the mounted Secret when git asks, and ssh reads the key from a
file that exists in memory only.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
from pathlib import Path

import attrs

from qiskit_controller.api.run import Reason
from qiskit_controller.runner.fetched import SourceFailed
from qiskit_controller.runner.http_fetch import Credentials

# What servers expect beside a token, where the Secret names nobody.
_ANYONE = "git"
_MAX_BYTES = 1 << 20
_SCRIPT = """\
#!/bin/sh
case "$1" in
Username*) cat {username} ;;
Password*) cat {password} ;;
*) exit 1 ;;
esac
"""


@attrs.frozen
class GitCredentials:
    """Credentials of one repository; all absent for a public one."""

    login: Credentials | None = None
    askpass: Path | None = None
    known_hosts: Path | None = None
    ca_file: Path | None = None
    secrets: tuple[str, ...] = attrs.field(default=(), repr=False)
    _key_fd: int | None = None

    @classmethod
    def load(cls, secret: Path, scratch: Path) -> GitCredentials:
        """What the Secret mounted at `secret` holds; it may be missing.

        Args:
            scratch: for the helper script, which holds no secret itself.

        Raises:
            SourceFailed: GitAuthenticationFailed, for what cannot be used.
        """
        found = {name: _read(secret / name) for name in ("username", "password", "ssh-privatekey")}
        username, password, key = found.values()
        login = askpass = None
        if password is not None:
            login = Credentials(_line(username or _ANYONE.encode()), _line(password))
            askpass = _helper(secret, scratch, named=username is not None)
        return cls(
            login=login,
            askpass=askpass,
            known_hosts=_present(secret / "known_hosts"),
            ca_file=_present(secret / "ca.crt"),
            secrets=_spellings(login, key),
            key_fd=_in_memory(key) if key is not None else None,
        )

    @property
    def has_key(self) -> bool:
        """Whether there is a key for ssh."""
        return self._key_fd is not None

    def identity_file(self) -> str:
        """The path of the key for ssh, which closes what it inherits: so it is this process's
        own descriptor, which another process of the same user may open."""
        return "none" if self._key_fd is None else f"/proc/{os.getpid()}/fd/{self._key_fd}"

    def redact(self, text: str) -> str:
        """The text without anything of the Secret, and without the user part of URLs."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return re.sub(r"(?<=://)[^/@\s']*@", "", text)


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None


def _present(path: Path) -> Path | None:
    return path if path.is_file() else None


def _line(content: bytes) -> str:
    """The first line, which is what git takes of a helper's answer."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise SourceFailed(
            Reason.GIT_AUTHENTICATION_FAILED,
            "spec.credentials.gitSecretRef: username and password must be text in UTF-8",
        ) from None
    return re.split(r"[\r\n]", text, maxsplit=1)[0]


def _helper(secret: Path, scratch: Path, *, named: bool) -> Path:
    username = secret / "username"
    if not named:
        username = scratch / "username"
        username.write_text(_ANYONE)
    script = scratch / "askpass"
    script.write_text(
        _SCRIPT.format(username=_quote(username), password=_quote(secret / "password"))
    )
    script.chmod(0o500)
    return script


def _quote(path: Path) -> str:
    return shlex.quote(str(path))


def _spellings(login: Credentials | None, key: bytes | None) -> tuple[str, ...]:
    """All forms in which a secret could turn up in what others say."""
    found: list[str] = []
    if login is not None and login.password:
        pair = f"{login.username}:{login.password}".encode()
        found += [base64.b64encode(pair).decode(), login.password]
    if key is not None:
        lines = key.decode(errors="replace").splitlines()
        found += [each.strip() for each in lines if len(each.strip()) > 20]
    return tuple(found)


def _in_memory(key: bytes) -> int:
    # A line end is easily lost on the way into a Secret, and ssh insists on it.
    content = key.replace(b"\r\n", b"\n").rstrip(b"\n") + b"\n"
    fd = os.memfd_create("ssh-privatekey", 0)
    os.fchmod(fd, 0o600)
    os.write(fd, content)
    return fd
