"""S3 and Google Cloud Storage: real servers, the vendors' own libraries, faults on the wire."""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qiskit_controller.api.outputs import BadLocation
from qiskit_controller.api.run import Reason
from qiskit_controller.runner.formats import Formatted
from qiskit_controller.runner.stores import gcs, s3
from qiskit_controller.runner.stores.base import Store, StoreFailed, patiently
from qiskit_controller.runner.stores.credentials import Credentials
from tests.stores.client import Servers, running

from .store_support import OTHER_RESULT, RESULT, UID, plan_for

KINDS = ("s3", "gcs")
KEY = "team/bell/results.json"
SCHEMES = {"s3": "s3", "gcs": "gs"}


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with running() as made:
        yield made


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience is for real outages. Nothing of this machine's own identity is looked for."""
    monkeypatch.setattr(s3, "READ_SECONDS", 3.0)
    monkeypatch.setattr(s3, "_TRIES", 2)
    monkeypatch.setattr(gcs, "TIMEOUT_SECONDS", (1.0, 3.0))
    monkeypatch.setattr(gcs, "RETRY_SECONDS", 2.0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("HOME", "/nonexistent")


def store(
    servers: Servers,
    kind: str,
    bucket: str,
    *,
    uid: str = UID,
    folder: str = "/team/bell",
    secret: dict[str, str] | None = None,
) -> Store:
    plan = plan_for(uid, type=kind, location=f"{SCHEMES[kind]}://{bucket}{folder}")
    credentials = Credentials(servers.secret(kind) if secret is None else secret)
    if kind == "s3":
        return s3.S3Store.of(plan, credentials)
    return gcs.GcsStore.of(plan, credentials)


def failure(servers: Servers, kind: str, bucket: str, **how: Any) -> StoreFailed:
    """How a put fails."""
    with pytest.raises(StoreFailed) as caught:
        store(servers, kind, bucket, **how).put(RESULT, "")
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_is_stored(servers: Servers, kind: str) -> None:
    bucket = servers.bucket(kind)
    made = store(servers, kind, bucket)
    made.check(1000)
    assert servers.get(kind, bucket, KEY) is None
    stored = made.put(RESULT, "")
    assert servers.get(kind, bucket, KEY) == RESULT.content
    digest = hashlib.sha256(RESULT.content).hexdigest()
    assert stored.location == f"{SCHEMES[kind]}://{bucket}/{KEY}"
    assert (stored.size, stored.sha256) == (len(RESULT.content), digest)
    assert servers.metadata(kind, bucket, KEY) == {
        "quantum-job-uid": UID,
        "quantum-job": "default/bell",
        "quantum-sha256": digest,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("folder", "key"),
    [("", "results.json"), ("/", "results.json"), ("/a b/ü/", "a b/ü/results.json")],
)
def test_folders(servers: Servers, kind: str, folder: str, key: str) -> None:
    bucket = servers.bucket(kind)
    store(servers, kind, bucket, folder=folder).put(RESULT, "")
    assert servers.get(kind, bucket, key) == RESULT.content


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_job_replaces_its_own(servers: Servers, kind: str) -> None:
    bucket = servers.bucket(kind)
    store(servers, kind, bucket).put(RESULT, "")
    again = store(servers, kind, bucket)
    again.check(0)
    again.put(OTHER_RESULT, "")
    assert servers.get(kind, bucket, KEY) == OTHER_RESULT.content
    writes = [each for each in servers.asked(bucket) if each[0] in ("PUT", "POST")]
    again.put(OTHER_RESULT, "")
    now = [each for each in servers.asked(bucket) if each[0] in ("PUT", "POST")]
    assert now == writes, "what is there already is not sent again"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whose", ["another job's", "a person's"])
def test_what_is_not_ours_is_not_overwritten(servers: Servers, kind: str, whose: str) -> None:
    bucket = servers.bucket(kind)
    if whose == "a person's":
        servers.put(kind, bucket, KEY, b"mine")
    else:
        store(servers, kind, bucket, uid="another").put(OTHER_RESULT, "")
    before = servers.get(kind, bucket, KEY)
    made = store(servers, kind, bucket)
    for call in (lambda: made.check(0), lambda: made.put(RESULT, "")):
        with pytest.raises(StoreFailed) as caught:
            call()
        assert caught.value.reason == Reason.OUTPUT_CONFLICT
        assert f"{bucket}/{KEY}" in caught.value.message
    assert servers.get(kind, bucket, KEY) == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_that_comes_in_between(servers: Servers, kind: str) -> None:
    """After the look, before the write: the condition of the write notices."""
    bucket = servers.bucket(kind)
    made = store(servers, kind, bucket)
    found = type(made)._found

    def late(self: Any, file: str) -> Any:
        seen = found(self, file)
        if seen is None:
            servers.put(kind, bucket, KEY, b"mine")
        return seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(made), "_found", late)
        with pytest.raises(StoreFailed) as caught:
            patiently(lambda: made.put(RESULT, ""), 10, lambda _: None)
    assert caught.value.reason == Reason.OUTPUT_CONFLICT
    assert servers.get(kind, bucket, KEY) == b"mine"


