from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from qiskit_controller.telemetry import logs

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "hack"))
from localcluster import apt  # noqa: E402 - found by the line before

SECRET = "hunter2-hunter2"

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging as it was, when the test is over."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def configured(capsys: pytest.CaptureFixture[str]) -> Lines:
    """JSON logs, and what reads them."""
    logs.configure("INFO", "json")
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def failing(level: int = 0) -> None:
    password = SECRET  # noqa: F841 - what must not be shown
    if level < 3:
        failing(level + 1)
    raise RuntimeError("it broke")


def test_a_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    lines = configured(capsys)
    structlog.get_logger("ours").info("phase", phase="Running", message="a\nb")
    (line,) = lines()
    assert line["event"] == "phase"
    assert line["phase"] == "Running"
    assert line["level"] == "info"
    assert line["logger"] == "ours"
    assert line["timestamp"].endswith("Z")


def test_what_is_bound_is_on_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = configured(capsys)
    structlog.contextvars.bind_contextvars(job="ns/bell", uid="u")
    structlog.get_logger("ours").info("one")
    logging.getLogger("theirs").warning("two %s", "things")
    first, second = lines()
    assert (first["job"], second["job"]) == ("ns/bell", "ns/bell")
    assert second["event"] == "two things"
    assert second["logger"] == "theirs"


def test_the_level_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = configured(capsys)
    structlog.get_logger("ours").debug("unseen")
    logging.getLogger("theirs").debug("unseen")
    # It prints bodies of Secrets at these levels.
    logging.getLogger("kubernetes_asyncio.client.rest").info("unseen")
    assert lines() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"token": SECRET},
        {"api_key": SECRET},
        {"apiKey": SECRET},
        {"Authorization": SECRET},
        {"git_password": SECRET},
        {"secretData": SECRET},
        {"headers": {"authorization": SECRET}},
        {"deep": {"er": {"api-key": SECRET}}},
        {"items": [{"token": SECRET}]},
        {"items": ({"inner": [{"password": SECRET}]},)},
        {"token": {"value": SECRET}},
    ],
)
def test_what_speaks_of_secrets_is_not_shown(
    capsys: pytest.CaptureFixture[str], fields: dict[str, Any]
) -> None:
    lines = configured(capsys)
    structlog.get_logger("ours").info("request", plain="seen", **fields)
    (line,) = lines()
    assert SECRET not in json.dumps(line)
    assert "[redacted]" in json.dumps(line)
    assert line["plain"] == "seen"


def test_redaction_does_not_change_what_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    lines = configured(capsys)
    headers = {"authorization": SECRET, "accept": "json"}
    structlog.get_logger("ours").info("request", headers=headers)
    assert headers == {"authorization": SECRET, "accept": "json"}
    assert lines()[0]["headers"] == {"authorization": "[redacted]", "accept": "json"}


@pytest.mark.parametrize("logger", [structlog.get_logger("ours"), logging.getLogger("theirs")])
@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_local_variables(
    capsys: pytest.CaptureFixture[str], logger: Any, form: logs.Format
) -> None:
    logs.configure("INFO", form)
    try:
        failing()
    except RuntimeError:
        logger.exception("reconcile failed")
    shown = capsys.readouterr().err
    assert "RuntimeError: it broke" in shown
    assert "in failing" in shown
    assert SECRET not in shown
    if form == "json":
        (line,) = shown.splitlines()
        assert "Traceback" in json.loads(line)["exception"]


def test_without_a_terminal_it_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    structlog.get_logger("ours").info("hello")
    assert json.loads(capsys.readouterr().err)["event"] == "hello"


def test_configured_twice_each_line_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", "json")
    logs.configure("INFO", "json")
    logging.getLogger("theirs").warning("once")
    assert len(capsys.readouterr().err.splitlines()) == 1


# --- forms and values -------------------------------------------------------------------------

