"""Circuits from a real web server, and from real git servers over http and ssh."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.runner.source_servers import PASSWORD, USER, files, git

from .conftest import NAME
from .harness import (
    ENDLESS,
    ENDLESS_SHOTS,
    ROOT,
    Cluster,
    Kubectl,
    Object,
    condition_of,
    counts_of,
    events_of,
    eventually,
    phase,
    quantum_job,
    wait_finished,
    wait_phase,
)

# Takes long; `./hack/test extended` runs it.
pytestmark = pytest.mark.extended

# The node as pods see it; the deployment under test allows it as a source.
GATEWAY = "10.88.0.1"
FILES = files()
FORMATS = {"python": "bell.py", "qasm2": "bell2.qasm", "qasm3": "bell3.qasm", "qpy": "bell.qpy"}


@pytest.fixture(scope="module")
def servers(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What ``tests/unit/runner/source_servers.py`` says of itself."""
    folder = tmp_path_factory.mktemp("servers")
    process = subprocess.Popen(
        [
            *(ROOT / "hack" / "cluster", "exec-netns", "--name", NAME, "--"),
            *(sys.executable, "-m", "tests.unit.runner.source_servers", GATEWAY, folder),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        said = json.loads(process.stdout.readline())
        said["folder"] = folder
        yield said
    finally:
        process.terminate()
        process.wait(20)


def from_url(name: str, url: str, **circuit: Any) -> Object:
    return quantum_job(name) | {"spec": _spec({"source": "url", "url": url, **circuit})}


def from_git(
    name: str,
    repository: str,
    path: str = "circuits/bell.py",
    branch: str | None = None,
    secret: str | None = None,
    **more: Any,
) -> Object:
    reference = {"repository": repository, "path": path}
    if branch is not None:
        reference["branch"] = branch
    spec = _spec({"source": "git", "gitRef": reference})
    if secret is not None:
        spec["credentials"] = {"gitSecretRef": {"name": secret}}
    return quantum_job(name) | {"spec": {**spec, **more}}


def _spec(circuit: Mapping[str, Any]) -> dict[str, Any]:
    return {"backend": {"type": "local_simulator"}, "circuit": dict(circuit)}


def _secret(name: str, type_: str, data: Mapping[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": type_,
        "stringData": dict(data),
    }


def _login(name: str, password: str) -> Object:
    return _secret(name, "kubernetes.io/basic-auth", {"username": USER, "password": password})


def _key(name: str, key: str, known_hosts: str) -> Object:
    data = {"ssh-privatekey": key, "known_hosts": known_hosts}
    return _secret(name, "kubernetes.io/ssh-auth", data)


def test_every_source_and_format(namespace: Kubectl, servers: Any) -> None:
    namespace.apply(_key("deploy-key", servers["key"], servers["known_hosts"]))
    over_http = f"{servers['web']}/git/quantum.git"
    over_ssh = servers["ssh"] + servers["repository"]
    jobs = [quantum_job("inline-python")]
    binary = {name: base64.b64encode(FILES[name]).decode() for name in FORMATS.values()}
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "circuits"},
            "binaryData": binary,
        }
    )
    for format_, file in FORMATS.items():
        circuit = {"source": "configmap", "configMapRef": {"name": "circuits", "key": file}}
        path = f"circuits/{file}"
        jobs += [
            quantum_job(f"configmap-{format_}") | {"spec": _spec(circuit)},
            from_url(f"url-{format_}", f"{servers['web']}/files/{file}"),
            from_git(f"http-{format_}", over_http, path),
            from_git(f"ssh-{format_}", over_ssh, path, secret="deploy-key"),
        ]
    # Refs of every kind, and a name that says nothing of the format.
    commits = servers["commits"]
    jobs += [
        from_url("redirected", f"{servers['web']}/hops/3"),
        from_url("by-content", f"{servers['web']}/files/bell"),
        from_git("branch", over_http, branch="feature/x"),
        from_git("tag", over_http, branch="v1"),
        from_git("commit", over_ssh, branch=commits["first"], secret="deploy-key"),
        from_git("moved", f"{servers['web']}/moved/quantum.git"),
    ]
    namespace.apply(*jobs)
    done = wait_finished(namespace, seconds=540)
    assert {name: (phase(job), job["status"]["message"]) for name, job in done.items()} == {
        name: ("Completed", job["status"]["message"]) for name, job in done.items()
    }
    for name, job in done.items():
        counts = counts_of(namespace, f"{name}-results")
        assert set(counts) <= {"00", "11"}
        assert sum(counts.values()) == 1024
        assert len(job["status"]["attempts"]) == 1
        source = job["status"]["source"]
        where, _, format_ = name.partition("-")
        if format_ in FORMATS and where != "inline":
            assert source["sha256"] == hashlib.sha256(FILES[FORMATS[format_]]).hexdigest()
            expected = commits["main"] if where in ("http", "ssh") else None
            assert source.get("commit") == expected
    assert done["branch"]["status"]["source"]["commit"] == commits["feature/x"]
    assert done["tag"]["status"]["source"]["commit"] == commits["first"]
    assert done["commit"]["status"]["source"]["commit"] == commits["first"]
    # The story is in the log and the Events as well.
    log = namespace("logs", "job/qiskit-job-tag")
    assert f"commit {commits['first']}, sha256" in log
    told = [each for each in events_of(namespace, "tag") if each["reason"] == "SourceFetched"]
    assert commits["first"] in told[0]["message"]


