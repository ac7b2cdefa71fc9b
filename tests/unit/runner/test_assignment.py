"""How the executor comes to its backend, against an API server and a controller of the test's."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from qiskit import QuantumCircuit

from qiskit_controller.api.billing import BillingUnit
from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.qiskitbackend import DeviceStatus
from qiskit_controller.api.qiskitjob import BackendSpec, CircuitMetrics
from qiskit_controller.api.run import (
    ASSIGNMENT_KEY,
    DEVICES_KEY,
    PROBE_ENV,
    Assignment,
    Plan,
    ProbeReport,
    ProbeRequest,
    Progress,
    Reason,
)
from qiskit_controller.drivers import BackendDown, RunFailed, RunResult
from qiskit_controller.drivers.remote import Device, Unavailable
from qiskit_controller.runner import assignment as assignments
from qiskit_controller.runner import devices, executor
from qiskit_controller.runner.assignment import Assignments, is_dynamic, special_operations
from qiskit_controller.runner.cluster import Cluster

from .support import BELL, RECORD, ApiServer, Pod, Request, bell, no_timer

PROGRESS = Progress(attempt=1, stage="Validated", circuit_metrics=CircuitMetrics(qubits=2))
DEVICE = Device(
    name="ibm_fez",
    simulator=False,
    operational=True,
    qubits=156,
    queue_time=timedelta(minutes=2),
    shot_time=timedelta(microseconds=250),
    prices={"second": Decimal("1.60")},
)


@attrs.define
class Account:
    """A driver whose provider has these devices; it fails first with `errors`."""

    devices_: Sequence[Device] = (DEVICE,)
    errors: list[Exception] = attrs.field(factory=list)
    asked: list[str | None] = attrs.field(factory=list)

    def connect(self, plan: Plan, credentials: Path) -> Account:
        assert plan.spec.backend.type == "ibm_quantum"
        if self.errors:
            raise self.errors.pop(0)
        return self

    def devices(self, name: str | None = None) -> Sequence[Device]:
        self.asked.append(name)
        return [each for each in self.devices_ if name in (None, each.name)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignments, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(assignments, "LONGEST_WAIT_SECONDS", 0.05)


def assign(server: ApiServer, number: int, name: str, backend_type: Any = "ibm_quantum") -> None:
    """The controller has chosen."""
    chosen = Assignment(number=number, type=backend_type, name=name, reason="OptimalBackend")
    record = server.objects[RECORD]
    record.setdefault("data", {})[ASSIGNMENT_KEY] = json.dumps(to_wire(chosen))
    record["metadata"]["resourceVersion"] += "0"


def told(server: ApiServer) -> Progress:
    return from_wire(json.loads(server.data(RECORD)["progress-1"]), Progress)


def waiting(pod: Pod, server: ApiServer, *, probe: bool = False, **more: Any) -> Assignments:
    plan = pod.plan(BELL, spec={"backend": {"type": "ibm_quantum"}})
    plan = attrs.evolve(plan, select=True, probe=probe, **more)
    (pod.paths.token / "token").write_text(server.token)
    (pod.paths.token / "ca.crt").touch()
    cluster = Cluster(server.url, pod.paths.token, "default")
    return Assignments(plan, pod.paths, cluster, PROGRESS, sleep=lambda _: time.sleep(0.01))


@pytest.fixture
def later() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Do something while the executor waits."""
    threads: list[threading.Thread] = []

    def start(what: Callable[[], object]) -> None:
        def run() -> None:
            time.sleep(0.2)
            what()

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield start
    for each in threads:
        each.join()


def test_it_waits_takes_up_and_says_so(
    pod: Pod, server: ApiServer, later: Callable[[Callable[[], object]], None]
) -> None:
    server.create(RECORD)
    choosing = waiting(pod, server)
    later(lambda: assign(server, 1, "ibm_fez"))
    plan = choosing.take()
    assert (plan.spec.backend.type, plan.spec.backend.name) == ("ibm_quantum", "ibm_fez")
    assert told(server).assignment == 1
    # Without it nobody would know that there is something to choose for.
    assert server.patches(RECORD)[0].body["data"].keys() == {"progress-1"}


def test_an_assignment_that_changes_as_it_is_taken_up_is_not_taken_up(
    pod: Pod, server: ApiServer
) -> None:
    server.create(RECORD)
    choosing = waiting(pod, server)
    assign(server, 1, "ibm_fez")
    changed: list[int] = []

    def interfere(request: Request, before: int) -> None:
        body = request.body or {}
        if request.method == "PATCH" and "metadata" in body and not changed:
            changed.append(before)
            assign(server, 2, "ibm_torino")

    server.interfere = interfere
    plan = choosing.take()
    assert plan.spec.backend.name == "ibm_torino"
    assert told(server).assignment == 2
    assert changed


