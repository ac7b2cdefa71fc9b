"""Thousands of specs that nobody would write, against a real API server and the real controller.

The controller runs as its own process, beside the real garbage collector; there are no nodes, so
what can be started waits for a pod for ever. Asserted: the controller does not die and logs no
exception, every QiskitJob that the API server let in has a condition that says what becomes of
it, and when all are deleted nothing is left of any.

``QISKIT_FUZZ_SPECS`` and ``QISKIT_FUZZ_SEED`` change how many there are, and which.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import copy
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml

from qiskit_controller.api.run import Reason
from qiskit_controller.kube.client import (
    CONFIGMAPS,
    JOBS,
    ROLEBINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    ApiError,
    Client,
    ConnectionFailed,
    NotFound,
    Resource,
)
from qiskit_controller.reconcilers.qiskitjob.reconciler import QISKITJOBS
from tests.kinds import CRDS, NAMESPACES

from .conftest import ROOT, ApiServer, _die_with_parent

# Takes long; `./hack/test extended` runs it.
pytestmark = pytest.mark.extended

SPECS = int(os.environ.get("QISKIT_FUZZ_SPECS", "2048"))
SEED = int(os.environ.get("QISKIT_FUZZ_SEED", "20200131"))
AT_ONCE = 16
# For each step, on a machine that may be busy with other things.
PATIENCE = 900.0
NAMESPACE = "fuzz"
OURS = "app.kubernetes.io/managed-by=qiskit-controller"
OWNED = (JOBS, CONFIGMAPS, SERVICE_ACCOUNTS, ROLES, ROLEBINDINGS)

Object = dict[str, Any]


# --- what is generated ----------------------------------------------------------------------

TEXTS = (
    "",
    " ",
    "\n",
    "\x00",
    "\x1b[31m",
    "\ufeff",
    "\u202egnp.exe",
    "\N{PILE OF POO}" * 20,
    "e\u0301" * 100,
    "null",
    "true",
    "0x10",
    "-1",
    "1e999",
    "../../etc/passwd",
    "--upload-pack=touch /tmp/x",
    "$(reboot)",
    "{{ .Values }}",
    "${jndi:ldap://x}",
    "'; DROP TABLE jobs; --",
    '{"a":',
    "%00%n%s",
    "a" * 64,
    "a" * 254,
    "b" * 5_000,
    "Grüße",
    "UPPER",
    "under_score",
    "kube-root-ca.crt",
)
NUMBERS = (
    0,
    -1,
    1,
    3,
    0.5,
    -0.0,
    1e-300,
    1e300,
    2**31 - 1,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    10**30,
)
OTHERS = (None, True, False, [], {}, [[]], {"": ""}, ["a"], {"name": {"name": "x"}}, [None])
ANYTHING: tuple[Any, ...] = (*TEXTS, *NUMBERS, *OTHERS)

DURATIONS = (
    "1s",
    "90s",
    "1h30m",
    "1m1m1m",
    "0s",
    "0h0m0s",
    "99999999999h",
    "1h " * 3,
    "soon",
    "1d",
)
QUANTITIES = (
    *("500m", "2", "4Gi", "1Ki", "+5", "-1", "0", "1e3", "1e2.5", "1e1000", "1e-1000", "1E", "1Ei"),
    *("0.0000000001", "9" * 60, "1.", ".5", ".", "m", "Gi", "1gi", "1 Gi", "0x1", "NaN", "inf"),
    *(0, 1, 4, -3, 1.5, 2**63 - 1),
)
NAMES = (
    *("x", "x-results", "other", "a.b.c", "a" * 63, "a" * 64, "a" * 253, "a." * 126 + "a"),
    *("-x", "x-", "x..y", "X", "x_y", "kube-root-ca.crt", "the-code", "qiskit-job-x-input"),
)
URLS = (
    *("https://example.org/bell.py", "http://127.0.0.1/x", "http://[::1]:8080/x.qasm"),
    *("https://user:secret@example.org/x.py", "ftp://example.org/x", "file:///etc/passwd"),
    *("https://", "http://:0/", "https://example.org:99999/x", "https://exa mple.org/x.py"),
    *("https://\u4f8b\u3048.jp/x.py", "https://example.org/" + "a" * 2040, "http://[::1"),
    *("https://example.org/x.py#f", "https://example.org/%2e%2e/%00", "http://0x7f.1/"),
)
REPOSITORIES = (
    *("https://example.org/r.git", "git@example.org:r.git", "ssh://git@example.org:22/r"),
    *("ext::sh -c touch% /tmp/x", "file:///etc", "-oProxyCommand=x", "https://-x/r", "/etc", "."),
    *("ssh://-oProxyCommand=x/r", "https://example.org/r\n", "git@-x:r", "git://example.org/r"),
)
PATHS = (
    *("bell.py", "a/b/c.qasm", "../../etc/passwd", "/etc/passwd", "a/../../b", ".", "..", "a/"),
    *(".git/config", "a\x00b", "a\\b", "--x", "plan.json", "source.json", "a" * 300 + ".py"),
)
CODES = (
    "from qiskit import QuantumCircuit\nqc = QuantumCircuit(1)\nqc.measure_all()\n",
    "\x00",
    "\ufeff# bom",
    "#" * 100_000,
    "\N{PILE OF POO}" * 20_000,
)
# Where a value stands in the object, and what may be put there beside anything.
FIELDS: dict[str, tuple[Any, ...]] = {
    "spec.backend": ({"type": "local_simulator"}, {"type": "local_simulator", "x": 1}),
    "spec.backend.type": ("local_simulator", "ibm_quantum", "ibm_simulator", "aws_braket", "x"),
    "spec.backend.name": ("aer_simulator", "aer_simulator_statevector", "ibm_brisbane"),
    "spec.backend.instance": ("crn:v1:bluemix:public:quantum-computing:x",),
    "spec.circuit": ({"source": "inline", "code": CODES[0]}, {"source": "git"}),
    "spec.circuit.source": ("inline", "configmap", "url", "git", "x"),
    "spec.circuit.code": CODES,
    "spec.circuit.configMapRef": ({"name": "the-code", "key": "circuit.py"}, {"name": "none"}),
    "spec.circuit.configMapRef.name": NAMES,
    "spec.circuit.configMapRef.key": ("circuit.py", "plan.json", "..", ".", "a/b", "none"),
    "spec.circuit.url": URLS,
    "spec.circuit.gitRef": ({"repository": REPOSITORIES[0], "path": PATHS[0]},),
    "spec.circuit.gitRef.repository": REPOSITORIES,
    "spec.circuit.gitRef.branch": ("main", "--upload-pack=x", "a..b", "refs/heads/x", "a" * 40),
    "spec.circuit.gitRef.path": PATHS,
    "spec.circuit.sha256": ("0" * 64, "g" * 64, "0" * 63, "A" * 64),
    "spec.circuit.parameters": ({"theta": 0.5}, {f"p{n}": n for n in range(1025)}, {"": 1}),
    "spec.circuit.parameters.theta": NUMBERS,
    "spec.execution": ({},),
    "spec.execution.shots": (1, 10_000_000, 10_000_001, 1.0, "1024"),
    "spec.execution.optimizationLevel": (0, 1, 2, 3, 4),
    "spec.execution.priority": ("low", "normal", "high", "urgent", "asap"),
    "spec.execution.timeout": DURATIONS,
    "spec.execution.maxRetries": (0, 100, 101),
    "spec.execution.seedSimulator": (0, 2**31 - 1),
    "spec.execution.initialLayout": ([0], list(range(4096)), list(range(5000)), [-1], ["0"]),
    "spec.session": ({"name": "s"}, {}),
    "spec.session.name": NAMES,
    "spec.session.maxTime": (1, 28_800, 28_801),
    "spec.session.mode": ("dedicated", "shared"),
    "spec.resources": ({},),
    "spec.resources.requests": ({},),
    "spec.resources.requests.cpu": QUANTITIES,
    "spec.resources.requests.memory": QUANTITIES,
    "spec.resources.limits.cpu": QUANTITIES,
    "spec.resources.limits.memory": QUANTITIES,
    "spec.budget.maxCost": ("$10.00", "10", "$1.234", "-1", "$999999999999.99", "€5"),
    "spec.budget.costCenter": ("quantum-research",),
    "spec.budget.alertThreshold": (0, 0.8, 1, 1.1),
    "spec.output": ({},),
    "spec.output.type": ("configmap", "pvc", "s3", "gcs", "ftp"),
    "spec.output.location": (*NAMES, "s3://bucket/a", "s3://", "gs://bucket/a", "s3:///a"),
    "spec.output.format": ("json", "pickle", "qpy", "csv", "xml"),
    "spec.credentials": ({},),
    "spec.credentials.secretRef.name": NAMES,
    "spec.credentials.gitSecretRef.name": NAMES,
    "spec.backendSelection": ({},),
    "spec.backendSelection.weights.cost": (0, 0.5, 1, 1.1),
    "spec.backendSelection.fallbackToSimulator": (True,),
    "spec.backendSelection.requirements.maxQueueTime": DURATIONS,
    "spec.cancel": (True, False),
    "spec.ttlSecondsAfterFinished": (0, 3600, 2**31 - 1),
    "spec.unknown": (1,),
    "spec": ({},),
    "status": ({"phase": "Completed"}, {"phase": "x"}, {"attempts": [{"number": 1}]}),
    "metadata.labels": ({"app": "x"}, {"a b": "c"}, {"quantum.io/job": "other"}),
    "metadata.annotations": ({"quantum.io/job": "other"}, {"x": "y" * 10_000}),
    "metadata.finalizers": (["example.org/never"],),
    "metadata.generation": (7,),
    "metadata.deletionTimestamp": ("2020-01-01T00:00:00Z",),
    "metadata.name": (*NAMES, "x-2", "x-input"),
}
# What makes a conflict likely: these come together.
PAIRS = (
    ("spec.circuit.source", "spec.circuit.configMapRef"),
    ("spec.circuit.source", "spec.circuit.url"),
    ("spec.circuit.source", "spec.circuit.gitRef"),
    ("spec.output.type", "spec.output.location"),
    ("spec.resources.requests.cpu", "spec.resources.limits.cpu"),
    ("spec.resources.requests.memory", "spec.resources.limits.memory"),
    ("spec.backend.type", "spec.session"),
)


def generated(chance: random.Random, number: int) -> Object:
    """One QiskitJob: a sound one with a few things done to it."""
    made: Object = {
        "apiVersion": "quantum.io/v1",
        "kind": "QiskitJob",
        "metadata": {"name": _name(chance, number), "namespace": NAMESPACE},
        "spec": {
            "backend": {"type": "local_simulator"},
            "circuit": {"source": "inline", "code": CODES[0]},
        },
    }
    if chance.random() < 0.4:
        paths = list(chance.choice(PAIRS))
    else:
        paths = chance.choices(list(FIELDS), k=chance.choice((0, 1, 1, 1, 2, 3)))
    for path in paths:
        # What belongs there more often than what does not, or hardly any would get far.
        values = FIELDS[path] if chance.random() < 0.7 else ANYTHING
        if chance.random() < 0.04:
            _put(made, path, None, remove=True)
        else:
            _put(made, path, copy.deepcopy(chance.choice(values)))
    return made


def _name(chance: random.Random, number: int) -> str:
    """A name that no other has, of every length that is allowed."""
    length = chance.choice((6, 6, 6, 40, 51, 52, 62, 63, 64, 120, 252, 253))
    joint = chance.choice(("-", ".", "x"))
    return f"j{number}{joint}".ljust(length, "z")[:length]


def _put(made: Object, path: str, value: Any, *, remove: bool = False) -> None:
    *folders, last = path.split(".")
    here: Any = made
    for folder in folders:
        if not isinstance(here.get(folder), dict):
            here[folder] = {}
        here = here[folder]
    if remove:
        here.pop(last, None)
    else:
        here[last] = value


# --- the controller and the garbage collector -----------------------------------------------


@attrs.frozen
class Process:
    """A program that has to stay alive."""

    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """It lives."""
        said = self.log.read_text(errors="replace")[-4000:] if self.process.poll() else ""
        assert self.process.poll() is None, f"it has ended with {self.process.returncode}:\n{said}"


@contextlib.contextmanager
def running(log: Path, *command: str | Path) -> Iterator[Process]:
    """A program, with its output in a file."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(each) for each in command],
            stdout=output,
            stderr=output,
            cwd=ROOT,
            preexec_fn=_die_with_parent,
        )
    try:
        yield Process(process, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
async def crd(client: Client) -> None:
    """The CRDs of this tree; the schema is this server's, so without CEL on one that is old."""
    for path in (ROOT / "manifests" / "crd").glob("qiskit*.yaml"):
        with contextlib.suppress(ApiError):  # another test has made it
            await client.create(CRDS, yaml.safe_load(path.read_text()))
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(NotFound):
                await client.list(QISKITJOBS, limit=1)
                break
            await asyncio.sleep(0.2)


@pytest.fixture
def controller(apiserver: ApiServer, tmp_path: Path, crd: None) -> Iterator[Process]:
    """The controller, as its own process."""
    with running(
        tmp_path / "controller.log",
        *(sys.executable, "-m", "qiskit_controller"),
        f"--kubeconfig={apiserver.kubeconfig}",
        "--namespace=default",
        *("--health-port=0", "--metrics-port=0", "--log-format=json", "--workers=16"),
        # Nobody is there to take over, and a busy machine is not what is tested.
        *("--lease-duration=600", "--renew-deadline=500", "--retry-period=5"),
    ) as process:
        yield process


@pytest.fixture
def collector(apiserver: ApiServer, assets: Path, tmp_path: Path) -> Iterator[Process]:
    """Kubernetes' own garbage collector."""
    program = assets / "kube-controller-manager"
    if not program.exists():
        pytest.skip(f"{assets} has no kube-controller-manager, which has the garbage collector")
    with running(
        tmp_path / "collector.log",
        program,
        f"--kubeconfig={apiserver.kubeconfig}",
        "--controllers=garbagecollector",
        *("--leader-elect=false", "--port=0", "--secure-port=0"),
        *("--kube-api-qps=2000", "--kube-api-burst=4000", "--concurrent-gc-syncs=20"),
    ) as process:
        yield process


# --- the test -------------------------------------------------------------------------------


async def test_whatever_is_applied_is_explained_and_leaves_nothing(
    client: Client, controller: Process, collector: Process
) -> None:
    chance = random.Random(SEED)
    print(f"{SPECS} specs from seed {SEED}")
    clock = Clock()
    await client.create(NAMESPACES, {"metadata": {"name": NAMESPACE}})
    await client.create(
        CONFIGMAPS,
        {
            "metadata": {"name": "the-code", "namespace": NAMESPACE},
            "data": {"circuit.py": CODES[0], "plan.json": "{}"},
        },
    )

    jobs = [generated(chance, number) for number in range(SPECS)]
    refusals = [each for each in await at_once(client, jobs, apply) if each is not None]
    clock.lap(f"applied; the API server refused {len(refusals)}:")
    for code, times in collections.Counter(refusals).most_common():
        print(f"  {times:5}  {code}")
    # A refusal is an answer. That the server itself failed would not be.
    assert {code for code in refusals if not 400 <= code < 500} == set()
    accepted = SPECS - len(refusals)
    assert accepted >= SPECS // 4, "the generator is too wild to show anything"

    # Some are changed while the controller is at it.
    changed = chance.sample(jobs, k=SPECS // 8)
    await at_once(client, changed, lambda client, job: change(client, job, chance))
    clock.lap("some of them changed or cancelled")

    found = await eventually(lambda: unexplained(client), "every job is explained", controller)
    clock.lap(f"all {len(found)} explained:")
    for said, times in collections.Counter(map(explanation, found)).most_common():
        print(f"  {times:5}  {said}")
    assert {explanation(each) for each in found} >= {
        "Pending: PodStarted Starting",
        "Failed: InvalidSpec",
        "Cancelled: Cancelled",
    }
    alive = {each["metadata"]["uid"] for each in found}
    for resource in OWNED:
        for each in await everything(client, resource, OURS):
            owner, *others = each["metadata"]["ownerReferences"]
            assert not others
            assert owner["controller"]
            assert owner["uid"] in alive

    await at_once(client, found, delete)
    clock.lap("all deleted")
    await eventually(lambda: leftovers(client), "nothing is left", controller)
    clock.lap("nothing is left")
    controller.check()
    check_log(controller.log)


@attrs.define
class Clock:
    """Prints what has been done and how long it took."""

    since: float = attrs.field(factory=time.monotonic)

    def lap(self, what: str) -> None:
        now = time.monotonic()
        print(f"[{now - self.since:5.1f} s] {what}")
        self.since = now


async def apply(client: Client, job: Object) -> int | None:
    """Create it; the status if it is refused."""
    try:
        await client.create(QISKITJOBS, job, NAMESPACE)
    except ApiError as error:
        return error.status
    return None


async def change(client: Client, job: Object, chance: random.Random) -> None:
    """What a user might do to a job that is there."""
    body = chance.choice(
        (
            {"spec": {"cancel": True}},
            {"spec": {"ttlSecondsAfterFinished": 1}},
            {"spec": {"execution": {"shots": 7}}},
            {"spec": {"circuit": {"code": "x = 1"}}},
            {"metadata": {"labels": {"changed": "yes"}}},
            {"status": {"phase": "Completed"}},
        )
    )
    with contextlib.suppress(ApiError):
        await client.patch(QISKITJOBS, str(job["metadata"].get("name")), NAMESPACE, body)


async def delete(client: Client, job: Object) -> None:
    """Delete it, and take away the finalizers that nobody else will."""
    metadata = job["metadata"]
    foreign = [each for each in metadata.get("finalizers", ()) if "example.org" in each]
    with contextlib.suppress(NotFound):
        await client.delete(QISKITJOBS, metadata["name"], NAMESPACE)
        if foreign:
            kept = [each for each in metadata["finalizers"] if each not in foreign]
            body = {"metadata": {"finalizers": kept}}
            await client.patch(QISKITJOBS, metadata["name"], NAMESPACE, body)


async def at_once(client: Client, items: list[Object], do: Callable[..., Any]) -> list[Any]:
    """Do it to all, some at a time; the results in the same order."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(item: Object) -> Any:
        async with gate:
            return await do(client, item)

    return await asyncio.gather(*map(one, items))


async def everything(client: Client, resource: Resource, selector: str | None = None) -> list[Any]:
    """All objects of a kind in the namespace."""
    found: list[Any] = []
    page = await client.list(resource, NAMESPACE, selector, limit=500)
    found += page["items"]
    while token := page["metadata"].get("continue"):
        page = await client.list(resource, NAMESPACE, selector, limit=500, continue_=token)
        found += page["items"]
    return found


def explanation(job: Object) -> str | None:
    """The phase and the reason that a condition gives for it, if one does."""
    status = job.get("status", {})
    phase = status.get("phase")
    conditions = {each["type"]: each for each in status.get("conditions", ())}
    if not status.get("message"):
        return None
    if phase in ("Failed", "Cancelled"):
        told = conditions.get(phase)
        if not told or told["status"] != "True" or not told["message"]:
            return None
        assert told["reason"] in {*map(str, Reason), "Cancelled"}
        return f"{phase}: {told['reason']}"
    for type_ in ("PodStarted", "Validated"):
        told = conditions.get(type_)
        if phase == "Pending" and told and told["status"] == "False" and told["message"]:
            return f"Pending: {type_} {told['reason']}"
    assert phase in (None, "Pending"), f"without a node it cannot be {phase}"
    return None


async def unexplained(client: Client) -> tuple[list[Object], str]:
    """All jobs, and what is still to be said of one of them."""
    found = await everything(client, QISKITJOBS)
    silent = [each for each in found if explanation(each) is None]
    first = f"; {json.dumps(silent[0])[:2000]}" if silent else ""
    return found, f"{len(silent)} say nothing{first}" if silent else ""


async def leftovers(client: Client) -> tuple[list[Object], str]:
    """Nothing, and what is still there."""
    left = {res.plural: len(await everything(client, res, OURS)) for res in OWNED}
    left[QISKITJOBS.plural] = len(await everything(client, QISKITJOBS))
    return [], ", ".join(f"{number} {name}" for name, number in left.items() if number)


async def eventually(look: Callable[[], Any], what: str, process: Process) -> list[Object]:
    """Look until nothing is wrong any more."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            found, wrong = await look()
        except ConnectionFailed as error:  # the machine is busy with other things
            found, wrong = [], str(error)
        if not wrong:
            return found
        process.check()
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}; {wrong}"
        await asyncio.sleep(1.0)


def check_log(log: Path) -> None:
    """Nothing went wrong that the controller did not expect."""
    text = log.read_text(errors="replace")
    lines = [
        each for each in text.splitlines() if re.search(r"Traceback|\"level\": ?\"(error|cr)", each)
    ]
    assert not lines, "\n".join(lines[:5])