def test_private_repositories(namespace: Kubectl, servers: Any, cluster: Cluster) -> None:
    private = f"{servers['web']}/private/quantum.git"
    over_ssh = servers["ssh"] + servers["repository"]
    namespace.apply(
        _login("good", PASSWORD),
        _login("bad", "hunter2-is-wrong"),
        _key("good-key", servers["key"], servers["known_hosts"]),
        _key("bad-key", servers["stranger"], servers["known_hosts"]),
        _key("no-hosts", servers["key"], ""),
    )
    namespace.apply(
        from_git("good", private, secret="good"),
        from_git("good-ssh", over_ssh, secret="good-key"),
        from_git("bad", private, secret="bad"),
        from_git("none", private),
        from_git("bad-ssh", over_ssh, secret="bad-key"),
        from_git("unknown-host", over_ssh, secret="no-hosts"),
    )
    done = wait_finished(namespace)
    for name in ("good", "good-ssh"):
        assert phase(done[name]) == "Completed", done[name]["status"]
    for name in ("bad", "none", "bad-ssh"):
        _assert_failed(done[name], "GitAuthenticationFailed")
    _assert_failed(done["unknown-host"], "SourceUntrusted")
    hint = "name a Secret with username and password in spec.credentials.gitSecretRef"
    assert hint in done["none"]["status"]["message"]
    assert "are not accepted" in done["bad"]["status"]["message"]

    # Only the stage that fetches has the Secret.
    for pod in namespace.list("pods"):
        containers = [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]
        mounting = {
            each["name"]
            for each in containers
            for mount in each["volumeMounts"]
            if mount["name"] == "git"
        }
        assert mounting <= {"source"}

    shown = _everything(namespace, cluster)
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    for secret in (PASSWORD, "hunter2-is-wrong", encoded):
        assert secret not in shown
    for key in (servers["key"], servers["stranger"]):
        assert not any(line in shown for line in key.splitlines()[1:-1])


def _everything(kubectl: Kubectl, cluster: Cluster) -> str:
    """All that is shown to anyone, of anything but the Secrets themselves."""
    kinds = "qiskitjobs,jobs,pods,configmaps,events,serviceaccounts,roles,rolebindings"
    parts = [
        kubectl("get", kinds, "-o", "yaml"),
        kubectl("describe", kinds),
        cluster.kubectl("get", "events", "--all-namespaces", "-o", "yaml"),
    ]
    for pod in kubectl.list("pods"):
        name = pod["metadata"]["name"]
        parts.append(kubectl.run("logs", name, "--all-containers", check=False).text)
    for pod in cluster.controller.pods():
        parts.append(cluster.controller.kubectl("logs", pod["metadata"]["name"]))
    return "\n".join(parts)


