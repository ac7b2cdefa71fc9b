"""One account at IBM Quantum: the login, and what its errors mean.

The client of qiskit-ibm-runtime does three things that do not suit a pod that waits for hours.
It has no limit on how long an answer may take; it waits inside, unseen, when it is told to slow
down; and where it cannot get a token, it goes on with the bare key and is then told that it is not
authorized. So its HTTP sessions get an adapter of our own, and the key is tried first by itself.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs
import requests
from requests.adapters import HTTPAdapter

from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.api.run import Reason
from qiskit_controller.drivers import RunFailed
from qiskit_controller.drivers.remote import Unavailable
from qiskit_controller.runner.stores.credentials import Credentials

T = TypeVar("T")

CHANNEL = "ibm_quantum_platform"
CLOUD = "cloud.ibm.com"
IAM = f"https://iam.{CLOUD}"
# A service elsewhere, which has no directory of instances, gets this where it wants one.
ANY_INSTANCE = "crn:v1:bluemix:public:quantum-computing:us-east:a/0:0::"
CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
# Logging in takes several requests, and the client sets no limit on those.
LOGIN_SECONDS = 150.0
_CHECK = "check the Secret of spec.credentials.secretRef"
# "You have reached the limit of pending jobs": it passes when one of them is done.
_TOO_MANY_PENDING = 3458


@attrs.frozen
class Login:
    """What is in the Secret, with the spec over it.

    Attributes:
        instance: CRN or name; None lets the client choose among the account's.
        url: of another service than IBM Cloud's.
        iam_url: where tokens come from.
    """

    api_key: str = attrs.field(repr=False)
    instance: str | None
    url: str | None
    channel: str
    iam_url: str
    credentials: Credentials

    @classmethod
    def read(cls, spec: QiskitJobSpec, credentials: Credentials) -> Login:
        """Put it together.

        Raises:
            RunFailed: there is no key.
        """
        api_key = credentials.get("api-key", "token")
        if api_key is None:
            has = ", ".join(sorted(credentials.values)) or "nothing"
            raise RunFailed(
                Reason.BACKEND_DENIED, f"there is no api-key; {_CHECK}, which has: {has}"
            )
        url = credentials.get("url")
        if url is not None:
            url = url.rstrip("/")
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise RunFailed(Reason.BACKEND_DENIED, f"its url is not one of http(s); {_CHECK}")
        instance = spec.backend.instance or credentials.get("instance")
        elsewhere = url is not None and not _is_ibm(url)
        return cls(
            api_key=api_key,
            instance=instance or (ANY_INSTANCE if elsewhere else None),
            url=url,
            channel=credentials.get("channel") or CHANNEL,
            iam_url=credentials.get("iam-url") or (url if elsewhere and url else IAM),
            credentials=credentials,
        )

    @property
    def elsewhere(self) -> bool:
        """Whether the service is not IBM Cloud's, so that it stands at `url` itself."""
        return self.url is not None and not _is_ibm(self.url)

    def resolve(self, url: str, instance: str, private: bool | None = False, *_: str) -> str:
        """The base of the service's API: what the client calls a URL resolver."""
        if self.elsewhere:
            return url if urlsplit(url).path.strip("/") else f"{url}/api/v1"
        from qiskit_ibm_runtime.api.utils import default_runtime_url_resolver

        resolved: str = default_runtime_url_resolver(url, instance, bool(private))
        return resolved


