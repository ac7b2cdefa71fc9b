"""The source ``url``."""

from __future__ import annotations

from http import HTTPStatus

from qiskit_controller.api.run import Limits, Reason
from qiskit_controller.api.sources import parse_url
from qiskit_controller.runner.fetched import Fetched, SourceFailed
from qiskit_controller.runner.http_fetch import Http, TooLarge

# Beside 500 and above, the statuses that may pass.
_PASSING = frozenset({408, 421, 425, 429})


def fetch_url(url: str, http: Http, limits: Limits) -> Fetched:
    """The file at a URL.

    Raises:
        BadAddress: it is not the URL of a file.
        SourceFailed: it cannot be had.
    """
    address = parse_url(url)
    try:
        answer = http.get(address, limits.source_bytes)
    except TooLarge:
        raise SourceFailed(
            Reason.SOURCE_TOO_LARGE,
            f"{address} has more than {limits.source_bytes} bytes, which is the limit for code",
        ) from None
    if answer.status != HTTPStatus.OK:
        raise SourceFailed(
            reason_of_status(answer.status),
            f"{answer.address} answers {describe_status(answer.status)}",
        )
    return Fetched(answer.body, f"{answer.address}")


def reason_of_status(status: int) -> Reason:
    """What an answer other than 200 means for the job."""
    if status in (401, 403, 407, 451):
        return Reason.SOURCE_FORBIDDEN
    if status in (404, 410):
        return Reason.SOURCE_NOT_FOUND
    if status >= 500 or status in _PASSING:
        return Reason.SOURCE_UNAVAILABLE
    return Reason.SOURCE_INVALID


def describe_status(status: int) -> str:
    """``404 Not Found``, in the standard's words and not in the server's."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
