"""Starts the collector of ``receiver.py`` and asks it what came."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

SCRIPT = Path(__file__).with_name("receiver.py")


@attrs.frozen
class Span:
    """A span as it came; times in seconds since the epoch. `status` 2 is an error."""

    name: str
    trace: str
    id: str
    parent: str
    start: float
    end: float
    attributes: dict[str, Any]
    status: int
    message: str
    resource: dict[str, Any]


@attrs.frozen
class Collector:
    """A collector that runs.

    Attributes:
        endpoint: for ``OTEL_EXPORTER_OTLP_ENDPOINT``.
        asked: where this process reaches it.
    """

    endpoint: str
    asked: str

    def every_span(self) -> list[Span]:
        """All that came, in order, also what came twice."""
        return [Span(**each) for each in self._get("spans")]

    def spans(self, **attributes: str) -> dict[str, Span]:
        """By their identifier, those of the traces in which a span has these attributes."""
        every = self.every_span()
        wanted = {name.replace("_", "."): value for name, value in attributes.items()}
        traces = {each.trace for each in every if wanted.items() <= each.attributes.items()}
        return {each.id: each for each in every if each.trace in traces}

    def metrics(self) -> list[dict[str, Any]]:
        """All that were pushed, in OTLP's JSON."""
        found: list[dict[str, Any]] = self._get("metrics")
        return found

    def requests(self) -> int:
        """How often it was called."""
        return int(self._get("requests"))

    def behave(self, how: str) -> None:
        """From now on: well, hang, refuse or drop."""
        request = urllib.request.Request(f"{self.asked}/behave/{how}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()

    def _get(self, what: str) -> Any:
        with urllib.request.urlopen(f"{self.asked}/{what}", timeout=30) as answer:
            return json.load(answer)


@contextlib.contextmanager
def running(
    *,
    bind: str = "127.0.0.1",
    outside: str = "127.0.0.1",
    inside: str = "127.0.0.1",
    before: Sequence[str] = (),
) -> Iterator[Collector]:
    """A collector for as long as it is needed.

    Args:
        bind: the address that it listens on.
        outside: the address at which this process reaches it.
        inside: the address at which those reach it that send.
        before: a command that the collector's own is given to.
    """
    process = subprocess.Popen(
        [*before, sys.executable, str(SCRIPT), "--bind", bind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        assert port.isdigit(), "the collector did not start"
        yield Collector(f"http://{inside}:{port}", f"http://{outside}:{port}")
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()