def test_a_refused_backend_is_not_taken_again(
    pod: Pod, server: ApiServer, later: Callable[[Callable[[], object]], None]
) -> None:
    server.create(RECORD)
    choosing = waiting(pod, server)
    assign(server, 1, "ibm_fez")
    assert choosing.take().spec.backend.name == "ibm_fez"
    choosing.refuse("ibm_fez", "in maintenance")
    assert (told(server).assignment, dict(told(server).refused)) == (
        0,
        {"ibm_fez": "in maintenance"},
    )
    later(lambda: assign(server, 2, "ibm_torino"))
    assert choosing.take().spec.backend.name == "ibm_torino"
    assert told(server).refused == {"ibm_fez": "in maintenance"}


def test_the_next_attempt_takes_what_the_first_was_given(pod: Pod, server: ApiServer) -> None:
    server.create(RECORD)
    assign(server, 3, "ibm_fez")
    choosing = waiting(pod, server)
    choosing.progress = attrs.evolve(PROGRESS, attempt=2)
    assert choosing.take().spec.backend.name == "ibm_fez"
    second = from_wire(json.loads(server.data(RECORD)["progress-2"]), Progress)
    assert second.assignment == 3


def test_without_selection_nothing_is_asked(pod: Pod, server: ApiServer) -> None:
    choosing = waiting(pod, server)
    choosing.plan = attrs.evolve(choosing.plan, select=False)
    assert choosing.take() is choosing.plan
    assert server.requests == []


def test_devices_of_the_jobs_own_account_are_told_first(
    pod: Pod,
    server: ApiServer,
    monkeypatch: pytest.MonkeyPatch,
    later: Callable[[Callable[[], object]], None],
) -> None:
    account = Account(errors=[Unavailable("no answer"), Unavailable("still none")])
    monkeypatch.setattr(devices, "runner_driver", lambda _: account)
    server.create(RECORD)
    choosing = waiting(pod, server, probe=True)
    later(lambda: assign(server, 1, "ibm_fez"))
    choosing.take()
    (device,) = from_wire(json.loads(server.data(RECORD)[DEVICES_KEY]), tuple[DeviceStatus, ...])
    assert (device.name, device.queue_time, device.shot_time) == ("ibm_fez", 120.0, 0.00025)
    assert device.prices == {"second": "1.60"}
    assert account.asked == [None]


