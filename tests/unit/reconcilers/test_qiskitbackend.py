"""When a QiskitBackend is probed, and what its answers mean."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import attrs
import pytest

from qiskit_controller.api.codec import from_wire, to_wire
from qiskit_controller.api.conditions import Condition, find
from qiskit_controller.api.qiskitbackend import (
    DeviceStatus,
    QiskitBackendSpec,
    QiskitBackendStatus,
)
from qiskit_controller.api.quantities import format_time
from qiskit_controller.api.run import ProbeReport, Reason
from qiskit_controller.reconcilers.errands import Errand
from qiskit_controller.reconcilers.qiskitbackend import manifests
from qiskit_controller.reconcilers.qiskitbackend.decision import (
    Decision,
    Seen,
    decide,
    interval,
)
from qiskit_controller.reconcilers.qiskitjob.manifests import Settings
from qiskit_controller.runner.devices import encode_probe

from .support import NOW

FEZ = DeviceStatus(
    name="ibm_fez", operational=True, qubits=156, basis_gates=("cz", "rz", "sx"), pending_jobs=3
)
TORINO = DeviceStatus(name="ibm_torino", operational=False, qubits=133, detail="maintenance")


def spec(**more: Any) -> QiskitBackendSpec:
    return from_wire({"type": "ibm_quantum", **more}, QiskitBackendSpec)


def seen(**more: Any) -> Seen:
    given = {
        "generation": 1,
        "spec": spec(),
        "problem": "",
        "status": QiskitBackendStatus(observed_generation=1),
        "probe": None,
        "now": NOW,
    }
    return Seen(**given | more)


def probed(report: ProbeReport | str, **more: Any) -> Seen:
    message = report if isinstance(report, str) else encode_probe(report)
    probe = Errand(uid="p1", created=NOW - timedelta(seconds=20), over=True, message=message)
    return seen(probe=attrs.evolve(probe, **more.pop("of", {})), **more)


def told(decision: Decision, type_: str) -> Condition:
    found = find(decision.status.conditions, type_)
    assert found is not None
    return found


def test_it_is_probed_at_once_and_then_in_its_period() -> None:
    assert decide(seen()).start_probe
    later = QiskitBackendStatus(observed_generation=1, last_probe=format_time(NOW))
    made = decide(seen(status=later))
    assert (made.start_probe, made.requeue_after) == (False, timedelta(minutes=5))
    due = decide(seen(status=later, now=NOW + timedelta(minutes=5)))
    assert due.start_probe
    # What was changed is asked again at once.
    assert decide(seen(status=later, generation=2)).start_probe


def test_an_answer_is_written_before_its_probe_goes_and_counted_once() -> None:
    made = decide(probed(ProbeReport(devices=(TORINO, FEZ))))
    status = made.status
    assert made.delete_probe
    assert (status.operational, status.ready, status.qubits, status.pending_jobs) == (
        True,
        "1/2",
        156,
        3,
    )
    assert [each.name for each in status.devices] == ["ibm_fez", "ibm_torino"]
    assert [each.availability for each in status.devices] == [1.0, 0.0]
    assert (told(made, "Available").status, told(made, "CredentialsValid").status) == (
        "True",
        "True",
    )
    assert (status.last_probe, status.probe_uid) == (format_time(NOW), "p1")
    again = decide(probed(ProbeReport(devices=(TORINO,)), status=status))
    assert again.status == status
    assert again.delete_probe


def test_availability_follows_the_probes() -> None:
    status = decide(probed(ProbeReport(devices=(FEZ,)))).status
    down = attrs.evolve(FEZ, operational=False, detail="maintenance")
    for n in range(3):
        report = ProbeReport(devices=(down,))
        made = decide(probed(report, status=status, of={"uid": f"p{n + 2}"}))
        status = made.status
    assert status.devices[0].availability == pytest.approx(0.729)
    assert told(made, "Available").message == "No device takes jobs: ibm_fez maintenance"
    assert status.operational is False


def test_refused_credentials_are_said_at_once_and_devices_are_down() -> None:
    known = decide(probed(ProbeReport(devices=(FEZ,)))).status
    text = json.dumps({"reason": "BackendDenied", "message": "api-key is wrong"})
    if "BackendDenied" not in {str(each) for each in Reason}:
        pytest.skip("no driver refuses credentials by name yet")
    made = decide(probed(text, status=known, of={"uid": "p2"}))
    assert told(made, "CredentialsValid").status == "False"
    assert told(made, "CredentialsValid").message == "api-key is wrong"
    assert not made.status.operational
    assert {each.reason for each in made.notes} == {"BackendDenied"}


def test_a_provider_that_is_away_is_asked_ever_less_often() -> None:
    status = decide(probed(ProbeReport(devices=(FEZ,)))).status
    away = ProbeReport(reason=Reason.BACKEND_UNAVAILABLE, message="no answer")
    operational = []
    for n in range(4):
        made = decide(probed(away, status=status, of={"uid": f"p{n + 2}"}))
        status = made.status
        operational.append(status.operational)
    assert status.failures == 4
    assert operational == [True, True, False, False]
    assert told(made, "Available").status == "False"
    waits = [interval(spec(), failures) for failures in range(6)]
    assert waits == [timedelta(minutes=each) for each in (5, 10, 20, 40, 60, 60)]
    rare = spec(probe={"interval": "6h"})
    assert interval(rare, 9) == timedelta(hours=6)
    hasty = spec(probe={"interval": "1s"})
    assert interval(hasty, 0) == timedelta(seconds=10)
    answered = decide(probed(ProbeReport(devices=(FEZ,)), status=status, of={"uid": "p9"}))
    assert answered.status.failures == 0
    assert told(answered, "Available").status == "True"
    assert {each.type for each in answered.notes} == {"Normal"}


@pytest.mark.parametrize("message", ["", "{", "[]", '{"packed": "!"}', '{"packed": "eJw="}'])
def test_a_probe_that_left_nonsense_has_failed(message: str) -> None:
    made = decide(probed(message, of={"problem": "DeadlineExceeded"}))
    assert made.status.failures == 1
    assert "the probe failed: DeadlineExceeded" in told(made, "Available").message


def test_what_keeps_a_probe_from_starting_is_said() -> None:
    probe = Errand(uid="p1", created=NOW, problem='secret "ibm" not found')
    made = decide(seen(probe=probe))
    assert told(made, "CredentialsValid").message == 'secret "ibm" not found'
    assert [each.reason for each in made.notes] == ["ProbeWaiting", "ProbeWaiting"]
    assert not made.delete_probe
    assert decide(seen(probe=probe, status=made.status)).notes == ()


def test_what_runs_in_the_pod_needs_no_probe() -> None:
    made = decide(seen(spec=spec(type="local_simulator")))
    assert not made.start_probe
    (device,) = made.status.devices
    assert (device.name, device.operational) == ("aer_simulator", True)
    assert made.requeue_after is None
    later = seen(
        spec=spec(type="local_simulator"), status=made.status, now=NOW + timedelta(hours=1)
    )
    assert decide(later).status == made.status
    nameless = decide(seen(spec=spec(type="ibm_simulator")))
    assert told(nameless, "Available").reason == "InvalidSpec"


def test_a_spec_that_cannot_be_read() -> None:
    made = decide(seen(spec=None, problem="spec.type: must be one of ..."))
    assert told(made, "Available").message == "spec.type: must be one of ..."
    assert not made.start_probe


def test_many_devices_fit_into_a_termination_message() -> None:
    gates = ("id", "rz", "sx", "x", "ecr", "reset", "measure", "delay")
    devices = tuple(
        DeviceStatus(
            name=f"arn:aws:braket:us-east-1::device/qpu/vendor/Device-{n}",
            operational=True,
            qubits=100 + n,
            basis_gates=gates,
            pending_jobs=n * 7,
            queue_time=n * 61.5,
            single_qubit_error=0.0001234 * (n + 1),
            two_qubit_error=0.00456 * (n + 1),
            readout_error=0.0123 * (n + 1),
            prices={"task": "0.30", "shot": "0.00145"},
        )
        for n in range(60)
    )
    for number in (1, 5, 25, 60):
        text = encode_probe(ProbeReport(devices=devices[:number]))
        assert len(text.encode()) <= 4096
        made = decide(probed(text))
        assert len(made.status.devices) + from_wire(json.loads(text), ProbeReport).left_out == (
            number
        )
        assert len(made.status.devices) >= min(number, 25)
    assert "more did not fit" in told(made, "Available").message or len(made.status.devices) == 60


def test_the_probe_holds_the_credentials_and_nothing_else() -> None:
    given = spec(
        name="ibm_fez", instance="crn:v1:x", credentials={"secretRef": {"name": "ibm-key"}}
    )
    job = manifests.probe_job("ns", "ibm" * 30, "uid-1", given, Settings(runner_image="runner:1"))
    assert len(job["metadata"]["name"]) <= 63
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod
    assert {each["name"] for each in pod["volumes"]} == {"tmp", "credentials"}
    (variable,) = container["env"]
    assert json.loads(variable["value"]) == {
        "backend": {"type": "ibm_quantum", "name": "ibm_fez", "instance": "crn:v1:x"}
    }
    assert job["metadata"]["ownerReferences"][0]["kind"] == "QiskitBackend"
    assert to_wire(given)["credentials"] == {"secretRef": {"name": "ibm-key"}}
