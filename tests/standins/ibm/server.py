"""IBM Quantum on this machine: what qiskit-ibm-runtime's client asks, answered over real HTTP.

``python -m tests.standins.ibm.server --bind 127.0.0.1`` prints one line of JSON, where it is, and
ends with its standard input. Written from the client's side: what it sends and what it reads of
the answers. Circuits run on Aer, one at a time for each device, in the order of the queue. Every
submission is in a ledger. A dedicated session has its device to itself while it is active.

Tests reach for ``/control``, which no client does: ``PUT /control`` changes settings, ``POST
/control/faults`` orders what is to go wrong, ``POST /control/jobs/<id>`` does something to a job as
a person at IBM would, ``POST /control/sessions/<id>`` lets a session's maximum time pass, ``GET
/control`` tells all.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import copy
import hashlib
import hmac
import json
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
import qiskit_ibm_runtime
from qiskit_ibm_runtime.json import RuntimeDecoder, RuntimeEncoder

Answer = tuple[int, dict[str, str], Any]

API = "/api/v1"
KEY = "the-key-of-the-account"
FAKES = Path(qiskit_ibm_runtime.__file__).parent / "fake_provider" / "backends"
DEVICES = ("brisbane", "sherbrooke", "manila")
OVER = ("Completed", "Failed", "Cancelled")
# The reason code of jobs that were in the queue when their session closed.
SESSION_CLOSED = 1217
HANG_SECONDS = 300.0


@attrs.define
class Settings:
    """What tests change.

    Attributes:
        keys: API keys that are accepted.
        token_seconds: after which the service no longer takes a token, whatever it says itself.
        queue_seconds: least time in the queue; run_seconds: least time of running.
        held: whether nothing leaves the queue.
        listing_lag: seconds after which a job appears in the listing.
        latency: of every answer, in seconds.
        expired: whether results are no longer kept.
        session_seconds: how long a session may last at most, from its first job on.
        interactive_seconds: for how long an active session waits for its next job. IBM's wait
            longer; one that a test forgets should not block a device for so long.
        unused_seconds: after which a session without any job is closed.
    """

    keys: list[str] = attrs.field(factory=lambda: [KEY])
    token_seconds: float = 3600.0
    queue_seconds: float = 0.0
    run_seconds: float = 0.05
    held: bool = False
    listing_lag: float = 0.0
    latency: float = 0.0
    expired: bool = False
    session_seconds: int = 28_800
    interactive_seconds: float = 5.0
    unused_seconds: float = 1800.0


@attrs.define
class Job:
    """As the service keeps it."""

    id: str
    backend: str
    tags: list[str]
    params: Any
    program: str
    session: str | None
    cost: int | None
    created: float
    status: str = "Queued"
    reason: str | None = None
    reason_code: int | None = None
    running: float | None = None
    finished: float | None = None
    result: str = ""

    def view(self, with_params: bool) -> dict[str, Any]:
        state: dict[str, Any] = {"status": self.status}
        if self.reason is not None:
            state |= {"reason": self.reason, "reason_code": self.reason_code}
        shown = {
            "id": self.id,
            "backend": self.backend,
            "state": state,
            "status": self.status,
            "created": stamp(self.created),
            "ended": stamp(self.finished),
            "program": {"id": self.program},
            "tags": self.tags,
            "session_id": self.session,
            "cost": self.cost,
            "private": False,
            "estimated_running_time_seconds": 2,
        }
        return shown | ({"params": self.params} if with_params else {})


def stamp(moment: float | None) -> str | None:
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


@attrs.define
class Session:
    """As the service keeps it.

    Attributes:
        mode: dedicated, or batch.
        activated: when its first job began: its maximum time counts from then.
        since: of an active one, since when it is active; of others None.
        used: seconds that it was active in all, until `since`.
        idle: since when an active one has no job.
    """

    id: str
    backend: str
    mode: str
    max_ttl: int
    interactive_ttl: float
    created: float
    state: str = "open"
    reason: str = ""
    accepting: bool = True
    activated: float | None = None
    since: float | None = None
    used: float = 0.0
    idle: float | None = None
    closed: float | None = None
    last_started: float | None = None
    last_completed: float | None = None
    timestamps: list[dict[str, str | None]] = attrs.field(factory=list)

    def become(self, state: str, reason: str = "") -> None:
        moment = time.time()
        if self.since is not None and state != "active":
            self.used += moment - self.since
            self.since = None
        if state == "active" and self.since is None:
            self.since = moment
            self.activated = self.activated or moment
        if state == "closed":
            self.closed, self.accepting, self.reason = moment, False, reason
        self.state = state
        self.timestamps.append({"status": state, "timestamp": stamp(moment)})

    @property
    def until(self) -> float | None:
        return None if self.activated is None else self.activated + self.max_ttl

    def view(self, on_device: float) -> dict[str, Any]:
        """As it is told; a batch is billed `on_device`, the seconds that its jobs ran."""
        active = self.used + (time.time() - self.since if self.since is not None else 0.0)
        return {
            "id": self.id,
            "backend_name": self.backend,
            "mode": self.mode,
            "max_ttl": self.max_ttl,
            "active_ttl": self.max_ttl,
            "interactive_ttl": self.interactive_ttl,
            "state": self.state,
            "state_reason": self.reason,
            "accepting_jobs": self.accepting,
            "started_at": stamp(self.created),
            "activated_at": stamp(self.activated),
            "closed_at": stamp(self.closed),
            "last_job_started": stamp(self.last_started),
            "last_job_completed": stamp(self.last_completed),
            "timestamps": self.timestamps,
            "elapsed_time": round(active if self.mode == "dedicated" else on_device, 3),
        }


@attrs.define
class Device:
    name: str
    configuration: dict[str, Any]
    properties: dict[str, Any]
    status: str = "active"
    online: bool = True

    @classmethod
    def fake(cls, name: str) -> Device:
        folder = FAKES / name
        configuration = json.loads((folder / f"conf_{name}.json").read_text())
        properties = json.loads((folder / f"props_{name}.json").read_text())
        full = f"ibm_{name}"
        configuration["backend_name"] = properties["backend_name"] = full
        return cls(full, configuration, properties)


@attrs.define
class Fault:
    """What is to go wrong.

    Attributes:
        method, path: of the requests that meet it; `path` is searched for.
        times, until: how often, and how long.
        status: of the answer; 0 ends the connection without one, -1 never answers.
        after: whether what was asked is done first.
    """

    method: str
    path: str
    status: int
    times: int | None = None
    until: float | None = None
    headers: dict[str, str] = attrs.field(factory=dict)
    body: Any = None
    after: bool = False


def error(status: int, message: str, code: int = 0) -> Answer:
    found = {"message": message, "code": code or status, "more_info": "", "solution": ""}
    return status, {}, {"errors": [found], "trace": uuid.uuid4().hex}


class Service:
    """All of it; methods that change something hold the lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.settings = Settings()
        self.devices = {each.name: each for each in map(Device.fake, DEVICES)}
        self.jobs: dict[str, Job] = {}
        self.sessions: dict[str, Session] = {}
        self.tokens: dict[str, float] = {}
        self.faults: list[Fault] = []
        self.ledger: list[dict[str, Any]] = []
        self.asked: list[str] = []
        for device in self.devices:
            threading.Thread(target=self._run_device, args=(device,), daemon=True).start()

    # -- faults ---------------------------------------------------------------------

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for each in list(self.faults):
                if each.until is not None and time.time() > each.until:
                    self.faults.remove(each)
                elif each.method in ("*", method) and re.search(each.path, path):
                    if each.times is not None:
                        each.times -= 1
                        if each.times <= 0:
                            self.faults.remove(each)
                    return each
        return None

    # -- identity -------------------------------------------------------------------

    def token(self, form: dict[str, list[str]]) -> Answer:
        if form.get("apikey", [""])[0] not in self.settings.keys:
            found = {
                "errorCode": "BXNIM0415E",
                "errorMessage": "Provided API key could not be found.",
            }
            return 400, {}, found
        issued = int(time.time())
        claims = {"iam_id": "IBMid-1", "id": uuid.uuid4().hex, "iat": issued, "exp": issued + 3600}
        parts = [
            base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=")
            for each in ({"alg": "HS256", "typ": "JWT"}, claims)
        ]
        signed = hmac.new(b"secret", b".".join(parts), hashlib.sha256).digest()
        token = b".".join([*parts, base64.urlsafe_b64encode(signed).rstrip(b"=")]).decode()
        with self.lock:
            self.tokens[token] = time.time()
        return (
            200,
            {},
            {
                "access_token": token,
                "refresh_token": "not_supported",
                "token_type": "Bearer",
                "expires_in": 3600,
                "expiration": issued + 3600,
                "scope": "ibm openid",
            },
        )

    def allowed(self, authorization: str) -> bool:
        kind, _, token = authorization.partition(" ")
        with self.lock:
            issued = self.tokens.get(token)
        return (
            kind == "Bearer"
            and issued is not None
            and time.time() - issued < self.settings.token_seconds
        )

    # -- devices --------------------------------------------------------------------

    def queue(self, device: str) -> list[Job]:
        with self.lock:
            return [j for j in self.jobs.values() if j.backend == device and j.status == "Queued"]

    def list_devices(self) -> Answer:
        found = [
            {
                "name": each.name,
                "status": {"name": "online" if each.online else "offline"},
                "qubits": each.configuration["n_qubits"],
                "is_simulator": False,
                "queue_length": len(self.queue(each.name)),
                "processor_type": each.configuration["processor_type"],
            }
            for each in self.devices.values()
        ]
        return 200, {}, {"devices": found}

    def device(self, name: str, what: str) -> Answer:
        device = self.devices.get(name)
        if device is None:
            return error(404, f"Backend {name} not found", 1216)
        if what == "status":
            found = {
                "state": device.online,
                "status": device.status,
                "message": "",
                "length_queue": len(self.queue(name)),
                "backend_version": device.configuration["backend_version"],
            }
            return 200, {}, found
        return 200, {}, device.configuration if what == "configuration" else device.properties

    def _run_device(self, name: str) -> None:
        device = self.devices[name]
        while True:
            time.sleep(0.01)
            with self.lock:
                holder = self._keep_sessions(name)
                ready = [
                    each
                    for each in self.queue(name)
                    if time.time() - each.created >= self.settings.queue_seconds
                    and (holder is None or each.session == holder)
                ]
                if not ready or self.settings.held or device.status != "active":
                    continue
                job = ready[0]
                job.status, job.running = "Running", time.time()
                if job.session is not None:
                    session = self.sessions[job.session]
                    session.last_started, session.idle = job.running, None
                    if session.state in ("open", "inactive"):
                        session.become("active")
            self._run(job)

    def _run(self, job: Job) -> None:
        try:
            result = execute(job.params)
        except Exception as problem:  # as the service: whatever it is, the job has failed
            with self.lock:
                job.status, job.reason, job.reason_code = "Failed", str(problem)[:300], 1002
                job.finished = time.time()
            return
        assert job.running is not None
        time.sleep(max(0.0, job.running + self.settings.run_seconds - time.time()))
        with self.lock:
            if job.status == "Running":
                job.status, job.finished, job.result = "Completed", time.time(), result

    # -- jobs -----------------------------------------------------------------------

    def submit(self, body: bytes) -> Answer:
        payload = json.loads(body)
        device = self.devices.get(payload.get("backend", ""))
        if device is None:
            return error(404, "Backend not found", 1216)
        if not device.online:
            return error(503, f"{device.name} is offline", 1004)
        session = payload.get("session_id")
        with self.lock:
            self._keep_sessions(device.name)
            if session is not None:
                known = self.sessions.get(session)
                if known is None:
                    return error(404, f"Session {session} not found", 1218)
                if not known.accepting:
                    return error(400, f"Session {session} has been closed", SESSION_CLOSED)
                if known.backend != device.name:
                    return error(400, f"Session {session} is on {known.backend}", 1219)
            job = Job(
                id=f"d{len(self.jobs):05d}{uuid.uuid4().hex[:14]}",
                backend=device.name,
                tags=payload.get("tags") or [],
                params=payload["params"],
                program=payload["program_id"],
                session=session,
                cost=payload.get("cost"),
                created=time.time(),
            )
            self.jobs[job.id] = job
            self.ledger.append(
                {
                    "id": job.id,
                    "backend": job.backend,
                    "tags": job.tags,
                    "session": session,
                    "cost": job.cost,
                    "shots": payload["params"]["pubs"][0][2],
                    "created": job.created,
                }
            )
        return 200, {}, {"id": job.id, "backend": job.backend, "private": False}

    def list_jobs(self, query: dict[str, list[str]]) -> Answer:
        tags = set(query.get("tags", ()))
        with self.lock:
            found = [
                each
                for each in self.jobs.values()
                if tags <= set(each.tags)
                and time.time() - each.created >= self.settings.listing_lag
                and query.get("session_id", [each.session])[0] == each.session
                and query.get("backend", [each.backend])[0] == each.backend
            ]
        if "pending" in query:
            pending = query["pending"][0] == "true"
            found = [each for each in found if (each.status not in OVER) == pending]
        if query.get("sort", ["DESC"])[0] != "ASC":
            found.reverse()
        limit, offset = int(query.get("limit", ["200"])[0]), int(query.get("offset", ["0"])[0])
        page = [each.view(False) for each in found[offset : offset + limit]]
        return 200, {}, {"jobs": page, "count": len(found), "limit": limit, "offset": offset}

    def job(self, method: str, job_id: str, what: str, query: dict[str, list[str]]) -> Answer:
        with self.lock:
            job = self.jobs.get(job_id)
            if job is None:
                return error(404, f"Job {job_id} not found", 1291)
            if what == "cancel":
                if job.status in OVER:
                    return error(409, f"Job {job_id} is {job.status}", 1295)
                job.status, job.finished = "Cancelled", time.time()
                return 204, {}, None
            if what == "metrics":
                return 200, {}, self._metrics(job)
            if what == "results":
                if self.settings.expired:
                    return error(404, f"The results of job {job_id} are no longer kept", 1291)
                if job.status == "Failed":
                    return 200, {}, f"Traceback: {job.reason}"
                return 200 if job.result else 204, {}, job.result or None
            return 200, {}, job.view("true" not in query.get("exclude_params", ()))

    def _metrics(self, job: Job) -> dict[str, Any]:
        metrics: dict[str, Any] = {
            "timestamps": {
                "created": stamp(job.created),
                "running": stamp(job.running),
                "finished": stamp(job.finished),
            },
            "usage": {"status": "pending", "quantum_seconds": 0},
            "num_circuits": 1,
        }
        if job.status == "Queued":
            before = [each for each in self.queue(job.backend) if each.created < job.created]
            start = datetime.now(UTC) + timedelta(minutes=1 + len(before))
            metrics["position_in_queue"] = len(before)
            metrics["estimated_start_time"] = start.isoformat().replace("+00:00", "Z")
        elif job.status == "Completed" and job.finished and job.running:
            seconds = max(1, round(job.finished - job.running))
            metrics["usage"] = {
                "status": "completed",
                "quantum_seconds": seconds,
                "qpu_charge_time_seconds": seconds,
            }
        return metrics

    # -- sessions -------------------------------------------------------------------

    def _keep_sessions(self, device: str) -> str | None:
        """What time has done to the sessions on a device; the one that has it for itself."""
        holder = None
        moment = time.time()
        for session in self.sessions.values():
            if session.backend != device or session.state == "closed":
                continue
            mine = [each for each in self.jobs.values() if each.session == session.id]
            pending = [each for each in mine if each.status not in OVER]
            ended = [each.finished for each in mine if each.running and each.finished]
            session.last_completed = max(ended, default=None)
            if session.until is not None and moment > session.until:
                self._close(session, "the maximum time has passed")
            elif not session.accepting and not pending:
                self._close(session, "it takes no more jobs, and has none")
            elif not mine and moment - session.created > self.settings.unused_seconds:
                self._close(session, "it had no job")
            elif session.state == "active" and not pending:
                session.idle = session.idle or moment
                if moment - session.idle > session.interactive_ttl:
                    session.become("inactive")
            if session.state == "active" and session.mode == "dedicated":
                holder = session.id
        return holder

    def _close(self, session: Session, reason: str) -> None:
        """At once: what is in the queue fails, and what runs goes on."""
        session.become("closed", reason)
        for job in self.jobs.values():
            if job.session == session.id and job.status == "Queued":
                job.status, job.finished = "Failed", time.time()
                job.reason = f"Session {session.id} has been closed"
                job.reason_code = SESSION_CLOSED

    def open_session(self, body: bytes) -> Answer:
        asked = json.loads(body)
        device = self.devices.get(asked.get("backend") or "")
        if device is None:
            return error(404, "Backend not found", 1216)
        if asked.get("mode") not in ("dedicated", "batch"):
            return error(400, "mode: must be dedicated or batch", 1213)
        seconds = asked.get("max_ttl", self.settings.session_seconds)
        if not isinstance(seconds, int) or seconds < 1:
            return error(400, "max_ttl: must be a positive integer", 1213)
        made = Session(
            id=f"s{uuid.uuid4().hex[:18]}",
            backend=device.name,
            mode=asked["mode"],
            max_ttl=min(seconds, self.settings.session_seconds),
            interactive_ttl=self.settings.interactive_seconds,
            created=time.time(),
        )
        with self.lock:
            made.become("open")
            self.sessions[made.id] = made
            return 200, {}, made.view(0.0)

    def session(self, method: str, session_id: str, what: str, body: bytes) -> Answer:
        with self.lock:
            session = self.sessions.get(session_id)
            if session is None:
                return error(404, f"Session {session_id} not found", 1218)
            self._keep_sessions(session.backend)
            if method == "GET" and not what:
                return 200, {}, self._view(session)
            if method == "PATCH" and not what:
                if json.loads(body) != {"accepting_jobs": False}:
                    return error(400, "only accepting_jobs: false can be asked for", 1213)
                session.accepting = False
                self._keep_sessions(session.backend)
                return 204, {}, None
            if method == "DELETE" and what == "close":
                if session.state != "closed":
                    self._close(session, "it was cancelled")
                return 204, {}, None
        return error(405, f"{method} is not for a session", 1213)

    def _view(self, session: Session) -> dict[str, Any]:
        on_device = sum(
            each.finished - each.running
            for each in self.jobs.values()
            if each.session == session.id and each.finished and each.running
        )
        return session.view(on_device)

    # -- control --------------------------------------------------------------------

    def control(self, method: str, path: str, body: bytes) -> Answer:
        given = json.loads(body) if body else {}
        with self.lock:
            if method == "PUT":
                for name, status in given.pop("devices", {}).items():
                    self.devices[name].status = status
                for name, online in given.pop("online", {}).items():
                    self.devices[name].online = online
                if given.pop("expire_tokens", False):
                    self.tokens.clear()
                if given.pop("forget_jobs", False):
                    self.jobs.clear()
                self.settings = attrs.evolve(self.settings, **given)
            elif path.startswith("/control/faults"):
                if method == "DELETE":
                    self.faults.clear()
                else:
                    seconds = given.pop("seconds", None)
                    until = time.time() + seconds if seconds is not None else None
                    self.faults.append(Fault(**given, until=until))
            elif path.startswith("/control/jobs/"):
                job = self.jobs[path.rpartition("/")[2]]
                for name, value in given.items():
                    setattr(job, name, value)
                job.finished = job.finished or time.time()
            elif path.startswith("/control/sessions/"):
                session = self.sessions[path.rpartition("/")[2]]
                if session.state != "closed":
                    self._close(session, "the maximum time has passed")
            return (
                200,
                {},
                {
                    "ledger": self.ledger,
                    "asked": self.asked,
                    "jobs": [each.view(False) for each in self.jobs.values()],
                    "sessions": [self._view(each) for each in self.sessions.values()],
                    "faults": len(self.faults),
                },
            )


