"""Every store and every format; what becomes of a result when its store fails.

S3 and Google Cloud Storage are servers in the node's network (``tests/stores``), volumes are
folders of this machine. All jobs of this module are submitted at once and looked at one by one:
waiting for each in turn would take a quarter of an hour.
"""

from __future__ import annotations

import base64
import json
import lzma
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.stores.client import Servers, running

from .conftest import NAME
from .harness import (
    BELL,
    ROOT,
    Cluster,
    Kubectl,
    Object,
    condition_of,
    eventually,
    execute,
    phase,
    quantum_job,
    wait_phase,
)

# Takes long; `./hack/test extended` runs it.
pytestmark = pytest.mark.extended

STORES = ("configmap", "pvc", "s3", "gcs")
FORMATS = ("json", "csv", "qpy", "pickle")
BUCKETS = ("s3", "gcs")
EXECUTOR_USER = 65532  # of the pods; a hostPath keeps its owner
# 2^25 outcomes, all alike.
WIDE = """\
from qiskit import QuantumCircuit
qc = QuantumCircuit(25)
qc.h(range(25))
qc.measure_all()
"""
# Builds its circuit only if it sees neither the volume nor the credentials.
CURIOUS = f"""\
import os
for path in ("/quantum/storage", "/quantum/credentials", "/quantum/token"):
    assert not os.path.exists(path), path
{BELL}"""

# Reads a file with the public tool for its format, and prints the counts.
READERS = {
    "json": "import json; counts = json.load(open(path))['counts']",
    "csv": (
        "import csv; rows = csv.DictReader(open(path)); "
        "counts = {row['bitstring']: int(row['count']) for row in rows}"
    ),
    "pickle": "import pickle; counts = pickle.load(open(path, 'rb'))['counts']",
    "qpy": (
        "from qiskit import qpy; a, b = qpy.load(open(path, 'rb')); "
        "assert a.metadata['counts'] == b.metadata['counts']; counts = a.metadata['counts']"
    ),
}


def on_node(*command: str | Path) -> bytes:
    """Run a command where the kubelet's mounts are."""
    status = execute([ROOT / "hack" / "cluster", "status", "--name", NAME]).out
    pid = re.search(r"kubelet +pid (\d+)", status).group(1)  # type: ignore[union-attr]
    enter = ["nsenter", "--target", pid, "--mount", "--"]
    return subprocess.run([*enter, *map(str, command)], capture_output=True, check=True).stdout


def read(content: bytes, output_format: str, folder: Path) -> dict[str, int]:
    """The counts in a result, read where this package cannot be imported."""
    file = folder / "result"
    file.write_bytes(content)
    script = (
        "import json, sys; sys.modules['qiskit_controller'] = None; path = sys.argv[1]\n"
        f"{READERS[output_format]}\nprint(json.dumps(counts))"
    )
    # Debian's own Python has nothing installed; qpy needs qiskit.
    python = [sys.executable] if output_format == "qpy" else ["/usr/bin/python3", "-I", "-S"]
    out = subprocess.run([*python, "-c", script, str(file)], capture_output=True, check=True).stdout
    counts: dict[str, int] = json.loads(out)
    return counts


