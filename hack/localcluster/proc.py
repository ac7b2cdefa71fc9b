"""Run other programs, and say well what failed.

Everything here that can fail for a reason a person can act on raises
``ClusterError``; the command line prints its message and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_STARTED = time.monotonic()
_TAIL_LINES = 15


class ClusterError(Exception):
    """An expected failure. The message says what failed and what to do about it."""


def say(message: str) -> None:
    """Print a progress line with the seconds since this program started.

    Goes to standard error, so that commands whose output is meant for another
    program (``env``, ``kubeconfig``, ``assets``) can report progress too.
    """
    print(f"[{time.monotonic() - _STARTED:6.1f}s] {message}", file=sys.stderr, flush=True)


def tail(text: str, lines: int = _TAIL_LINES) -> str:
    """The last lines of a program's output, indented, for an error message."""
    return "\n".join("    " + line for line in text.rstrip().splitlines()[-lines:])


def run(
    command: Sequence[str | Path],
    *,
    what: str,
    hint: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
) -> str:
    """Run ``command`` to its end and return its standard output.

    ``what`` completes the sentence "could not ..." and ``hint`` is what the
    reader can do. ``env`` is added to this process's own environment. With
    ``log`` both output streams are appended to that file instead and the
    result is empty.

    Raises ClusterError when the program is missing or fails.
    """
    argv = [str(part) for part in command]
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(log.open("ab")) if log else subprocess.PIPE
        try:
            done = subprocess.run(
                argv,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT if log else subprocess.PIPE,
                check=False,
            )
        except FileNotFoundError as error:
            raise ClusterError(_sentence(what, f"{argv[0]} is not installed", hint)) from error
    stdout, stderr = ((text or b"").decode(errors="replace") for text in (done.stdout, done.stderr))
    if done.returncode != 0:
        shown = log.read_text(errors="replace") if log else stderr or stdout
        reason = f"{Path(argv[0]).name} ended with status {done.returncode}"
        raise ClusterError(_sentence(what, reason, hint, log, shown))
    return stdout


def succeeds(command: Sequence[str | Path]) -> bool:
    """Whether ``command`` exists and ends with status 0. Its output is dropped."""
    try:
        return (
            subprocess.run(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            ).returncode
            == 0
        )
    except FileNotFoundError:
        return False


def _sentence(what: str, reason: str, hint: str, log: Path | None = None, output: str = "") -> str:
    parts = [f"could not {what}: {reason}"]
    if output.strip():
        parts.append(tail(output))
    if log is not None:
        parts.append(f"  log: {log}")
    if hint:
        parts.append(f"  {hint}")
    return "\n".join(parts)


def require_root(what: str) -> None:
    """Raise ClusterError unless this process may change the machine."""
    if os.geteuid() != 0:
        raise ClusterError(f"could not {what}: it needs root\n  Run it again as root (sudo -E).")
