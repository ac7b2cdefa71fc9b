"""One cluster for the session, a namespace for each test, and a full account of failures.

The cluster is ``hack/cluster``'s, called ``e2e`` or ``$QISKIT_CLUSTER``. One that is up already
is used and left up; one that had to be brought up is taken down at the end, also when tests
fail, unless ``QISKIT_E2E_KEEP=1``. While a test is being written, ``QISKIT_E2E_DEPLOYED=1`` takes
the cluster and what is deployed there as they are.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from .harness import (
    ROOT,
    SYSTEM,
    Cluster,
    Controller,
    Kubectl,
    Object,
    execute,
    phase,
)

NAME = os.environ.get("QISKIT_CLUSTER", "e2e")
KEEP = os.environ.get("QISKIT_E2E_KEEP") == "1"
DEPLOYED = os.environ.get("QISKIT_E2E_DEPLOYED") == "1"
SLOW = os.environ.get("QISKIT_E2E_SLOW") == "1"
IMAGES = ("controller", "runner")
# Of all that is shown of one object when a test fails.
SHOWN_LINES = 120
SHOWN_JOBS = 4


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known."""
    config.addinivalue_line("markers", "slow: takes minutes; only with QISKIT_E2E_SLOW=1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing may hang, and slow tests are for those who ask for them."""
    for item in items:
        # The first test waits for the cluster and its images, which may have to be built.
        item.add_marker(pytest.mark.timeout(600, func_only=True))
        if item.get_closest_marker("slow") and not SLOW:
            item.add_marker(pytest.mark.skip(reason="slow; set QISKIT_E2E_SLOW=1"))


# --- the cluster ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with the controller of this tree deployed and ready."""
    was_up = _hack_cluster("status", check=False) == 0
    try:
        _hack_cluster("up")
        made = Cluster(Kubectl(_environment(tmp_path_factory.mktemp("kubectl"))))
        if not DEPLOYED:
            for image in IMAGES:
                _hack_cluster("build", image, named=False)
                _hack_cluster("load", f"localhost/qiskit-{image}:dev")
            _deploy(made, fresh=not was_up)
        yield made
    finally:
        if not was_up and not KEEP:
            _hack_cluster("down")


def _hack_cluster(*arguments: str, named: bool = True, check: bool = True) -> int:
    name = ["--name", NAME] if named else []
    command = [ROOT / "hack" / "cluster", arguments[0], *name, *arguments[1:]]
    output = execute(command, check=check, seconds=1800)
    print(output.text, end="")
    return output.code


def _environment(cache: Path) -> dict[str, str]:
    """What ``eval "$(hack/cluster env)"`` sets, and a discovery cache of our own."""
    script = f'eval "$({shlex.quote(str(ROOT / "hack" / "cluster"))} env --name {NAME})" && env -0'
    text = execute(["bash", "-c", script]).out
    found = dict(each.split("=", 1) for each in text.split("\0") if "=" in each)
    return {
        "KUBECONFIG": found["KUBECONFIG"],
        "PATH": found["PATH"],
        # Of a cluster that had the same address, it would hold what no longer is.
        "KUBECACHEDIR": str(cache),
    }


def _deploy(cluster: Cluster, *, fresh: bool) -> None:
    kubectl = cluster.kubectl
    kubectl("apply", "-k", ROOT / "e2e" / "deployment")
    kinds = ("qiskitjobs", "qiskitbackends", "qiskitbudgets", "qiskitsessions")
    crds = [f"crd/{kind}.quantum.io" for kind in kinds]
    kubectl("wait", "--for=condition=Established", *crds, "--timeout=60s")
    if not fresh:
        # Images keep their name, so a deployment that was there does not notice a new one.
        kubectl.within(SYSTEM)("rollout", "restart", Controller.DEPLOYMENT)
    cluster.controller.wait_ready()
    cluster.controller.wait_leader()


@pytest.fixture(scope="session")
def kubectl(cluster: Cluster) -> Kubectl:
    """kubectl in the namespace ``default``."""
    return cluster.kubectl


@pytest.fixture(scope="session")
def controller(cluster: Cluster) -> Controller:
    """The deployed controller."""
    return cluster.controller


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """kubectl in a namespace of the test's own."""
    hint = re.sub("[^a-z0-9]+", "-", request.node.name.lower().removeprefix("test_"))
    with cluster.namespace(hint) as made:
        yield made


@pytest.fixture(scope="module")
def module_namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """kubectl in a namespace that the tests of a module share."""
    with cluster.namespace(request.node.path.stem.removeprefix("test_")) as made:
        yield made


# --- when a test fails ----------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a failure what an operator would look at."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if not report.failed or not isinstance(cluster, Cluster):
        return report
    # Whatever is wrong with the cluster now, the failure itself has to be seen.
    try:
        for namespace in (*cluster.watched, "default"):
            account = _account(cluster.kubectl.within(namespace), report.longreprtext)
            if account:
                report.sections.append((f"namespace {namespace}", account))
        report.sections.append(("controller", _controller_account(cluster)))
    except (AssertionError, OSError, subprocess.SubprocessError, ValueError) as error:
        report.sections.append(("no account of it", str(error)))
    return report


def _controller_account(cluster: Cluster) -> str:
    system = cluster.kubectl.within(SYSTEM)
    parts = [system.run("get", "pods", "-o", "wide", check=False).text]
    for pod in cluster.controller.pods():
        name = pod["metadata"]["name"]
        parts.append(f"--- {name}\n{_tail(system.run('logs', name, check=False).text)}")
        if any(each["restartCount"] for each in pod["status"].get("containerStatuses", ())):
            before = system.run("logs", name, "--previous", check=False).text
            parts.append(f"--- {name}, before its restart\n{_tail(before)}")
    return "\n".join(parts)


def _account(kubectl: Kubectl, failure: str) -> str:
    """The QiskitJobs that a failure is about, their Events and logs."""
    jobs = kubectl.list("qiskitjobs")
    named = [job for job in jobs if repr(job["metadata"]["name"]) in failure]
    unfinished = [job for job in jobs if phase(job) not in ("Completed", "Cancelled")]
    about = (named or unfinished)[:SHOWN_JOBS]
    if not about:
        return ""
    shown = [kubectl.run("get", "qiskitjobs", "-o", "wide", check=False).text]
    shown.append(_tail(kubectl.run("get", "events", "--sort-by=.lastTimestamp").text))
    return "\n".join(shown + [_story(kubectl, job) for job in about])


def _story(kubectl: Kubectl, job: Object) -> str:
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    selector = f"--selector=quantum.io/job-uid={uid}"
    parts = [f"--- QiskitJob {name}"]
    for arguments in (
        ("get", "qiskitjob", name, "-o", "yaml"),
        ("get", "jobs,pods", selector, "-o", "wide"),
        ("logs", selector, "--all-containers", "--prefix", "--tail=60"),
    ):
        parts.append(_tail(kubectl.run(*arguments, check=False).text))
    return "\n".join(parts)


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-SHOWN_LINES:])