@attrs.define
class Lab:
    """Namespace, stores and volumes of this module, and the jobs that were submitted."""

    kubectl: Kubectl
    servers: Servers
    volumes: Path
    buckets: dict[str, str] = attrs.field(factory=dict)
    jobs: list[Object] = attrs.field(factory=list)
    mounted: list[Path] = attrs.field(factory=list)

    def add(self, name: str, code: str = BELL, *, shots: int = 1024, **spec: Any) -> None:
        """A job to be submitted with the others."""
        execution = {"shots": shots, **spec.pop("execution", {})}
        self.jobs.append(quantum_job(name, code, execution=execution, **spec))

    def output(self, kind: str, name: str, output_format: str = "json", **more: Any) -> Any:
        """``output`` and ``credentials`` of a spec."""
        if kind in BUCKETS:
            if name not in self.buckets:
                self.buckets[name] = self.servers.bucket(kind)
            location = self.servers.url(kind, self.buckets[name], f"results/{name}")
        else:
            location = "results" if kind == "pvc" else name
        output = {"type": kind, "location": location, "format": output_format, **more}
        if kind not in BUCKETS:
            return {"output": output}
        return {"output": output, "credentials": {"secretRef": {"name": kind}}}

    def claim(self, name: str, tmpfs: str | None = None) -> list[Object]:
        """A volume on the node and a claim for it.

        Args:
            tmpfs: mount options, for a volume of a size of its own.
        """
        folder = self.volumes / name
        folder.mkdir()
        os.chown(folder, EXECUTOR_USER, EXECUTOR_USER)
        if tmpfs:
            owner = f"uid={EXECUTOR_USER},gid={EXECUTOR_USER}"
            on_node("mount", "-t", "tmpfs", "-o", f"{tmpfs},{owner}", "tmpfs", folder)
            self.mounted.append(folder)
        shared = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
        volume = f"{self.kubectl.namespace}-{name}"
        return [
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": volume, "labels": {"test": self.kubectl.namespace}},
                "spec": {
                    **shared,
                    "capacity": {"storage": "1Gi"},
                    "hostPath": {"path": str(folder)},
                    "claimRef": {"namespace": self.kubectl.namespace, "name": name},
                    "persistentVolumeReclaimPolicy": "Retain",
                },
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name},
                "spec": {
                    **shared,
                    "volumeName": volume,
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            },
        ]

    def secret(self, name: str, values: dict[str, str]) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "stringData": values,
        }

    def stored(self, job: Object) -> bytes:
        """What a job has stored, from where its status says."""
        where = job["status"]["resultsLocation"]
        kind, rest = re.fullmatch(r"(configmap|pvc|s3|gs)(?:/|://)(.*)", where).groups()  # type: ignore[union-attr]
        if kind == "configmap":
            found = self.kubectl.one("configmap", rest)
            name = f"results.{job['spec']['output']['format']}"
            if name in found.get("data", {}):
                text: str = found["data"][name]
                return text.encode()
            return base64.b64decode(found["binaryData"][name])
        if kind == "pvc":
            return on_node("cat", self.volumes / rest)
        bucket, _, key = rest.partition("/")
        content = self.servers.get("gcs" if kind == "gs" else "s3", bucket, key)
        assert content is not None, where
        return content

    def executions(self, job: Object) -> int:
        """How often the driver ran the circuit, by the logs of all attempts."""
        selector = f"--selector=quantum.io/job-uid={job['metadata']['uid']}"
        logs = self.kubectl("logs", selector, "--container=executor", "--tail=-1", check=False)
        return logs.count("Executing  on")

    def record(self, job: Object) -> Object | None:
        return self.kubectl.get("configmap", f"qiskit-job-{job['metadata']['name']}-record")

    def wait_reason(self, name: str, reason: str) -> Object:
        """Wait until storing has failed for that reason, in whatever phase the job is."""

        def look() -> Object | None:
            job = self.kubectl.one("qiskitjob", name)
            found = condition_of(job, "ResultsStored")
            said = found is not None and found["status"] == "False" and found["reason"] == reason
            return job if said else None

        return eventually(look, f"QiskitJob {name!r} has ResultsStored={reason}")


