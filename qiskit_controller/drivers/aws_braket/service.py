"""One AWS account in one region: its clients, and what its errors mean.

Keys of the Secret: ``access-key-id`` and ``secret-access-key``, and where they are needed
``session-token``, ``region``, ``endpoint`` (one address for all of AWS' services, for a private
one or a test), ``results-bucket`` and ``results-prefix``. Without the first two, boto3's own
chain finds the pod's identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import attrs
import boto3
from botocore import exceptions as boto_errors
from botocore.config import Config

from qiskit_controller.api.run import Reason
from qiskit_controller.drivers import RunFailed
from qiskit_controller.drivers.remote import Unavailable
from qiskit_controller.runner.stores.credentials import Credentials

CONNECT_SECONDS = 5.0
READ_SECONDS = 25.0
# The SDK's own, for one request; who calls asks again for as long as it makes sense.
_TRIES = 2
DEFAULT_PREFIX = "tasks"
SECRET = "the Secret of spec.credentials.secretRef"  # noqa: S105 - not one

# The key is none, or not the one that signed.
_REJECTED = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidIdentityToken",
        "InvalidSignatureException",
        "InvalidToken",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_DENIED = frozenset({"AccessDenied", "AccessDeniedException", "AllAccessDisabled", "Forbidden"})
_BUSY = frozenset(
    {
        "DeviceOfflineException",
        "InternalServiceException",
        "RequestTimeout",
        "ServiceQuotaExceededException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_NO_CREDENTIALS = (
    boto_errors.NoCredentialsError,
    boto_errors.PartialCredentialsError,
    boto_errors.CredentialRetrievalError,
    boto_errors.UnauthorizedSSOTokenError,
)
_NO_ANSWER = (boto_errors.HTTPClientError, boto_errors.ConnectionError)
# The request did not get there.
_NOT_ASKED = (
    boto_errors.ConnectTimeoutError,
    boto_errors.EndpointConnectionError,
    boto_errors.ProxyConnectionError,
    boto_errors.SSLError,
)


@attrs.frozen
class Account:
    """See the module.

    Attributes:
        region: where its clients ask.
        session: boto3's, with the Secret's keys or the pod's identity.
    """

    region: str
    session: boto3.session.Session
    credentials: Credentials
    _clients: dict[tuple[str, int], Any] = attrs.field(factory=dict, repr=False, eq=False)

    @classmethod
    def of(cls, credentials: Credentials, region: str | None) -> Account:
        """The account that a Secret, or the pod itself, has the keys of.

        Args:
            region: of the device; without one the Secret's, or the pod's own.

        Raises:
            RunFailed: BackendDenied without usable keys, BackendRefused without a region.
        """
        region = region or configured_region(credentials)
        if region is None:
            raise RunFailed(
                Reason.BACKEND_REFUSED,
                "the device's ARN names no region, and none is set; give one under the key "
                f"region in {SECRET}",
            )
        keys = [credentials.get(each) for each in ("access-key-id", "secret-access-key")]
        if any(keys) and not all(keys):
            raise RunFailed(
                Reason.BACKEND_DENIED,
                f"{SECRET} has only one of the keys access-key-id and secret-access-key",
            )
        try:
            session = boto3.session.Session(
                aws_access_key_id=keys[0],
                aws_secret_access_key=keys[1],
                aws_session_token=credentials.get("session-token"),
                region_name=region,
            )
            known = session.get_credentials() is not None
        except boto_errors.BotoCoreError as error:
            raise RunFailed(
                Reason.BACKEND_DENIED,
                f"{SECRET} cannot be used: {credentials.scrub(str(error))}",
            ) from None
        if not known:
            raise RunFailed(
                Reason.BACKEND_DENIED,
                f"there are no credentials for AWS: put access-key-id and secret-access-key into "
                f"{SECRET}, or give the pod an identity of its own",
            )
        return cls(region, session, credentials)

    def within(self, region: str) -> Account:
        """The same account in another region."""
        return Account.of(self.credentials, region)

    def client(self, service: str, *, tries: int = _TRIES) -> Any:
        """boto3's client of a service.

        Args:
            tries: how often one request is sent, where its failure may pass.
        """
        # Making one reads megabytes of boto's data.
        if (service, tries) not in self._clients:
            self._clients[service, tries] = self._client(service, tries)
        return self._clients[service, tries]

    def _client(self, service: str, tries: int) -> Any:
        endpoint = self.credentials.get("endpoint")
        own_server = service == "s3" and endpoint is not None
        return self.session.client(
            service,
            endpoint_url=endpoint,
            region_name=self.region,
            config=Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                retries={"mode": "standard", "total_max_attempts": tries},
                user_agent_extra="qiskit-controller",
                # Servers of one's own seldom have a DNS name for each bucket.
                s3={"addressing_style": "path"} if own_server else {},
            ),
        )

    @contextmanager
    def asking(self, doing: str) -> Iterator[None]:
        """Translate what boto3 raises.

        Args:
            doing: what is asked, as ``asking for the device``.

        Raises:
            Unavailable, RunFailed: see :class:`qiskit_controller.drivers.remote.Provider`.
        """
        try:
            yield
        except (boto_errors.BotoCoreError, boto_errors.ClientError) as error:
            raise self.failure(error, doing) from None

    def failure(self, error: Exception, doing: str) -> Unavailable | RunFailed:
        """What an error of boto3 means."""
        said = self.credentials.scrub(" ".join(str(error).split()))[:400].rstrip(".")
        text = f"Amazon Braket in {self.region}: {doing}: {said}"
        if isinstance(error, boto_errors.ClientError):
            return _answered(error, text)
        if isinstance(error, _NO_CREDENTIALS):
            return RunFailed(Reason.BACKEND_DENIED, f"{text}: check {SECRET}")
        if isinstance(error, _NO_ANSWER):
            known = self.session.get_available_regions("braket")
            if self.credentials.get("endpoint") is None and self.region not in known:
                return RunFailed(
                    Reason.BACKEND_REFUSED,
                    f"{text}: Amazon Braket is in {', '.join(known)}, not in {self.region}",
                )
            return Unavailable(text, nothing_done=isinstance(error, _NOT_ASKED))
        return RunFailed(Reason.BACKEND_REFUSED, text)


def configured_region(credentials: Credentials) -> str | None:
    """The region of the Secret, else of the pod's environment, as Amazon's webhook sets it."""
    return (
        credentials.get("region")
        or os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
    )


def code_of(error: Exception) -> str:
    """AWS' name of an error; "" for what is none of AWS'."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, Mapping) else ""


def _status(error: boto_errors.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _answered(error: boto_errors.ClientError, text: str) -> Unavailable | RunFailed:
    code, status = code_of(error), _status(error)
    if code in _BUSY or status in (408, 429) or status >= 500:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        after = str(headers.get("retry-after", ""))
        pause = timedelta(seconds=int(after)) if after.isdigit() else None
        return Unavailable(text, pause, nothing_done=status < 500)
    if code in _REJECTED or status == 401:
        return RunFailed(Reason.BACKEND_DENIED, f"{text}: check {SECRET}")
    if code in _DENIED or status == 403:
        return RunFailed(Reason.BACKEND_DENIED, f"{text}: check what the key may do")
    return RunFailed(Reason.BACKEND_REFUSED, text)
