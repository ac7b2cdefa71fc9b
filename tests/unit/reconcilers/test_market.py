"""Which QiskitBackends a job may be given to, and what its record adds to them."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from qiskit_controller.api.codec import to_wire
from qiskit_controller.api.qiskitbackend import DeviceStatus
from qiskit_controller.api.run import (
    ASSIGNMENT_KEY,
    DEVICES_KEY,
    Assignment,
    JobIdentity,
    Plan,
    PlannedSource,
)
from qiskit_controller.reconcilers.qiskitbudget.ledger import Ledger
from qiskit_controller.reconcilers.qiskitjob.market import Chosen, Selecting
from qiskit_controller.scheduling.prices import Tariff, shipped

from .support import spec

Object = dict[str, Any]


class Cache:
    def __init__(self, *objects: Object) -> None:
        self.objects = list(objects)

    def list(self, namespace: str | None = None) -> list[Object]:
        return [each for each in self.objects if each["metadata"]["namespace"] == namespace]


class Record:
    """A client that only reads a job's record."""

    def __init__(self, **data: Any) -> None:
        self.data = {key: json.dumps(to_wire(value)) for key, value in data.items()}

    async def get(self, *_: object) -> Object:
        return {"metadata": {"resourceVersion": "7"}, "data": self.data}


def backend(_name: str, *devices: str, status: Object | None = None, **more: Any) -> Object:
    found = [{"name": each, "operational": True} for each in devices]
    return {
        "metadata": {"name": _name, "namespace": "ns"},
        "spec": {"type": "ibm_quantum", **more},
        "status": status or {"devices": found, "lastProbe": "2026-01-01T12:00:00Z"},
    }


def secret(name: str) -> Object:
    return {"secretRef": {"name": name}}


def selecting(*backends: Object, **data: Any) -> Selecting:
    client: Any = Record(**data)
    ledger = Ledger(client, Cache())  # type: ignore[arg-type]
    return Selecting(client, Cache(*backends), ledger, Tariff(shipped()))  # type: ignore[arg-type]


def job(key: str | None = "key", **backend_: Any) -> Any:
    credentials = {"credentials": secret(key)} if key else {}
    return spec(backend={"type": "ibm_quantum", **backend_}, **credentials)


def plan(given: Any, **more: Any) -> Plan:
    return Plan(
        job=JobIdentity(namespace="ns", name="bell", uid="u"),
        spec=given,
        source=PlannedSource(file="circuit.py"),
        record="record",
        output_location="out",
        select=True,
        **more,
    )


MINE = backend("mine", "ibm_fez", credentials=secret("key"))
THEIRS = backend("theirs", "ibm_torino", credentials=secret("other"), default=True)


@pytest.mark.parametrize(
    ("backends", "given", "expected"),
    [
        ((), job(), Chosen(select=True, probe=True)),
        ((MINE, THEIRS), job(), Chosen(select=True)),
        ((THEIRS,), job(), Chosen(select=True, probe=True)),
        # A job without credentials is lent those of the default account.
        ((MINE, THEIRS), job(None), Chosen(select=True, secret="other")),
        ((), job(None), Chosen(select=True, probe=True)),
        # What runs in the pod is asked for only where somebody priced it.
        ((), spec(), Chosen()),
        ((backend("x", type="local_simulator"),), spec(), Chosen(select=True)),
        # A single device that is another one than the job names.
        (
            (backend("one", credentials=secret("key"), name="ibm_torino"),),
            job(name="ibm_fez"),
            Chosen(select=True, probe=True),
        ),
    ],
)
def test_at_the_start(backends: tuple[Object, ...], given: Any, expected: Chosen) -> None:
    assert selecting(*backends).at_start("ns", given) == expected
    assert selecting(*backends).at_start("elsewhere", spec()) == Chosen()


async def test_each_device_once_by_priority_with_its_own_price() -> None:
    dear = backend(
        "a", "ibm_fez", "ibm_kingston", credentials=secret("key"), pricing={"plan": "open"}
    )
    agreed = backend(
        "b",
        "ibm_fez",
        credentials=secret("key"),
        priority=5,
        pricing={"perSecond": "$0.80"},
    )
    found = await selecting(dear, agreed, THEIRS).market(plan(job()))
    assert [(each.device.name, each.own, each.plan) for each in found.offers] == [
        ("ibm_fez", {"second": Decimal("0.80")}, None),
        ("ibm_kingston", None, "open"),
    ]
    assert (found.expected, found.version, found.assignment) == (False, "7", None)


async def test_a_backend_that_was_not_probed_yet_is_waited_for() -> None:
    new = backend("new", credentials=secret("key"), status={"observedGeneration": 1})
    found = await selecting(new).market(plan(job()))
    assert (found.offers, found.expected) == ((), True)


async def test_what_the_record_adds() -> None:
    told = (DeviceStatus(name="ibm_fez", operational=True),)
    made = Assignment(number=3, type="ibm_quantum", name="ibm_fez", reason="OptimalBackend")
    found = await selecting(**{DEVICES_KEY: told, ASSIGNMENT_KEY: made}).market(
        plan(job(), probe=True)
    )
    assert [each.device.name for each in found.offers] == ["ibm_fez"]
    assert (found.assignment, found.expected) == (made, False)
    waiting = await selecting().market(plan(job(), probe=True))
    assert (waiting.offers, waiting.expected) == ((), True)


async def test_a_device_that_is_named_and_not_seen_is_left_to_its_driver() -> None:
    found = await selecting(**{DEVICES_KEY: ()}).market(plan(job(name="ibm_x"), probe=True))
    assert [each.device.name for each in found.offers] == ["ibm_x"]


async def test_what_cannot_be_read_is_not_there() -> None:
    broken = backend("broken", credentials=secret("key"))
    broken["spec"]["priority"] = "high"
    found = selecting(broken)
    assert found.at_start("ns", job()).probe
    found.client.data[DEVICES_KEY] = "{"  # type: ignore[attr-defined]
    assert (await found.market(plan(job(), probe=True))).expected
