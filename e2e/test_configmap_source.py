"""A job whose code is in a ConfigMap that is not there yet."""

from __future__ import annotations

import time

import pytest

from .harness import (
    BELL,
    Kubectl,
    condition_of,
    counts_of,
    events_of,
    eventually,
    phase,
    quantum_job,
    wait_phase,
)

CIRCUIT = {"source": "configmap", "configMapRef": {"name": "my-circuit", "key": "circuit.py"}}
# The controller looks again by itself after 30 s; it should not need to.
PROMPTLY = 15.0


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_waits_in_pending_for_its_configmap_and_then_completes(
    namespace: Kubectl, seconds: int
) -> None:
    namespace.apply(quantum_job("later", circuit=CIRCUIT))
    begun = time.monotonic()
    waiting = eventually(
        lambda: condition_of(namespace.one("qiskitjob", "later"), "Validated"),
        "the job says what it waits for",
    )
    print(waiting)
    assert (waiting["status"], waiting["reason"]) == ("False", "ConfigMapNotFound")
    assert "ConfigMap 'my-circuit', named by spec.circuit.configMapRef" in waiting["message"]
    (event,) = eventually(
        lambda: [each for each in events_of(namespace, "later") if each["type"] == "Warning"],
        "there is an Event about it",
    )
    assert event["reason"] == "ConfigMapNotFound"
    assert "'my-circuit'" in event["message"]

    time.sleep(max(0.0, begun + seconds - time.monotonic()))
    assert phase(namespace.one("qiskitjob", "later")) == "Pending"
    assert namespace.list("jobs") == []
    namespace("create", "configmap", "my-circuit", f"--from-literal=circuit.py={BELL}")
    created = time.monotonic()
    eventually(
        lambda: namespace.get("job", "qiskit-job-later"),
        "the ConfigMap is noticed when it is created",
        seconds=PROMPTLY,
        every=0.1,
    )
    print(f"the Kubernetes Job was there {time.monotonic() - created:.2f} s after the ConfigMap")
    job = wait_phase(namespace, "later", "Completed")
    validated = condition_of(job, "Validated")
    assert validated is not None
    assert validated["reason"] == "CircuitValid"
    assert sum(counts_of(namespace, "later-results").values()) == 1024


def test_a_missing_key_is_named_with_those_that_are_there(namespace: Kubectl) -> None:
    namespace("create", "configmap", "my-circuit", "--from-literal=main.py=1")
    namespace.apply(quantum_job("later", circuit=CIRCUIT))
    waiting = eventually(
        lambda: condition_of(namespace.one("qiskitjob", "later"), "Validated"),
        "the job says what it waits for",
    )
    assert waiting["reason"] == "ConfigMapKeyNotFound"
    assert "has no key 'circuit.py'" in waiting["message"]
    assert waiting["message"].endswith("it has: main.py")
    assert phase(namespace.one("qiskitjob", "later")) == "Pending"
