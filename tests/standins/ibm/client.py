"""Start :mod:`server` and be the person at its control."""

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

SCRIPT = Path(__file__).with_name("server.py")


@attrs.frozen
class Ibm:
    """The service, running."""

    url: str
    key: str

    @property
    def secret(self) -> dict[str, str]:
        """What a job's Secret holds."""
        return {"api-key": self.key, "url": self.url}

    def set(self, **settings: Any) -> None:
        """Change settings; see :class:`server.Settings`."""
        self._control("PUT", "", settings)

    def fault(self, method: str, path: str, status: int, **more: Any) -> None:
        """Order a fault; see :class:`server.Fault`."""
        self._control("POST", "/faults", {"method": method, "path": path, "status": status, **more})

    def mend(self) -> None:
        """No fault any more."""
        self._control("DELETE", "/faults")

    def change(self, job_id: str, **values: Any) -> None:
        """Do something to a job."""
        self._control("POST", f"/jobs/{job_id}", values)

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """Every submission that was taken."""
        found: list[dict[str, Any]] = self._control("GET", "")["ledger"]
        return found

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        """The jobs, by id."""
        return {each["id"]: each for each in self._control("GET", "")["jobs"]}

    @property
    def sessions(self) -> dict[str, dict[str, Any]]:
        """The sessions as the service tells of them, by id."""
        return {each["id"]: each for each in self._control("GET", "")["sessions"]}

    def expire(self, session_id: str) -> None:
        """Let a session's maximum time have passed."""
        self._control("POST", f"/sessions/{session_id}")

    @property
    def asked(self) -> list[str]:
        """Every request so far."""
        found: list[str] = self._control("GET", "")["asked"]
        return found

    def _control(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}/control{path}",
            None if body is None else json.dumps(body).encode(),
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


@contextlib.contextmanager
def running(
    prefix: Sequence[str | Path] = (), bind: str = "127.0.0.1", host: str = "127.0.0.1"
) -> Iterator[Ibm]:
    """The service, as long as the context lasts.

    Args:
        prefix: a command that runs the one after it, in another network for example.
        host: where clients reach it.
    """
    command = [*map(str, prefix), sys.executable, str(SCRIPT), "--bind", bind, "--host", host]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Ibm(**json.loads(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait(30)
