"""What libraries log in the trusted stages: in our form, with the job's names, without secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from .support import BELL, REPOSITORY, UID, Pod

SECRET = "hunter2-hunter2"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def logged(pod: Pod, statement: str) -> tuple[str, list[dict[str, object]]]:
    """What a process of the stage writes to standard error."""
    script = (
        "import logging, sys\n"
        "from pathlib import Path\n"
        "from qiskit_controller.runner import logs\n"
        "from qiskit_controller.runner.pod import Paths\n"
        "logs.configure(Paths.under(Path(sys.argv[1])), 'executor')\n"
        f"{statement}\n"
    )
    given = {"TRACEPARENT": f"00-{TRACE}-00f067aa0ba902b7-01", "QUANTUM_ATTEMPT": "2"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(pod.root)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **given},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr, [json.loads(line) for line in done.stderr.splitlines()]


def test_a_librarys_line_says_which_job_it_is_about(pod: Pod) -> None:
    pod.plan(BELL)
    _, (line,) = logged(pod, "logging.getLogger('botocore').warning('slow')")
    wanted = {
        "event": "slow",
        "logger": "botocore",
        "level": "warning",
        "job": "default/bell",
        "uid": UID,
        "stage": "executor",
        "attempt": "2",
        "trace_id": TRACE,
    }
    assert wanted.items() <= line.items()


def test_what_was_in_a_mounted_secret_is_never_shown(pod: Pod) -> None:
    pod.plan(BELL)
    for folder in (pod.paths.credentials, pod.paths.git, pod.paths.token):
        folder.mkdir(parents=True, exist_ok=True)
    (pod.paths.credentials / "api-key").write_text(f"{SECRET}\n")
    (pod.paths.git / "ssh-privatekey").write_text("abcdef\nthe-second-line-of-it\n")
    (pod.paths.token / "token").write_text("the-token-itself")
    (pod.paths.token / "namespace").write_text("default")
    shown, lines = logged(
        pod,
        f"logging.getLogger('x').error('%s the-second-line-of-it the-token-itself', '{SECRET}')\n"
        "logging.getLogger('x').error('in default')",
    )
    assert SECRET not in shown
    assert lines[0]["event"] == "[redacted] [redacted] [redacted]"
    assert lines[1]["event"] == "in default"


def test_without_a_plan_the_stage_still_has_its_logs(pod: Pod) -> None:
    _, (line,) = logged(pod, "logging.getLogger('x').error('m')")
    assert line["event"] == "m"
    assert "job" not in line


def test_a_warning_of_pythons_own_is_a_line(pod: Pod) -> None:
    pod.plan(BELL)
    _, (line,) = logged(pod, "import warnings; warnings.warn('an old thing', UserWarning)")
    assert "an old thing" in str(line["event"])
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")