def _is_ibm(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == CLOUD or host.endswith(f".{CLOUD}")


@attrs.define
class Account:
    """The service, logged in, and asked so that its errors are ours.

    Attributes:
        service: the client; it is made anew when the service no longer accepts its token.
        kept: what was fetched with it and is asked again, by kind and name; gone with it.
    """

    login: Login
    service: Any = None
    kept: dict[tuple[str, str], Any] = attrs.field(factory=dict)

    @classmethod
    def connect(cls, login: Login) -> Account:
        """Log in.

        Raises:
            RunFailed: the key, or the instance, is refused.
            Unavailable: no answer.
        """
        account = cls(login)
        account._renew()
        return account

    def ask(self, ask: Callable[[Any], T]) -> T:
        """What `ask` makes of the service; with a new token, if it is told that the old one ended.

        Raises:
            RunFailed, Unavailable: as the service's answer means.
        """
        try:
            return self._translated(lambda: ask(self.service))
        except _Unauthorized:
            self._renew()
        try:
            return self._translated(lambda: ask(self.service))
        except _Unauthorized as error:
            raise self._denied(str(error)) from None

    def _renew(self) -> None:
        _check_key(self.login)
        self.kept.clear()
        self.service = _within(LOGIN_SECONDS, lambda: self._translated(self._log_in))

    def _log_in(self) -> Any:
        from qiskit_ibm_runtime import QiskitRuntimeService

        login = self.login
        os.environ["IAM_URL"] = login.iam_url
        if login.elsewhere:
            # The client's switch for services without IBM Cloud's directory of instances.
            os.environ["QISKIT_FUNCTIONS_EXPERIMENTAL"] = "1"
        _be_quiet()
        service = QiskitRuntimeService(
            channel=login.channel,
            token=login.api_key,
            url=login.url,
            instance=login.instance or "auto",
            url_resolver=login.resolve,
        )
        _guard(service)
        # The client takes every error while it lists devices for "there are none".
        service.usage()
        return service

    def _translated(self, ask: Callable[[], T]) -> T:
        from qiskit.exceptions import QiskitError

        try:
            return ask()
        except (RunFailed, Unavailable):
            raise
        except (QiskitError, OSError, ValueError) as error:
            raise self._meaning(error) from None

    def _meaning(self, error: Exception) -> Exception:
        response = response_of(error)
        status = response.status_code if response is not None else None
        said = self._said(error, response)
        if status == 401:
            return _Unauthorized(said)
        if status == 403 and code_of(response) != _TOO_MANY_PENDING:
            return self._denied(said)
        if status is None and not _is_network(error):
            # No request was made: the client itself found something wrong.
            return RunFailed(Reason.BACKEND_REFUSED, f"IBM Quantum's client: {said}")
        if status is None:
            return Unavailable(f"IBM Quantum does not answer: {said}", nothing_done=_unsent(error))
        if status in (403, 408, 425, 429) or status >= 500:
            return Unavailable(
                f"IBM Quantum answers {status}: {said}",
                _retry_after(response),
                nothing_done=status in (403, 425, 429),
            )
        return RunFailed(Reason.BACKEND_REFUSED, f"IBM Quantum answers {status}: {said}")

    def _denied(self, said: str) -> RunFailed:
        return RunFailed(
            Reason.BACKEND_DENIED, f"IBM Quantum does not let the key do this: {said}; {_CHECK}"
        )

    def _said(self, error: Exception, response: requests.Response | None) -> str:
        text = _message_of(response) or str(_root(error)) or type(error).__name__
        return self.login.credentials.scrub(text)[:400]


class _Unauthorized(Exception):
    """401: the token has expired, or never was one."""


def _check_key(login: Login) -> None:
    """Whether IBM's identity service accepts the key.

    Raises:
        RunFailed: it does not.
        Unavailable: it does not say.
    """
    form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": login.api_key}
    url = f"{login.iam_url}/identity/token"
    try:
        with requests.post(
            url,
            data=form,
            headers={"Accept": "application/json"},
            timeout=(CONNECT_SECONDS, READ_SECONDS),
            allow_redirects=False,
        ) as response:
            status, said = response.status_code, _message_of(response)
            pause = _retry_after(response)
    except (OSError, ValueError) as error:
        text = login.credentials.scrub(str(_root(error)))[:300]
        raise Unavailable(f"{url} does not answer: {text}", nothing_done=True) from None
    if status < 300:
        return
    text = login.credentials.scrub(said or "")[:300]
    if status in (408, 425, 429) or status >= 500:
        raise Unavailable(f"{url} answers {status}: {text}", pause, nothing_done=True)
    raise RunFailed(
        Reason.BACKEND_DENIED, f"{url} does not accept the api-key ({status}: {text}); {_CHECK}"
    )


def _guard(service: Any) -> None:
    """Limit how long the client waits for an answer, and let it not ask again by itself.

    It has no option for either, so this reaches for the sessions that it has made; each instance
    of the account has one.
    """
    for client in clients_of(service):
        for prefix in ("http://", "https://"):
            client._session.mount(prefix, _Bounded())


def clients_of(service: Any) -> Sequence[Any]:
    """What the service asks with: one for each instance of the account, the current one first."""
    clients = {id(service._active_api_client): service._active_api_client}
    clients |= {id(each): each for each in service._api_clients.values()}
    return list(clients.values())


class _Bounded(HTTPAdapter):
    """Without retries, because they would not be seen, and submit twice; with a deadline."""

    def __init__(self) -> None:
        super().__init__(max_retries=0)

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = (CONNECT_SECONDS, READ_SECONDS)
        return super().send(request, *args, **kwargs)


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """What `ask` returns, or Unavailable when it takes too long; nothing is lost by then."""
    done: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            done.append(ask())
        # Told to the caller, whatever it is.
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise Unavailable(f"IBM Quantum does not answer within {seconds:.0f} s", nothing_done=True)
    return done[0]


def _be_quiet() -> None:
    """The client warns of what we chose on purpose; errors still come as exceptions."""
    logging.getLogger("qiskit_ibm_runtime").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"qiskit_ibm_runtime.*")
    # The sampler on the service's side, which is deprecated in favour of one that works here.
    warnings.filterwarnings("ignore", message=r".*SamplerV2 class is deprecated.*")
    warnings.filterwarnings("ignore", message=r"Unable to retrieve IBM Cloud access token.*")