FORMS = {
    "a header": f"sent Authorization: Bearer {SECRET}",
    "a header of an SDK": f"headers={{'authorization': 'apikey {SECRET}', 'accept': 'json'}}",
    "an address": f"fatal: unable to access 'https://me:{SECRET}@git.example.com/x.git/'",
    "an address with a token only": f"cloning https://{SECRET}@git.example.com/x.git",
    "a query": f"GET https://example.com/x?a=b&api_key={SECRET}&c=d gave 403",
    "a signed address": f"GET https://s3.example.com/x?X-Amz-Signature={SECRET}&b=c",
    "a setting": f"aws_secret_access_key = {SECRET}",
    "JSON": f'{{"name": "x", "password": "{SECRET}"}}',
    "a key": f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
    "a key that was cut": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}",
    "a web token": "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.hunter2-hunter2",
    "an access key": "using key AKIAIOSFODNN7EXAMPLE, hunter2".replace(", hunter2", ""),
}


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known to be a secret."""
    monkeypatch.setattr(logs, "_concealed", set())


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("text", FORMS.values(), ids=list(FORMS))
@pytest.mark.parametrize("form", ["json", "console"])
def test_what_looks_like_a_credential_is_not_shown(
    capsys: pytest.CaptureFixture[str], text: str, form: logs.Format
) -> None:
    logs.configure("INFO", form)
    structlog.get_logger("ours").info(text)
    structlog.get_logger("ours").info("said", by="server", text=text, deep=[{"er": (text,)}])
    logging.getLogger("theirs").warning("said: %s", text)
    try:
        raise RuntimeError(text)
    except RuntimeError:
        structlog.get_logger("ours").exception("failed")
        logging.getLogger("theirs").exception("failed")
    structlog.get_logger("ours").error("failed", error=RuntimeError(text))
    shown = capsys.readouterr().err
    assert SECRET not in shown
    assert "AKIAIOSFODNN7EXAMPLE" not in shown
    assert shown.count("[redacted]") >= 6


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    "text",
    [
        "Selected aer_simulator as requested by spec.backend",
        "Secret 'ibm-credentials', named by spec.credentials.secretRef, does not exist",
        "PodLost: the pod was deleted; trying again in 10s (retry 1 of 3)",
        "GET https://example.com/a?b=c gave 404",
        "results in s3://bucket/path, 412 bytes, SHA-256 " + "a" * 64,
        "the API server's basic answer is slow",
        "git@example.com:org/repo.git has no branch main",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ],
)
def test_what_is_no_secret_is_left_as_it_is(text: str) -> None:
    assert logs.scrub(text) == text


@pytest.mark.usefixtures("fresh")
def test_what_is_known_to_be_a_secret_is_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    lines = configured(capsys)
    logs.conceal(["correct-horse", "first-line\nsecond-line\n", "short", " padded-value "])
    structlog.get_logger("ours").info(
        "x correct-horse y",
        note="second-line, and first-line",
        nested=({"a": "padded-value"},),
        number=7,
        short="short",
    )
    (line,) = lines()
    assert line["event"] == "x [redacted] y"
    assert line["note"] == "[redacted], and [redacted]"
    assert line["nested"] == [{"a": "[redacted]"}]
    assert (line["number"], line["short"]) == (7, "short")


def test_other_peoples_chatter_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = configured(capsys)
    for name in ("botocore.auth", "urllib3.connectionpool", "qiskit.transpiler", "google.auth"):
        logging.getLogger(name).info("unseen")
        logging.getLogger(name).warning("seen")
    assert [line["event"] for line in lines()] == ["seen"] * 4


# --- the filter of the docs -------------------------------------------------------------------


def test_the_filter_of_the_docs_tells_one_jobs_story() -> None:
    """Among lines of other jobs, of none, and such as are no JSON; two logs after each other."""
    apt.ensure_installed(["jq"], "read logs")
    text = (ROOT / "docs" / "telemetry.md").read_text()
    found = re.search(r"^\$ .*\| (jq .*)$", text, re.MULTILINE)
    assert found is not None

    def line(second: int, job: str | None, event: str) -> str:
        about = {} if job is None else {"job": job}
        return json.dumps({"timestamp": f"2026-01-01T00:00:{second:02}Z", "event": event} | about)

    lines = [
        line(5, "default/bell", "third"),
        line(6, "default/bell-2", "another's"),
        "Traceback (most recent call last):",
        line(1, None, "caches synced"),
        line(7, "default/bell", "fourth"),
        "",
        line(3, "default/bell", "first"),
        line(4, "other/bell", "another's"),
        line(4, "default/bell", "second"),
    ]
    done = subprocess.run(
        ["bash", "-c", found[1]], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    told = [json.loads(each)["event"] for each in done.stdout.splitlines()]
    assert told == ["first", "second", "third", "fourth"]
