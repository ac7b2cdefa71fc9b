"""Start :mod:`servers` and talk to them as their owner, with the vendors' own libraries."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import boto3
from botocore.exceptions import ClientError
from google.api_core.exceptions import NotFound
from google.cloud import storage
from google.oauth2 import service_account

from tests.standins import serving

REGION = "us-east-1"


@attrs.define
class Servers:
    """Both stores, running. Buckets of either kind have names of their own."""

    told: dict[str, Any]
    s3: Any = attrs.field(init=False)
    gcs: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.s3 = boto3.client(
            "s3",
            endpoint_url=self.told["s3"],
            region_name=REGION,
            aws_access_key_id=self.told["key"]["access-key-id"],
            aws_secret_access_key=self.told["key"]["secret-access-key"],
        )
        self.gcs = storage.Client(
            project="test",
            credentials=service_account.Credentials.from_service_account_info(
                json.loads(self.told["account"]),
                scopes=["https://www.googleapis.com/auth/devstorage.full_control"],
            ),
            client_options={"api_endpoint": self.told["gcs"]},
        )

    def bucket(self, kind: str, *, make: bool = True) -> str:
        """The name of a bucket that nobody else uses."""
        name = f"results-{uuid.uuid4().hex[:10]}"
        if make:
            self.make(kind, name)
        return name

    def make(self, kind: str, name: str) -> None:
        """A bucket of that name."""
        if kind == "s3":
            self.s3.create_bucket(Bucket=name)
        else:
            self.gcs.create_bucket(name)

    def url(self, kind: str, bucket: str, key: str) -> str:
        """As a job's location has it."""
        return f"{'s3' if kind == 's3' else 'gs'}://{bucket}/{key}"

    def get(self, kind: str, bucket: str, key: str) -> bytes | None:
        """An object, or None."""
        if kind == "s3":
            try:
                body: bytes = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
                return body
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise
        try:
            content: bytes = self.gcs.bucket(bucket).blob(key).download_as_bytes()
            return content
        except NotFound:
            return None

    def metadata(self, kind: str, bucket: str, key: str) -> dict[str, str]:
        """What is written beside an object."""
        if kind == "s3":
            found: dict[str, str] = self.s3.head_object(Bucket=bucket, Key=key)["Metadata"]
            return found
        return dict(self.gcs.bucket(bucket).get_blob(key).metadata or {})

    def put(self, kind: str, bucket: str, key: str, content: bytes) -> None:
        """An object as a person would make it."""
        if kind == "s3":
            self.s3.put_object(Bucket=bucket, Key=key, Body=content)
        else:
            self.gcs.bucket(bucket).blob(key).upload_from_string(content)

    def secret(self, kind: str, *, wrong: bool = False) -> dict[str, str]:
        """The values of a job's Secret."""
        if kind == "gcs":
            account = self.told["stranger" if wrong else "account"]
            return {"service-account.json": account, "endpoint": self.told["gcs"]}
        key = {"secret-access-key": "not-the-secret-of-this-key"} if wrong else {}
        return {**self.told["key"], **key, "endpoint": self.told["s3"], "region": REGION}

    def order(self, bucket: str, do: str, **more: Any) -> None:
        """Begin a fault; see :mod:`servers`."""
        self._control("PUT", bucket, {"do": do, **more})

    def end(self, bucket: str) -> None:
        """No fault any more."""
        self._control("DELETE", bucket)

    def asked(self, bucket: str) -> list[tuple[str, str]]:
        """Method and path of each request for a bucket so far."""
        every = self._control("GET", "")
        return [(method, path) for method, about, path in every if about == bucket]

    def _control(self, method: str, path: str, body: Any = None) -> Any:
        return serving.ask(f"{self.told['control']}/{path}", body, method)


@contextlib.contextmanager
def running(
    prefix: Sequence[str | Path] = (), bind: str = "127.0.0.1", host: str = "127.0.0.1"
) -> Iterator[Servers]:
    """The servers, as long as the context lasts; see :func:`serving.running`."""
    with serving.running("tests.stores.servers", prefix, bind, host) as told:
        yield Servers(told)