@pytest.fixture(scope="module")
def lab(
    module_namespace: Kubectl, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    kubectl = module_namespace
    server = kubectl("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
    # Of the node: reached from here and from pods alike.
    host = re.fullmatch(r"https://(.*):\d+", server.strip()).group(1)  # type: ignore[union-attr]
    prefix = (ROOT / "hack" / "cluster", "exec-netns", "--name", NAME, "--")
    volumes = tmp_path_factory.mktemp("volumes")
    for folder in (volumes, *volumes.parents):
        if folder.stat().st_mode & 0o005 != 0o005 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    with running(prefix, "0.0.0.0", host) as servers:
        made = Lab(kubectl, servers, volumes)
        try:
            _submit(made)
            yield made
        finally:
            kubectl(
                "delete",
                "persistentvolumes",
                f"--selector=test={kubectl.namespace}",
                "--wait=false",
            )
            kubectl("delete", "qiskitjobs", "--all", "--timeout=120s")
            for folder in made.mounted:
                on_node("umount", folder)


def _submit(lab: Lab) -> None:
    """Everything at once: secrets, volumes, faults, jobs."""
    servers = lab.servers
    lab.kubectl.apply(
        lab.secret("s3", servers.secret("s3")),
        lab.secret("gcs", servers.secret("gcs")),
        lab.secret("wrong", servers.secret("s3", wrong=True)),
        # One Secret for both, as the reference has one secretRef.
        lab.secret("ibm-quantum-credentials", {"api-key": "unused here", **servers.secret("s3")}),
        *lab.claim("results"),
        *lab.claim("quantum-results-pvc"),
        *lab.claim("small", "size=256k"),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "somebody-elses"},
            "data": {"precious": "1"},
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "grover-circuit"},
            "data": {"circuit.py": BELL},
        },
    )
    _add_faults(lab)
    for kind in STORES:
        for output_format in FORMATS:
            name = f"{kind}-{output_format}"
            code = CURIOUS if output_format == "json" else BELL
            more = {"path": "team/a"} if name == "pvc-csv" else {}
            lab.add(name, code, **lab.output(kind, name, output_format, **more))
    for kind in ("s3", "pvc"):
        lab.add(f"wide-{kind}", WIDE, shots=100_000, **lab.output(kind, f"wide-{kind}"), **_MEMORY)
    _add_examples(lab)
    lab.kubectl.create(lab.jobs)


# 2^25 amplitudes take half a gigabyte.
_MEMORY: dict[str, Any] = {"resources": {"limits": {"memory": "2Gi"}}}


def _add_faults(lab: Lab) -> None:
    servers = lab.servers

    # For those that are mended by a test, however long it takes until its turn comes.
    patient: dict[str, Any] = {"execution": {"maxRetries": 10}}

    def faulty(name: str, kind: str, do: str, **more: Any) -> None:
        lab.add(name, **lab.output(kind, name), **patient)
        servers.order(lab.buckets[name], do, **more)

    faulty("s3-down", "s3", "drop", methods=["PUT"])
    faulty("gcs-busy", "gcs", "503", methods=["POST"], times=3)
    faulty("gcs-down", "gcs", "503", methods=["POST"])
    lab.add("bucket-gone", execution={"maxRetries": 1}, **lab.output("s3", "bucket-gone", "csv"))
    servers.order(lab.buckets["bucket-gone"], "remove", methods=["PUT"], times=1)
    lab.buckets["bucket-missing"] = servers.bucket("s3", make=False)
    lab.add("bucket-missing", **lab.output("s3", "bucket-missing"), **patient)
    wrong = lab.output("s3", "wrong-keys") | {"credentials": {"secretRef": {"name": "wrong"}}}
    lab.add("wrong-keys", execution={"maxRetries": 1}, **wrong)
    taken = lab.output("s3", "taken")
    servers.put("s3", lab.buckets["taken"], "results/taken/results.json", b"mine")
    lab.add("taken", **taken)
    full = lab.output("pvc", "pvc-full")
    full["output"]["location"] = "small"
    lab.add("pvc-full", WIDE, shots=20_000, **full, **_MEMORY, **patient)
    missing = lab.output("pvc", "pvc-missing")
    missing["output"]["location"] = "later"
    lab.add("pvc-missing", **missing)
    lab.add("too-large", WIDE, shots=50_000, **lab.output("configmap", "too-large"), **_MEMORY)
    lab.add(
        "known-too-large",
        shots=300_000,
        **lab.output("configmap", "known-too-large", memory=True),
    )
    lab.add("not-mine", **lab.output("configmap", "somebody-elses"))


def _add_examples(lab: Lab) -> None:
    """The reference's examples that name s3 or pvc. Their backends and the Git repository are
    other issues' and other people's; the rest is as it is there, but the bucket's name."""
    bucket = lab.buckets["examples"] = lab.servers.bucket("s3")
    lab.add(
        "job-123",
        output={"type": "s3", "location": f"s3://{bucket}/results/job-123", "format": "pickle"},
        credentials={"secretRef": {"name": "s3"}},
    )
    circuit = {
        "source": "configmap",
        "configMapRef": {"name": "grover-circuit", "key": "circuit.py"},
    }
    lab.add(
        "hardware-job",
        shots=8192,
        circuit=circuit,
        execution={"optimizationLevel": 3, "priority": "high"},
        budget={"maxCost": "$100.00", "costCenter": "quantum-research"},
        credentials={"secretRef": {"name": "ibm-quantum-credentials"}},
        output={
            "type": "s3",
            "location": f"s3://{bucket}/production/hardware-job",
            "format": "json",
        },
    )
    lab.add(
        "vqe-optimization",
        shots=4096,
        execution={"optimizationLevel": 3},
        budget={
            "maxCost": "$50.00",
            "costCenter": "chemistry-research",
            "project": "drug-discovery",
        },
        credentials={"secretRef": {"name": "ibm-quantum-credentials"}},
        output={"type": "pvc", "location": "quantum-results-pvc", "format": "pickle"},
    )


