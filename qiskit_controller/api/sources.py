"""The addresses of sources: what a URL, a repository, a ref and a path may look like.

Used on both sides: the controller refuses a wrong one before anything is started, and the stage
that fetches uses the parts that were parsed here, so that no second parser (of git, curl or
urllib3) gets to read what the user wrote and to see another host in it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

import attrs

from qiskit_controller.api.qiskitjob import QiskitJobSpec

Protocol = Literal["https", "http", "ssh"]

_PORTS: dict[str, int] = {"https": 443, "http": 80, "ssh": 22}
_LABEL = r"[a-zA-Z0-9_]([-a-zA-Z0-9_]{0,61}[a-zA-Z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_USER = re.compile(r"[a-zA-Z0-9_][-.a-zA-Z0-9_]*")
_SCP_LIKE = re.compile(r"(?:(?P<user>[^@:/]*)@)?(?P<host>[^@:/]+):(?P<path>.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}", re.IGNORECASE)
_INSTEAD = "; put it into a Secret and name that in spec.credentials.gitSecretRef"
# A file name in the pod, and in messages.
_NAME_CHARACTERS = 100


class BadAddress(ValueError):
    """What the user wrote cannot be used; the message says why and never repeats a password."""


@attrs.frozen
class HttpAddress:
    """A URL of http or https, in parts.

    Attributes:
        host: a name in lower case, or an IP address without brackets.
        target: path and query, as they are sent.
    """

    scheme: Literal["https", "http"]
    host: str
    port: int
    target: str

    @property
    def origin(self) -> str:
        """Scheme, host and, where it is not the usual one, port."""
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def path(self) -> str:
        """Without the query."""
        return self.target.partition("?")[0]

    @property
    def url(self) -> str:
        """The whole."""
        return self.origin + self.target

    def __str__(self) -> str:
        """For messages: a query may hold a signature that lets anyone in."""
        return self.origin + self.path + ("?..." if "?" in self.target else "")


@attrs.frozen
class Repository:
    """A Git repository's address, in parts.

    Attributes:
        path: below the host; begins with "/" except in the short form of ssh, which is
            relative to the account's home.
        user: for ssh.
    """

    protocol: Protocol
    host: str
    port: int
    path: str
    user: str = ""

    @property
    def url(self) -> str:
        """As git gets it."""
        if self.protocol == "ssh" and not self.path.startswith("/"):
            return f"{self.user}@{self.host}:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.protocol == "ssh":
            return f"ssh://{self.user}@{host}:{self.port}{self.path}"
        return f"{self.http.origin}{self.path}"

    @property
    def http(self) -> HttpAddress:
        """The same as an address of http or https."""
        if self.protocol == "ssh":
            raise ValueError("a repository over ssh has no http address")
        return HttpAddress(self.protocol, self.host, self.port, self.path)

    def __str__(self) -> str:
        return self.url


def parse_url(text: str) -> HttpAddress:
    """The parts of a URL of http or https; the fragment is left out.

    Raises:
        BadAddress: it is none, or it holds a user name.
    """
    parts = _split(text)
    if parts.scheme not in ("https", "http"):
        raise BadAddress("must begin with https:// or http://")
    scheme: Literal["https", "http"] = "https" if parts.scheme == "https" else "http"
    return HttpAddress(scheme, parts.host, parts.port, parts.target or "/")


def parse_repository(text: str) -> Repository:
    """The parts of a repository's URL: https, http, ssh, or ``user@host:path``.

    Raises:
        BadAddress: it is none of these, or it holds a password.
    """
    if "://" not in text:
        _check_characters(text)
        match = _SCP_LIKE.fullmatch(text)
        # "ext::sh -c ..." and its like name a helper program, and one letter is a drive.
        if match is None or match["path"].startswith(":"):
            raise BadAddress("must be a URL of https or ssh, or of the form git@host:path")
        return _ssh(match["user"] or "git", _host(match["host"]), 22, match["path"])
    parts = _split(text, _INSTEAD)
    path = parts.target.rstrip("/")
    if "?" in path:
        raise BadAddress("must not hold a query")
    if not path:
        raise BadAddress("must name a repository below the host")
    if parts.scheme == "ssh":
        return _ssh(parts.user or "git", parts.host, parts.port, path)
    if parts.scheme not in ("https", "http"):
        raise BadAddress("must be a URL of https or ssh, or of the form git@host:path")
    return Repository("https" if parts.scheme == "https" else "http", parts.host, parts.port, path)


def check_ref(name: str) -> None:
    """A name is one that a branch or tag can have: the rules of git-check-ref-format(1).

    Raises:
        BadAddress: it is not.
    """
    problem = (
        not name.isprintable()
        or re.search(r"[\s~^:?*\[\\]|\.\.|@\{|//", name)
        or name.startswith(("-", "/"))
        or name.endswith(("/", "."))
        or name == "@"
        or any(each.startswith(".") or each.endswith(".lock") for each in name.split("/"))
    )
    if problem:
        raise BadAddress("is not the name of a branch or tag, nor a commit")


def is_commit(name: str) -> bool:
    """Whether a ref is a full commit."""
    return _COMMIT.fullmatch(name) is not None


def split_path(text: str) -> tuple[str, ...]:
    """The components of a path inside a repository, which it cannot leave.

    Raises:
        BadAddress: it is absolute, climbs, or ends in a folder.
    """
    if not text.isprintable():
        raise BadAddress("holds a character that cannot be printed")
    if text.startswith("/"):
        raise BadAddress("must be relative to the root of the repository, without a leading '/'")
    parts = text.split("/")
    if ".." in parts:
        raise BadAddress("must not leave the repository with '..'")
    if parts[-1] in ("", "."):
        raise BadAddress("must name a file")
    return tuple(each for each in parts if each not in ("", "."))


def file_name(path: str, reserved: frozenset[str] = frozenset()) -> str:
    """A name for the file in the pod, after the last component of a path.

    Its ending, which may tell the format, is kept.
    """
    name = re.sub(r"[^-._a-zA-Z0-9]", "_", unquote(path.rpartition("/")[2]))
    if not name.strip("."):
        return "circuit"
    if len(name) > _NAME_CHARACTERS:
        name = name[:40] + "_" + name[-(_NAME_CHARACTERS - 41) :]
    return f"circuit-{name}" if name in reserved else name


def problems_of_source(spec: QiskitJobSpec) -> Iterator[str]:
    """What is wrong with the address of a ``url`` or ``git`` source, each with its field."""
    circuit = spec.circuit
    try:
        if circuit.source == "url" and circuit.url:
            where = "spec.circuit.url"
            parse_url(circuit.url)
        if circuit.source != "git" or circuit.git_ref is None:
            return
        reference = circuit.git_ref
        where = "spec.circuit.gitRef.path"
        split_path(reference.path)
        if reference.branch is not None:
            where = "spec.circuit.gitRef.branch"
            check_ref(reference.branch)
        where = "spec.circuit.gitRef.repository"
        repository = parse_repository(reference.repository)
        if repository.protocol == "ssh" and not (
            spec.credentials and spec.credentials.git_secret_ref
        ):
            yield (
                "spec.credentials.gitSecretRef: required for a repository over ssh; name a Secret "
                "with the keys ssh-privatekey and known_hosts"
            )
    except BadAddress as error:
        yield f"{where}: {error}"


@attrs.frozen
class _Parts:
    scheme: str
    user: str
    host: str
    port: int
    target: str


def _split(text: str, hint: str = "") -> _Parts:
    """A URL that leaves no room for two opinions about its host.

    Args:
        hint: what to do with a password instead.
    """
    _check_characters(text)
    # urlsplit drops tabs and line ends silently; they were refused above.
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise BadAddress(f"is not a URL: {_first(str(error))}") from None
    scheme = parts.scheme.lower()
    if scheme not in _PORTS:
        raise BadAddress("must begin with https://" if not scheme else "is of no known scheme")
    user, at, _ = parts.netloc.rpartition("@")
    if ":" in user or (at and scheme != "ssh"):
        raise BadAddress("must not hold a user name or a password" + hint)
    if port == 0:
        raise BadAddress("has the port 0")
    target = quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        target += "?" + parts.query
    return _Parts(scheme, user, _host(parts.hostname or ""), port or _PORTS[scheme], target)


def _first(text: str) -> str:
    # Python's message may go on with the text itself, password and all.
    return re.split(r"[:']", text, maxsplit=1)[0].strip()


def _check_characters(text: str) -> None:
    if not text.isascii():
        raise BadAddress(
            "holds a character outside ASCII; write it in percent-encoding, a host as xn--..."
        )
    if re.search(r"[\x00-\x20\x7f\\\"<>^`{|}]", text):
        raise BadAddress("holds a character that no URL may hold")


def _host(text: str) -> str:
    if not text:
        raise BadAddress("names no host")
    try:
        # A zone ("fe80::1%eth0") is no part of an address that others can reach.
        return ipaddress.ip_address(text.replace("%", " ")).compressed
    except ValueError:
        pass
    # 127.1, 0x7f000001 and 2130706433 are addresses to some programs and names to others.
    last = text.rpartition(".")[2].lower()
    if re.fullmatch(r"\d+|0x[0-9a-f]*", last):
        raise BadAddress("has a host that is neither a name nor an IP address in its usual form")
    if len(text) > 253 or not _HOST.fullmatch(text):
        raise BadAddress("has a host that is not a host name")
    return text.lower()


def _ssh(user: str, host: str, port: int, path: str) -> Repository:
    if not _USER.fullmatch(user):
        raise BadAddress("has a user that is not a user name")
    if path.startswith(("-", "/-")):
        raise BadAddress("has a path that begins with '-'")
    return Repository("ssh", host, port, path, user)