def _assert_failed(job: Object, reason: str, attempts: int = 1) -> None:
    status = job["status"]
    assert phase(job) == "Failed", status
    failed, validated = condition_of(job, "Failed"), condition_of(job, "Validated")
    assert failed is not None
    assert (failed["status"], failed["reason"]) == ("True", reason), status
    assert validated is not None
    assert validated["status"] == "False"
    assert len(status.get("attempts", ())) == attempts, status


# Reason and the end of the message; as docs/endings.md has them. Without a pod, no attempt.
ENDINGS: dict[str, tuple[str, str, int]] = {
    "not-found": ("SourceNotFound", "/files/nope.py answers 404 Not Found", 1),
    "forbidden": ("SourceForbidden", "/status/403 answers 403 Forbidden", 1),
    "too-large": (
        "SourceTooLarge",
        "/endless has more than 10000000 bytes, which is the limit for code",
        1,
    ),
    "hash": ("SourceHashMismatch", "but the code has ", 1),
    "to-metadata": (
        "SourceAddressForbidden",
        "169.254.169.254 is not an address of the public Internet, and the operator does not "
        "allow it as a source (--source-allow-cidr)",
        1,
    ),
    "to-loopback": ("SourceAddressForbidden", "127.0.0.1 is not an address of the public", 1),
    "to-apiserver": ("SourceAddressForbidden", "10.96.0.1 is not an address of the public", 1),
    "loop": ("SourceInvalid", "/loop redirects more than 5 times", 1),
    "web-page": ("SourceInvalid", "name the address of the raw file", 1),
    "no-host": ("SourceUnavailable", "the host nowhere.invalid cannot be resolved: ", 1),
    "nobody": ("SourceUnavailable", "does not answer: Connection refused", 1),
    "no-repository": ("SourceNotFound", "/git/nope.git answers 404 Not Found", 1),
    "no-branch": ("SourceNotFound", "has no branch or tag 'nope'", 1),
    "no-path": ("SourceNotFound", "circuits/nope.py is not in ", 1),
    "symlink": ("SourceInvalid", "link.py is a symbolic link; name the file it points to", 1),
    "submodule": ("SourceInvalid", "sub is a submodule; name its own repository", 1),
    "climbing": (
        "InvalidSpec",
        "spec.circuit.gitRef.path: must not leave the repository with '..'",
        0,
    ),
    "absolute": ("InvalidSpec", "spec.circuit.gitRef.path: must be relative to the root", 0),
    "option": (
        "InvalidSpec",
        "spec.circuit.gitRef.branch: is not the name of a branch or tag, nor a commit",
        0,
    ),
    "transport": (
        "InvalidSpec",
        "spec.circuit.gitRef.repository: ",
        0,
    ),
    "userinfo": ("InvalidSpec", "spec.circuit.url: must not hold a user name or a password", 0),
    "no-key": ("InvalidSpec", "spec.credentials.gitSecretRef: required for a repository", 0),
}


