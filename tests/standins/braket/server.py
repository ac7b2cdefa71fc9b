"""Amazon Braket on this machine, for tests, with a real S3 server behind it.

``python -m tests.standins.braket.server --bind 127.0.0.1`` prints one line of JSON: where AWS is
(``aws``, for the Secret's ``endpoint``), the keys of two users, and where tests give orders
(``control``). It ends with its standard input.

One address serves all of AWS, as with other emulators: a request's signature names the service.
Those for Braket are answered here, after the signature was checked with botocore's own code; S3,
STS and IAM are moto, which checks for itself. The operations, fields and errors are those of
botocore's ``service-2.json`` for Braket. Programs run on the SDK's local simulator, and a QPU's
only if they consist of its native gates between its own neighbours.

What it does like the service:

- a client token belongs to one request for good: the same again gives the same task, another one
  with it a ConflictException;
- a task goes CREATED, QUEUED, RUNNING, COMPLETED, with a position in the device's queue, and is
  listed a moment after it was created;
- devices of a region are seen in it only, on-demand simulators everywhere.

Orders (``POST`` to ``control``, JSON):

- ``/fault`` ``{"operation": "CreateQuantumTask", "do": ..., "times": n}``: ``throttle``, ``500``,
  ``quota``, ``deny``, ``drop`` (no answer, nothing done), ``lose`` (done, and no answer);
- ``/device`` ``{"arn": ..., "status": ..., "hold": true, "windows": [...], "run_seconds": s,
  "listed_after": s}``;
- ``/task`` ``{"arn": ..., "status": "CANCELLED" or "FAILED", "reason": ...}``: somebody in the
  console, or the device;
- ``GET /devices``, and ``/restore`` ``{"devices": ...}``: as they were, and no faults;
- ``/deny`` ``{"bucket": ..., "actions": ["s3:GetObject"]}``: from now on; no actions end it;
- ``GET /ledger``: every task and every request of CreateQuantumTask.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import http.client
import json
import logging
import queue
import re
import sys
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from braket.default_simulator import StateVectorSimulator
from braket.ir.openqasm import Program
from braket.task_result import TaskMetadata
from braket.task_result.additional_metadata import AdditionalMetadata
from braket.task_result.simulator_metadata_v1 import SimulatorMetadata
from moto.server import ThreadedMotoServer

from tests.standins.braket import catalogue
from tests.standins.serving import Handler, free_port, serve

ACCOUNT = "123456789012"
REGION = "us-east-1"
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade")
OVER = ("COMPLETED", "FAILED", "CANCELLED")
# Tasks simulated at a time.
WORKERS = 2

# The status of each error that botocore's model has for Braket.
ERRORS = {
    "AccessDeniedException": 403,
    "ConflictException": 409,
    "DeviceOfflineException": 424,
    "DeviceRetiredException": 410,
    "IncompleteSignatureException": 403,
    "InternalServiceException": 500,
    "InvalidSignatureException": 403,
    "MissingAuthenticationTokenException": 403,
    "ResourceNotFoundException": 404,
    "ServiceQuotaExceededException": 402,
    "ThrottlingException": 429,
    "UnrecognizedClientException": 403,
    "ValidationException": 400,
}
FAULTS = {
    "throttle": ("ThrottlingException", "Rate exceeded"),
    "500": ("InternalServiceException", "An internal error has occurred"),
    "quota": ("ServiceQuotaExceededException", "You have reached the limit of concurrent tasks"),
}


class Refused(Exception):
    """An error of the service."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class HangUp(Exception):
    """There is no answer."""


@attrs.define
class Device:
    """A device and its queue."""

    told: dict[str, Any]
    hold: bool = False
    run_seconds: float = 0.0
    listed_after: float = 0.0

    @property
    def capabilities(self) -> dict[str, Any]:
        found: dict[str, Any] = self.told["deviceCapabilities"]
        return found

    @property
    def action(self) -> dict[str, Any] | None:
        return self.capabilities["action"].get("braket.ir.openqasm.program")

    @property
    def is_qpu(self) -> bool:
        return bool(self.told["deviceType"] == "QPU")


