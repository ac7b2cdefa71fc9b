from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from qiskit_controller.api.crd import CRDS as CRDS_MADE
from qiskit_controller.api.crd import without_cel
from qiskit_controller.kube.client import (
    AlreadyExists,
    ApiError,
    Client,
    Resource,
)
from qiskit_controller.reconcilers.qiskitbackend.reconciler import QISKITBACKENDS
from qiskit_controller.reconcilers.qiskitbudget.ledger import QISKITBUDGETS
from qiskit_controller.reconcilers.qiskitjob import decision
from qiskit_controller.reconcilers.qiskitjob.reconciler import QISKITJOBS
from qiskit_controller.reconcilers.qiskitjob.sessions import QISKITSESSIONS
from tests.kinds import CRDS, PRIORITY_CLASSES

from .cluster import Cluster, Replica, Watcher

ROOT = Path(__file__).parents[3]


async def _ensure(client: Client, resource: Resource, obj: dict[str, object]) -> None:
    with contextlib.suppress(AlreadyExists):
        await client.create(resource, obj)


@pytest.fixture
async def installed(client: Client) -> Client:
    """The CRDs as servers before 1.25 get them, and the priority classes."""
    for make in CRDS_MADE:
        crd = make()
        for operation in without_cel(crd):
            *parents, last = operation["path"].removeprefix("/").split("/")
            node: object = crd
            for part in parents:
                node = node[int(part)] if isinstance(node, list) else node[part]  # type: ignore[index]
            del node[last]  # type: ignore[attr-defined]
        await _ensure(client, CRDS, crd)
    manifest = ROOT / "manifests" / "manager" / "priority_classes.yaml"
    for each in yaml.safe_load_all(manifest.read_text()):
        await _ensure(client, PRIORITY_CLASSES, each)
    for _ in range(200):  # A few tries is what it takes.
        try:
            for each in (QISKITJOBS, QISKITBACKENDS, QISKITBUDGETS, QISKITSESSIONS):
                await client.list(each, limit=1)
            break
        except ApiError:
            continue
    return client


@pytest.fixture
async def cluster(installed: Client, namespace: str) -> AsyncIterator[Cluster]:
    """The Job controller, the kubelet and the garbage collector of the test's namespace."""
    async with Cluster(installed, namespace) as cluster:
        yield cluster


@pytest.fixture
async def replica(cluster: Cluster) -> AsyncIterator[Replica]:
    """A controller that works."""
    async with Replica(cluster.client, cluster.namespace) as replica:
        yield replica


@pytest.fixture
async def watcher(cluster: Cluster) -> AsyncIterator[Watcher]:
    """What kubectl get -w would show."""
    async with Watcher(cluster.client, cluster.namespace) as watcher:
        yield watcher


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt follows at once; how long it waits is tested elsewhere."""
    monkeypatch.setattr(decision, "RETRY_BASE", decision.RETRY_BASE / 1000)
