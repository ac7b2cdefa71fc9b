"""kubectl and waiting, for the tests beside this file.

Everything goes through kubectl, because that is what users have. Nothing here sleeps for a
fixed time or asserts on one: conditions are polled with generous deadlines, because two cores
may be shared with anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import attrs

T = TypeVar("T")
Object = dict[str, Any]

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "manifests" / "samples"
SYSTEM = "qiskit-operator-system"
FINISHED = ("Completed", "Failed", "Cancelled")
PHASES = ("Pending", "Validating", "Scheduling", "Running", *FINISHED)
# Kubernetes' own names of what the controller makes for a QiskitJob.
OWNED_KINDS = "jobs,pods,configmaps,serviceaccounts,roles,rolebindings"
# One job on an idle machine takes five seconds; everything else is the machine's business.
PATIENCE = 240.0

BELL = """\
from qiskit import QuantumCircuit
qc = QuantumCircuit(2, 2)
qc.h(0)
qc.cx(0, 1)
qc.measure([0, 1], [0, 1])
"""
# Ten million shots, none of which can be taken from the same final state: runs for minutes.
ENDLESS_SHOTS = 10_000_000
ENDLESS = """\
from qiskit import QuantumCircuit
qc = QuantumCircuit(4, 4)
for _ in range(20):
    qc.h(range(4))
    qc.measure(range(4), range(4))
"""


class CommandFailed(AssertionError):
    """A command that had to succeed did not."""


@attrs.frozen
class Output:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams, as a terminal would show them."""
        return self.out + self.err


def execute(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    check: bool = True,
    seconds: float = 300.0,
) -> Output:
    """Run a command.

    Raises:
        CommandFailed: it ended with another code than 0, and `check` is given.
        subprocess.TimeoutExpired: it took longer than `seconds`.
    """
    done = subprocess.run(
        [str(each) for each in command],
        input=stdin,
        env=None if env is None else {**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    output = Output(done.returncode, done.stdout, done.stderr)
    if check and output.code != 0:
        shown = " ".join(str(each) for each in command)
        raise CommandFailed(f"{shown}\nended with {output.code}:\n{output.text}")
    return output


def eventually(
    ask: Callable[[], T | None], what: str, *, seconds: float = PATIENCE, every: float = 0.5
) -> T:
    """Ask until the answer is true, and return it.

    Raises:
        AssertionError: `seconds` are over; it names `what`.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}; last: {answer!r}")
        time.sleep(every)


@attrs.frozen
class Kubectl:
    """The pinned kubectl of ``hack/cluster env``, in one namespace.

    Attributes:
        env: beside this process's own environment: KUBECONFIG and a PATH with kubectl.
    """

    env: Mapping[str, str]
    namespace: str = "default"

    def within(self, namespace: str) -> Kubectl:
        """The same in another namespace."""
        return attrs.evolve(self, namespace=namespace)

    def run(self, *arguments: str | Path, **how: Any) -> Output:
        """Run kubectl; the keywords are those of :func:`execute`."""
        return execute(self._command(arguments), env=self.env, **how)

    def __call__(self, *arguments: str | Path, **how: Any) -> str:
        """What kubectl prints to standard output."""
        return self.run(*arguments, **how).out

    def shell(self, line: str, **how: Any) -> Output:
        """Run a line as a user would type it, with this namespace as the current one."""
        return execute(["bash", "-c", f"set -o pipefail; {line}"], env=self.env, **how)

    def get(self, kind: str, name: str) -> Object | None:
        """An object, or None when there is none of that name."""
        text = self("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def one(self, kind: str, name: str) -> Object:
        """An object that has to exist."""
        found = self.get(kind, name)
        assert found is not None, f"there is no {kind} {name!r} in {self.namespace!r}"
        return found

    def list(self, kind: str, *arguments: str) -> list[Object]:
        """All objects of a kind in the namespace."""
        items: list[Object] = json.loads(self("get", kind, "-o", "json", *arguments))["items"]
        return items

    def names(self, kinds: str) -> set[str]:
        """``kind/name`` of everything of these kinds in the namespace."""
        return set(self("get", kinds, "-o", "name").split())

    def apply(self, *objects: Object) -> Output:
        """``kubectl apply`` of objects."""
        return self.run("apply", "-f", "-", stdin=as_list(objects))

    def create(self, objects: Iterable[Object]) -> list[Object]:
        """``kubectl create`` of objects, in one go; returns them as the server made them."""
        text = self("create", "-f", "-", "-o", "json", stdin=as_list(objects)).strip()
        made: list[Object] = []
        while text:  # one document after the other
            one, end = json.JSONDecoder().raw_decode(text)
            made.append(one)
            text = text[end:].lstrip()
        return made

    def allows(self, account: str, verb: str, *what: str) -> bool:
        """Whether a service account, ``namespace:name``, may do something here."""
        user = f"--as=system:serviceaccount:{account}"
        return self("auth", "can-i", verb, *what, user, check=False).strip() == "yes"

    def watch(self, *arguments: str) -> Watch:
        """``kubectl get ... --watch`` in the background."""
        return Watch(self._command(("get", "--watch", *arguments)), self.env)

    @contextlib.contextmanager
    def port_forward(self, target: str, port: int) -> Iterator[int]:
        """``kubectl port-forward`` to a port of a pod or service, from a free local one."""
        watch = Watch(self._command(("port-forward", target, f":{port}")), self.env)
        with watch:
            line = eventually(
                lambda: watch.find(r"Forwarding from 127\.0\.0\.1:(\d+)"), f"a way to {target}"
            )
            yield int(line[1])

    def _command(self, arguments: Sequence[str | Path]) -> list[str]:
        # kubectl refuses objects of another namespace than the one it is told, even "default".
        where = ["--namespace", self.namespace] if self.namespace != "default" else []
        return ["kubectl", *where, *(str(each) for each in arguments)]


class Watch:
    """A command that goes on printing lines, and the lines so far."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def find(self, pattern: str) -> re.Match[str] | None:
        """The first line that the pattern is found in."""
        return next((hit for line in list(self.lines) if (hit := re.search(pattern, line))), None)

    def stop(self) -> list[str]:
        """End the command; what it printed."""
        self._process.terminate()
        self._process.wait(10)
        self._reader.join(10)
        return self.lines

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))


