"""A pod on this machine: its folders, and an API server that remembers what it was asked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs
import numpy
import pytest
from qiskit import QuantumCircuit, qpy
from qiskit.circuit import ClassicalRegister, Clbit, QuantumRegister, library
from qiskit.circuit.classical import expr, types
from qiskit.circuit.library import (
    Initialize,
    MCMTGate,
    PauliEvolutionGate,
    PauliGate,
    PermutationGate,
    QFTGate,
    UCRZGate,
    UnitaryGate,
)
from qiskit.quantum_info import Clifford, SparsePauliOp

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
from qiskit_controller.runner.supervisor import Timer

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


def qpy_of(*circuits: QuantumCircuit) -> bytes:
    """Circuits in QPY form."""
    buffer = io.BytesIO()
    qpy.dump(list(circuits), buffer)
    return buffer.getvalue()


def bell() -> QuantumCircuit:
    """As BELL."""
    circuit = QuantumCircuit(2, 2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure([0, 1], [0, 1])
    return circuit


def everything() -> QuantumCircuit:
    """A circuit with one of everything that a user may write."""
    circuit = QuantumCircuit(QuantumRegister(4, "q"), ClassicalRegister(2, "c"), name="rich")
    circuit.add_bits([Clbit(), Clbit()])
    circuit.append(UnitaryGate(numpy.eye(4)), [0, 1])
    circuit.append(Initialize([1, 0]), [0])
    circuit.append(PauliEvolutionGate(SparsePauliOp(["XX", "ZZ"]), time=0.3), [0, 1])
    circuit.append(QFTGate(3), [0, 1, 2])
    circuit.append(UCRZGate([0.1, 0.2]), [0, 1])
    circuit.append(PauliGate("XYZ"), [0, 1, 2])
    circuit.append(PermutationGate([1, 0, 2]), [0, 1, 2])
    circuit.append(Clifford(bell().remove_final_measurements(inplace=False)), [0, 1])
    circuit.append(library.HGate(label="mine").control(2, ctrl_state=1), [0, 1, 2])
    circuit.append(MCMTGate(library.XGate(), 2, 2), [0, 1, 2, 3])
    circuit.append(library.XGate().control(1, annotated=True), [0, 1])
    circuit.append(library.quantum_volume(3, seed=1).to_gate(), [0, 1, 2])
    circuit.mcx([0, 1, 2], 3)
    circuit.barrier()
    circuit.delay(100, 0)
    circuit.reset(0)
    circuit.measure(0, 0)
    x = circuit.add_var("x", expr.lift(7, types.Uint(8)))
    with circuit.if_test(expr.less(x, 9)) as otherwise:
        circuit.x(1)
    with otherwise:
        circuit.y(1)
    with circuit.while_loop((circuit.clbits[0], 1)):
        circuit.measure(0, 0)
    with circuit.for_loop(range(3)) as i:
        circuit.rx(i * 0.1, 0)
    with circuit.switch(circuit.cregs[0]) as case:
        with case(0):
            circuit.z(0)
        with case(case.DEFAULT):
            circuit.s(0)
    with circuit.box():
        circuit.x(0)
    circuit.measure([0, 1], [0, 1])
    return circuit


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

    def leave(self, circuit: QuantumCircuit | bytes, outcome: str | None = "{}") -> None:
        """What the untrusted stage would leave, without running it."""
        content = circuit if isinstance(circuit, bytes) else qpy_of(circuit)
        (self.paths.work / "circuit.qpy").write_bytes(content)
        if outcome is not None:
            (self.paths.work / "outcome.json").write_text(outcome)

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


def no_timer() -> Timer:
    """For a stage that runs in the test's own process, where nothing is to be ended."""
    return Timer(io.StringIO())


def run_together(
    request: pytest.FixtureRequest,
    factory: pytest.TempPathFactory,
    test: str,
    lay_out: Callable[[Pod, str], object],
) -> Mapping[str, tuple[Pod, Ran]]:
    """Run the untrusted stage for all the cases of a test, as many at a time as there are CPUs.

    Args:
        test: the function whose parameter ``what`` names the cases; those that were selected.
        lay_out: fills the input folder for a case.
    """
    cases = [
        item.callspec.params["what"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == test
    ]

    pods = {what: Pod(factory.mktemp("pod")) for what in cases}
    for what, pod in pods.items():
        lay_out(pod, what)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        ran = pool.map(Pod.circuit, pods.values())
        return {what: (pod, each) for (what, pod), each in zip(pods.items(), ran, strict=True)}


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
