"""Events as they arrive at an API server that keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from qiskit_controller.kube.client import Client
from qiskit_controller.kube.events import EventRecorder, Limits

JOB = {
    "apiVersion": "quantum.io/v1",
    "kind": "QiskitJob",
    "metadata": {"name": "bell", "namespace": "ns", "uid": "u-1", "resourceVersion": "7"},
}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Dropped(list[str]):
    def dropped(self, why: str) -> None:
        self.append(why)


@pytest.fixture
async def client(stateful: Any, connect: Callable[..., Client]) -> AsyncIterator[Client]:
    async with connect(stateful[1]) as client:
        yield client


@pytest.fixture
def api(stateful: Any) -> Any:
    return stateful[0]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def dropped() -> Dropped:
    return Dropped()


@pytest.fixture
async def recorder(client: Client, clock: Clock, dropped: Dropped) -> AsyncIterator[EventRecorder]:
    limits = Limits(retry_seconds=0.001, buffer=100)
    recorder = EventRecorder(
        client, "qiskit-controller", "pod-1", limits=limits, metrics=dropped, clock=clock
    )
    yield recorder
    await recorder.aclose(1)


def events(api: Any) -> list[dict[str, Any]]:
    return list(api.objects.values())


async def test_an_event_has_all_that_kubectl_shows(api: Any, recorder: EventRecorder) -> None:
    recorder.event(JOB, "Normal", "Started", "Pod started")
    assert await recorder.flush(5)
    ((path, event),) = api.objects.items()
    assert path.startswith("/api/v1/namespaces/ns/events/bell.")
    assert event["involvedObject"] == {
        "apiVersion": "quantum.io/v1", "kind": "QiskitJob",
        "namespace": "ns", "name": "bell", "uid": "u-1",
    }  # fmt: skip
    assert (event["type"], event["reason"], event["message"]) == (
        "Normal", "Started", "Pod started",
    )  # fmt: skip
    assert event["count"] == 1
    assert event["firstTimestamp"] == event["lastTimestamp"]
    assert event["source"] == {"component": "qiskit-controller", "host": "pod-1"}
    assert event["reportingComponent"] == "qiskit-controller"
    assert event["reportingInstance"] == "pod-1"


async def test_identical_events_are_counted(api: Any, recorder: EventRecorder) -> None:
    for _ in range(5):
        recorder.event(JOB, "Warning", "Waiting", "ConfigMap x is missing")
    recorder.event(JOB, "Warning", "Waiting", "ConfigMap y is missing")
    await recorder.flush(5)
    assert [(event["message"][10], event["count"]) for event in events(api)] == [("x", 5), ("y", 1)]


async def test_similar_events_are_combined(api: Any, recorder: EventRecorder, clock: Clock) -> None:
    for number in range(15):
        recorder.event(JOB, "Warning", "Retry", f"try {number}")
    await recorder.flush(5)
    assert len(events(api)) == 10
    combined = events(api)[-1]
    assert combined["message"] == "(combined from similar events): try 14"
    assert combined["count"] == 6
    clock.now += 601
    recorder.event(JOB, "Warning", "Retry", "try 15")
    await recorder.flush(5)
    assert events(api)[-1]["message"] == "try 15"


async def test_one_object_cannot_flood(
    api: Any, recorder: EventRecorder, clock: Clock, dropped: Dropped
) -> None:
    other = {"apiVersion": "v1", "kind": "Pod", "namespace": "ns", "name": "p"}
    for number in range(40):
        recorder.event(JOB, "Normal", "Tick", "tock")
        if number % 10 == 0:
            recorder.event(other, "Normal", "Tick", "tock")
    await recorder.flush(5)
    assert [event["count"] for event in events(api)] == [25, 4]
    assert dropped == ["throttled"] * 15
    clock.now += 300
    recorder.event(JOB, "Normal", "Tick", "tock")
    await recorder.flush(5)
    assert events(api)[0]["count"] == 41  # The truth, with those that were not written.


async def test_cluster_scoped_objects_have_their_events_in_default(
    api: Any, recorder: EventRecorder
) -> None:
    node = {"apiVersion": "quantum.io/v1", "kind": "QiskitBackend", "metadata": {"name": "ibm"}}
    recorder.event(node, "Normal", "Calibrated", "done")
    await recorder.flush(5)
    assert next(iter(api.objects)).startswith("/api/v1/namespaces/default/events/ibm.")
    assert "namespace" not in events(api)[0]["involvedObject"]


async def test_long_messages_are_cut_between_characters(api: Any, recorder: EventRecorder) -> None:
    recorder.event(JOB, "Normal", "Long", "ψ" * 2000)
    await recorder.flush(5)
    message = events(api)[0]["message"]
    assert message.endswith("ψ...")
    assert len(message.encode()) in (1023, 1024)


async def test_an_event_that_the_server_forgot_is_made_anew(
    api: Any, recorder: EventRecorder
) -> None:
    recorder.event(JOB, "Normal", "Tick", "tock")
    await recorder.flush(5)
    api.objects.clear()
    recorder.event(JOB, "Normal", "Tick", "tock")
    await recorder.flush(5)
    assert [event["count"] for event in events(api)] == [2]


async def test_an_outage_delays_and_loses_nothing(
    api: Any, recorder: EventRecorder, eventually: Any
) -> None:
    api.refuse = 500, "InternalError"
    recorder.event(JOB, "Normal", "One", "one")
    recorder.event(JOB, "Normal", "Two", "two")
    await eventually(lambda: len(api.requests) >= 3)
    api.refuse = None
    assert await recorder.flush(5)
    assert [event["reason"] for event in events(api)] == ["One", "Two"]


async def test_an_event_is_given_up_after_twelve_tries(
    api: Any, recorder: EventRecorder, dropped: Dropped
) -> None:
    api.refuse = 503, "ServiceUnavailable"
    with capture_logs() as logs:
        recorder.event(JOB, "Normal", "One", "one")
        assert await recorder.flush(5)
    assert len(api.requests) == 12
    assert dropped == ["unreachable"]
    assert logs[-1]["event"] == "event given up"


async def test_a_refusal_is_final(api: Any, recorder: EventRecorder, dropped: Dropped) -> None:
    api.refuse = 422, "Invalid"
    with capture_logs() as logs:
        recorder.event(JOB, "Normal", "One", "one")
        await recorder.flush(5)
    assert len(api.requests) == 1
    assert dropped == ["refused"]
    assert [entry["event"] for entry in logs] == ["event refused"]


async def test_a_full_buffer_drops_the_oldest(
    api: Any, recorder: EventRecorder, dropped: Dropped
) -> None:
    for number in range(130):  # Nothing is written before this task lets others run.
        recorder.event(JOB | {"metadata": {"name": f"j{number}"}}, "Normal", "Made", "made")
    await recorder.flush(5)
    assert dropped == ["buffer_full"] * 30
    assert events(api)[0]["involvedObject"]["name"] == "j30"


async def test_closing_writes_what_is_there_and_does_not_hang(
    api: Any, client: Client, dropped: Dropped
) -> None:
    recorder = EventRecorder(client, "c", "i")
    recorder.event(JOB, "Normal", "Bye", "bye")
    await recorder.aclose()
    assert len(events(api)) == 1

    recorder = EventRecorder(client, "c", "i")
    api.hang = True
    recorder.event(JOB, "Normal", "Bye", "bye")
    await recorder.aclose(0.05)
    await EventRecorder(client, "c", "i").aclose()
