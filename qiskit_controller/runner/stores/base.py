"""What every store does, what can go wrong, and for how long it is tried again here."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from math import inf
from typing import Protocol, TypeVar

from qiskit_controller.api.run import Plan, Reason, StoredResult
from qiskit_controller.runner.formats import Formatted

T = TypeVar("T")

FIRST_WAIT_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 10.0

# Beside a result, where a store keeps such things: whose it is, and its SHA-256.
UID_KEY = "quantum-job-uid"
JOB_KEY = "quantum-job"
SHA256_KEY = "quantum-sha256"


class StoreFailed(Exception):
    """The result is not stored.

    Attributes:
        reason: tells whether another attempt may help.
        message: for people; no secret is in it.
        patience: for how many seconds it is worth asking again in this pod; 0 for what only
            a person can change.
    """

    def __init__(self, reason: Reason, message: str, patience: float = 0.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.patience = patience


class Store(Protocol):
    """A place for one job's result."""

    def check(self, least: int) -> None:
        """Find out, before the circuit runs, what would keep its result from being stored.

        Once; nothing is left behind but an empty folder.

        Args:
            least: bytes that the result will have at least.

        Raises:
            StoreFailed: it would not be stored now.
        """

    def put(self, formatted: Formatted, counts: str) -> StoredResult:
        """Write the result, once; writing the same job's again replaces it.

        Args:
            counts: the counts alone as JSON, for stores that keep them beside the result.

        Raises:
            StoreFailed: it is not there, or may not be there.
        """


def unavailable(message: str) -> StoreFailed:
    """No answer, or one that may be another the next time."""
    return StoreFailed(Reason.OUTPUT_UNAVAILABLE, message, patience=inf)


def patiently(ask: Callable[[], T], seconds: float, note: Callable[[str], None]) -> T:
    """What `ask` returns, asked again while that may help.

    Args:
        seconds: to begin no more tries after.
        note: told of the first failure that is not the last.

    Raises:
        StoreFailed: the last one.
    """
    begun = time.monotonic()
    wait = FIRST_WAIT_SECONDS
    told = False
    while True:
        try:
            return ask()
        except StoreFailed as error:
            left = begun + min(seconds, error.patience) - time.monotonic()
            if left <= 0:
                raise
            if not told:
                note(f"{error.message}; trying again")
                told = True
        time.sleep(min(left, wait * random.uniform(0.5, 1.0)))  # noqa: S311  jitter
        wait = min(wait * 2, LONGEST_WAIT_SECONDS)


def metadata_of(plan: Plan, sha256: str) -> dict[str, str]:
    """What is written beside an object, to know it again by."""
    # ASCII, as HTTP headers are: names and UIDs of Kubernetes are.
    return {
        UID_KEY: plan.job.uid,
        JOB_KEY: f"{plan.job.namespace}/{plan.job.name}",
        SHA256_KEY: sha256,
    }


def conflict(what: str) -> StoreFailed:
    """Something is there that this job did not write."""
    return StoreFailed(
        Reason.OUTPUT_CONFLICT,
        f"spec.output.location: {what} exists already and was not written by this QiskitJob; it "
        "is not overwritten. Delete it, or choose another location",
    )