@attrs.define
class Cluster:
    """The cluster under test.

    Attributes:
        kubectl: in the namespace ``default``.
        watched: namespaces of tests under way, to be shown when one of them fails.
    """

    kubectl: Kubectl
    watched: list[str] = attrs.field(factory=list)

    @contextlib.contextmanager
    def namespace(self, hint: str) -> Iterator[Kubectl]:
        """A namespace of its own; deleted afterwards, without waiting for it."""
        name = f"{hint.replace('_', '-')[:40].strip('-')}-{uuid.uuid4().hex[:6]}"
        self.kubectl("create", "namespace", name)
        self.watched.append(name)
        inside = self.kubectl.within(name)
        # Pods need it, and it comes a moment later.
        eventually(lambda: inside.get("serviceaccount", "default"), f"namespace {name}")
        try:
            yield inside
        finally:
            self.watched.remove(name)
            self.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")

    @property
    def controller(self) -> Controller:
        """The deployed controller."""
        return Controller(self.kubectl.within(SYSTEM))


@attrs.frozen
class Controller:
    """The controller's Deployment; `kubectl` is in its namespace."""

    kubectl: Kubectl

    NAME = "qiskit-controller"
    DEPLOYMENT = f"deployment/{NAME}"

    def pods(self) -> list[Object]:
        """Its pods, without those that are on their way out."""
        pods = self.kubectl.list("pods", f"--selector=app.kubernetes.io/name={self.NAME}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def ready(self) -> bool:
        """Whether both replicas are Ready and alone."""
        pods = self.kubectl.list("pods", f"--selector=app.kubernetes.io/name={self.NAME}")
        return len(pods) == 2 and all(condition(pod, "Ready") == "True" for pod in pods)

    def wait_ready(self) -> None:
        """Wait for the rollout and for the end of old pods."""
        self.kubectl("rollout", "status", self.DEPLOYMENT, "--timeout=240s")
        eventually(self.ready, "both replicas of the controller are Ready and alone")

    def restarts(self) -> dict[str, int]:
        """How often each pod's container was restarted."""
        return {
            pod["metadata"]["name"]: sum(
                each["restartCount"] for each in pod["status"].get("containerStatuses", ())
            )
            for pod in self.pods()
        }

    def leader(self) -> str | None:
        """The pod that holds the lease, if one does that exists."""
        lease = self.kubectl.get("lease", self.NAME)
        holder = ((lease or {}).get("spec", {}).get("holderIdentity") or "").partition("_")[0]
        return holder if any(pod["metadata"]["name"] == holder for pod in self.pods()) else None

    def wait_leader(self) -> str:
        """The leading pod."""
        return eventually(self.leader, "the controller has a leader")

    def watch_lease(self) -> Watch:
        """Every state of the lease from now on; see :func:`takeovers`."""
        fields = ".object.spec.holderIdentity .object.spec.acquireTime .object.spec.renewTime"
        columns = "|".join(f"{{{each}}}" for each in fields.split())
        watch = self.kubectl.watch(
            "lease", self.NAME, "--output-watch-events", "-o", f'jsonpath={columns}{{"\\n"}}'
        )
        eventually(lambda: watch.lines, "the lease is watched")
        return watch


@attrs.frozen
class Takeover:
    """One change of leaders. `released`: the old one gave the lease back."""

    old: str
    new: str
    released: bool
    seconds: float  # from the release, else from the last renewal, to the new leader's acquiring


def takeovers(lines: Iterable[str]) -> list[Takeover]:
    """The changes of leaders in what :meth:`Controller.watch_lease` saw."""
    found = []
    old, since, released = "", None, False
    for line in lines:
        holder, acquired, renewed = line.split("|")
        pod = holder.partition("_")[0]
        if holder and old and holder != old and since is not None:
            gap = (_time(acquired) - since).total_seconds()
            found.append(Takeover(old.partition("_")[0], pod, released, gap))
        old = holder or old
        since, released = _time(renewed), not holder
    return found


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def as_list(objects: Iterable[Object]) -> str:
    """Objects as one document for kubectl."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})


def quantum_job(name: str, code: str = BELL, **spec: Any) -> Object:
    """A QiskitJob for the local simulator with inline code; `spec` is laid over its spec."""
    return {
        "apiVersion": "quantum.io/v1",
        "kind": "QiskitJob",
        "metadata": {"name": name},
        "spec": {
            "backend": {"type": "local_simulator"},
            "circuit": {"source": "inline", "code": code},
            **spec,
        },
    }


def endless_job(name: str) -> Object:
    """A QiskitJob that stays in the phase Running for longer than any test.

    It takes one CPU at most, so that there is something left for the others.
    """
    return quantum_job(
        name,
        ENDLESS,
        execution={"shots": ENDLESS_SHOTS},
        resources={"limits": {"cpu": "1"}},
    )


def cancel(kubectl: Kubectl, name: str) -> None:
    """Cancel a QiskitJob as users do."""
    kubectl("patch", "qiskitjob", name, "--type=merge", "-p", '{"spec":{"cancel":true}}')


def phase(job: Object | None) -> str:
    """The phase of a QiskitJob; "" before it has one."""
    return (job or {}).get("status", {}).get("phase") or ""


def condition(obj: Object, type_: str) -> str | None:
    """The status of a condition, or None when it is not there."""
    found = condition_of(obj, type_)
    return found and found["status"]


def condition_of(obj: Object, type_: str) -> Object | None:
    """The condition of that type."""
    conditions = obj.get("status", {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] == type_), None)


def wait_phase(kubectl: Kubectl, name: str, wanted: str, seconds: float = PATIENCE) -> Object:
    """Wait until a QiskitJob is in a phase; at once a failure if it ends in another."""

    def look() -> Object | None:
        job = kubectl.one("qiskitjob", name)
        now = phase(job)
        assert now == wanted or now not in FINISHED, (
            f"QiskitJob {name!r} is {now}, not {wanted}: {job['status'].get('message')}"
        )
        return job if now == wanted else None

    return eventually(look, f"QiskitJob {name!r} is {wanted}", seconds=seconds)


def wait_finished(
    kubectl: Kubectl, seconds: float = PATIENCE, every: float = 1.0
) -> dict[str, Object]:
    """Wait until all QiskitJobs of the namespace have finished, and return them by name."""

    def look() -> dict[str, Object] | None:
        jobs = {job["metadata"]["name"]: job for job in kubectl.list("qiskitjobs")}
        return jobs if all(phase(job) in FINISHED for job in jobs.values()) else None

    return eventually(look, "all QiskitJobs have finished", seconds=seconds, every=every)


def counts_of(kubectl: Kubectl, results: str) -> dict[str, int]:
    """The counts in a ConfigMap of results."""
    counts: dict[str, int] = json.loads(
        kubectl("get", "configmap", results, "-o", "jsonpath={.data.counts}")
    )
    return counts


def events_of(kubectl: Kubectl, name: str) -> list[Object]:
    """The Events about a QiskitJob, oldest first."""
    selector = f"--field-selector=involvedObject.kind=QiskitJob,involvedObject.name={name}"
    found = kubectl.list("events", selector)
    return sorted(found, key=lambda each: (each["firstTimestamp"], each["metadata"]["name"]))


def container_pids(container_id: str) -> list[int]:
    """Processes on this machine that are the first of the container with that id.

    The cluster's containers run on this machine, in process namespaces of their own; the
    kernel's control groups tell which is whose.
    """
    bare = container_id.rpartition("/")[2]
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            status = (folder / "status").read_text()
            first = re.search(r"^NSpid:.*\s1$", status, re.MULTILINE)
            if first and bare in (folder / "cgroup").read_text():
                found.append(int(folder.name))
    return found
