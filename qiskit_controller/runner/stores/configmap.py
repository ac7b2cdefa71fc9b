"""Results in a ConfigMap that the controller has made for this job, and this class fills.

``data.counts`` are the counts alone; the result is beside them under its file name, in ``data``
or, where it is no text, in ``binaryData``.
"""

from __future__ import annotations

import base64
from math import inf
from typing import Any

import attrs

from qiskit_controller.api.names import UID_LABEL
from qiskit_controller.api.run import Reason, StoredResult
from qiskit_controller.runner.cluster import (
    ApiError,
    Cluster,
    Forbidden,
    Invalid,
    Object,
)
from qiskit_controller.runner.formats import Formatted
from qiskit_controller.runner.stores.base import StoreFailed, conflict, unavailable

COUNTS_KEY = "counts"
# What the API server takes in data and binaryData together.
MAX_CONFIG_MAP_BYTES = 1 << 20

# A role that was bound a moment ago is not yet known to every API server.
FORBIDDEN_SECONDS = 15.0
REQUEST_SECONDS = 10.0

_RESULT_KEYS = ("results.json", "results.csv")
_BINARY_KEYS = ("results.qpy", "results.pickle")


@attrs.frozen
class ConfigMapStore:
    """See :class:`~.base.Store`."""

    cluster: Cluster
    name: str
    job_uid: str

    @property
    def address(self) -> str:
        """As ``kubectl get`` takes it."""
        return f"configmap/{self.name}"

    def check(self, least: int) -> None:
        """Whose it is, and whether the result cannot fit."""
        if least > MAX_CONFIG_MAP_BYTES:
            raise self._too_large(f"it will have at least {least} bytes")
        self._ours()

    def put(self, formatted: Formatted, counts: str) -> StoredResult:
        """Read, check whose it is, patch exactly what was read."""
        size = len(formatted.content) + len(counts.encode())
        if size > MAX_CONFIG_MAP_BYTES:
            raise self._too_large(f"it has {size} bytes")
        found = self._ours()
        known = {key: found["metadata"][key] for key in ("uid", "resourceVersion")}
        patch = {"metadata": known, **_content(formatted, counts)}
        try:
            self.cluster.patch_config_map(self.name, patch, seconds=REQUEST_SECONDS)
        except Invalid as error:
            if error.status == 413 or "Too long" in str(error):
                raise self._too_large(str(error)) from None
            raise StoreFailed(Reason.OUTPUT_FAILED, f"output: {error}") from None
        except ApiError as error:
            raise _again(error) from None
        return StoredResult(
            location=self.address, size=len(formatted.content), sha256=formatted.sha256
        )

    def _ours(self) -> Object:
        try:
            found = self.cluster.get_config_map(self.name, seconds=REQUEST_SECONDS)
        except ApiError as error:
            raise _again(error) from None
        labels = found["metadata"].get("labels") or {}
        if labels.get(UID_LABEL) != self.job_uid:
            raise conflict(f"the ConfigMap {self.name}")
        return found

    def _too_large(self, why: str) -> StoreFailed:
        return StoreFailed(
            Reason.OUTPUT_TOO_LARGE,
            f"output: the result does not fit into a ConfigMap of {MAX_CONFIG_MAP_BYTES} bytes "
            f"({why}); set spec.output.type to pvc, s3 or gcs",
        )


def _again(error: ApiError) -> StoreFailed:
    """Every other answer may pass, not only what is transient by itself. NotFound: the controller
    makes it again. Conflict: someone wrote in between, perhaps this very patch, whose answer was
    lost."""
    if isinstance(error, Forbidden):
        return StoreFailed(Reason.OUTPUT_DENIED, f"output: {error}", FORBIDDEN_SECONDS)
    if error.status is None or error.status >= 500 or error.status == 429:
        return unavailable(f"output: {error}")
    return StoreFailed(Reason.OUTPUT_FAILED, f"output: {error}", inf)


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
