"""The source ``git``: one file of one commit.

Nothing is ever checked out. The commit is fetched without history and, where the server has
partial clones, without any file's content; the path is walked through the tree objects, so that
no link in the repository leads anywhere; and the one file that it ends at is read from the object
database.
"""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path

import attrs

from qiskit_controller.api.qiskitjob import GitRef
from qiskit_controller.api.run import Limits, Reason
from qiskit_controller.api.sources import (
    HttpAddress,
    Repository,
    check_ref,
    is_commit,
    parse_repository,
    split_path,
)
from qiskit_controller.runner.addresses import Address, AddressPolicy
from qiskit_controller.runner.fetched import Fetched, SourceFailed
from qiskit_controller.runner.git_command import CONNECT_SECONDS, Git, GitFailed, check_version
from qiskit_controller.runner.git_credentials import GitCredentials
from qiskit_controller.runner.hostile import clean
from qiskit_controller.runner.http_fetch import Http
from qiskit_controller.runner.url_source import describe_status, reason_of_status

_INFO = "/info/refs?service=git-upload-pack"
_SMART = "application/x-git-upload-pack-advertisement"
_TARGET = "refs/quantum/source"
_NO_BLOBS = "--filter=blob:none"
_LISTED_NAMES = 20
_MESSAGE_CHARACTERS = 300
_LFS = b"version https://git-lfs.github.com/spec/"


@attrs.frozen
class _Wanted:
    """What to ask the server for.

    Attributes:
        name: a full ref, HEAD, or a commit.
        shown: as the user knows it.
    """

    name: str
    shown: str


def fetch_git(
    reference: GitRef,
    policy: AddressPolicy,
    secret: Path,
    scratch: Path,
    limits: Limits,
    commit: str | None = None,
) -> Fetched:
    """The file that `reference` names.

    Args:
        secret: where the Secret with the credentials is mounted, if there is one.
        scratch: a folder for the object database.
        commit: fetch this one, whatever the branch is by now.

    Raises:
        BadAddress: a part of the reference is malformed.
        SourceFailed: the file cannot be had.
    """
    path = split_path(reference.path)
    asked = reference.branch
    if asked is not None:
        check_ref(asked)
    repository = parse_repository(reference.repository)
    check_version()
    credentials = GitCredentials.load(secret, scratch)
    if repository.protocol == "ssh":
        peers = _reach_ssh(repository, policy, credentials)
    else:
        repository, peers, credentials = _reach_http(repository, policy, credentials)
    git = Git(scratch / "repository", repository, peers, credentials, limits.git_bytes)
    try:
        wanted = _choose(git, commit or asked)
        found, content = _fetch_file(git, wanted, path, limits.source_bytes)
    except GitFailed as error:
        raise _explain(error, repository, credentials) from None
    return Fetched(content, f"{repository}, {'/'.join(path)}", found)


# --- Reaching the server ----------------------------------------------------------------------


def _reach_ssh(
    repository: Repository, policy: AddressPolicy, credentials: GitCredentials
) -> tuple[Address, ...]:
    if not credentials.has_key:
        raise SourceFailed(
            Reason.GIT_AUTHENTICATION_FAILED,
            f"{repository} needs the key ssh-privatekey in the Secret that "
            "spec.credentials.gitSecretRef names",
        )
    failure: OSError | None = None
    # ssh is told one address: the first that answers.
    for peer in policy.resolve(repository.host, repository.port):
        try:
            with socket.create_connection((str(peer), repository.port), CONNECT_SECONDS):
                return (peer,)
        except OSError as error:
            failure = error
    why = failure.strerror or str(failure) if failure else "it has no address"
    raise SourceFailed(
        Reason.SOURCE_UNAVAILABLE, f"{repository.host}:{repository.port} does not answer: {why}"
    )


def _reach_http(
    repository: Repository, policy: AddressPolicy, credentials: GitCredentials
) -> tuple[Repository, tuple[Address, ...], GitCredentials]:
    """Make git's own first request, and follow its redirects in git's place."""
    asked = repository.http
    http = Http(policy, credentials.ca_file)
    answer = http.get(
        HttpAddress(asked.scheme, asked.host, asked.port, repository.path + _INFO),
        4096,
        # Some servers answer nobody but git.
        headers={"User-Agent": "git/2.39 (qiskit-controller)", "Git-Protocol": "version=2"},
        credentials=credentials.login,
        truncate=True,
    )
    if answer.status != HTTPStatus.OK:
        raise _refused(repository, answer.status, has_login=credentials.login is not None)
    there = answer.address
    if answer.content_type != _SMART or not there.target.endswith(_INFO):
        raise SourceFailed(
            Reason.SOURCE_INVALID, f"{repository} is not served as a Git repository (smart HTTP)"
        )
    if credentials.login is not None and there.origin != asked.origin:
        # It was open to all; git could still be asked for a password later, by someone else.
        credentials = attrs.evolve(credentials, login=None, askpass=None)
    path = there.target.removesuffix(_INFO)
    found = Repository(there.scheme, there.host, there.port, path)
    return found, answer.peers, credentials