def test_refused_credentials_end_the_attempt(
    pod: Pod, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = RunFailed(Reason.BACKEND_REFUSED, "the key is wrong")
    monkeypatch.setattr(devices, "runner_driver", lambda _: Account(errors=[refused]))
    server.create(RECORD)
    with pytest.raises(RunFailed, match="the key is wrong"):
        waiting(pod, server, probe=True).take()


def test_a_provider_that_does_not_answer_ends_the_attempt_and_is_told_of(
    pod: Pod, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignments, "PATIENCE", timedelta(seconds=5))
    account = Account(errors=[Unavailable("no answer")] * 9)
    monkeypatch.setattr(devices, "runner_driver", lambda _: account)
    server.create(RECORD)
    with pytest.raises(RunFailed) as failed:
        waiting(pod, server, probe=True).take()
    assert failed.value.reason is Reason.BACKEND_UNAVAILABLE
    assert failed.value.message == "no answer, for 5s"
    assert told(server).waiting == "no answer; asking again"


def test_devices_are_told_again_and_refusals_forgotten_while_it_waits(
    pod: Pod, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignments, "TELL_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(assignments, "FORGET_SECONDS", 0.2)
    account = Account()
    monkeypatch.setattr(devices, "runner_driver", lambda _: account)
    server.create(RECORD)
    choosing = waiting(pod, server, probe=True)
    assign(server, 1, "ibm_fez")
    choosing.progress = attrs.evolve(PROGRESS, refused={"ibm_fez": "in maintenance"})
    assert choosing.take().spec.backend.name == "ibm_fez"
    assert len(account.asked) > 1
    assert told(server).refused == {}


def test_an_api_server_that_is_away_is_waited_for(
    pod: Pod, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignments, "REQUEST_SECONDS", 0.1)
    server.create(RECORD)
    choosing = waiting(pod, server)
    assign(server, 1, "ibm_fez")

    def interfere(request: Request, before: int) -> tuple[int, dict[str, Any]] | None:
        return (503, {"message": "away"}) if before < 5 else None

    server.interfere = interfere
    assert choosing.take().spec.backend.name == "ibm_fez"


# --- the whole stage ------------------------------------------------------------------------


@attrs.define
class Falling:
    """A driver whose first device is down, and that bills what it runs."""

    ran: list[str] = attrs.field(factory=list)

    def run(
        self,
        circuit: QuantumCircuit,
        plan: Plan,
        *,
        attempt: int,
        executing: Callable[[str], None],
    ) -> RunResult:
        name = str(plan.spec.backend.name)
        self.ran.append(name)
        if name == "ibm_fez":
            raise BackendDown("in maintenance")
        executing(name)
        usage: dict[BillingUnit, Decimal] = {"second": Decimal("4.5")}
        return RunResult(
            counts={"00": 1024},
            backend=name,
            started=datetime.now(UTC),
            execution_time=0.5,
            circuit=circuit,
            usage=usage,
        )


def test_a_device_that_goes_down_leads_to_a_new_choice(
    pod: Pod, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the assignment to the report, with a controller that answers each refusal."""
    driver = Falling()
    monkeypatch.setattr(executor, "runner_driver", lambda _: driver)
    server.create(RECORD)
    server.create("bell-results")
    plan = pod.plan(BELL, spec={"backend": {"type": "ibm_quantum"}})
    plan = attrs.evolve(plan, select=True)
    (pod.paths.input / "plan.json").write_text(json.dumps(to_wire(plan)))
    pod.leave(bell())
    (pod.paths.token / "token").write_text(server.token)
    (pod.paths.token / "ca.crt").touch()
    choices = iter(["ibm_fez", "ibm_torino"])
    number = 0

    def controller(request: Request, before: int) -> None:
        nonlocal number
        data = (request.body or {}).get("data") or {}
        if request.method == "PATCH" and "progress-1" in data:
            said = from_wire(json.loads(data["progress-1"]), Progress)
            if said.stage == "Validated" and said.assignment == 0:
                number += 1
                assign(server, number, next(choices))

    server.interfere = controller
    code = executor.run_stage(
        pod.paths, 1, no_timer(), lambda paths, ns: Cluster(server.url, paths.token, ns)
    )
    report = pod.report()
    assert (code, report.reason, report.backend) == (0, None, "ibm_torino")
    assert driver.ran == ["ibm_fez", "ibm_torino"]
    assert report.usage == {"second": "4.5"}
    last = told(server)
    assert (last.stage, last.backend) == ("Executed", "ibm_torino")


# --- the probe ------------------------------------------------------------------------------


def probe(pod: Pod, monkeypatch: pytest.MonkeyPatch, account: object, **backend: Any) -> Any:
    monkeypatch.setattr(devices, "runner_driver", lambda _: account)
    request = ProbeRequest(backend=BackendSpec(**{"type": "ibm_quantum", **backend}))
    monkeypatch.setenv(PROBE_ENV, json.dumps(to_wire(request)))
    pod.paths.termination_log.parent.mkdir(parents=True, exist_ok=True)
    code = devices.run_probe(pod.paths)
    report = from_wire(json.loads(pod.paths.termination_log.read_text()), ProbeReport)
    assert code == (0 if report.reason is None else 1)
    return report


def test_a_probe_tells_of_the_devices(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    other = attrs.evolve(DEVICE, name="ibm_torino", operational=False, detail="maint\x1b[31menance")
    report = probe(pod, monkeypatch, Account((DEVICE, other)))
    assert [each.name for each in report.devices] == ["ibm_fez", "ibm_torino"]
    assert "\x1b" not in report.devices[1].detail
    (device,) = probe(pod, monkeypatch, Account((DEVICE, other)), name="ibm_fez").devices
    assert device.name == "ibm_fez"


def test_a_probe_that_fails_says_why(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "PROBE_PATIENCE", timedelta(0))
    refused = Account(errors=[RunFailed(Reason.BACKEND_REFUSED, "the key is wrong")])
    report = probe(pod, monkeypatch, refused)
    assert (report.reason, report.message) == (Reason.BACKEND_REFUSED, "the key is wrong")
    away = Account(errors=[Unavailable("no answer")] * 3)
    report = probe(pod, monkeypatch, away)
    assert (report.reason, report.message) == (Reason.BACKEND_UNAVAILABLE, "no answer")
    (device,) = probe(pod, monkeypatch, Falling(), type="local_simulator").devices
    assert (device.name, device.operational) == ("local_simulator", True)


# --- the circuit's traits -------------------------------------------------------------------


def test_what_makes_a_circuit_dynamic() -> None:
    assert not is_dynamic(bell())
    late = bell()
    late.barrier()
    assert not is_dynamic(late)
    again = bell()
    again.x(0)
    assert is_dynamic(again)
    twice = bell()
    twice.measure(0, 0)
    assert is_dynamic(twice)
    reset = QuantumCircuit(1, 1)
    reset.reset(0)
    reset.measure(0, 0)
    assert not is_dynamic(reset)
    assert special_operations(reset) == ("reset",)
    conditional = QuantumCircuit(1, 1)
    with conditional.if_test((conditional.clbits[0], 1)):
        conditional.x(0)
    assert is_dynamic(conditional)
    assert special_operations(bell()) == ()
