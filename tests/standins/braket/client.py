"""Start the stand-in for Amazon Braket, and give it orders."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import boto3

from tests.standins import serving

REGION = "us-east-1"


@attrs.define
class Standin:
    """The stand-in, running."""

    told: dict[str, Any]
    s3: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.s3 = boto3.client(
            "s3",
            endpoint_url=self.told["aws"],
            region_name=REGION,
            aws_access_key_id=self.told["admin"]["access-key-id"],
            aws_secret_access_key=self.told["admin"]["secret-access-key"],
        )

    def secret(self, **more: str) -> dict[str, str]:
        """The values of a job's Secret."""
        return {**self.told["key"], "endpoint": self.told["aws"], "region": REGION, **more}

    def bucket(self) -> str:
        """The name of a bucket that nobody else uses."""
        name = f"amazon-braket-{uuid.uuid4().hex[:10]}"
        self.s3.create_bucket(Bucket=name)
        return name

    def ledger(self) -> dict[str, Any]:
        """Every task, and every request for one."""
        found: dict[str, Any] = self._control("ledger", None)
        return found

    def tasks(self, uid: str) -> list[dict[str, Any]]:
        """The tasks of a QiskitJob."""
        return [
            each for each in self.ledger()["tasks"] if each["tags"].get("quantum.io/job-uid") == uid
        ]

    def requests(self, uid: str) -> list[dict[str, Any]]:
        """The requests of a QiskitJob for a task."""
        return [each for each in self.ledger()["requests"] if each["token"].startswith(uid)]

    def fault(self, operation: str, do: str, times: int = 1) -> None:
        """See :mod:`server`."""
        self._control("fault", {"operation": operation, "do": do, "times": times})

    def devices(self) -> list[dict[str, Any]]:
        """How the devices are, for :meth:`restore`."""
        found: list[dict[str, Any]] = self._control("devices", None)
        return found

    def restore(self, devices: list[dict[str, Any]]) -> None:
        """The devices as they were, and no fault any more."""
        self._control("restore", {"devices": devices})

    def device(self, arn: str, **how: Any) -> None:
        """See :mod:`server`."""
        self._control("device", {"arn": arn, **how})

    def task(self, arn: str, status: str, reason: str | None = None) -> None:
        """See :mod:`server`."""
        self._control("task", {"arn": arn, "status": status, "reason": reason})

    def deny(self, bucket: str, *actions: str) -> None:
        """See :mod:`server`."""
        self._control("deny", {"bucket": bucket, "actions": actions})

    def _control(self, path: str, body: Any) -> Any:
        return serving.ask(f"{self.told['control']}/{path}", body)


@contextlib.contextmanager
def running(
    prefix: Sequence[str | Path] = (), bind: str = "127.0.0.1", host: str = "127.0.0.1"
) -> Iterator[Standin]:
    """The stand-in, as long as the context lasts; see :func:`serving.running`."""
    with serving.running("tests.standins.braket.server", prefix, bind, host) as told:
        yield Standin(told)
