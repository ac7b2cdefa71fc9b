"""Selection among the devices of both vendors, as their own SDKs tell of them.

The services are stand-ins, processes of their own on loopback; the clients are the vendors'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml

from qiskit_controller.api.codec import from_wire
from qiskit_controller.api.qiskitbackend import DeviceStatus
from qiskit_controller.api.qiskitjob import BackendSpec, CircuitMetrics, QiskitJobSpec
from qiskit_controller.api.run import Assignment, Progress
from qiskit_controller.drivers.aws_braket.runner import DRIVER as BRAKET
from qiskit_controller.drivers.ibm_quantum.runner import DRIVER as IBM
from qiskit_controller.reconcilers.qiskitjob.assigning import Market, Offer, Waiting, propose
from qiskit_controller.runner import devices
from qiskit_controller.runner.plan import plan_of_backend
from qiskit_controller.scheduling.prices import Tariff, shipped
from tests.standins.braket.client import running as braket_running
from tests.standins.ibm.client import Ibm
from tests.standins.ibm.client import running as ibm_running

EXAMPLE = Path(__file__).parent / "api" / "examples" / "cost-optimized-with-session.yaml"
GARNET = "arn:aws:braket:eu-north-1::device/qpu/iqm/Garnet"
ANKAA = "arn:aws:braket:us-west-1::device/qpu/rigetti/Ankaa-3"
FORTE = "arn:aws:braket:us-east-1::device/qpu/ionq/Forte-1"
# Of IBM's three, manila has five qubits: of both vendors there are five that may be had.
FIVE = ("ibm_brisbane", "ibm_sherbrooke", GARNET, ANKAA, FORTE)
VALIDATED = Progress(
    attempt=1,
    stage="Validated",
    circuit_metrics=CircuitMetrics(qubits=6, clbits=6, depth=20, gates=60),
)
Told = Mapping[str, tuple[DeviceStatus, ...]]


@pytest.fixture(scope="module")
def ibm() -> Iterator[Ibm]:
    with ibm_running() as service:
        yield service


def ask(backend_type: str, values: Mapping[str, str], folder: Path) -> tuple[DeviceStatus, ...]:
    """What a probe finds."""
    folder.mkdir(exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(value)
    return devices.ask(plan_of_backend(BackendSpec(type=backend_type)), folder)


@pytest.fixture(scope="module")
def told(ibm: Ibm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """The devices of both accounts."""
    folder = tmp_path_factory.mktemp("accounts")
    with pytest.MonkeyPatch.context() as patch, braket_running() as aws:
        # Entry points are those of what is installed; these are those of this tree.
        drivers = {"ibm_quantum": IBM, "aws_braket": BRAKET}
        patch.setattr(devices, "runner_driver", lambda name: drivers[name])
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("HOME", str(folder))
        patch.setenv("IAM_URL", "to be restored")
        patch.delenv("IAM_URL")
        yield {
            "ibm_quantum": ask("ibm_quantum", ibm.secret, folder / "ibm"),
            "aws_braket": ask("aws_braket", aws.secret(), folder / "aws"),
        }


def market(told: Told, **changed: DeviceStatus) -> Market:
    """The five of them, with what differs between them in life: queues and availability."""
    traits: dict[str, dict[str, Any]] = {
        "ibm_brisbane": {"pending_jobs": 40, "availability": 0.99, "shot_time": 0.0001},
        "ibm_sherbrooke": {"pending_jobs": 3, "availability": 0.9},
        GARNET: {"pending_jobs": 12, "availability": 0.95},
        ANKAA: {"pending_jobs": 30, "availability": 0.97},
        FORTE: {"pending_jobs": 2, "availability": 0.6},
    }
    offers = [
        Offer(type=backend_type, device=attrs.evolve(each, **traits[each.name]))
        for backend_type, found in told.items()
        for each in found
        if each.name in FIVE
    ]
    assert len(offers) == len(FIVE)
    offers = [attrs.evolve(o, device=changed.get(o.device.name, o.device)) for o in offers]
    return Market(offers=tuple(offers), tariff=Tariff(shipped()))


def chosen(spec: QiskitJobSpec, of: Market) -> Assignment:
    found = propose(spec, of, VALIDATED)
    assert isinstance(found, Assignment), found
    return found


def job(backend_type: str, **selection: Any) -> QiskitJobSpec:
    wire = {
        "backend": {"type": backend_type},
        "circuit": {"source": "inline", "code": "qc = 1"},
        "execution": {"shots": 1000},
        "backendSelection": selection,
    }
    return from_wire(wire, QiskitJobSpec)


def test_the_cost_optimised_example_selects_as_its_weights_say(told: Told) -> None:
    spec = from_wire(yaml.safe_load(EXAMPLE.read_text())["spec"], QiskitJobSpec)
    found = chosen(spec, market(told))
    assert found.name == "ibm_brisbane"
    assert found.message.startswith("Selected ibm_brisbane based on cost (score 0.")
    assert "Then came ibm_sherbrooke (score 0." in found.message
    for arn in (GARNET, ANKAA, FORTE):
        assert f"{arn} is of type aws_braket, not ibm_quantum" in found.message
    # 2 + 4096 * (0.0001 + 0.0001) seconds at $1.60.
    assert found.costs.estimated == "$4.52"


@pytest.mark.parametrize(
    ("weight", "of_ibm", "of_braket"),
    [
        ("cost", "ibm_brisbane", ANKAA),
        ("queueTime", "ibm_sherbrooke", FORTE),
        ("capability", "ibm_sherbrooke", FORTE),
        ("availability", "ibm_brisbane", ANKAA),
    ],
)
def test_a_weight_alone_picks_the_best_in_that_respect(
    told: Told, weight: str, of_ibm: str, of_braket: str
) -> None:
    for backend_type, best in (("ibm_quantum", of_ibm), ("aws_braket", of_braket)):
        found = chosen(job(backend_type, weights={weight: 1.0}), market(told))
        assert found.name == best, found.message


def test_a_task_costs_what_braket_bills(told: Told) -> None:
    found = chosen(job("aws_braket", weights={"cost": 1.0}), market(told))
    # A task, and a thousand shots at the price that the service itself tells.
    assert (found.costs.estimated, found.costs.prices) == (
        "$1.20",
        {"task": "0.30", "shot": "0.0009"},
    )
    assert found.costs.price_source.startswith("the provider, and price book of")


def test_a_device_of_the_service_that_goes_into_maintenance(
    told: Told, ibm: Ibm, tmp_path: Path
) -> None:
    """By the time of the next probe, another is chosen."""
    before = chosen(job("ibm_quantum", weights={"cost": 1.0}), market(told))
    assert before.name == "ibm_brisbane"
    ibm.set(devices={"ibm_brisbane": "paused"}, online={"ibm_brisbane": False})
    try:
        again = {each.name: each for each in ask("ibm_quantum", ibm.secret, tmp_path / "ibm")}
    finally:
        ibm.set(devices={"ibm_brisbane": "active"}, online={"ibm_brisbane": True})
    assert not again["ibm_brisbane"].operational
    after = market(told, ibm_brisbane=again["ibm_brisbane"])
    spec = job("ibm_quantum", weights={"cost": 1.0})
    moved = propose(spec, attrs.evolve(after, assignment=before), VALIDATED)
    assert isinstance(moved, Assignment)
    assert (moved.name, moved.number) == ("ibm_sherbrooke", 2)
    assert "ibm_brisbane is not operational" in moved.message
    only = attrs.evolve(after, offers=after.offers[:1])
    assert only.offers[0].device.name == "ibm_brisbane"
    assert isinstance(propose(spec, only, VALIDATED), Waiting)
