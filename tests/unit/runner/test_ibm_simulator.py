"""``ibm_simulator``: a device's noise, held against a simulation that Aer is asked for directly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from qiskit import QuantumCircuit, transpile
from qiskit_aer import AerSimulator
from qiskit_ibm_runtime.fake_provider import FakeManilaV2

from qiskit_controller.api.run import Reason
from qiskit_controller.drivers import RunFailed, RunResult
from qiskit_controller.drivers.ibm_simulator import runner as simulator
from qiskit_controller.drivers.ibm_simulator.runner import IbmSimulator
from tests.standins.ibm.client import Ibm, running

from .support import BELL, Pod

SHOTS = 8192


def ghz(qubits: int = 5) -> QuantumCircuit:
    circuit = QuantumCircuit(qubits)
    circuit.h(0)
    for each in range(qubits - 1):
        circuit.cx(each, each + 1)
    circuit.measure_all()
    return circuit


def run(pod: Pod, name: str | None, seed: int | None = 11) -> RunResult:
    told: list[str] = []
    plan = pod.plan(
        BELL,
        spec={
            "backend": {"type": "ibm_simulator", "name": name},
            "execution": {"shots": SHOTS, "seedSimulator": seed},
        },
    )
    result = IbmSimulator(pod.paths).run(ghz(), plan, attempt=1, executing=told.append)
    assert told == [result.backend]
    return result


def chi_square(one: Mapping[str, int], other: Mapping[str, int]) -> tuple[float, int]:
    """Pearson's statistic that two samples are of one distribution, and its degrees of freedom.

    Outcomes that are expected less than ten times in either sample are one category.
    """
    total = {key: one.get(key, 0) + other.get(key, 0) for key in {*one, *other}}
    cells: dict[str, list[int]] = {}
    for key, both in total.items():
        cell = cells.setdefault(key if both >= 20 else "rare", [0, 0])
        cell[0] += one.get(key, 0)
        cell[1] += other.get(key, 0)
    n, m = sum(one.values()), sum(other.values())
    statistic = 0.0
    for a, b in cells.values():
        expected = (a + b) * n / (n + m), (a + b) * m / (n + m)
        statistic += (a - expected[0]) ** 2 / expected[0] + (b - expected[1]) ** 2 / expected[1]
    return statistic, len(cells) - 1


def differ(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether they are of different distributions, at five standard deviations of chi square."""
    statistic, freedom = chi_square(one, other)
    return statistic > freedom + 5 * (2 * freedom) ** 0.5


def direct() -> dict[str, int]:
    """The same state on the same snapshot, without anything of ours."""
    device = FakeManilaV2()
    circuit = transpile(ghz(), device, optimization_level=1, seed_transpiler=11)
    aer = AerSimulator.from_backend(device)
    counts: dict[str, int] = aer.run(circuit, shots=SHOTS, seed_simulator=99).result().get_counts()
    return counts


def test_it_shows_the_noise_of_the_device(pod: Pod) -> None:
    noisy, ideal = run(pod, "ibm_manila"), run(pod, None)
    assert not differ(noisy.counts, direct())
    assert set(ideal.counts) == {"00000", "11111"}
    assert differ(noisy.counts, ideal.counts)
    assert 0.5 < (noisy.counts["00000"] + noisy.counts["11111"]) / SHOTS < 0.95
    assert set(noisy.circuit.count_ops()) <= {"cx", "rz", "sx", "x", "measure", "barrier"}


def test_the_comparison_tells_devices_apart(pod: Pod) -> None:
    """Or it would show nothing."""
    assert differ(run(pod, "ibm_lima").counts, direct())


@pytest.mark.parametrize("seed", [0, 7])
def test_the_same_seed_gives_the_same_counts(pod: Pod, seed: int) -> None:
    first, second = run(pod, "ibm_manila", seed), run(pod, "fake_manila", seed)
    assert first.counts == second.counts
    assert first.seed == seed
    assert run(pod, "ibm_manila", seed + 1).counts != first.counts


def test_without_a_seed_there_is_one_all_the_same(pod: Pod) -> None:
    first = run(pod, "ibm_manila", None)
    assert run(pod, "ibm_manila", first.seed).counts == first.counts


def test_a_large_device(pod: Pod) -> None:
    result = run(pod, "ibm_brisbane")
    assert result.circuit.num_qubits == 127
    assert 0.5 < (result.counts["00000"] + result.counts["11111"]) / SHOTS < 0.98


def test_a_device_that_there_is_no_snapshot_of(pod: Pod) -> None:
    with pytest.raises(RunFailed) as failed:
        run(pod, "ibm_atlantis")
    assert failed.value.reason is Reason.BACKEND_REFUSED
    assert "ibm_brisbane" in failed.value.message


# --- with credentials -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service() -> Iterator[Ibm]:
    with running() as ibm:
        yield ibm


@pytest.fixture
def credentials(pod: Pod, service: Ibm, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("IAM_URL", "QISKIT_FUNCTIONS_EXPERIMENTAL"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.setattr(simulator, "PATIENCE_SECONDS", 1.0)
    pod.paths.credentials.mkdir(parents=True)
    for key, value in service.secret.items():
        (pod.paths.credentials / key).write_text(value)
    return pod.paths.credentials


def test_with_credentials_the_device_is_as_ibm_describes_it(
    pod: Pod, service: Ibm, credentials: Path
) -> None:
    before = len(service.asked)
    assert not differ(run(pod, "ibm_manila").counts, direct())
    asked = service.asked[before:]
    assert "GET /api/v1/backends/ibm_manila/properties" in asked
    assert not any(each.startswith("POST /api/v1/jobs") for each in asked)


def test_a_secret_for_the_output_alone_is_no_login(pod: Pod, credentials: Path) -> None:
    (credentials / "api-key").unlink()
    (credentials / "access-key-id").write_text("of an s3 output")
    assert run(pod, "ibm_manila").backend == "ibm_manila"


def test_a_wrong_key_is_refused(pod: Pod, credentials: Path) -> None:
    (credentials / "api-key").write_text("wrong")
    with pytest.raises(RunFailed) as failed:
        run(pod, "ibm_manila")
    assert failed.value.reason is Reason.BACKEND_DENIED


def test_a_service_that_does_not_answer(pod: Pod, service: Ibm, credentials: Path) -> None:
    service.fault("*", "", 503)
    try:
        with pytest.raises(RunFailed) as failed:
            run(pod, "ibm_manila")
    finally:
        service.mend()
    assert failed.value.reason is Reason.BACKEND_UNAVAILABLE
