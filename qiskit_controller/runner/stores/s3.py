"""Results as objects of Amazon S3, or of any server that speaks its protocol, through boto3.

Keys of the Secret: ``access-key-id``, ``secret-access-key``, and where they are needed
``session-token``, ``region``, ``endpoint``. Without the first two, boto3's own chain finds the
pod's identity. Needed permissions: GetObject and PutObject in the folder, ListBucket.
"""

from __future__ import annotations

import base64
import hashlib
from math import inf
from typing import Any

import attrs
import boto3
from botocore import exceptions as boto_errors
from botocore.config import Config

from qiskit_controller.api.outputs import BucketUrl, bucket_url
from qiskit_controller.api.run import Plan, Reason, StoredResult
from qiskit_controller.runner.formats import Formatted
from qiskit_controller.runner.stores.base import (
    SHA256_KEY,
    UID_KEY,
    StoreFailed,
    conflict,
    metadata_of,
    unavailable,
)
from qiskit_controller.runner.stores.credentials import Credentials

CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0
# The SDK's own, for one request; the store as a whole is asked again by who calls it.
_TRIES = 3
_DEFAULT_REGION = "us-east-1"

_DENIED = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_FULL = frozenset({"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"})
_BUSY = frozenset({"RequestTimeout", "SlowDown", "ThrottlingException", "Throttling"})
_NO_SUPPORT = frozenset({"NotImplemented", "NotSupported"})


@attrs.frozen
class S3Store:
    """See :class:`~.base.Store`."""

    client: Any
    where: BucketUrl
    plan: Plan
    credentials: Credentials

    @classmethod
    def of(cls, plan: Plan, credentials: Credentials) -> S3Store:
        """The store of a job.

        Raises:
            BadLocation: ``spec.output.location`` is no S3 URL.
            StoreFailed: the Secret makes no sense.
        """
        where = bucket_url(plan.spec.output)
        try:
            client = _client(credentials)
        except Exception as error:
            raise StoreFailed(
                Reason.OUTPUT_DENIED,
                f"{where.scheme}://{where.bucket}: the Secret cannot be used: "
                f"{credentials.scrub(str(error))}",
            ) from None
        return cls(client, where, plan, credentials)

    @property
    def address(self) -> str:
        """The folder's URL."""
        return self.where.url("").rstrip("/")

    def check(self, least: int) -> None:
        """Whether the bucket is there, may be used, and has nobody else's result."""
        try:
            self.client.head_bucket(Bucket=self.where.bucket)
        except Exception as error:
            raise self._failed(error, "looking for the bucket") from None
        self._found(self._file())

    def put(self, formatted: Formatted, counts: str) -> StoredResult:
        """One PutObject, on condition that nothing has changed since it was looked at."""
        found = self._found(formatted.file)
        if found is None or found["Metadata"].get(SHA256_KEY) != formatted.sha256:
            condition = {"IfNoneMatch": "*"} if found is None else {"IfMatch": found["ETag"]}
            try:
                self._put(formatted, condition)
            except Exception as error:
                raise self._failed(error, "writing the result") from None
        return StoredResult(
            location=self.where.url(formatted.file),
            size=len(formatted.content),
            sha256=formatted.sha256,
        )

    def _file(self) -> str:
        return f"results.{self.plan.spec.output.format}"

    def _found(self, file: str) -> dict[str, Any] | None:
        """The object as it is, if it is there and ours.

        Raises:
            StoreFailed: OutputConflict, or it cannot be known.
        """
        try:
            found: dict[str, Any] = self.client.head_object(
                Bucket=self.where.bucket, Key=self.where.key(file)
            )
        except boto_errors.ClientError as error:
            if _status(error) == 404:
                return None
            raise self._failed(error, "looking for an earlier result") from None
        except Exception as error:
            raise self._failed(error, "looking for an earlier result") from None
        if found["Metadata"].get(UID_KEY) != self.plan.job.uid:
            raise conflict(self.where.url(file))
        return found

    def _put(self, formatted: Formatted, condition: dict[str, str]) -> None:
        digest = hashlib.sha256(formatted.content).digest()
        md5 = hashlib.md5(formatted.content, usedforsecurity=False).digest()
        arguments = {
            "Bucket": self.where.bucket,
            "Key": self.where.key(formatted.file),
            "Body": formatted.content,
            "ContentType": formatted.media_type,
            # Both: servers that do not know the newer one check the older one.
            "ContentMD5": base64.b64encode(md5).decode(),
            "ChecksumSHA256": base64.b64encode(digest).decode(),
            "Metadata": metadata_of(self.plan, formatted.sha256),
        }
        try:
            self.client.put_object(**arguments, **condition)
        except boto_errors.ClientError as error:
            if _status(error) != 501 and _code(error) not in _NO_SUPPORT:
                raise
            # No conditions on this server: what was seen a moment ago has to do.
            self.client.put_object(**arguments)

    def _failed(self, error: Exception, doing: str) -> StoreFailed:
        said = self.credentials.scrub(" ".join(str(error).split()))[:300].rstrip(".")
        text = f"{self.address}: {doing}: {said}"
        if isinstance(error, boto_errors.ClientError):
            return self._answered(error, text)
        if isinstance(
            error,
            boto_errors.NoCredentialsError
            | boto_errors.PartialCredentialsError
            | boto_errors.CredentialRetrievalError
            | boto_errors.UnauthorizedSSOTokenError,
        ):
            return StoreFailed(
                Reason.OUTPUT_DENIED,
                f"{text}: put access-key-id and secret-access-key into the Secret of "
                "spec.credentials.secretRef, or give the pod an identity of its own",
            )
        if isinstance(error, boto_errors.HTTPClientError | boto_errors.ConnectionError):
            return unavailable(text)
        return StoreFailed(Reason.OUTPUT_FAILED, text)

    def _answered(self, error: boto_errors.ClientError, text: str) -> StoreFailed:
        code, status = _code(error), _status(error)
        if status in (409, 412):
            # Changed since it was looked at, perhaps by this very request, whose answer was lost.
            return StoreFailed(Reason.OUTPUT_UNAVAILABLE, text, inf)
        if code in _FULL or status == 507:
            return StoreFailed(Reason.OUTPUT_FULL, f"{text}: make room")
        if code in _BUSY or status in (408, 429) or status >= 500:
            return unavailable(text)
        if code in _DENIED or status in (401, 403):
            return StoreFailed(
                Reason.OUTPUT_DENIED,
                f"{text}: check the Secret of spec.credentials.secretRef and what its key may do",
            )
        if status == 404:
            return StoreFailed(
                Reason.OUTPUT_NOT_FOUND, f"{text}: there is no bucket {self.where.bucket!r}"
            )
        return StoreFailed(Reason.OUTPUT_FAILED, text)


def _client(credentials: Credentials) -> Any:
    endpoint = credentials.get("endpoint")
    session = boto3.session.Session(
        aws_access_key_id=credentials.get("access-key-id"),
        aws_secret_access_key=credentials.get("secret-access-key"),
        aws_session_token=credentials.get("session-token"),
        region_name=credentials.get("region"),
    )
    return session.client(
        "s3",
        endpoint_url=endpoint,
        # A client without a region cannot sign; most servers but Amazon's take any.
        region_name=session.region_name or _DEFAULT_REGION,
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": _TRIES},
            signature_version="s3v4",
            # Servers of one's own seldom have a DNS name for each bucket.
            s3={"addressing_style": "path"} if endpoint else {},
            # Checksums are given above; those of the SDK come in a form that older servers
            # do not understand.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _code(error: boto_errors.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: boto_errors.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
