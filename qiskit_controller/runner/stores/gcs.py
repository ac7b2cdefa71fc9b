"""Results as objects of Google Cloud Storage, through google-cloud-storage.

Keys of the Secret: ``service-account.json`` (or ``gcs-service-account.json``), and ``endpoint``
where it is not Google's own. Without the first, the pod's own identity is used. Needed role:
Storage Object User on the bucket.
"""

from __future__ import annotations

import json
from math import inf
from typing import Any

import attrs
import requests
from google.api_core import exceptions as api_errors
from google.auth import exceptions as auth_errors
from google.cloud import storage
from google.cloud.storage import exceptions as storage_errors
from google.cloud.storage.retry import DEFAULT_RETRY
from google.oauth2 import service_account

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

# For one request: (connect, read).
TIMEOUT_SECONDS = (5.0, 20.0)
# The SDK's own tries, for one request.
RETRY_SECONDS = 15.0
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
# Objects have their project from the bucket; the client asks for one all the same.
_PROJECT = "unused"


@attrs.frozen
class GcsStore:
    """See :class:`~.base.Store`."""

    client: Any
    where: BucketUrl
    plan: Plan
    credentials: Credentials

    @classmethod
    def of(cls, plan: Plan, credentials: Credentials) -> GcsStore:
        """The store of a job.

        Raises:
            BadLocation: ``spec.output.location`` is no GCS URL.
            StoreFailed: the Secret makes no sense, or there is no identity.
        """
        where = bucket_url(plan.spec.output)
        try:
            client = _client(credentials)
        except auth_errors.TransportError as error:
            raise unavailable(f"gs://{where.bucket}: {credentials.scrub(str(error))}") from None
        # DefaultCredentialsError and ValueError among them; all say what is wrong with the key.
        except Exception as error:
            raise StoreFailed(
                Reason.OUTPUT_DENIED,
                f"gs://{where.bucket}: there are no usable credentials: "
                f"{credentials.scrub(str(error))[:300]}. Put service-account.json into the Secret "
                "of spec.credentials.secretRef, or give the pod an identity of its own",
            ) from None
        return cls(client, where, plan, credentials)

    @property
    def address(self) -> str:
        """The folder's URL."""
        return self.where.url("").rstrip("/")

    def check(self, least: int) -> None:
        """Whether the bucket is there, may be used, and has nobody else's result."""
        self._found(f"results.{self.plan.spec.output.format}")

    def put(self, formatted: Formatted, counts: str) -> StoredResult:
        """One upload, on condition that nothing has changed since it was looked at."""
        found = self._found(formatted.file)
        if found is None or (found.metadata or {}).get(SHA256_KEY) != formatted.sha256:
            blob = self.client.bucket(self.where.bucket).blob(self.where.key(formatted.file))
            blob.metadata = metadata_of(self.plan, formatted.sha256)
            try:
                blob.upload_from_string(
                    formatted.content,
                    content_type=formatted.media_type,
                    # 0: there must be none.
                    if_generation_match=found.generation if found is not None else 0,
                    checksum="crc32c",
                    timeout=TIMEOUT_SECONDS,
                    retry=_retry(),
                )
            except Exception as error:
                raise self._failed(error, "writing the result") from None
        return StoredResult(
            location=self.where.url(formatted.file),
            size=len(formatted.content),
            sha256=formatted.sha256,
        )

    def _found(self, file: str) -> Any:
        """The object as it is, if it is there and ours.

        Listing, because it tells a missing bucket from a missing object, and reading the
        bucket itself is a permission that writers do not have.

        Raises:
            StoreFailed: OutputConflict, or it cannot be known.
        """
        key = self.where.key(file)
        try:
            listed = self.client.list_blobs(
                self.where.bucket,
                prefix=key,
                max_results=1,
                timeout=TIMEOUT_SECONDS,
                retry=_retry(),
            )
            # The shortest name with a prefix comes first: the prefix itself, if it is there.
            found = next((each for each in listed if each.name == key), None)
        except Exception as error:
            raise self._failed(error, "looking for an earlier result") from None
        if found is not None and (found.metadata or {}).get(UID_KEY) != self.plan.job.uid:
            raise conflict(self.where.url(file))
        return found

    def _failed(self, error: Exception, doing: str) -> StoreFailed:
        if isinstance(error, api_errors.RetryError) and isinstance(error.cause, Exception):
            error = error.cause
        said = self.credentials.scrub(" ".join(_told(error).split()))[:300].rstrip(".")
        text = f"{self.address}: {doing}: {said}"
        if isinstance(error, auth_errors.RefreshError) and not error.retryable:
            return self._denied(text)
        if isinstance(
            error,
            auth_errors.TransportError
            | auth_errors.RefreshError
            | requests.exceptions.ConnectionError
            | requests.exceptions.Timeout
            | ConnectionError
            | TimeoutError,
        ):
            return unavailable(text)
        if isinstance(error, api_errors.GoogleAPICallError):
            return self._answered(int(error.code or 0), text)
        # As uploads have it, when their time is over.
        if isinstance(error, storage_errors.InvalidResponse):
            return self._answered(int(error.response.status_code), text)
        return StoreFailed(Reason.OUTPUT_FAILED, text)

    def _answered(self, status: int, text: str) -> StoreFailed:
        if status in (409, 412):
            # Changed since it was looked at, perhaps by this very request, whose answer was lost.
            return StoreFailed(Reason.OUTPUT_UNAVAILABLE, text, inf)
        if status in (408, 429) or status >= 500:
            return unavailable(text)
        if status in (401, 403):
            return self._denied(text)
        if status == 404:
            return StoreFailed(
                Reason.OUTPUT_NOT_FOUND, f"{text}: there is no bucket {self.where.bucket!r}"
            )
        return StoreFailed(Reason.OUTPUT_FAILED, text)

    def _denied(self, text: str) -> StoreFailed:
        return StoreFailed(
            Reason.OUTPUT_DENIED,
            f"{text}: check the Secret of spec.credentials.secretRef and what its account may do",
        )


def _client(credentials: Credentials) -> Any:
    endpoint = credentials.get("endpoint")
    key = credentials.get("service-account.json", "gcs-service-account.json")
    # Typed in part only.
    accounts: Any = service_account.Credentials
    found = None
    if key is not None:
        found = accounts.from_service_account_info(json.loads(key), scopes=[_SCOPE])
    return storage.Client(
        project=_PROJECT,
        credentials=found,
        client_options={"api_endpoint": endpoint} if endpoint else None,
    )


def _told(error: Exception) -> str:
    """What an exception says; of an upload's, which has no words, what the server said."""
    if isinstance(error, storage_errors.InvalidResponse):
        return f"the server answered {error.response.status_code} {error.response.text[:200]}"
    return str(error)


def _retry() -> Any:
    return DEFAULT_RETRY.with_timeout(RETRY_SECONDS)
