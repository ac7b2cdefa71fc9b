"""Where results go: what ``spec.output`` names, taken apart.

Pure functions over text, for the controller, which refuses what makes no sense, and for the
runner, which trusts nobody's word for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import attrs

from qiskit_controller.api.qiskitjob import OutputSpec

_SCHEMES: dict[str, Literal["s3", "gs"]] = {"s3": "s3", "gcs": "gs"}
# Wider than Amazon's and Google's own rules: servers that speak their protocols have others.
_BUCKET = re.compile(r"[A-Za-z0-9][-._A-Za-z0-9]{0,254}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Limits of every common file system, and of S3 and GCS, in bytes.
MAX_FOLDER_BYTES = 255
MAX_KEY_BYTES = 1024


class BadLocation(ValueError):
    """A location or path that cannot be used; the message says which field and why."""


@attrs.frozen
class BucketUrl:
    """A folder in a bucket, as ``s3://bucket/folder``."""

    scheme: Literal["s3", "gs"]
    bucket: str
    folder: str  # "" for the bucket itself; no slash at either end

    def key(self, file: str) -> str:
        """The object for a file in the folder."""
        return f"{self.folder}/{file}" if self.folder else file

    def url(self, file: str) -> str:
        """The same, as people write it."""
        return f"{self.scheme}://{self.bucket}/{self.key(file)}"


def bucket_url(output: OutputSpec) -> BucketUrl:
    """The folder that an s3 or gcs output names. Slashes at its end mean nothing.

    Raises:
        BadLocation: it is no such URL.
    """
    scheme = _SCHEMES[output.type]
    rest = (output.location or "").removeprefix(f"{scheme}://")
    bucket, _, folder = rest.partition("/")
    if rest == output.location or not _BUCKET.fullmatch(bucket):
        raise BadLocation(f"spec.output.location: must name a bucket, as {scheme}://bucket/folder")
    folder = folder.strip("/")
    if _CONTROL.search(folder) or len(folder.encode()) > MAX_KEY_BYTES - len("/results.pickle"):
        raise BadLocation(
            f"spec.output.location: the folder must be at most {MAX_KEY_BYTES} bytes long with "
            "the file's name, and have no control characters"
        )
    return BucketUrl(scheme, bucket, folder)


def folders(path: str | None) -> tuple[str, ...]:
    """The folders of ``spec.output.path``, from the volume's root down.

    Raises:
        BadLocation: it leaves the volume, or is no path.
    """
    if not path:
        return ()
    parts = tuple(path.removesuffix("/").split("/"))
    if any(each in ("", ".", "..") for each in parts):
        raise BadLocation(
            "spec.output.path: must be a path inside the volume, such as results/2025: no slash "
            "at its beginning, no empty, '.' or '..' folder"
        )
    if any(_CONTROL.search(each) or len(each.encode()) > MAX_FOLDER_BYTES for each in parts):
        raise BadLocation(
            f"spec.output.path: a folder's name must be at most {MAX_FOLDER_BYTES} bytes long "
            "and have no control characters"
        )
    return parts


def problems_of_output(output: OutputSpec) -> Iterator[str]:
    """What is wrong with ``spec.output`` beyond its rules, each as ``spec.<field>: ...``."""
    try:
        if output.type == "pvc":
            folders(output.path)
        # Without a location, or with another scheme, a rule has spoken already.
        elif output.type in _SCHEMES and (output.location or "").startswith(
            f"{_SCHEMES[output.type]}://"
        ):
            bucket_url(output)
    except BadLocation as error:
        yield str(error)