# --- faults that a person mends -----------------------------------------------------------------


def _check(lab: Lab, job: Object, folder: Path) -> None:
    """A completed job's result is where it says, and says what the status says."""
    status, results = job["status"], job["status"]["results"]
    content = lab.stored(job)
    assert len(content) == results["size"]
    counts = read(content, job["spec"]["output"]["format"], folder)
    assert counts == results["counts"]
    assert sum(counts.values()) == job["spec"]["execution"]["shots"]
    stored = condition_of(job, "ResultsStored")
    assert stored is not None
    assert stored["status"] == "True"
    assert status["resultsLocation"] in stored["message"]
    assert results["sha256"] in stored["message"]


def _waits_with_counts(job: Object) -> None:
    """The circuit has run, its counts are there, only storing is left."""
    assert phase(job) == "Running"
    assert sum(job["status"]["results"]["counts"].values()) == 1024
    assert "resultsLocation" not in job["status"]


@pytest.mark.parametrize(("name", "kind"), [("s3-down", "s3"), ("gcs-down", "gcs")])
def test_a_store_is_down_at_storing_time(lab: Lab, name: str, kind: str, tmp_path: Path) -> None:
    job = lab.wait_reason(name, "OutputUnavailable")
    _waits_with_counts(job)
    lab.servers.end(lab.buckets[name])
    job = wait_phase(lab.kubectl, name, "Completed")
    _check(lab, job, tmp_path)
    assert len(job["status"]["attempts"]) > 1
    assert lab.executions(job) == 1


def test_a_bucket_that_is_made_later(lab: Lab, tmp_path: Path) -> None:
    job = lab.wait_reason("bucket-missing", "OutputNotFound")
    assert "results" not in job["status"]
    lab.servers.make("s3", lab.buckets["bucket-missing"])
    job = wait_phase(lab.kubectl, "bucket-missing", "Completed")
    _check(lab, job, tmp_path)
    assert lab.executions(job) == 1


def test_a_full_volume(lab: Lab, tmp_path: Path) -> None:
    job = lab.wait_reason("pvc-full", "OutputFull")
    assert phase(job) == "Running"
    assert job["status"]["results"]["countsTruncated"] is True
    on_node("mount", "-o", "remount,size=64m", lab.volumes / "small")
    job = wait_phase(lab.kubectl, "pvc-full", "Completed")
    assert sum(read(lab.stored(job), "json", tmp_path).values()) == 20_000
    assert lab.executions(job) == 1


def test_a_claim_that_comes_later(lab: Lab, tmp_path: Path) -> None:
    def named() -> Object | None:
        job = lab.kubectl.one("qiskitjob", "pvc-missing")
        started = condition_of(job, "PodStarted") or {"message": ""}
        return job if 'persistentvolumeclaim "later" not found' in started["message"] else None

    assert phase(eventually(named, "the missing claim is named")) == "Pending"
    lab.kubectl.apply(*lab.claim("later"))
    job = wait_phase(lab.kubectl, "pvc-missing", "Completed")
    _check(lab, job, tmp_path)
    assert lab.executions(job) == 1


# --- every store, every format ----------------------------------------------------------------


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("kind", STORES)
def test_every_store_and_format(lab: Lab, kind: str, output_format: str, tmp_path: Path) -> None:
    job = wait_phase(lab.kubectl, f"{kind}-{output_format}", "Completed")
    assert set(job["status"]["results"]["counts"]) == {"00", "11"}
    _check(lab, job, tmp_path)
    assert len(job["status"]["attempts"]) == lab.executions(job) == 1
    assert lab.record(job) is None, "nothing is kept that is stored"