def test_an_s3_server_without_conditional_writes(servers: Servers) -> None:
    bucket = servers.bucket("s3")
    servers.order(bucket, "old")
    for result in (RESULT, OTHER_RESULT):
        store(servers, "s3", bucket).put(result, "")
        assert servers.get("s3", bucket, KEY) == result.content
    assert failure(servers, "s3", bucket, uid="another").reason == Reason.OUTPUT_CONFLICT


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_bucket(servers: Servers, kind: str) -> None:
    bucket = servers.bucket(kind, make=False)
    with pytest.raises(StoreFailed) as caught:
        store(servers, kind, bucket).check(0)
    assert caught.value.reason == Reason.OUTPUT_NOT_FOUND
    assert bucket in caught.value.message
    assert caught.value.patience == 0
    servers.make(kind, bucket)
    servers.order(bucket, "remove", methods=["PUT", "POST"])
    gone = failure(servers, kind, bucket)
    assert gone.reason == Reason.OUTPUT_NOT_FOUND
    servers.end(bucket)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_keys(servers: Servers, kind: str) -> None:
    bucket = servers.bucket(kind)
    secret = servers.secret(kind, wrong=True)
    with pytest.raises(StoreFailed) as caught:
        store(servers, kind, bucket, secret=secret).check(0)
    assert caught.value.reason == Reason.OUTPUT_DENIED
    assert "spec.credentials.secretRef" in caught.value.message
    assert caught.value.patience == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["nothing", "half", "nonsense"])
def test_keys_that_are_none(servers: Servers, kind: str, what: str) -> None:
    secret = {"endpoint": servers.told[kind]}
    if what != "nothing":
        names = {"s3": "access-key-id", "gcs": "service-account.json"}
        secret[names[kind]] = "AKIA" if what == "half" else '{"type": "service_account"}'
    if what == "nonsense":
        secret["endpoint"] = "not a URL"
    with pytest.raises(StoreFailed) as caught:
        store(servers, kind, servers.bucket(kind), secret=secret).check(0)
    assert caught.value.reason in (Reason.OUTPUT_DENIED, Reason.OUTPUT_FAILED)
    assert caught.value.patience == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["503", "drop", "hang"])
def test_a_store_that_is_down(servers: Servers, kind: str, fault: str) -> None:
    bucket = servers.bucket(kind)
    servers.order(bucket, fault)
    begun = time.monotonic()
    error = failure(servers, kind, bucket)
    assert error.reason == Reason.OUTPUT_UNAVAILABLE, error.message
    assert error.patience > 60
    assert time.monotonic() - begun < 15
    servers.end(bucket)
    assert servers.get(kind, bucket, KEY) is None


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_listens(servers: Servers, kind: str) -> None:
    secret = servers.secret(kind) | {"endpoint": "http://127.0.0.1:9"}
    error = failure(servers, kind, "bucket", secret=secret)
    assert error.reason == Reason.OUTPUT_UNAVAILABLE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["503", "drop", "lose"])
def test_a_fault_that_passes(servers: Servers, kind: str, fault: str) -> None:
    """Also when the write was done and only its answer lost: it is ours, so it is no conflict."""
    bucket = servers.bucket(kind)
    servers.order(bucket, fault, methods=["PUT", "POST"], times=3)
    made = store(servers, kind, bucket)
    notes: list[str] = []
    patiently(lambda: made.put(RESULT, ""), 20, notes.append)
    assert servers.get(kind, bucket, KEY) == RESULT.content
    assert len(notes) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_result(servers: Servers, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's library sends more than 8 MiB in another way."""
    monkeypatch.setattr(s3, "READ_SECONDS", 30.0)
    monkeypatch.setattr(gcs, "TIMEOUT_SECONDS", (5.0, 30.0))
    bucket = servers.bucket(kind)
    large = Formatted("results.json", b"0123456789abcdef" * (1 << 20), True, "application/json")
    stored = store(servers, kind, bucket).put(large, "")
    assert stored.size == 1 << 24
    assert servers.get(kind, bucket, KEY) == large.content


@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_is_told(servers: Servers, kind: str, tmp_path: Path) -> None:
    """At debug level, with right and with wrong keys."""
    assert Credentials.read(tmp_path) == Credentials()  # it also tells the libraries to be quiet
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    texts = []
    try:
        bucket = servers.bucket(kind)
        written.truncate(0)
        store(servers, kind, bucket).put(RESULT, "")
        for secret in (servers.secret(kind, wrong=True), {"endpoint": "http://127.0.0.1:9"}):
            both = servers.secret(kind) | secret
            texts.append(failure(servers, kind, bucket, secret=both).message)
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
    told = written.getvalue() + "".join(texts)
    values = [*servers.secret(kind).values(), *servers.secret(kind, wrong=True).values()]
    for value in values:
        if value not in (servers.told[kind], "us-east-1"):
            assert value not in told
    assert "PRIVATE KEY" not in told
    assert "ya29." not in told


def test_texts_are_cleaned_of_secrets() -> None:
    account = '{"private_key": "-----BEGIN\\nabc-----", "client_email": "a@b"}'
    credentials = Credentials({"key": "hunter22", "service-account.json": account, "tiny": "a"})
    text = f"no hunter22 here, nor -----BEGIN\nabc-----, nor {account}, but a@b"
    assert credentials.scrub(text) == (
        "no [redacted] here, nor [redacted], nor [redacted], but a@b"
    )
    assert "hunter22" not in repr(credentials)


@pytest.mark.parametrize("location", ["s3://", "s3:///x", "s3://bucket with blanks/x", "gs://b/x"])
def test_locations_that_are_none(location: str) -> None:
    with pytest.raises(BadLocation):
        s3.S3Store.of(plan_for(type="s3", location=location), Credentials())
