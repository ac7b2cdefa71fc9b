"""What the API server answers when it does not do what was asked.

Every error is an :class:`ApiError`. The subclasses are those that callers branch on;
what else there is can be told by `status` and `reason`. An error carries nothing of the
request but its method and path, hence no credentials.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import aiohttp

from qiskit_controller.kube.objects import Object


class ApiError(Exception):
    """The API server said no.

    `reason` is the machine-readable word of the Status object (`NotFound`, `Conflict`,
    `TooManyRequests`, ...), `message` the sentence for people, `details` its structured
    rest, `retry_after` the seconds after which the server wants to be asked again.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        retry_after: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(status, reason, message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.details = details or {}

    def __str__(self) -> str:
        return f"{self.message} ({self.status} {self.reason})"

    def has_cause(self, reason: str) -> bool:
        """Whether `reason` is among the causes the server gave, e.g. NamespaceTerminating."""
        causes: list[dict[str, str]] = self.details.get("causes") or []
        return any(cause.get("reason") == reason for cause in causes)


class NotFound(ApiError):
    """404: there is no such object, or no such kind."""


class AlreadyExists(ApiError):
    """409 on create: the name is taken."""


class Conflict(ApiError):
    """409 on a write: the object has changed since, or a precondition does not hold."""


class Invalid(ApiError):
    """422: the object was understood and refused."""


class Forbidden(ApiError):
    """403: not allowed, by RBAC or by an admission controller."""


class Unauthorized(ApiError):
    """401: the credentials were not accepted."""


class Gone(ApiError):
    """410: the resourceVersion or continue token is too old; list again."""


class ConnectionFailed(ApiError):
    """No usable answer; whether a write has happened is not known. Status 0."""

    def __init__(self, message: str, reason: str = "ConnectionFailed") -> None:
        super().__init__(0, reason, message)


_BY_REASON: dict[str, type[ApiError]] = {
    "NotFound": NotFound,
    "AlreadyExists": AlreadyExists,
    "Conflict": Conflict,
    "Invalid": Invalid,
    "Forbidden": Forbidden,
    "Unauthorized": Unauthorized,
    "Gone": Gone,
    "Expired": Gone,
}
_BY_STATUS: dict[int, type[ApiError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
}


def error_from_status(status: Object, *, retry_after: float | None = None) -> ApiError:
    """The error that a `Status` object describes."""
    code = int(status.get("code") or 0)
    reason = status.get("reason") or _phrase(code)
    details = status.get("details") or {}
    if retry_after is None and details.get("retryAfterSeconds"):
        retry_after = float(details["retryAfterSeconds"])
    kind = _BY_REASON.get(reason) or _BY_STATUS.get(code) or ApiError
    return kind(
        code, reason, status.get("message") or reason, retry_after=retry_after, details=details
    )


def error_from_response(response: aiohttp.ClientResponse, body: bytes) -> ApiError:
    header = response.headers.get("Retry-After", "")
    retry_after = float(header) if header.isdecimal() else None  # The other form is a date.
    try:
        status = json.loads(body)
    except ValueError:
        status = None
    if not isinstance(status, dict) or status.get("kind") != "Status":
        # Not the API server's own words: some proxy, or its overload filter's plain text.
        text = body[:200].decode(errors="replace").strip()
        status = {"message": f"{response.method} {response.url.path}: {text or 'no message'}"}
    status["code"] = response.status
    return error_from_status(status, retry_after=retry_after)


def _phrase(code: int) -> str:
    try:
        return HTTPStatus(code).phrase.replace(" ", "")
    except ValueError:
        return "Unknown"
