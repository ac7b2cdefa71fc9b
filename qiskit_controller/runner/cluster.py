"""The API server as the executor may use it: GET and PATCH of two ConfigMaps.

The token is read from its file for each request, because the kubelet replaces it; it is never
kept, shown or handed on. Patches are JSON merge patches, which may be sent twice.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import requests

from qiskit_controller.runner.pod import Paths

# For one request: (connect, read).
_TIMEOUT_SECONDS = (3.05, 10.0)
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0

Object = Mapping[str, Any]


class ApiError(Exception):
    """The API server said no, or nothing, for as long as it was asked.

    Attributes:
        status: HTTP status; None when there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class NotFound(ApiError):
    """404: the ConfigMap does not exist."""


class Conflict(ApiError):
    """409: it has changed since it was read."""


class Forbidden(ApiError):
    """401 or 403: the token does not allow it, or does not yet."""


class Invalid(ApiError):
    """The patch itself is refused: 400, 413 or 422."""


# Answers to ask again on, whatever was asked.
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_ERRORS: Mapping[int, type[ApiError]] = {
    400: Invalid,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: Invalid,
    422: Invalid,
}


@attrs.define
class Cluster:
    """ConfigMaps of one namespace.

    Attributes:
        server: URL of the API server, without a slash at its end.
        token_dir: folder with ``token`` and ``ca.crt``.
        namespace: where the ConfigMaps are.
    """

    server: str
    token_dir: Path
    namespace: str
    _session: requests.Session = attrs.field(factory=lambda: _session(), init=False)

    @classmethod
    def of_pod(cls, paths: Paths, namespace: str) -> Cluster:
        """The cluster that this pod runs in.

        Raises:
            ApiError: this is no pod.
        """
        host = os.environ.get("KUBERNETES_SERVICE_HOST")
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise ApiError("KUBERNETES_SERVICE_HOST is not set: this is not a pod")
        url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        return cls(url, paths.token, namespace)

    def get_config_map(self, name: str, *, seconds: float) -> Object:
        """The ConfigMap.

        Args:
            seconds: how long to ask while there is no answer or a transient one.

        Raises:
            ApiError: or one of its kinds.
        """
        return self._retry(lambda: self._request("GET", name), seconds)

    def patch_config_map(self, name: str, patch: Object, *, seconds: float) -> Object:
        """The ConfigMap after a merge patch. Arguments and errors as for a GET."""
        return self._retry(lambda: self._request("PATCH", name, patch), seconds)

    def _retry(self, ask: Callable[[], Object], seconds: float) -> Object:
        deadline = time.monotonic() + seconds
        wait = _FIRST_WAIT_SECONDS
        while True:
            try:
                return ask()
            except _Transient as error:
                pause = max(error.retry_after, wait * random.uniform(0.5, 1.0))  # noqa: S311  jitter
                if time.monotonic() + pause > deadline:
                    raise ApiError(str(error), error.status) from None
            time.sleep(pause)
            wait = min(wait * 2, _LONGEST_WAIT_SECONDS)

    def _request(self, method: str, name: str, patch: Object | None = None) -> Object:
        url = f"{self.server}/api/v1/namespaces/{self.namespace}/configmaps/{name}"
        headers = {"Accept": "application/json", "User-Agent": "qiskit-runner"}
        if patch is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        try:
            headers["Authorization"] = f"Bearer {(self.token_dir / 'token').read_text().strip()}"
            response = self._session.request(
                method,
                url,
                json=patch,
                headers=headers,
                verify=str(self.token_dir / "ca.crt"),
                timeout=_TIMEOUT_SECONDS,
                allow_redirects=False,
            )
            found = response.json() if response.ok else {}
        # ValueError: an answer that is no JSON, as a proxy in between gives.
        except (OSError, ValueError) as error:
            raise _Transient(f"{method} configmap/{name}: {_root(error)}") from None
        if response.ok and isinstance(found, dict):
            return found
        message = f"{method} configmap/{name}: {response.status_code} {_said(response)}"
        if response.status_code in _TRANSIENT or response.ok:
            raise _Transient(message, response.status_code, _retry_after(response))
        raise _ERRORS.get(response.status_code, ApiError)(message, response.status_code)


def _session() -> requests.Session:
    session = requests.Session()
    # No proxy, no netrc: the API server is next door and has its own credentials.
    session.trust_env = False
    return session


class _Transient(ApiError):
    def __init__(self, message: str, status: int | None = None, retry_after: float = 0.0) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


def _retry_after(response: requests.Response) -> float:
    value = response.headers.get("Retry-After", "")
    return min(float(value), 30.0) if value.isdigit() else 0.0


def _said(response: requests.Response) -> str:
    """The message of a Status, else the HTTP reason."""
    try:
        return str(response.json()["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return response.reason or ""


def _root(error: BaseException) -> str:
    """The innermost cause; the outer ones of requests are long and repeat the URL."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {error}"[:300]
