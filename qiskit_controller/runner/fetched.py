"""Where the code lies: in the input folder, or where the stage ``source`` put it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import attrs

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.run import SOURCE_FILE, Plan, Reason, SourceReport
from qiskit_controller.runner.pod import Paths


class SourceFailed(Exception):
    """The code could not be fetched; `message` is for people and holds no credential."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@attrs.frozen
class Fetched:
    """A file as it was fetched.

    Attributes:
        commit: the full commit it is from, for git.
        origin: where it came from, for the log.
    """

    content: bytes
    origin: str
    commit: str | None = None


@attrs.frozen
class Code:
    """The code as the other stages find it.

    Attributes:
        sha256: what the file must hash to.
    """

    path: Path
    sha256: str
    commit: str | None = None


def store(fetched: Fetched, plan: Plan, paths: Paths) -> SourceReport:
    """Put what was fetched where the other stages read it, and say what it is."""
    report = SourceReport(
        sha256=hashlib.sha256(fetched.content).hexdigest(),
        size=len(fetched.content),
        commit=fetched.commit,
    )
    _write_new(paths.source / plan.source.file, fetched.content)
    # Last, so that what it says is there.
    _write_new(paths.source / SOURCE_FILE, json.dumps(to_wire(report)).encode())
    return report


def locate(plan: Plan, paths: Paths) -> Code:
    """The code of a plan. The folder is trusted: only the stage ``source`` can write there.

    Raises:
        OSError, ValueError: it was not fetched.
    """
    if not plan.source.fetched:
        return Code(paths.input / plan.source.file, plan.source.sha256)
    report = from_wire(json.loads((paths.source / SOURCE_FILE).read_bytes()), SourceReport)
    return Code(paths.source / plan.source.file, report.sha256, report.commit)


def _write_new(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
