"""Addresses of sources: what is let through, and as what."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.api.sources import (
    BadAddress,
    check_ref,
    file_name,
    is_commit,
    parse_repository,
    parse_url,
    problems_of_source,
    split_path,
)

URLS = {
    "https://example.org/bell.py": "https://example.org/bell.py",
    "HTTPS://Example.ORG:443/Bell.py": "https://example.org/Bell.py",
    "http://example.org": "http://example.org/",
    "http://example.org:8080/a/b.py?x=1&y=%2F#frag": "http://example.org:8080/a/b.py?x=1&y=%2F",
    "https://[2606:2800::1]:8443/x": "https://[2606:2800::1]:8443/x",
    "https://xn--bcher-kva.example/x": "https://xn--bcher-kva.example/x",
    "https://a_b.example/~ada/x@y": "https://a_b.example/~ada/x@y",
}


@pytest.mark.parametrize("text", URLS)
def test_urls(text: str) -> None:
    assert parse_url(text).url == URLS[text]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.org/x",
        "//example.org/x",
        "https://",
        "https:///x",
        "https:example.org",
        "file:///etc/passwd",
        "ftp://example.org/x",
        "gopher://example.org/x",
        "https://user@example.org/",
        "https://user:hunter2@example.org/",
        "https://@example.org/",
        "https://example.org:0/",
        "https://example.org:x/",
        "https://example.org:99999/",
        "https://example.org\\@evil.example/",
        "https://example.org /x",
        "https://example.org/\r\nHost: evil",
        "https://exämple.org/",
        "https://-x.example/",
        "https://example..org/",
        "https://example.org./",
        "https://127.1/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://2130706433/",
        "https://[fe80::1%25eth0]/",
        "https://[::1/",
        "https://1.2.3.4.5/",
    ],
)
def test_what_is_no_url(text: str) -> None:
    with pytest.raises(BadAddress) as raised:
        parse_url(text)
    assert "hunter2" not in str(raised.value)


def test_a_query_is_not_shown() -> None:
    shown = str(parse_url("https://bucket.example/bell.py?X-Amz-Signature=s3cret"))
    assert shown == "https://bucket.example/bell.py?..."


REPOSITORIES = {
    "https://example.org/org/repo": "https://example.org/org/repo",
    "https://example.org/org/repo.git/": "https://example.org/org/repo.git",
    "http://example.org:3000/repo.git": "http://example.org:3000/repo.git",
    "ssh://git@example.org/org/repo.git": "ssh://git@example.org:22/org/repo.git",
    "ssh://example.org:2222/repo": "ssh://git@example.org:2222/repo",
    "git@example.org:org/repo.git": "git@example.org:org/repo.git",
    "example.org:repo.git": "git@example.org:repo.git",
}


@pytest.mark.parametrize("text", REPOSITORIES)
def test_repositories(text: str) -> None:
    assert parse_repository(text).url == REPOSITORIES[text]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/etc",
        "./repo",
        "repo.git",
        "file:///repo.git",
        "git://example.org/repo.git",
        "git+ssh://example.org/repo.git",
        "ext::sh -c id",
        "ext::sh",
        "fd::17",
        "transport::https://example.org/x",
        "-oProxyCommand=id:x",
        "git@-oProxyCommand=id:x",
        "-git@example.org:x",
        "git@example.org:-x",
        "ssh://git@example.org/-x",
        "ssh://-git@example.org/x",
        "ssh://git:hunter2@example.org/x",
        "https://ada:hunter2@example.org/x",
        "https://example.org",
        "https://example.org/",
        "https://example.org/x?y",
        "git@example.org:x\ny",
        "git@127.1:x",
    ],
)
def test_what_is_no_repository(text: str) -> None:
    with pytest.raises(BadAddress) as raised:
        parse_repository(text)
    assert "hunter2" not in str(raised.value)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_anything_is_an_address_or_refused(text: str) -> None:
    for parse in (parse_url, parse_repository):
        try:
            parsed = parse(text)
        except BadAddress:
            continue
        # What is let through says the same when it is read again.
        assert parse(parsed.url) == parsed


@pytest.mark.parametrize(
    "name", ["main", "feature/x", "v1.0", "refs/pull/1/head", "a-b", "HEAD", "0" * 40, "ünïcode"]
)
def test_refs(name: str) -> None:
    check_ref(name)


@pytest.mark.parametrize(
    "name",
    [
        "--upload-pack=touch /tmp/x",
        "-x",
        "main:main",
        "a b",
        "a..b",
        "a~1",
        "a^{tree}",
        "@",
        "a@{1}",
        "a//b",
        "/a",
        "a/",
        "a.",
        ".a",
        "a/.b",
        "a.lock",
        "a.lock/b",
        "a*",
        "a?",
        "a[",
        "a\\b",
        "a\nb",
        "a\x7f",
    ],
)
def test_what_is_no_ref(name: str) -> None:
    with pytest.raises(BadAddress):
        check_ref(name)


def test_full_commits() -> None:
    assert is_commit("0123456789abcdef" * 2 + "01234567")
    assert not is_commit("0123456")
    assert not is_commit("0" * 41)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("bell.py", ("bell.py",)),
        ("./a//b/./c d.py", ("a", "b", "c d.py")),
        ("-x.py", ("-x.py",)),
        (":(top)x", (":(top)x",)),
    ],
)
def test_paths(path: str, parts: tuple[str, ...]) -> None:
    assert split_path(path) == parts


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "..", "../x", "a/../../x", "a/..", "a/", ".", "a\nb", "a\0b", ""]
)
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(BadAddress):
        split_path(path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/bell.py", "bell.py"),
        ("/a/b%20c.qasm", "b_c.qasm"),
        ("/a/%2e%2e", "circuit"),
        ("/a/", "circuit"),
        ("/..%2f..%2fx.py", ".._.._x.py"),
        ("/plan.json", "circuit-plan.json"),
        ("/" + "x" * 300 + ".qpy", "x" * 40 + "_" + "x" * 55 + ".qpy"),
    ],
)
def test_file_names(path: str, name: str) -> None:
    assert file_name(path, frozenset({"plan.json"})) == name
    assert len(name) <= 100


def _problems(circuit: dict[str, Any], **more: Any) -> list[str]:
    spec = {"backend": {"type": "local_simulator"}, "circuit": circuit, **more}
    return list(problems_of_source(from_wire(spec, QiskitJobSpec)))


def test_problems_name_their_field() -> None:
    reference = {"repository": "https://example.org/x", "path": "bell.py"}

    def of(**change: str) -> list[str]:
        return _problems({"source": "git", "gitRef": {**reference, **change}})

    assert of() == []
    assert of(path="../x") == ["spec.circuit.gitRef.path: must not leave the repository with '..'"]
    assert of(branch="-x")[0].startswith("spec.circuit.gitRef.branch: is not the name")
    assert of(repository="/x")[0].startswith("spec.circuit.gitRef.repository: must be a URL")
    ssh = "git@example.org:x"
    assert of(repository=ssh)[0].startswith("spec.credentials.gitSecretRef: required")
    credentials = {"gitSecretRef": {"name": "key"}}
    circuit = {"source": "git", "gitRef": {**reference, "repository": ssh}}
    assert _problems(circuit, credentials=credentials) == []
    assert _problems({"source": "url", "url": "https://a@b/"})[0].startswith("spec.circuit.url: ")
    # Of another source, it does not matter.
    assert _problems({"source": "inline", "code": "x", "url": "https://a@b/"}) == []
