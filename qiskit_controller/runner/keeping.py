"""A result that waits to be stored is kept in the record, so that no pod's end can lose it.

The bytes are those that the store would get, compressed as an .xz file: another pod stores them
without Qiskit and without knowing the format, and a person can get at them with ``base64 -d``
and ``xz -d``. In the same patch goes the progress ``Executed``, so that there is never one
without the other.
"""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
from typing import Any

import attrs

from qiskit_controller.api.codec import DecodeError, from_wire, to_wire
from qiskit_controller.api.run import (
    KeptResult,
    Plan,
    Progress,
    Reason,
    counts_key,
    progress_key,
    result_key,
)
from qiskit_controller.runner.cluster import ApiError, Cluster
from qiskit_controller.runner.formats import Formatted
from qiskit_controller.runner.stores.base import StoreFailed, unavailable

# Of the MiB that a ConfigMap holds, without what the attempts say of their progress.
MAX_KEPT_BYTES = 900 << 10
# Each that does not fit is followed by the next, which is slower and packs closer.
_PRESETS = (0, 6)
_STEP = 1 << 20
KEEP_SECONDS = 30.0
TAKE_SECONDS = 30.0


def keep(
    cluster: Cluster, plan: Plan, progress: Progress, formatted: Formatted, counts: str
) -> str | None:
    """Write the progress, and with it the result if it fits.

    Args:
        progress: with the stage Executed.
        counts: the counts alone; only a ConfigMap wants them.

    Returns:
        Why the result is not kept, or None when it is.
    """
    key = progress_key(progress.attempt)
    packed = _pack(formatted, counts if plan.spec.output.type == "configmap" else None)
    why = None if packed else f"it is larger than {MAX_KEPT_BYTES} bytes, compressed"
    patch: dict[str, Any] = {}
    if packed is not None:
        progress = attrs.evolve(progress, kept=_describe(formatted))
        result, packed_counts = packed
        patch["binaryData"] = {result_key(progress.attempt): result}
        if packed_counts is not None:
            patch["binaryData"][counts_key(progress.attempt)] = packed_counts
    patch["data"] = {key: json.dumps(to_wire(progress))}
    try:
        cluster.patch_config_map(plan.record, patch, seconds=KEEP_SECONDS)
    except ApiError as error:
        return f"the API server did not take it: {error}"
    return why


def take(cluster: Cluster, plan: Plan, attempt: int) -> tuple[Progress, Formatted, str]:
    """What :func:`keep` wrote in that attempt: the progress, the result, the counts.

    Raises:
        StoreFailed: it is not there, or not what was written.
    """
    try:
        record = cluster.get_config_map(plan.record, seconds=TAKE_SECONDS)
    except ApiError as error:
        raise unavailable(f"the kept result cannot be read: {error}") from None
    data, binary = record.get("data") or {}, record.get("binaryData") or {}
    try:
        progress = from_wire(json.loads(data[progress_key(attempt)]), Progress)
        content = lzma.decompress(base64.b64decode(binary[result_key(attempt)]))
        packed = binary.get(counts_key(attempt))
        counts = lzma.decompress(base64.b64decode(packed)).decode() if packed else ""
    except (KeyError, ValueError, DecodeError, lzma.LZMAError) as error:
        raise _broken(plan, attempt, f"{type(error).__name__}: {error}") from None
    kept = progress.kept
    if kept is None or hashlib.sha256(content).hexdigest() != kept.sha256:
        raise _broken(plan, attempt, "its SHA-256 is not what it was")
    formatted = Formatted(kept.file, content, text=kept.text, media_type=kept.media_type)
    return progress, formatted, counts


def _broken(plan: Plan, attempt: int, why: str) -> StoreFailed:
    return StoreFailed(
        Reason.RESULT_LOST,
        f"the result that attempt {attempt} kept in ConfigMap {plan.record} cannot be read: {why}",
    )


def _describe(formatted: Formatted) -> KeptResult:
    return KeptResult(
        file=formatted.file,
        text=formatted.text,
        media_type=formatted.media_type,
        size=len(formatted.content),
        sha256=formatted.sha256,
    )


def _pack(formatted: Formatted, counts: str | None) -> tuple[str, str | None] | None:
    """Both as base64 of .xz files, or None if they do not fit together."""
    for preset in _PRESETS:
        result = compress(formatted.content, MAX_KEPT_BYTES, preset)
        if result is None:
            continue
        if counts is None:
            return _text(result), None
        rest = compress(counts.encode(), MAX_KEPT_BYTES - len(result), preset)
        if rest is not None:
            return _text(result), _text(rest)
    return None


def compress(content: bytes, limit: int, preset: int) -> bytes | None:
    """An .xz file of at most `limit` bytes, or None; it gives up as soon as that is known."""
    packer = lzma.LZMACompressor(preset=preset)
    packed = bytearray()
    for begin in range(0, len(content), _STEP):
        packed += packer.compress(content[begin : begin + _STEP])
        if len(packed) > limit:
            return None
    packed += packer.flush()
    return bytes(packed) if len(packed) <= limit else None


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