def _refused(repository: Repository, status: int, *, has_login: bool) -> SourceFailed:
    said = f"{repository} answers {describe_status(status)}"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        hint = (
            "the credentials in the Secret that spec.credentials.gitSecretRef names are not "
            "accepted"
            if has_login
            else "it does not exist, or it is private: name a Secret with username and password "
            "in spec.credentials.gitSecretRef"
        )
        return SourceFailed(Reason.GIT_AUTHENTICATION_FAILED, f"{said}; {hint}")
    return SourceFailed(reason_of_status(status), said)


# --- Fetching ---------------------------------------------------------------------------------


def _choose(git: Git, asked: str | None) -> _Wanted:
    """The full name of what is asked for; a branch is preferred to a tag of the same name."""
    if asked is not None and is_commit(asked):
        return _Wanted(asked.lower(), f"commit {asked.lower()}")
    git.init()
    names = ["HEAD"]
    if asked is not None and asked != "HEAD":
        names = (
            [asked] if asked.startswith("refs/") else [f"refs/heads/{asked}", f"refs/tags/{asked}"]
        )
    listed = git.run("ls-remote", "--quiet", "origin", *names).decode(errors="replace")
    there = {line.partition("\t")[2] for line in listed.splitlines()}
    for name in names:
        if name in there:
            return _Wanted(name, asked or "the default branch")
    if asked is None:
        raise SourceFailed(
            Reason.SOURCE_NOT_FOUND, f"{git.repository} has no default branch; name one"
        )
    raise SourceFailed(
        Reason.SOURCE_NOT_FOUND,
        f"{git.repository} has no branch or tag {clean(asked, 100)!r}, and it is not a full "
        "commit of 40 digits",
    )


def _fetch_file(git: Git, wanted: _Wanted, path: Sequence[str], limit: int) -> tuple[str, bytes]:
    """The commit and the file, in the cheapest way that the server has."""
    for arguments in _ways(wanted):
        shutil.rmtree(git.folder, ignore_errors=True)
        git.init()
        try:
            git.run("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", *arguments)
            target = wanted.name if _takes_all(arguments) else _TARGET
            commit = git.run("rev-parse", "--verify", f"{target}^{{commit}}").decode().strip()
        except GitFailed as error:
            missing = _not_there(error, git.repository, wanted)
            if missing is not None:
                raise missing from None
            if not _may_go_another_way(error):
                raise
            continue
        try:
            return commit, _read_file(git, commit, path, limit)
        except GitFailed:
            # Servers of old may leave files out, and then refuse to give them one by one.
            if _NO_BLOBS not in arguments:
                raise
    raise SourceFailed(
        Reason.SOURCE_NOT_FOUND, f"{git.repository} has no {wanted.shown} on any branch or tag"
    )