def test_endings(namespace: Kubectl, servers: Any) -> None:
    web, repository = servers["web"], f"{servers['web']}/git/quantum.git"

    def to(url: str) -> str:
        return f"{web}/redirect?to={url}"

    jobs = [
        from_url("not-found", f"{web}/files/nope.py"),
        from_url("forbidden", f"{web}/status/403"),
        from_url("too-large", f"{web}/endless"),
        from_url("hash", f"{web}/files/bell.py", sha256="0" * 64),
        from_url("to-metadata", to("http://169.254.169.254/latest/meta-data/")),
        from_url("to-loopback", to("http://127.0.0.1:10248/healthz")),
        from_url("to-apiserver", to("https://10.96.0.1/version")),
        from_url("loop", f"{web}/loop"),
        from_url("web-page", f"{web}/files/page"),
        from_url("no-host", "http://nowhere.invalid/bell.py"),
        from_url("nobody", f"http://{GATEWAY}:1/bell.py"),
        from_git("no-repository", f"{web}/git/nope.git"),
        from_git("no-branch", repository, branch="nope"),
        from_git("no-path", repository, "circuits/nope.py"),
        from_git("symlink", repository, "link.py"),
        from_git("submodule", repository, "sub/bell.py"),
        from_git("climbing", repository, "../../etc/passwd"),
        from_git("absolute", repository, "/etc/passwd"),
        from_git("option", repository, branch="--upload-pack=touch /tmp/pwned"),
        from_git("transport", "ext::sh -c touch% /tmp/pwned"),
        from_url("userinfo", "http://ada:hunter2@example.org/bell.py"),
        from_git("no-key", servers["ssh"] + servers["repository"]),
    ]
    for job in jobs:
        job["spec"]["execution"] = {"maxRetries": 0}
    assert {job["metadata"]["name"] for job in jobs} == set(ENDINGS)
    namespace.apply(*jobs)
    done = wait_finished(namespace, seconds=540)
    for name, (reason, message, attempts) in ENDINGS.items():
        _assert_failed(done[name], reason, attempts)
        assert message in done[name]["status"]["message"], name
    # The log stays, with the same words.
    log = namespace("logs", "job/qiskit-job-not-found", "-c", "source")
    assert log.startswith("SourceNotFound: "), log


def test_what_may_pass_is_tried_again(namespace: Kubectl, servers: Any) -> None:
    job = from_url("flaky", f"{servers['web']}/status/503")
    namespace.apply(job | {"spec": {**job["spec"], "execution": {"maxRetries": 1}}})
    failed = wait_phase(namespace, "flaky", "Failed")
    _assert_failed(failed, "SourceUnavailable", attempts=2)
    assert (
        "answers 503 Service Unavailable (attempt 2 of 2, the last)"
        in (failed["status"]["message"])
    )


def test_a_secret_that_is_not_there_yet(namespace: Kubectl, servers: Any) -> None:
    namespace.apply(from_git("waiting", f"{servers['web']}/private/quantum.git", secret="later"))

    def told() -> Object | None:
        found = condition_of(namespace.one("qiskitjob", "waiting"), "PodStarted")
        return found if found and found["reason"] == "FailedMount" else None

    condition = eventually(told, "the condition names what is missing")
    assert condition["status"] == "False"
    assert 'secret "later" not found' in condition["message"]
    assert phase(namespace.one("qiskitjob", "waiting")) == "Pending"
    namespace.apply(_login("later", PASSWORD))
    wait_phase(namespace, "waiting", "Completed")


def test_every_attempt_runs_the_same_commit(namespace: Kubectl, servers: Any) -> None:
    bare, work = Path(servers["repository"]), Path(servers["folder"]) / "work"

    def push(text: str) -> str:
        (work / "moving.py").write_text(text)
        git("add", ".", cwd=work)
        git("commit", "--quiet", "-m", "moving", cwd=work)
        git("push", "--quiet", bare, "HEAD:refs/heads/moving", cwd=work)
        return git("rev-parse", "HEAD", cwd=work)

    first = push(ENDLESS)
    job = from_git("moving", f"{servers['web']}/git/quantum.git", "moving.py", "moving")
    namespace.apply(job | {"spec": {**job["spec"], "execution": {"shots": ENDLESS_SHOTS}}})
    running = wait_phase(namespace, "moving", "Running")
    assert running["status"]["source"]["commit"] == first
    assert push("# changed\n" + ENDLESS) != first
    namespace("delete", "pod", running["status"]["executorPodName"], "--wait=false")

    def resumed() -> Object | None:
        now = namespace.one("qiskitjob", "moving")
        again = now["status"].get("executorPodName") != running["status"]["executorPodName"]
        return now if again and phase(now) == "Running" else None

    now = eventually(resumed, "the job runs again")
    assert now["status"]["source"]["commit"] == first
    pod = namespace.one("pod", now["status"]["executorPodName"])
    ended = next(
        each["state"]["terminated"]
        for each in pod["status"]["initContainerStatuses"]
        if each["name"] == "source"
    )
    assert json.loads(ended["message"])["commit"] == first
    namespace("delete", "qiskitjob", "moving", "--timeout=120s")