def execute(params: Any) -> str:
    """The result of a sampler's PUBs, as the service writes it."""
    from qiskit_aer.primitives import SamplerV2

    decoded = json.loads(json.dumps(params), cls=RuntimeDecoder)
    pubs = [(pub[0], None, pub[2]) for pub in decoded["pubs"]]
    done = SamplerV2().run([(circuit, values, shots) for circuit, values, shots in pubs]).result()
    return json.dumps(done, cls=RuntimeEncoder)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: Service

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        service, method = self.service, self.command
        if url.path.startswith("/control"):
            self._send(service.control(method, url.path, body))
            return
        with service.lock:
            service.asked.append(f"{method} {url.path}")
        time.sleep(service.settings.latency)
        fault = service.fault(method, url.path)
        done = None
        if fault is None or fault.after:
            done = self._do(method, url.path, parse_qs(url.query), body)
        if fault is not None:
            if fault.status == -1:
                time.sleep(HANG_SECONDS)
            if fault.status <= 0:
                self.close_connection = True
                return
            done = (fault.status, fault.headers, copy.deepcopy(fault.body))
        assert done is not None
        self._send(done)

    def _do(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
        service = self.service
        if path == "/identity/token":
            return service.token(parse_qs(body.decode()))
        if not path.startswith(API):
            return error(404, f"no such path: {path}")
        if not service.allowed(self.headers.get("Authorization", "")):
            return error(401, "The token is not valid, or has expired", 1200)
        if not self.headers.get("Service-CRN"):
            return error(400, "Service-CRN is required", 1213)
        for pattern, act in self._routes(method, query, body):
            match = re.fullmatch(pattern, f"{method} {path.removeprefix(API)}")
            if match:
                return act(*match.groups())
        return error(404, f"no such path: {method} {path}")

    def _routes(
        self, method: str, query: dict[str, list[str]], body: bytes
    ) -> Iterator[tuple[str, Callable[..., Answer]]]:
        service = self.service
        usage = {
            "usage_limit_seconds": 600,
            "usage_consumed_seconds": 1,
            "usage_limit_reached": False,
        }
        yield "GET /instances/usage", lambda: (200, {}, usage)
        yield "GET /backends", service.list_devices
        yield r"GET /backends/([^/]+)/(configuration|properties|status)", service.device
        yield "POST /jobs", lambda: service.submit(body)
        yield "GET /jobs", lambda: service.list_jobs(query)
        yield (
            r"(?:GET|POST) /jobs/([^/]+)(?:/(results|metrics|cancel))?",
            lambda job, what: service.job(method, job, what or "", query),
        )
        yield "POST /sessions", lambda: service.open_session(body)
        yield (
            r"(?:GET|PATCH|DELETE) /sessions/([^/]+)(?:/(close))?",
            lambda session, what: service.session(method, session, what or "", body),
        )

    def _send(self, answer: Answer) -> None:
        status, headers, body = answer
        content = b""
        if body is not None:
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815  http.server's

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that are killed in the middle of it are what this is for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--host", help="as clients reach it; the address it is bound to")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    made = type("Bound", (Handler,), {"service": Service()})
    server = Server((given.bind, given.port), made)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = given.host or given.bind
    print(json.dumps({"url": f"http://{host}:{server.server_port}", "key": KEY}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