@attrs.define
class Task:
    """A quantum task, by what GetQuantumTask tells of it."""

    arn: str
    request: dict[str, Any]
    created: datetime
    region: str
    status: str = "CREATED"
    reason: str | None = None
    ended: datetime | None = None
    executions: int = 0

    @property
    def id(self) -> str:
        return self.arn.rpartition("/")[2]

    @property
    def directory(self) -> str:
        return f"{self.request['outputS3KeyPrefix']}/{self.id}"

    def told(self) -> dict[str, Any]:
        found = {
            "quantumTaskArn": self.arn,
            "status": self.status,
            "deviceArn": self.request["deviceArn"],
            "shots": self.request["shots"],
            "outputS3Bucket": self.request["outputS3Bucket"],
            "outputS3Directory": self.directory,
            "createdAt": written(self.created),
            "tags": self.request.get("tags", {}),
        }
        if self.ended is not None:
            found["endedAt"] = written(self.ended)
        return found


def written(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@attrs.define
class Braket:
    """The service."""

    store: Callable[[str, str, bytes], None]
    devices: dict[str, Device] = attrs.field(factory=dict)
    tasks: dict[str, Task] = attrs.field(factory=dict)
    tokens: dict[str, tuple[str, str]] = attrs.field(factory=dict)
    ledger: list[dict[str, Any]] = attrs.field(factory=list)
    faults: list[dict[str, Any]] = attrs.field(factory=list)
    waiting: queue.Queue[Task] = attrs.field(factory=queue.Queue)
    lock: threading.RLock = attrs.field(factory=threading.RLock)

    # --- operations ---------------------------------------------------------------------

    def create(self, region: str, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            token = body.get("clientToken")
            if not token or len(token) > 64:
                raise Refused("ValidationException", "clientToken must have 1 to 64 characters")
            rest = {key: value for key, value in body.items() if key != "clientToken"}
            digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
            entry = {"token": token, "device": body["deviceArn"], "outcome": "refused"}
            self.ledger.append(entry)
            if token in self.tokens:
                known, arn = self.tokens[token]
                if known != digest:
                    entry["outcome"] = "conflict"
                    raise Refused(
                        "ConflictException", f"clientToken {token} was used for another request"
                    )
                entry["outcome"], entry["task"] = "repeated", arn
                return {"quantumTaskArn": arn}
            device = self._device(region, body["deviceArn"])
            self._validate(device, body)
            where = device.told["deviceArn"].split(":")[3] or region
            arn = f"arn:aws:braket:{where}:{ACCOUNT}:quantum-task/{uuid.uuid4()}"
            task = Task(arn, body, datetime.now(UTC), where)
            self.tasks[arn] = task
            self.tokens[token] = (digest, arn)
            entry["outcome"], entry["task"] = "created", arn
            task.status = "QUEUED"
            self.waiting.put(task)
            return {"quantumTaskArn": arn}

    def _device(self, region: str, arn: str) -> Device:
        device = self.devices.get(arn)
        if device is None or arn.split(":")[3] not in ("", region):
            raise Refused("ResourceNotFoundException", f"Device {arn} not found")
        return device

    def _validate(self, device: Device, body: dict[str, Any]) -> None:
        status = device.told["deviceStatus"]
        if status == "OFFLINE":
            raise Refused("DeviceOfflineException", "The device is currently offline")
        if status == "RETIRED":
            raise Refused("DeviceRetiredException", "The device has been retired")
        if device.action is None:
            raise Refused("ValidationException", "The device does not support this action")
        least, most = device.capabilities["service"]["shotsRange"]
        if not least <= body["shots"] <= most:
            raise Refused("ValidationException", f"shots must be between {least} and {most}")
        source = json.loads(body["action"])["source"]
        operations = device.action["supportedOperations"]
        dynamic = "if (" in source or "reset " in source or _measured_twice(source)
        if dynamic and "if" not in operations:
            raise Refused("ValidationException", "The device does not support control flow")
        if dynamic and body.get("experimentalCapabilities") != {"enabled": "ALL"}:
            raise Refused("ValidationException", "Enable the experimental capabilities")
        if "verbatim" in source:
            _check_native(source, device.capabilities["paradigm"])

    def get(self, region: str, arn: str) -> dict[str, Any]:
        with self.lock:
            task = self._task(region, arn)
            found = task.told() | {"deviceParameters": "{}"}
            if task.reason is not None:
                found["failureReason"] = task.reason
            info = {"queue": "QUANTUM_TASKS_QUEUE", "queuePriority": "Normal"}
            if task.status == "QUEUED":
                before = [
                    each
                    for each in self.tasks.values()
                    if each.status == "QUEUED"
                    and each.request["deviceArn"] == task.request["deviceArn"]
                ]
                found["queueInfo"] = info | {"position": str(before.index(task) + 1)}
            else:
                found["queueInfo"] = info | {"position": "None", "message": "not in the queue"}
            return found

    def _task(self, region: str, arn: str) -> Task:
        if arn not in self.tasks or self.tasks[arn].region != region:
            raise Refused("ResourceNotFoundException", f"Quantum task {arn} not found")
        return self.tasks[arn]

    def cancel(self, region: str, arn: str) -> dict[str, Any]:
        with self.lock:
            task = self._task(region, arn)
            if task.status in OVER or task.status == "CANCELLING":
                raise Refused("ConflictException", f"The task is {task.status}")
            # One that runs ends when the device hears of it.
            task.status = "CANCELLING" if task.status == "RUNNING" else "CANCELLED"
            if task.status == "CANCELLED":
                task.ended = datetime.now(UTC)
            return {"quantumTaskArn": arn, "cancellationStatus": "CANCELLING"}

    def search_tasks(self, region: str, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            now = datetime.now(UTC)
            found = [task for task in self.tasks.values() if task.region == region]
            for each in body["filters"]:
                found = [task for task in found if _matches(task, each)]
            found = [
                task
                for task in found
                if now - task.created
                >= timedelta(seconds=self.devices[task.request["deviceArn"]].listed_after)
            ]
            # The latest first, as the console shows them.
            found.sort(key=lambda task: task.created, reverse=True)
            return _page("quantumTasks", [task.told() for task in found], body)

    def get_device(self, region: str, arn: str) -> dict[str, Any]:
        with self.lock:
            device = self._device(region, arn)
            waiting = [
                task
                for task in self.tasks.values()
                if task.status == "QUEUED" and task.request["deviceArn"] == arn
            ]
            sizes = (("Normal", str(len(waiting))), ("Priority", "0"))
            return device.told | {
                "deviceCapabilities": json.dumps(device.capabilities),
                "deviceQueueInfo": [
                    {"queue": "QUANTUM_TASKS_QUEUE", "queueSize": size, "queuePriority": priority}
                    for priority, size in sizes
                ]
                + [{"queue": "JOBS_QUEUE", "queueSize": "0 (1 prioritized job(s) running)"}],
            }

    def search_devices(self, region: str, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            wanted = {
                arn
                for each in body["filters"]
                if each["name"] == "deviceArn"
                for arn in each["values"]
            }
            found = [
                {key: value for key, value in device.told.items() if key != "deviceCapabilities"}
                for arn, device in self.devices.items()
                if arn.split(":")[3] in ("", region) and (not wanted or arn in wanted)
            ]
            return _page("devices", found, body)

    # --- the devices at work ------------------------------------------------------------

    def work(self) -> None:
        """Run one task after the other, for good."""
        while True:
            task = self.waiting.get()
            device = self.devices[task.request["deviceArn"]]
            with self.lock:
                if task.status == "CANCELLED":
                    continue
                if device.hold:
                    later = threading.Timer(0.05, self.waiting.put, (task,))
                    later.daemon = True
                    later.start()
                    continue
                task.status = "RUNNING"
            self._run(task, device)

    def _run(self, task: Task, device: Device) -> None:
        begun = time.monotonic()
        failure, content = None, b""
        try:
            content = self._execute(task, device)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        while time.monotonic() - begun < device.run_seconds and task.status == "RUNNING":
            time.sleep(0.02)
        if task.status == "RUNNING" and failure is None:
            key = f"{task.directory}/results.json"
            try:
                self.store(task.request["outputS3Bucket"], key, content)
            except Exception as error:
                failure = f"The results cannot be written: {error}"
        with self.lock:
            task.executions += 1
            task.ended = datetime.now(UTC)
            if task.status == "CANCELLING":
                task.status = "CANCELLED"
            elif task.status == "RUNNING":
                task.status = "COMPLETED" if failure is None else "FAILED"
                task.reason = failure

    def _execute(self, task: Task, device: Device) -> bytes:
        program = Program.parse_raw(task.request["action"])
        begun = time.perf_counter()
        result = StateVectorSimulator().run(program, shots=task.request["shots"])
        milliseconds = round(1000 * (time.perf_counter() - begun))
        result.measurements = [[int(bit) for bit in row] for row in result.measurements]
        if task.request["deviceArn"] == catalogue.FORTE:
            # IonQ tells how often each outcome was seen, and no single shots.
            shots = len(result.measurements)
            seen = Counter("".join(map(str, row)) for row in result.measurements)
            result.measurementProbabilities = {text: n / shots for text, n in seen.items()}
            result.measurements = None
        result.taskMetadata = TaskMetadata(
            id=task.arn,
            shots=task.request["shots"],
            deviceId=task.request["deviceArn"],
            createdAt=written(task.created),
            endedAt=written(datetime.now(UTC)),
            status="COMPLETED",
        )
        metadata: dict[str, Any] = {"action": program}
        if not device.is_qpu:
            metadata["simulatorMetadata"] = SimulatorMetadata(executionDuration=milliseconds)
        result.additionalMetadata = AdditionalMetadata(**metadata)
        return bytes(result.json().encode())

    # --- orders -------------------------------------------------------------------------

    def take_fault(self, operation: str) -> str | None:
        with self.lock:
            for fault in self.faults:
                if fault["operation"] == operation:
                    fault["times"] = fault.get("times", 1) - 1
                    if fault["times"] <= 0:
                        self.faults.remove(fault)
                    return str(fault["do"])
            return None

    def order(self, what: str, body: dict[str, Any]) -> Any:
        with self.lock:
            if what == "fault":
                self.faults.append(body)
            elif what == "device":
                self._order_device(body)
            elif what == "devices":
                return [
                    {
                        "arn": arn,
                        "status": device.told["deviceStatus"],
                        "windows": device.capabilities["service"]["executionWindows"],
                        "hold": device.hold,
                        "run_seconds": device.run_seconds,
                        "listed_after": device.listed_after,
                    }
                    for arn, device in self.devices.items()
                ]
            elif what == "restore":
                self.faults.clear()
                for each in body["devices"]:
                    self._order_device(each)
            elif what == "task":
                task = self.tasks[body["arn"]]
                task.status, task.reason = body["status"], body.get("reason")
                task.ended = datetime.now(UTC)
            elif what == "ledger":
                return {
                    "requests": self.ledger,
                    "tasks": [
                        task.told()
                        | {
                            "token": task.request["clientToken"],
                            "executions": task.executions,
                            "source": json.loads(task.request["action"])["source"],
                            "experimental": task.request.get("experimentalCapabilities"),
                        }
                        for task in self.tasks.values()
                    ],
                }
            else:
                raise KeyError(what)
            return {}

    def _order_device(self, body: dict[str, Any]) -> None:
        device = self.devices[body["arn"]]
        if "status" in body:
            device.told["deviceStatus"] = body["status"]
        if "windows" in body:
            device.capabilities["service"]["executionWindows"] = body["windows"]
        for name in ("hold", "run_seconds", "listed_after"):
            if name in body:
                setattr(device, name, body[name])


def _page(name: str, found: list[dict[str, Any]], body: dict[str, Any]) -> dict[str, Any]:
    size, begin = int(body.get("maxResults", 10)), int(body.get("nextToken", 0))
    page: dict[str, Any] = {name: found[begin : begin + size]}
    if begin + size < len(found):
        page["nextToken"] = str(begin + size)
    return page


def _matches(task: Task, wanted: dict[str, Any]) -> bool:
    """One of the filters that the service knows: deviceArn, status, quantumTaskArn, createdAt."""
    value: Any = task.told()[wanted["name"]]
    asked = wanted["values"]
    if wanted["name"] == "createdAt":
        value = task.created
        asked = [datetime.fromisoformat(each.replace("Z", "+00:00")) for each in asked]
    match wanted["operator"]:
        case "EQUAL":
            return value in asked
        case "GTE":
            return bool(value >= asked[0])
        case "LT":
            return bool(value < asked[0])
    raise Refused("ValidationException", f"operator {wanted['operator']} is not known here")


def _measured_twice(source: str) -> bool:
    measured: set[str] = set()
    for line in source.splitlines():
        found = re.search(r"= measure (\S+);", line)
        if found and found[1] in measured:
            return True
        if not found and any(each in line for each in measured if "barrier" not in line):
            return True
        if found:
            measured.add(found[1])
    return False


def _check_native(source: str, paradigm: dict[str, Any]) -> None:
    """A verbatim box has native gates only, on neighbours."""
    connectivity = paradigm["connectivity"]
    for line in source.splitlines():
        found = re.fullmatch(r"(\w+)(?:\(.*\))? ((?:\$\d+)(?:, \$\d+)*);", line.strip())
        if found is None or found[1] == "barrier":
            continue
        if found[1] not in paradigm["nativeGateSet"]:
            raise Refused("ValidationException", f"{found[1]} is not native to the device")
        qubits = re.findall(r"\d+", found[2])
        known = connectivity["connectivityGraph"]
        fully = connectivity["fullyConnected"]
        if any(not fully and each not in known for each in qubits):
            raise Refused("ValidationException", f"the device has no qubit of {found[2]}")
        if len(qubits) == 2 and not fully and qubits[1] not in known[qubits[0]]:
            raise Refused("ValidationException", f"{found[2]} are no neighbours")


# --- HTTP ---------------------------------------------------------------------------------------


def aws_handler(braket: Braket, moto: int, keys: dict[str, str]) -> type[Handler]:
    """All of AWS.

    Args:
        keys: the secret of each access key.
    """

    class Aws(Handler):
        def handle_request(self) -> None:
            body = self.body()
            scope = re.search(
                r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/aws4_request",
                self.headers.get("Authorization", ""),
            )
            if scope is not None and scope[3] != "braket":
                return self.pass_on(body)
            try:
                if scope is None:
                    raise Refused(
                        "MissingAuthenticationTokenException", "Missing Authentication Token"
                    )
                self.check_signature(scope, body)
                answer = self.ask(scope[2], body)
            except HangUp:
                return self.hang_up()
            except Refused as refused:
                content = json.dumps({"message": refused.message}).encode()
                kind = {"x-amzn-ErrorType": refused.code, "Content-Type": "application/json"}
                return self.answer(ERRORS[refused.code], content, kind)
            status = 201 if self.path == "/quantum-task" else 200
            kind = {"Content-Type": "application/json"}
            return self.answer(status, json.dumps(answer).encode(), kind)

        def check_signature(self, scope: re.Match[str], body: bytes) -> None:
            """With botocore's own code, over what was sent."""
            if scope[1] not in keys:
                raise Refused(
                    "UnrecognizedClientException",
                    "The security token included in the request is invalid",
                )
            authorization = self.headers["Authorization"]
            names = re.search(r"SignedHeaders=([^,]+)", authorization)
            given = re.search(r"Signature=(\w+)", authorization)
            assert names is not None
            assert given is not None
            signed = {name: self.headers[name] for name in names[1].split(";")}
            host = self.headers["Host"]
            request = AWSRequest(self.command, f"http://{host}{self.path}", signed, body)
            request.context["timestamp"] = self.headers["X-Amz-Date"]
            signer = SigV4Auth(Credentials(scope[1], keys[scope[1]]), "braket", scope[2])
            text = signer.string_to_sign(request, signer.canonical_request(request))
            if signer.signature(text, request) != given[1]:
                raise Refused(
                    "InvalidSignatureException",
                    "The request signature we calculated does not match the signature you "
                    "provided. Check your AWS Secret Access Key and signing method.",
                )

        def ask(self, region: str, body: bytes) -> dict[str, Any]:
            operation, run = self.route(region, json.loads(body or b"{}"))
            fault = braket.take_fault(operation)
            if fault == "deny":
                user = f"arn:aws:iam::{ACCOUNT}:user/runner"
                raise Refused(
                    "AccessDeniedException",
                    f"User: {user} is not authorized to perform: braket:{operation}",
                )
            if fault in FAULTS:
                raise Refused(*FAULTS[fault])
            if fault == "drop":
                raise HangUp
            answer = run()
            if fault == "lose":
                raise HangUp
            return answer

        def route(
            self, region: str, body: dict[str, Any]
        ) -> tuple[str, Callable[[], dict[str, Any]]]:
            path = urllib.parse.urlsplit(self.path).path
            parts = [urllib.parse.unquote(each) for each in path.strip("/").split("/")]
            match self.command, parts:
                case "POST", ["quantum-task"]:
                    return "CreateQuantumTask", lambda: braket.create(region, body)
                case "GET", ["quantum-task", arn]:
                    return "GetQuantumTask", lambda: braket.get(region, arn)
                case "PUT", ["quantum-task", arn, "cancel"]:
                    return "CancelQuantumTask", lambda: braket.cancel(region, arn)
                case "POST", ["quantum-tasks"]:
                    return "SearchQuantumTasks", lambda: braket.search_tasks(region, body)
                case "GET", ["device", arn]:
                    return "GetDevice", lambda: braket.get_device(region, arn)
                case "POST", ["devices"]:
                    return "SearchDevices", lambda: braket.search_devices(region, body)
            raise Refused("ResourceNotFoundException", f"{self.command} {self.path}")

        def pass_on(self, body: bytes) -> None:
            # Everything as it came, the Host too: signatures are about it.
            sent = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
            connection = http.client.HTTPConnection("127.0.0.1", moto, timeout=60)
            try:
                connection.request(self.command, self.path, body, sent)
                response = connection.getresponse()
                content = response.read()
                headers = {k: v for k, v in response.headers.items() if k.lower() not in HOP_BY_HOP}
            finally:
                connection.close()
            self.answer(response.status, content, headers)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815

    return Aws


def control_handler(braket: Braket, deny: Callable[[str, list[str]], None]) -> type[Handler]:
    class Control(Handler):
        def handle_request(self) -> None:
            body = json.loads(self.body() or b"{}")
            what = self.path.strip("/")
            if what == "deny":
                deny(body["bucket"], body.get("actions") or [])
                return self.answer(200, b"{}")
            return self.answer(200, json.dumps(braket.order(what, body)).encode())

        do_GET = do_POST = handle_request  # noqa: N815

    return Control


@attrs.define
class Moto:
    """S3, STS and IAM, which check keys, signatures and policies."""

    port: int
    admin: dict[str, str]
    runner: dict[str, str]

    def client(self, service: str) -> Any:
        """As the service itself, which may do everything."""
        return boto3.client(
            service,
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name=REGION,
            aws_access_key_id=self.admin["access-key-id"],
            aws_secret_access_key=self.admin["secret-access-key"],
        )

    def deny(self, bucket: str, actions: Iterable[str]) -> None:
        """Take something from the runner's user, or with nothing, give it back."""
        iam = self.client("iam")
        wanted = list(actions)
        if not wanted:
            iam.delete_user_policy(UserName="runner", PolicyName=f"deny-{bucket}")
            return
        resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
        statement = {"Effect": "Deny", "Action": wanted, "Resource": resources}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName="runner", PolicyName=f"deny-{bucket}", PolicyDocument=policy)

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """What the service writes."""
        self.client("s3").put_object(Bucket=bucket, Key=key, Body=content)


def start_moto() -> Moto:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    port = free_port()
    ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False).start()
    url = f"http://127.0.0.1:{port}"
    anyone = {"aws_access_key_id": "anyone", "aws_secret_access_key": "anyone"}
    iam = boto3.client("iam", endpoint_url=url, region_name=REGION, **anyone)
    keys = []
    for user in ("admin", "runner"):
        iam.create_user(UserName=user)
        allow = {"Effect": "Allow", "Action": "*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        iam.put_user_policy(UserName=user, PolicyName="all", PolicyDocument=policy)
        made = iam.create_access_key(UserName=user)["AccessKey"]
        keys.append(
            {
                "access-key-id": made["AccessKeyId"],
                "secret-access-key": made["SecretAccessKey"],
            }
        )
    # As anything but a form, which would be taken apart.
    kind = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", kind, method="POST")
    urllib.request.urlopen(request).close()
    return Moto(port, *keys)


def main() -> None:
    parser = argparse.ArgumentParser(description="Amazon Braket for tests.")
    parser.add_argument("--bind", default="127.0.0.1", help="address to serve on")
    parser.add_argument("--host", default="127.0.0.1", help="address that clients use")
    given = parser.parse_args()
    # Of what other devices would not take.
    logging.getLogger("braket").setLevel(logging.ERROR)
    moto = start_moto()
    braket = Braket(moto.put)
    braket.devices = {arn: Device(told) for arn, told in copy.deepcopy(catalogue.devices()).items()}
    for _ in range(WORKERS):
        threading.Thread(target=braket.work, daemon=True).start()
    keys = {moto.runner["access-key-id"]: moto.runner["secret-access-key"]}
    ports = {
        "aws": serve(given.bind, aws_handler(braket, moto.port, keys)),
        "control": serve(given.bind, control_handler(braket, moto.deny)),
    }
    told = {
        **{name: f"http://{given.host}:{port}" for name, port in ports.items()},
        "key": moto.runner,
        "admin": moto.admin,
    }
    print(json.dumps(told), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
