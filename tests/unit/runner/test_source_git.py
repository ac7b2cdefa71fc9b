"""The source ``git`` against git http-backend and sshd."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from qiskit_controller.api.run import COMMIT_ENV, SHA256_ENV, Limits, Reason
from qiskit_controller.runner.git_credentials import GitCredentials

from .source_servers import (
    NAME,
    PASSWORD,
    USER,
    Authority,
    Repository,
    Ssh,
    Web,
    files,
    git,
    make_repository,
    ssh_server,
    web_server,
)
from .source_support import Fetch, fetch
from .support import Pod

FILES = files()
LOGIN = {"username": USER, "password": PASSWORD}


@attrs.frozen
class Site:
    web: Web
    new: Repository  # on a server with partial clones
    old: Repository  # on one without


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("git")
    for name in ("new", "old"):
        (root / name).mkdir()
    new = make_repository(root / "new", FILES, filters=True)
    old = make_repository(root / "old", FILES, filters=False)
    with web_server(root, FILES) as web:
        yield Site(web, new, old)


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    with ssh_server(tmp_path_factory.mktemp("ssh") / "sshd") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_ran() -> Iterator[None]:
    """Hooks and ext:: transports in the repositories make this file."""
    marker = Path("/tmp/pwned")
    marker.unlink(missing_ok=True)
    yield
    assert not marker.exists()


def clone(
    root: Path,
    repository: str,
    path: str = "circuits/bell.py",
    branch: str | None = None,
    **how: object,
) -> Fetch:
    reference = {"repository": repository, "path": path}
    if branch is not None:
        reference["branch"] = branch
    return fetch(root, {"source": "git", "gitRef": reference}, **how)  # type: ignore[arg-type]


# Every kind of ref where the server can do everything; the kinds that differ on all others.
REFS = {
    None: "main",
    "v1": "first",
    "<main>": "main",
    "<first>": "first",
}
MORE_REFS = {
    "main": "main",
    "HEAD": "main",
    "feature/x": "feature/x",
    "refs/heads/feature/x": "feature/x",
    "light": "first",
}


@pytest.mark.parametrize(
    ("server", "branch", "commit"),
    [
        *(("git/new", branch, commit) for branch, commit in (REFS | MORE_REFS).items()),
        *(
            (server, branch, commit)
            for server in ("git/old", "v0/new", "v0/old")
            for branch, commit in REFS.items()
        ),
    ],
)
def test_branches_tags_and_commits(
    tmp_path: Path, site: Site, server: str, branch: str | None, commit: str
) -> None:
    commits = site.new.commits if "new" in server else site.old.commits
    if branch is not None and branch.startswith("<"):
        branch = commits[branch.strip("<>")]
    got = clone(tmp_path, site.web.url(f"/{server}/quantum.git"), branch=branch)
    assert (got.code, got.report.reason) == (0, None), got.said
    assert got.report.commit == commits[commit]
    expected = FILES["bell.py"] if commit == "main" else b"# the first version\n" + FILES["bell.py"]
    assert got.content == expected
    assert got.report.sha256 == hashlib.sha256(expected).hexdigest()


def test_a_commit_that_no_branch_leads_to(tmp_path: Path, site: Site) -> None:
    orphan = site.new.commits["orphan"]
    got = clone(tmp_path / "a", site.web.url("/git/new/quantum.git"), branch=orphan)
    assert got.report.commit == orphan, got.said
    # A server of old gives what its refs lead to, and says so of the rest.
    orphan = site.old.commits["orphan"]
    got = clone(tmp_path / "b", site.web.url("/v0/old/quantum.git"), branch=orphan)
    assert got.report.reason is Reason.SOURCE_NOT_FOUND
    assert f"has no commit {orphan}" in got.report.message


@pytest.mark.parametrize("name", ["bell2.qasm", "bell3.qasm", "bell.qpy", "latin1.py"])
def test_any_file(tmp_path: Path, site: Site, name: str) -> None:
    got = clone(tmp_path, site.web.url("/git/new/quantum.git"), f"circuits/{name}")
    assert got.content == FILES[name]
    Pod(tmp_path).circuit()
    outcome = Pod(tmp_path).outcome()
    assert outcome.reason == (Reason.CIRCUIT_SYNTAX_ERROR if name == "latin1.py" else None)


def test_a_name_with_blanks(tmp_path: Path, site: Site) -> None:
    url = site.web.url("/git/new/quantum.git")
    got = clone(tmp_path, url, "./circuits//a name with blanks.py")
    assert got.content == FILES["bell.py"]
    Pod(tmp_path).circuit()
    assert Pod(tmp_path).outcome().reason is None


def test_partial_clones_leave_other_files_alone(tmp_path: Path, site: Site) -> None:
    """Three megabytes are beside the file, and a megabyte is allowed."""
    limits = Limits(git_bytes=1_000_000, source_seconds=100)
    url = "/git/{}/quantum.git"
    assert clone(tmp_path / "a", site.web.url(url.format("new")), limits=limits).code == 0
    got = clone(tmp_path / "b", site.web.url(url.format("old")), limits=limits)
    assert got.report.reason is Reason.SOURCE_TOO_LARGE, got.said


# Path, branch, reason, message.
REFUSED: dict[str, tuple[str, str | None, Reason, str]] = {
    "symlink": ("link.py", None, Reason.SOURCE_INVALID, "link.py is a symbolic link"),
    "symlink to outside": ("passwd", None, Reason.SOURCE_INVALID, "passwd is a symbolic link"),
    "through a symlink": ("up/etc/passwd", None, Reason.SOURCE_INVALID, "up is a symbolic link"),
    "submodule": ("sub/x.py", None, Reason.SOURCE_INVALID, "sub is a submodule"),
    "folder": ("circuits", None, Reason.SOURCE_INVALID, "circuits is a folder; name a file"),
    "through a file": (
        "circuits/bell.py/x",
        None,
        Reason.SOURCE_NOT_FOUND,
        "circuits/bell.py is a file, not a folder",
    ),
    "missing": (
        "circuits/nope.py",
        None,
        Reason.SOURCE_NOT_FOUND,
        "circuits has: a name with blanks.py, bell, bell.py, bell.qpy",
    ),
    "missing folder": ("nope/bell.py", None, Reason.SOURCE_NOT_FOUND, "its root has: .gitmodules"),
    "lfs": ("circuits/lfs.py", None, Reason.SOURCE_INVALID, "Git LFS"),
    "too large": ("huge.py", None, Reason.SOURCE_TOO_LARGE, "huge.py has 3000000 bytes"),
    "climbing": ("../../etc/passwd", None, Reason.SOURCE_INVALID, "must not leave"),
    "climbing later": ("circuits/../../x", None, Reason.SOURCE_INVALID, "must not leave"),
    "absolute": ("/etc/passwd", None, Reason.SOURCE_INVALID, "must be relative"),
    "no branch": ("circuits/bell.py", "nope", Reason.SOURCE_NOT_FOUND, "no branch or tag 'nope'"),
    "no commit": ("circuits/bell.py", "1" * 40, Reason.SOURCE_NOT_FOUND, "has no commit 1111"),
    "short commit": ("circuits/bell.py", "1234567", Reason.SOURCE_NOT_FOUND, "not a full commit"),
    "option": (
        "circuits/bell.py",
        "--upload-pack=touch /tmp/pwned",
        Reason.SOURCE_INVALID,
        "is not the name of a branch or tag",
    ),
    "option without blanks": (
        "circuits/bell.py",
        "--upload-pack=touch${IFS}/tmp/pwned",
        Reason.SOURCE_INVALID,
        "is not the name of a branch or tag",
    ),
    "refspec": ("circuits/bell.py", "+main:main", Reason.SOURCE_INVALID, "is not the name"),
    "peeling": ("circuits/bell.py", "main^{tree}", Reason.SOURCE_INVALID, "is not the name"),
    "no commit but a tree": (
        "circuits/bell.py",
        "<tree>",
        Reason.SOURCE_INVALID,
        "is not a commit",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_a_file_of_the_repository(tmp_path: Path, site: Site, what: str) -> None:
    path, branch, reason, text = REFUSED[what]
    if branch == "<tree>":
        branch = git("rev-parse", "main^{tree}", cwd=site.new.path)
    limits = Limits(source_bytes=100_000, source_seconds=100)
    got = clone(tmp_path, site.web.url("/git/new/quantum.git"), path, branch, limits=limits)
    assert (got.code, got.report.reason, got.content) == (1, reason, None), got.said
    assert text in got.report.message


@pytest.mark.parametrize(
    "repository",
    [
        "ext::sh -c touch% /tmp/pwned",
        "ext::sh",
        "file:///etc",
        "/etc",
        "../quantum.git",
        "git://127.0.0.1/quantum.git",
        "ftp://127.0.0.1/quantum.git",
        "--upload-pack=touch",
        "ssh://-oProxyCommand=touch/x",
        "ssh://git@-oProxyCommand=x/y",
        "-oProxyCommand=x:y",
        "git@host:-x",
        "https://user:hunter2@127.0.0.1/quantum.git",
        "ssh://git:hunter2@127.0.0.1/quantum.git",
        "http://127.0.0.1\\@evil.example/x",
        "http://127.0.0.1/x\ny",
    ],
)
def test_repositories_that_git_would_understand(tmp_path: Path, repository: str) -> None:
    got = clone(tmp_path, repository)
    assert got.report.reason is Reason.SOURCE_INVALID
    assert "hunter2" not in got.said


# --- Servers that lead astray -----------------------------------------------------------------


def test_a_repository_that_has_moved(tmp_path: Path, site: Site) -> None:
    got = clone(tmp_path, site.web.url("/moved/new/quantum.git"))
    assert got.report.commit == site.new.commits["main"], got.said


def test_moved_to_where_one_may_not_go(tmp_path: Path, site: Site) -> None:
    got = clone(tmp_path, site.web.url("/away/new/quantum.git"), secret=LOGIN)
    assert got.report.reason is Reason.SOURCE_ADDRESS_FORBIDDEN
    assert "127.0.0.2" in got.report.message


def test_credentials_stay_with_the_server_they_are_for(tmp_path: Path, site: Site) -> None:
    with web_server(site.web.root, FILES, "127.0.0.2") as other:
        there = other.url("/private/new/quantum.git/info/refs?service=git-upload-pack", "127.0.0.2")
        url = site.web.url(f"/redirect?to={there}&x=", "127.0.0.1")
        assert "?" in url
        site.web.port, port = site.web.port, site.web.port
        # /away redirects to 127.0.0.2 on its own port: so this one answers there as well.
        with web_server(site.web.root, FILES) as first:
            first.port, mine = other.port, first.port
            got = clone(
                tmp_path,
                f"http://127.0.0.1:{mine}/away/new/quantum.git",
                secret=LOGIN,
                allow=["127.0.0.0/8"],
            )
        assert port == site.web.port
    assert got.report.reason is Reason.GIT_AUTHENTICATION_FAILED, got.said
    assert any("authorization" in headers for _, headers in first.seen)
    assert other.seen
    assert not any("authorization" in headers for _, headers in other.seen)


def test_a_redirect_after_the_check(tmp_path: Path, site: Site) -> None:
    site.web.visits.pop("later", None)
    got = clone(tmp_path, site.web.url("/later/new/quantum.git"))
    assert got.report.reason is Reason.SOURCE_INVALID, got.said
    assert "redirects in the middle" in got.report.message


def test_a_name_that_points_elsewhere_the_second_time(tmp_path: Path, site: Site) -> None:
    """git has no say in resolving: the name exists for us only."""
    hosts = {"git.example": [["127.0.0.1"], ["127.0.0.2"]]}
    url = site.web.url("/git/new/quantum.git", "git.example")
    got = clone(tmp_path, url, hosts=hosts)
    assert got.report.commit == site.new.commits["main"], got.said
    assert {headers["host"] for _, headers in site.web.seen[-3:]} == {
        f"git.example:{site.web.port}"
    }


def test_dumb_servers_are_not_followed(tmp_path: Path, site: Site) -> None:
    git("update-server-info", cwd=site.new.path)
    got = clone(tmp_path, site.web.url("/dumb/new/quantum.git"))
    assert got.report.reason is Reason.SOURCE_INVALID
    assert "smart HTTP" in got.report.message


def test_no_such_repository(tmp_path: Path, site: Site) -> None:
    got = clone(tmp_path, site.web.url("/git/nope.git"))
    assert got.report.reason is Reason.SOURCE_NOT_FOUND
    assert "404 Not Found" in got.report.message


def test_a_slow_server(tmp_path: Path, site: Site) -> None:
    limits = Limits(source_seconds=1.5)
    got = clone(tmp_path, site.web.url("/silent/quantum.git"), limits=limits)
    assert got.report.reason is Reason.SOURCE_UNAVAILABLE
    assert got.seconds < 40


def test_configuration_around_is_not_read(tmp_path: Path, site: Site) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        f'[url "http://127.0.0.2/"]\n\tinsteadOf = {site.web.url("/")}\n[http]\n\tproxy = x://y\n'
    )
    got = clone(
        tmp_path,
        site.web.url("/git/new/quantum.git"),
        HOME=str(home),
        GIT_CONFIG_GLOBAL=str(home / ".gitconfig"),
        GIT_SSH_COMMAND="touch /tmp/pwned",
        GIT_ASKPASS="/usr/bin/touch",
        http_proxy="http://127.0.0.9:1",
    )
    assert got.code == 0, got.said


# --- Attempts ---------------------------------------------------------------------------------


def test_a_later_attempt_fetches_the_same_commit(tmp_path: Path, site: Site) -> None:
    first = b"# the first version\n" + FILES["bell.py"]
    earlier = {
        COMMIT_ENV: site.new.commits["first"],
        SHA256_ENV: hashlib.sha256(first).hexdigest(),
    }
    got = clone(tmp_path, site.web.url("/git/new/quantum.git"), branch="main", **earlier)
    assert (got.report.commit, got.content) == (site.new.commits["first"], first), got.said


# --- Passwords --------------------------------------------------------------------------------


def test_a_private_repository(tmp_path: Path, site: Site) -> None:
    got = clone(tmp_path, site.web.url("/private/new/quantum.git"), secret=LOGIN)
    assert got.report.commit == site.new.commits["main"], got.said
    assert PASSWORD not in got.said


def test_a_line_end_in_the_secret(tmp_path: Path, site: Site) -> None:
    secret = {key: value + "\n" for key, value in LOGIN.items()}
    got = clone(tmp_path, site.web.url("/private/new/quantum.git"), secret=secret)
    assert got.code == 0, got.said


@pytest.mark.parametrize(
    ("secret", "hint"),
    [
        ({"username": USER, "password": "hunter2"}, "are not accepted"),
        ({"password": "hunter2"}, "are not accepted"),
        ({"username": USER}, "name a Secret with username and password"),
        ({}, "name a Secret with username and password"),
    ],
)
def test_bad_passwords(tmp_path: Path, site: Site, secret: dict[str, str], hint: str) -> None:
    got = clone(tmp_path, site.web.url("/private/new/quantum.git"), secret=secret)
    assert got.report.reason is Reason.GIT_AUTHENTICATION_FAILED
    assert hint in got.report.message
    assert "hunter2" not in got.said


def test_a_password_is_not_sent_in_the_clear_to_strangers(tmp_path: Path) -> None:
    """To a public address: nothing is connected to, so nothing has to answer."""
    hosts = {"git.example": ["93.184.215.14"]}
    got = clone(tmp_path, "http://git.example/x.git", hosts=hosts, secret=LOGIN)
    assert got.report.reason is Reason.SOURCE_FORBIDDEN
    assert "use https" in got.report.message


def test_a_certificate_of_ones_own(tmp_path: Path, site: Site) -> None:
    authority = Authority.create(tmp_path / "ca")
    hosts = {NAME: ["127.0.0.1"]}
    with web_server(site.web.root, FILES, tls=authority.context(NAME)) as web:
        url = web.url("/private/new/quantum.git", NAME)
        secret = {**LOGIN, "ca.crt": authority.certificate.read_bytes()}
        got = clone(tmp_path / "a", url, hosts=hosts, secret=secret)
        assert got.report.commit == site.new.commits["main"], got.said
        got = clone(tmp_path / "b", url, hosts=hosts, secret=LOGIN)
        assert got.report.reason is Reason.SOURCE_UNTRUSTED, got.said


def test_nothing_secret_is_said() -> None:
    secrets = ("hunter2", "QWRhOmh1bnRlcjI=")
    credentials = GitCredentials(secrets=secrets)
    said = credentials.redact("fatal: https://ada:hunter2@host/x QWRhOmh1bnRlcjI= hunter2")
    assert said == "fatal: https://host/x *** ***"
    assert "hunter2" not in repr(credentials)


# --- ssh --------------------------------------------------------------------------------------


def by_ssh(root: Path, url: str, server: Ssh, **more: object) -> Fetch:
    secret = {"ssh-privatekey": server.key.read_text(), "known_hosts": server.known_hosts}
    secret.update(more.pop("secret", {}))  # type: ignore[call-overload]
    return clone(root, url, secret={k: v for k, v in secret.items() if v}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("which", ["new", "old"])
@pytest.mark.parametrize("branch", [None, "feature/x", "v1", "<first>"])
def test_over_ssh(tmp_path: Path, site: Site, ssh: Ssh, which: str, branch: str | None) -> None:
    repository: Repository = getattr(site, which)
    commit = {None: "main", "feature/x": "feature/x"}.get(branch, "first")
    branch = repository.commits["first"] if branch == "<first>" else branch
    got = by_ssh(tmp_path, ssh.url(repository.path), ssh, branch=branch)
    assert got.report.commit == repository.commits[commit], got.said


@pytest.mark.parametrize("which", ["new", "old"])
def test_over_ssh_of_old(tmp_path: Path, site: Site, which: str) -> None:
    """Without GIT_PROTOCOL, as sshd is set up by default."""
    repository: Repository = getattr(site, which)
    with ssh_server(tmp_path / "sshd", version_2=False) as server:
        url = server.url(repository.path)
        assert by_ssh(tmp_path / "a", url, server).code == 0
        first = repository.commits["first"]
        got = by_ssh(tmp_path / "b", url, server, branch=first)
        assert got.report.commit == first, got.said


def test_a_key_without_its_last_line_end(tmp_path: Path, site: Site, ssh: Ssh) -> None:
    key = ssh.key.read_text().strip().replace("\n", "\r\n")
    got = by_ssh(tmp_path, ssh.url(site.new.path), ssh, secret={"ssh-privatekey": key})
    assert got.code == 0, got.said


def test_the_host_key_is_that_of_the_name(tmp_path: Path, site: Site, ssh: Ssh) -> None:
    hosts = {"git.example": ["127.0.0.1"]}
    url = ssh.url(site.new.path).replace("127.0.0.1", "git.example")
    known = ssh.known_hosts.replace("127.0.0.1", "git.example")
    good = by_ssh(tmp_path / "a", url, ssh, hosts=hosts, secret={"known_hosts": known})
    assert good.code == 0, good.said
    bad = by_ssh(tmp_path / "b", url, ssh, hosts=hosts)
    assert bad.report.reason is Reason.SOURCE_UNTRUSTED, bad.said


@pytest.mark.parametrize("known", ["", "another"])
def test_an_unknown_host_is_not_talked_to(tmp_path: Path, site: Site, ssh: Ssh, known: str) -> None:
    if known:
        wrong = (ssh.key.parent / "stranger.pub").read_text().split()
        known = f"[127.0.0.1]:{ssh.port} {wrong[0]} {wrong[1]}\n"
    got = by_ssh(tmp_path, ssh.url(site.new.path), ssh, secret={"known_hosts": known})
    assert got.report.reason is Reason.SOURCE_UNTRUSTED, got.said
    assert "known_hosts" in got.report.message


def test_a_key_that_opens_nothing(tmp_path: Path, site: Site, ssh: Ssh) -> None:
    key = ssh.stranger.read_text()
    got = by_ssh(tmp_path, ssh.url(site.new.path), ssh, secret={"ssh-privatekey": key})
    assert got.report.reason is Reason.GIT_AUTHENTICATION_FAILED, got.said
    assert key.splitlines()[1] not in got.said


@pytest.mark.parametrize("key", ["", "not a key"])
def test_no_key_at_all(tmp_path: Path, site: Site, ssh: Ssh, key: str) -> None:
    got = by_ssh(tmp_path, ssh.url(site.new.path), ssh, secret={"ssh-privatekey": key})
    assert got.report.reason is Reason.GIT_AUTHENTICATION_FAILED, got.said
    assert "ssh-privatekey" in got.report.message


def test_no_such_repository_over_ssh(tmp_path: Path, ssh: Ssh) -> None:
    got = by_ssh(tmp_path, ssh.url("/nope.git"), ssh)
    assert got.report.reason is Reason.SOURCE_NOT_FOUND, got.said


def test_ssh_to_an_address_inside(tmp_path: Path, ssh: Ssh) -> None:
    got = by_ssh(tmp_path, "ssh://git@10.0.0.1/x.git", ssh)
    assert got.report.reason is Reason.SOURCE_ADDRESS_FORBIDDEN


def test_nobody_listens_for_ssh(tmp_path: Path, ssh: Ssh) -> None:
    got = by_ssh(tmp_path, "ssh://git@127.0.0.1:1/x.git", ssh)
    assert got.report.reason is Reason.SOURCE_UNAVAILABLE
    assert "Connection refused" in got.report.message


def test_secrets_are_on_no_command_line(tmp_path: Path, site: Site) -> None:
    """Nor in an environment: a wrapper around git writes down what it is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "given"
    wrapper = folder / "git"
    wrapper.write_text(f'#!/bin/sh\n(echo "$@"; env) >> {log}\nexec /usr/bin/git "$@"\n')
    wrapper.chmod(0o755)
    got = clone(
        tmp_path / "a",
        site.web.url("/private/new/quantum.git"),
        secret=LOGIN,
        PATH=f"{folder}:{os.environ['PATH']}",
    )
    assert got.code == 0, got.said
    given = log.read_text() if log.exists() else ""
    assert PASSWORD not in given
