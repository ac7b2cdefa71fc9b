"""Put a formatted result where ``spec.output`` asks for it."""

from __future__ import annotations

import base64
import hashlib
import time
from typing import Any, Protocol

import attrs

from qiskit_controller.api.names import UID_LABEL
from qiskit_controller.api.run import Plan, Reason, StoredResult
from qiskit_controller.runner.cluster import (
    ApiError,
    Cluster,
    Forbidden,
    Invalid,
    Object,
)
from qiskit_controller.runner.formats import Formatted

COUNTS_KEY = "counts"
# What the API server takes in data and binaryData together.
MAX_CONFIG_MAP_BYTES = 1 << 20

STORE_SECONDS = 120.0
# A role that was bound a moment ago is not yet known to every API server.
FORBIDDEN_SECONDS = 15.0
_WAIT_SECONDS = 1.0
_REQUEST_SECONDS = 30.0

_RESULT_KEYS = ("results.json", "results.csv")
_BINARY_KEYS = ("results.qpy", "results.pickle")


class StoreFailed(Exception):
    """The result is not stored; `reason` tells whether another attempt may help."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Store(Protocol):
    """A place for results."""

    def put(self, formatted: Formatted, counts: str) -> StoredResult:
        """Write the result; writing the same job's again replaces it.

        Args:
            counts: the counts alone as JSON, for stores that keep them beside the result.

        Raises:
            StoreFailed: OutputConflict, OutputTooLarge or OutputFailed.
        """


def store_for(plan: Plan, cluster: Cluster) -> Store:
    """The store for ``spec.output.type``.

    Raises:
        StoreFailed: Unsupported.
    """
    if plan.spec.output.type == "configmap":
        return ConfigMapStore(cluster, plan.output_location, plan.job.uid)
    raise StoreFailed(
        Reason.UNSUPPORTED,
        f"spec.output.type: this runner cannot store to {plan.spec.output.type}; use configmap",
    )


@attrs.frozen
class ConfigMapStore:
    """A ConfigMap that the controller has made for this job, and this class fills.

    ``data.counts`` are the counts alone; the result is beside them under its file name, in
    ``data`` or, where it is no text, in ``binaryData``.
    """

    cluster: Cluster
    name: str
    job_uid: str

    def put(self, formatted: Formatted, counts: str) -> StoredResult:
        """See :class:`Store`."""
        size = len(formatted.content) + len(counts.encode())
        if size > MAX_CONFIG_MAP_BYTES:
            raise self._too_large(f"it has {size} bytes")
        self._write(_content(formatted, counts))
        return StoredResult(
            location=f"configmap/{self.name}",
            size=len(formatted.content),
            sha256=hashlib.sha256(formatted.content).hexdigest(),
        )

    def _write(self, content: dict[str, Any]) -> None:
        """Read, check whose it is, patch exactly what was read; over again where that changed."""
        begun = time.monotonic()
        while True:
            try:
                found = self.cluster.get_config_map(self.name, seconds=_REQUEST_SECONDS)
                self._check_owner(found)
                known = {key: found["metadata"][key] for key in ("uid", "resourceVersion")}
                self.cluster.patch_config_map(
                    self.name, {"metadata": known, **content}, seconds=_REQUEST_SECONDS
                )
                return
            except Invalid as error:
                if error.status == 413 or "Too long" in str(error):
                    raise self._too_large(str(error)) from None
                raise StoreFailed(Reason.OUTPUT_FAILED, f"output: {error}") from None
            # Not only what is transient by itself. NotFound: the controller makes it again.
            # Conflict: someone wrote in between, perhaps this very patch, whose answer was lost.
            except ApiError as error:
                failure = error
            patience = FORBIDDEN_SECONDS if isinstance(failure, Forbidden) else STORE_SECONDS
            if time.monotonic() - begun > patience:
                raise StoreFailed(
                    Reason.OUTPUT_FAILED,
                    f"output: the result could not be stored for {patience:g} s: {failure}",
                )
            time.sleep(_WAIT_SECONDS)

    def _check_owner(self, found: Object) -> None:
        labels = found["metadata"].get("labels") or {}
        if labels.get(UID_LABEL) != self.job_uid:
            raise StoreFailed(
                Reason.OUTPUT_CONFLICT,
                f"spec.output.location: the ConfigMap {self.name} was not made for this job and "
                "is not overwritten; delete it or choose another name",
            )

    def _too_large(self, why: str) -> StoreFailed:
        return StoreFailed(
            Reason.OUTPUT_TOO_LARGE,
            f"output: the result does not fit into a ConfigMap of {MAX_CONFIG_MAP_BYTES} bytes "
            f"({why}); set spec.output.type to pvc, s3 or gcs",
        )


def _content(formatted: Formatted, counts: str) -> dict[str, Any]:
    """The merge patch; null takes away what an earlier write in another format left."""
    data: dict[str, str | None] = dict.fromkeys(_RESULT_KEYS)
    binary: dict[str, str | None] = dict.fromkeys(_BINARY_KEYS)
    data[COUNTS_KEY] = counts
    if formatted.text:
        data[formatted.file] = formatted.content.decode()
    else:
        binary[formatted.file] = base64.b64encode(formatted.content).decode()
    return {"data": data, "binaryData": binary}
