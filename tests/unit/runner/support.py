"""A pod on this machine: its folders, and an API server that remembers what it was asked."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.qiskitjob import QiskitJobSpec
from qiskit_controller.api.run import (
    JobIdentity,
    Limits,
    Outcome,
    Plan,
    PlannedSource,
    Report,
)
from qiskit_controller.runner.pod import Paths

REPOSITORY = Path(__file__).parents[3]
UID = "0f6b0a5c-7c2f-4f0e-9d7c-1f6f0a5c7c2f"
OUTPUT = "bell-results"
RECORD = "qiskit-job-bell-record"

BELL = """\
from qiskit import QuantumCircuit
qc = QuantumCircuit(2, 2)
qc.h(0)
qc.cx(0, 1)
qc.measure([0, 1], [0, 1])
"""


@attrs.frozen
class Ran:
    """A stage that has ended."""

    code: int
    printed: str


@attrs.frozen
class Pod:
    """Folders as :mod:`qiskit_controller.api.run` names them, below `root`."""

    root: Path

    @property
    def paths(self) -> Paths:
        return Paths.under(self.root)

    def plan(
        self,
        code: str | bytes,
        *,
        file: str = "circuit.py",
        limits: Limits | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Lay out the input folder."""
        source = code.encode() if isinstance(code, str) else code
        asked: dict[str, Any] = {
            "backend": {"type": "local_simulator"},
            "circuit": {"source": "inline", "code": "see the file"},
        }
        for key, value in (spec or {}).items():
            asked[key] = {**asked.get(key, {}), **value}
        plan = Plan(
            job=JobIdentity(namespace="default", name="bell", uid=UID),
            spec=from_wire(asked, QiskitJobSpec),
            source=PlannedSource(file=file, sha256=hashlib.sha256(source).hexdigest()),
            record=RECORD,
            output_location=OUTPUT,
            limits=limits or Limits(),
        )
        for folder in (self.paths.input, self.paths.work, self.paths.token):
            folder.mkdir(parents=True, exist_ok=True)
        self.paths.termination_log.parent.mkdir(parents=True, exist_ok=True)
        self.paths.termination_log.touch()
        (self.paths.input / "plan.json").write_text(json.dumps(to_wire(plan)))
        (self.paths.input / file).write_bytes(source)
        return plan

    def circuit(self, **environment: str) -> Ran:
        """Run the untrusted stage."""
        return self._stage("circuit", environment)

    def executor(self, server: ApiServer, attempt: int = 1, **environment: str) -> Ran:
        """Run the trusted stage against `server`."""
        (self.paths.token / "token").write_text(server.token)
        (self.paths.token / "ca.crt").touch()
        return self._stage(
            "executor",
            {"QUANTUM_TEST_SERVER": server.url, "QUANTUM_ATTEMPT": str(attempt), **environment},
        )

    def outcome(self) -> Outcome:
        return from_wire(json.loads((self.paths.work / "outcome.json").read_text()), Outcome)

    def report(self) -> Report:
        text = self.paths.termination_log.read_bytes()
        assert len(text) <= 4096
        return from_wire(json.loads(text), Report)

    def _stage(self, stage: str, environment: Mapping[str, str]) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "tests.unit.runner.stage", stage, str(self.root)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
        )
        return Ran(done.returncode, done.stdout.decode(errors="replace"))


@attrs.frozen
class Request:
    """What the API server was asked."""

    method: str
    path: str
    body: Any
    authorization: str


# Given a request and how many came before it, answers in place of the server, or not.
Interference = Callable[[Request, int], tuple[int, Mapping[str, Any]] | None]


@attrs.define
class ApiServer:
    """As much of the API server as the executor may use: ConfigMaps, GET and merge PATCH."""

    objects: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    requests: list[Request] = attrs.field(factory=list)
    interfere: Interference = attrs.field(default=lambda _request, _before: None)
    token: str = "the-token"
    url: str = ""
    _version: int = 1

    def create(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        if labels is None:
            labels = {"quantum.io/job-uid": UID}
        self._version += 1
        self.objects[name] = {
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "uid": f"uid-of-{name}",
                "labels": dict(labels),
                "resourceVersion": str(self._version),
            },
        }

    def data(self, name: str = OUTPUT) -> dict[str, str]:
        return self.objects[name].get("data", {})

    def patches(self, name: str = OUTPUT) -> list[Request]:
        return [r for r in self.requests if r.method == "PATCH" and r.path.endswith("/" + name)]

    def answer(self, request: Request) -> tuple[int, Mapping[str, Any]]:
        before = len(self.requests)
        self.requests.append(request)
        instead = self.interfere(request, before)
        if instead is not None:
            return instead
        if request.authorization != f"Bearer {self.token}":
            return 401, {"message": "Unauthorized"}
        prefix = "/api/v1/namespaces/default/configmaps/"
        name = request.path.removeprefix(prefix)
        found = self.objects.get(name)
        if not request.path.startswith(prefix) or found is None:
            return 404, {"message": f'configmaps "{name}" not found'}
        if request.method == "PATCH":
            for key in ("uid", "resourceVersion"):
                asked = request.body.get("metadata", {}).get(key)
                if asked is not None and asked != found["metadata"][key]:
                    return 409, {"message": f"the {key} is not {asked}"}
            for field in ("data", "binaryData"):
                merged = {**found.get(field, {}), **request.body.get(field, {})}
                found[field] = {key: value for key, value in merged.items() if value is not None}
            self._version += 1
            found["metadata"]["resourceVersion"] = str(self._version)
        return 200, found


def serve(server: ApiServer) -> ThreadingHTTPServer:
    """Start it on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == "PATCH":
                assert self.headers["Content-Type"] == "application/merge-patch+json"
            status, answer = server.answer(
                Request(
                    self.command,
                    self.path,
                    json.loads(body) if body else None,
                    self.headers.get("Authorization", ""),
                )
            )
            if status == 0:  # no answer at all
                self.close_connection = True
                return
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PATCH = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815  http.server's

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    return http