def _ways(wanted: _Wanted) -> Iterator[Sequence[str]]:
    one = ("--depth=1", "origin", f"+{wanted.name}:{_TARGET}")
    yield (_NO_BLOBS, *one)
    yield one
    if is_commit(wanted.name):
        # Old servers give only what a ref points at: so all refs, within the limits of size and
        # time.
        yield ("origin", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")


def _takes_all(arguments: Sequence[str]) -> bool:
    return "--depth=1" not in arguments


def _may_go_another_way(error: GitFailed) -> bool:
    return (
        re.search(
            r"unadvertised object|filter|promisor|shallow|bad revision|unknown revision"
            r"|Needed a single revision",
            error.text,
        )
        is not None
    )


def _not_there(error: GitFailed, repository: Repository, wanted: _Wanted) -> SourceFailed | None:
    if re.search(r"not our ref|couldn't find remote ref", error.text):
        return SourceFailed(Reason.SOURCE_NOT_FOUND, f"{repository} has no {wanted.shown}")
    if re.search(r"expected commit type|not a commit|cannot be peeled|peel", error.text):
        return SourceFailed(Reason.SOURCE_INVALID, f"{wanted.shown} is not a commit")
    return None


# --- Reading the file -------------------------------------------------------------------------


def _read_file(git: Git, commit: str, path: Sequence[str], limit: int) -> bytes:
    folder = f"{commit}^{{tree}}"
    for depth, name in enumerate(path, start=1):
        here = clean("/".join(path[:depth]), 200)
        entries = _entries(git, folder)
        mode, kind, found = entries.get(name, ("", "", ""))
        if not mode:
            raise _missing(git.repository, commit, here, list(entries))
        if mode == "120000":
            raise SourceFailed(
                Reason.SOURCE_INVALID, f"{here} is a symbolic link; name the file it points to"
            )
        if kind == "commit":
            raise SourceFailed(
                Reason.SOURCE_INVALID, f"{here} is a submodule; name its own repository"
            )
        if depth == len(path):
            if kind != "blob":
                raise SourceFailed(Reason.SOURCE_INVALID, f"{here} is a folder; name a file")
            return _blob(git, found, here, limit)
        if kind != "tree":
            raise SourceFailed(Reason.SOURCE_NOT_FOUND, f"{here} is a file, not a folder")
        folder = found
    raise AssertionError("a path has at least one component")


def _entries(git: Git, tree: str) -> dict[str, tuple[str, str, str]]:
    """Mode, kind and object of every entry of a tree, by name."""
    listing = git.run("ls-tree", "-z", "--full-tree", tree, limit=64_000_000)
    entries = {}
    for line in listing.split(b"\0")[:-1]:
        about, _, name = line.partition(b"\t")
        mode, kind, found = about.decode().split()
        entries[name.decode(errors="replace")] = (mode, kind, found)
    return entries


def _missing(repository: Repository, commit: str, here: str, names: list[str]) -> SourceFailed:
    folder = here.rpartition("/")[0]
    shown = ", ".join(clean(each, 60) for each in sorted(names)[:_LISTED_NAMES])
    more = len(names) - _LISTED_NAMES
    shown += f" and {more} more" if more > 0 else ""
    return SourceFailed(
        Reason.SOURCE_NOT_FOUND,
        f"{here} is not in {repository} at commit {commit[:12]}; "
        f"{folder or 'its root'} has: {shown or 'nothing'}",
    )


def _blob(git: Git, blob: str, here: str, limit: int) -> bytes:
    # In a partial clone, this is what fetches it.
    size = int(git.run("cat-file", "-s", blob))
    if size > limit:
        raise SourceFailed(
            Reason.SOURCE_TOO_LARGE,
            f"{here} has {size} bytes; {limit} is the limit for code",
        )
    content = git.run("cat-file", "blob", blob, limit=limit)
    if content.startswith(_LFS):
        raise SourceFailed(Reason.SOURCE_INVALID, f"{here} is in Git LFS, which is not supported")
    return content


# --- Telling what went wrong ------------------------------------------------------------------

# What git and ssh say, the reason, and our words; the first that matches.
_SAID: tuple[tuple[str, Reason, str], ...] = (
    (
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED|host key is known",
        Reason.SOURCE_UNTRUSTED,
        "the server's host key is not in known_hosts of the Secret that "
        "spec.credentials.gitSecretRef names",
    ),
    (
        r"error in libcrypto|invalid format|incorrect passphrase",
        Reason.GIT_AUTHENTICATION_FAILED,
        "ssh-privatekey, in the Secret that spec.credentials.gitSecretRef names, is not a private "
        "key without a passphrase",
    ),
    (
        r"Permission denied|Authentication failed|could not read (Username|Password)"
        r"|returned error: 40[13]|Too many authentication failures",
        Reason.GIT_AUTHENTICATION_FAILED,
        "the credentials in the Secret that spec.credentials.gitSecretRef names are not accepted",
    ),
    (
        r"[Rr]epository .*not found|does not appear to be a git repository|does not exist"
        r"|returned error: 404|not exported|[Nn]o such repository|could not be found",
        Reason.SOURCE_NOT_FOUND,
        "there is no such repository, or the credentials do not give access to it",
    ),
    (
        r"SSL certificate problem|server certificate|certificate verif",
        Reason.SOURCE_UNTRUSTED,
        "the server's certificate is not to be trusted",
    ),
    (
        r"fsck error|index-pack failed|unpack-objects|is corrupt|bad object|hash mismatch"
        r"|mismatched algorithms",
        Reason.SOURCE_INVALID,
        "the repository has objects that are malformed",
    ),
    (r"No space left", Reason.SOURCE_TOO_LARGE, "the repository does not fit into its volume"),
    (r"File too large", Reason.SOURCE_TOO_LARGE, "the repository is too large"),
    (
        r"redirect|returned error: 30\d",
        Reason.SOURCE_INVALID,
        "the server redirects in the middle of its answers",
    ),
)


def _explain(error: GitFailed, repository: Repository, credentials: GitCredentials) -> SourceFailed:
    """Our words for git's; what is not known is taken for a fault of the network."""
    for pattern, reason, words in _SAID:
        if re.search(pattern, error.text):
            return SourceFailed(reason, f"{repository}: {words}")
    lines = [each for each in error.text.splitlines() if each.strip()]
    fatal = [each for each in lines if each.startswith(("fatal:", "error:"))]
    last = (fatal or lines or ["git failed"])[0]
    text = clean(credentials.redact(last), _MESSAGE_CHARACTERS)
    return SourceFailed(Reason.SOURCE_UNAVAILABLE, f"{repository}: {text}")
