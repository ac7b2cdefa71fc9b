"""The source ``url`` against a real web server with bad habits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from qiskit_controller.api.run import COMMIT_ENV, SHA256_ENV, Limits, Reason, Retry

from .source_servers import NAME, Authority, Web, files, web_server
from .source_support import Fetch, fetch
from .support import Pod

FILES = files()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web_server(tmp_path_factory.mktemp("web"), FILES) as web:
        yield web


def get(root: Path, url: str, **how: object) -> Fetch:
    circuit = {"source": "url", "url": url}
    if "sha256" in how:
        circuit["sha256"] = str(how.pop("sha256"))
    return fetch(root, circuit, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["bell.py", "bell2.qasm", "bell3.qasm", "bell.qpy", "latin1.py"])
def test_a_file_is_fetched_as_it_is(tmp_path: Path, web: Web, name: str) -> None:
    got = get(tmp_path, web.url(f"/files/{name}?token=s3cret#part"))
    assert (got.code, got.report.reason, got.content) == (0, None, FILES[name])
    digest = hashlib.sha256(FILES[name]).hexdigest()
    assert (got.report.sha256, got.report.size) == (digest, len(FILES[name]))
    assert got.report.commit is None
    assert digest in got.printed
    # A query may hold a signature.
    assert "s3cret" not in got.said


@pytest.mark.parametrize("name", ["bell.py", "bell2.qasm", "bell3.qasm", "bell.qpy"])
def test_the_circuit_stage_runs_what_was_fetched(tmp_path: Path, web: Web, name: str) -> None:
    assert get(tmp_path, web.url(f"/files/{name}")).code == 0
    pod = Pod(tmp_path)
    ran = pod.circuit()
    assert pod.outcome().reason is None, ran.printed


def test_text_that_is_not_utf8_is_told_by_the_circuit_stage(tmp_path: Path, web: Web) -> None:
    assert get(tmp_path, web.url("/files/latin1.py")).code == 0
    pod = Pod(tmp_path)
    pod.circuit()
    assert pod.outcome().reason == Reason.CIRCUIT_SYNTAX_ERROR
    assert "latin1.py" in pod.outcome().message


def test_redirects_are_followed_up_to_five(tmp_path: Path, web: Web) -> None:
    assert get(tmp_path / "a", web.url("/hops/4")).content == FILES["bell.py"]
    got = get(tmp_path / "b", web.url("/hops/5"))
    assert (got.code, got.report.reason) == (1, Reason.SOURCE_INVALID)
    assert "redirects more than 5 times" in got.report.message


# Path, reason, and what the message has to say.
REFUSED: dict[str, tuple[str, Reason, str]] = {
    "404": ("/nowhere.py", Reason.SOURCE_NOT_FOUND, "/nowhere.py answers 404 Not Found"),
    "410": ("/status/410", Reason.SOURCE_NOT_FOUND, "410 Gone"),
    "401": ("/status/401", Reason.SOURCE_FORBIDDEN, "401 Unauthorized"),
    "403": ("/status/403", Reason.SOURCE_FORBIDDEN, "403 Forbidden"),
    "400": ("/status/400", Reason.SOURCE_INVALID, "400 Bad Request"),
    "204": ("/status/204", Reason.SOURCE_INVALID, "204 No Content"),
    "429": ("/status/429", Reason.SOURCE_UNAVAILABLE, "429 Too Many Requests"),
    "500": ("/status/500", Reason.SOURCE_UNAVAILABLE, "500 Internal Server Error"),
    "599": ("/status/599", Reason.SOURCE_UNAVAILABLE, "answers 599"),
    "loop": ("/loop", Reason.SOURCE_INVALID, "redirects more than 5 times"),
    "gzip": ("/gzip", Reason.SOURCE_INVALID, "content encoding gzip"),
    "cut": ("/cut", Reason.SOURCE_UNAVAILABLE, "does not answer: IncompleteRead"),
    "web page": ("/files/page", Reason.SOURCE_INVALID, "address of the raw file"),
    "empty": ("/files/empty.py", Reason.SOURCE_INVALID, "is empty"),
    "to loopback": (
        "/redirect?to=http://127.0.0.2/x",
        Reason.SOURCE_ADDRESS_FORBIDDEN,
        "127.0.0.2 is not an address of the public Internet",
    ),
    "to metadata": (
        "/redirect?to=http://169.254.169.254/latest/meta-data/",
        Reason.SOURCE_ADDRESS_FORBIDDEN,
        "169.254.169.254 is not",
    ),
    "to metadata, mapped": (
        "/redirect?to=http://[::ffff:169.254.169.254]/",
        Reason.SOURCE_ADDRESS_FORBIDDEN,
        "is not an address of the public Internet",
    ),
    "to metadata, decimal": (
        "/redirect?to=http://2852039166/",
        Reason.SOURCE_INVALID,
        "neither a name nor an IP address",
    ),
    "to a name": (
        "/redirect?to=http://inside.example/",
        Reason.SOURCE_ADDRESS_FORBIDDEN,
        "inside.example (10.96.0.1) is not",
    ),
    "to a file": ("/redirect?to=file:///etc/passwd", Reason.SOURCE_INVALID, "no known scheme"),
    "to gopher": ("/redirect?to=gopher://127.0.0.1:6379/_x", Reason.SOURCE_INVALID, "scheme"),
    "to a user": ("/redirect?to=http://a:b@127.0.0.1/", Reason.SOURCE_INVALID, "user name"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_the_file_is_refused(tmp_path: Path, web: Web, what: str) -> None:
    path, reason, text = REFUSED[what]
    got = get(tmp_path, web.url(path), hosts={"inside.example": ["10.96.0.1"]})
    assert (got.code, got.report.reason, got.content) == (1, reason, None), got.said
    assert text in got.report.message


# --- Which addresses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x.py",
        "http://[::1]/x.py",
        "http://10.96.0.1:443/x.py",
        "https://169.254.169.254/latest",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[2002:a00:1::]/",
        "http://[64:ff9b::a00:1]/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
        "http://100.100.100.200/",
        "http://168.63.129.16/",
    ],
)
def test_addresses_inside_are_refused_by_default(tmp_path: Path, url: str) -> None:
    got = get(tmp_path, url, allow=())
    assert got.report.reason is Reason.SOURCE_ADDRESS_FORBIDDEN
    assert "--source-allow-cidr" in got.report.message


@pytest.mark.parametrize(
    "addresses", [["10.0.0.1"], ["93.184.215.14", "10.0.0.1"], ["2606:2800::1", "fd00::1"]]
)
def test_every_address_of_a_name_must_be_allowed(tmp_path: Path, addresses: list[str]) -> None:
    got = get(tmp_path, "http://two.example/x.py", hosts={"two.example": addresses})
    assert got.report.reason is Reason.SOURCE_ADDRESS_FORBIDDEN
    assert "two.example" in got.report.message


def test_a_name_is_resolved_once(tmp_path: Path, web: Web) -> None:
    """What is checked is what is connected to: a second answer is never asked for."""
    hosts = {"rebinding.example": [["127.0.0.1"], ["127.0.0.2"]]}
    got = get(tmp_path, web.url("/files/bell.py", "rebinding.example"), hosts=hosts)
    assert got.content == FILES["bell.py"]
    assert web.seen[-1][1]["host"] == f"rebinding.example:{web.port}"


def test_the_next_address_is_tried(tmp_path: Path, web: Web) -> None:
    hosts = {"two.example": ["127.0.0.9", "127.0.0.1"]}
    got = get(
        tmp_path, web.url("/files/bell.py", "two.example"), hosts=hosts, allow=["127.0.0.0/8"]
    )
    assert got.content == FILES["bell.py"]


def test_proxies_of_the_environment_are_not_used(tmp_path: Path, web: Web) -> None:
    proxy = "http://127.0.0.9:1"
    got = get(
        tmp_path, web.url("/files/bell.py"), http_proxy=proxy, HTTP_PROXY=proxy, ALL_PROXY=proxy
    )
    assert got.content == FILES["bell.py"]


def test_a_name_that_does_not_resolve_may_pass(tmp_path: Path) -> None:
    got = get(tmp_path, "https://nowhere.example/x.py")
    assert got.report.reason is Reason.SOURCE_UNAVAILABLE
    assert got.report.reason.retry is Retry.COUNTED
    assert got.report.message == (
        "the host nowhere.example cannot be resolved: Name or service not known"
    )


def test_nobody_listens(tmp_path: Path) -> None:
    got = get(tmp_path, "http://127.0.0.1:1/x.py")
    assert got.report.reason is Reason.SOURCE_UNAVAILABLE
    assert got.report.message == "http://127.0.0.1:1 does not answer: Connection refused"


# --- Bounds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/endless", "/files/bell.py"])
def test_size(tmp_path: Path, web: Web, path: str) -> None:
    got = get(tmp_path, web.url(path), limits=Limits(source_bytes=50, source_seconds=100))
    assert got.report.reason is Reason.SOURCE_TOO_LARGE
    assert "more than 50 bytes" in got.report.message


@pytest.mark.parametrize("path", ["/drip", "/drip-headers", "/silent"])
def test_time(tmp_path: Path, web: Web, path: str) -> None:
    got = get(tmp_path, web.url(path), limits=Limits(source_seconds=1.5))
    assert got.report.reason is Reason.SOURCE_UNAVAILABLE
    assert "was not there after 1.5 s" in got.report.message
    assert got.seconds < 40


# --- The very code ----------------------------------------------------------------------------


def test_the_expected_hash(tmp_path: Path, web: Web) -> None:
    digest = hashlib.sha256(FILES["bell.py"]).hexdigest()
    assert get(tmp_path / "a", web.url("/files/bell.py"), sha256=digest).code == 0
    got = get(tmp_path / "b", web.url("/files/bell.py"), sha256="0" * 64)
    assert (got.report.reason, got.content) == (Reason.SOURCE_HASH_MISMATCH, None)
    assert got.report.message == f"spec.circuit.sha256 is {'0' * 64}, but the code has {digest}"


def test_a_later_attempt_insists_on_the_same_code(tmp_path: Path, web: Web) -> None:
    first = get(tmp_path / "a", web.url("/changing"))
    again = get(tmp_path / "b", web.url("/changing"), **{SHA256_ENV: first.report.sha256})
    assert again.report.reason is Reason.SOURCE_HASH_MISMATCH
    assert "has changed since an earlier attempt" in again.report.message
    same = hashlib.sha256(FILES["bell.py"]).hexdigest()
    kept = get(tmp_path / "c", web.url("/files/bell.py"), **{SHA256_ENV: same, COMMIT_ENV: ""})
    assert kept.code == 0


# --- TLS --------------------------------------------------------------------------------------


def test_the_certificate_is_checked_against_the_name(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca")
    hosts = {NAME: ["127.0.0.1"], "other.example": ["127.0.0.1"]}
    trusting = {"SSL_CERT_FILE": str(authority.certificate)}
    with web_server(tmp_path, FILES, tls=authority.context(NAME, "127.0.0.1")) as web:
        good = get(tmp_path / "a", web.url("/files/bell.py", NAME), hosts=hosts, **trusting)
        assert good.content == FILES["bell.py"], good.said
        by_address = get(tmp_path / "b", web.url("/files/bell.py"), **trusting)
        assert by_address.content == FILES["bell.py"], by_address.said
        other = get(
            tmp_path / "c", web.url("/files/bell.py", "other.example"), hosts=hosts, **trusting
        )
        assert other.report.reason is Reason.SOURCE_UNTRUSTED, other.said
        assert "other.example" in other.report.message
        unknown = get(tmp_path / "d", web.url("/files/bell.py", NAME), hosts=hosts)
        assert unknown.report.reason is Reason.SOURCE_UNTRUSTED, unknown.said
        assert "is not to be trusted" in unknown.report.message
        with web_server(tmp_path, FILES) as plain:
            down = get(
                tmp_path / "e",
                web.url(f"/redirect?to={plain.url('/files/bell.py')}", NAME),
                hosts=hosts,
                **trusting,
            )
        assert down.report.reason is Reason.SOURCE_FORBIDDEN
        assert "which is not encrypted" in down.report.message