@pytest.mark.parametrize("kind", ["s3", "pvc"])
def test_a_wide_result_is_stored_whole(lab: Lab, kind: str, tmp_path: Path) -> None:
    job = wait_phase(lab.kubectl, f"wide-{kind}", "Completed")
    results = job["status"]["results"]
    counts = read(lab.stored(job), "json", tmp_path)
    assert sum(counts.values()) == 100_000
    assert len(counts) == results["outcomes"] > 99_000
    assert results["countsTruncated"] is True
    assert 50 < len(results["counts"]) < 200
    assert min(results["counts"].values()) >= 1
    assert {k: counts[k] for k in results["counts"]} == results["counts"]
    most = max(counts.values())
    assert max(results["counts"].values()) == most


@pytest.mark.parametrize("name", ["job-123", "hardware-job", "vqe-optimization"])
def test_the_examples_of_the_reference(lab: Lab, name: str, tmp_path: Path) -> None:
    _check(lab, wait_phase(lab.kubectl, name, "Completed"), tmp_path)


# --- faults that stay -------------------------------------------------------------------------


def test_gcs_answers_503_a_few_times(lab: Lab, tmp_path: Path) -> None:
    job = wait_phase(lab.kubectl, "gcs-busy", "Completed")
    _check(lab, job, tmp_path)
    assert len(job["status"]["attempts"]) == lab.executions(job) == 1


def test_wrong_keys(lab: Lab) -> None:
    job = wait_phase(lab.kubectl, "wrong-keys", "Failed")
    assert job["status"]["message"].startswith("OutputDenied: ")
    assert "spec.credentials.secretRef" in job["status"]["message"]
    assert len(job["status"]["attempts"]) == 2
    assert lab.executions(job) == 0, "nothing is run that could not be stored"
    secret = lab.servers.secret("s3", wrong=True)
    assert secret["secret-access-key"] not in json.dumps(job)


def test_a_bucket_that_goes_half_way(lab: Lab, tmp_path: Path) -> None:
    """Nobody makes it again: the job fails, but what came back is not lost."""
    job = wait_phase(lab.kubectl, "bucket-gone", "Failed")
    assert job["status"]["message"].startswith("OutputNotFound: ")
    assert len(job["status"]["attempts"]) == 2
    assert lab.executions(job) == 1
    counts = job["status"]["results"]["counts"]
    assert sum(counts.values()) == 1024
    record = lab.record(job)
    assert record is not None
    kept = lzma.decompress(base64.b64decode(record["binaryData"]["result-1"]))
    assert read(kept, "csv", tmp_path) == counts


def test_an_object_of_somebody_else(lab: Lab) -> None:
    job = wait_phase(lab.kubectl, "taken", "Failed")
    assert job["status"]["message"].startswith("OutputConflict: ")
    assert len(job["status"]["attempts"]) == 1
    assert lab.executions(job) == 0
    assert lab.servers.get("s3", lab.buckets["taken"], "results/taken/results.json") == b"mine"


def test_a_result_that_is_too_large_for_a_config_map(lab: Lab, tmp_path: Path) -> None:
    job = wait_phase(lab.kubectl, "too-large", "Failed")
    assert job["status"]["message"].startswith("OutputTooLarge: ")
    assert "spec.output.type" in job["status"]["message"]
    results = job["status"]["results"]
    assert results["countsTruncated"] is True
    assert len(results["counts"]) > 50
    assert lab.executions(job) == 1
    record = lab.record(job)
    assert record is not None
    kept = lzma.decompress(base64.b64decode(record["binaryData"]["result-1"]))
    assert sum(read(kept, "json", tmp_path).values()) == 50_000


def test_a_result_that_is_known_to_be_too_large(lab: Lab) -> None:
    job = wait_phase(lab.kubectl, "known-too-large", "Failed")
    assert job["status"]["message"].startswith("OutputTooLarge: ")
    assert lab.executions(job) == 0


def test_a_config_map_of_somebody_else(lab: Lab) -> None:
    job = wait_phase(lab.kubectl, "not-mine", "Failed")
    assert job["status"]["message"].startswith("OutputConflict: ")
    assert lab.kubectl.one("configmap", "somebody-elses")["data"] == {"precious": "1"}
    assert lab.executions(job) == 0