# --- errors -----------------------------------------------------------------------------------


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def response_of(error: BaseException) -> requests.Response | None:
    """The HTTP answer that an error came from."""
    for each in _chain(error):
        found = getattr(each, "response", None)
        if isinstance(found, requests.Response):
            return found
    return None


def _root(error: BaseException) -> BaseException:
    *_, last = _chain(error)
    return last


def _is_network(error: BaseException) -> bool:
    return any(isinstance(each, OSError) for each in _chain(error))


def _unsent(error: BaseException) -> bool:
    """Whether there was not even a connection."""
    return any(
        isinstance(each, requests.ConnectTimeout)
        or type(each).__name__ in ("NewConnectionError", "NameResolutionError")
        for each in _chain(error)
    )


def _body_of(response: requests.Response | None) -> dict[str, Any]:
    try:
        found = response.json() if response is not None else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _errors_of(response: requests.Response | None) -> Iterator[dict[str, Any]]:
    body = _body_of(response)
    listed = body.get("errors")
    for each in listed if isinstance(listed, list) else [body.get("error"), body]:
        if isinstance(each, dict):
            yield each


def code_of(response: requests.Response | None) -> int | None:
    """IBM's error code in an answer; see its error code registry."""
    for each in _errors_of(response):
        if str(each.get("code", "")).isdigit():
            return int(each["code"])
    return None


def _message_of(response: requests.Response | None) -> str | None:
    if response is None:
        return None
    for each in _errors_of(response):
        text = each.get("message") or each.get("errorMessage")
        if text:
            code = each.get("code") or each.get("errorCode")
            return f"{text} (code {code})" if code else str(text)
    return response.reason or re.sub(r"\s+", " ", response.text)[:200]


def _retry_after(response: requests.Response | None) -> timedelta | None:
    value = response.headers.get("Retry-After", "") if response is not None else ""
    if value.isdigit():
        return timedelta(seconds=int(value))
    try:
        return max(timedelta(0), parsedate_to_datetime(value) - datetime.now(UTC))
    except (TypeError, ValueError):
        return None
