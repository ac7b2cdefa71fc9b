from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from qiskit_controller.telemetry import logs

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
