from __future__ import annotations

from typing import Any

from structlog.testing import capture_logs

from qiskit_controller.kube.client import CONFIGMAPS, EVENTS, Client
from qiskit_controller.kube.events import EventRecorder, Limits
from tests.kinds import NAMESPACES


async def test_events_are_counted_and_combined(client: Client, namespace: str) -> None:
    obj = await client.create(CONFIGMAPS, {"metadata": {"name": "a"}}, namespace)
    recorder = EventRecorder(client, "qiskit-controller", "pod-1")
    for _ in range(3):
        recorder.event(obj, "Normal", "Submitted", "Submitted to aer")
    for number in range(12):
        recorder.event(obj, "Warning", "Retrying", f"Attempt {number} failed")
    recorder.event(obj, "Normal", "Long", "m" * 5000)
    assert await recorder.flush(20)
    await recorder.aclose()
    of_it = f"involvedObject.uid={obj['metadata']['uid']}"
    found = await client.list(EVENTS, namespace, field_selector=of_it)
    by_reason: dict[str, list[Any]] = {}
    for event in found["items"]:
        by_reason.setdefault(event["reason"], []).append(event)
        assert event["involvedObject"]["kind"] == "ConfigMap"
        assert event["source"] == {"component": "qiskit-controller", "host": "pod-1"}
        assert event["lastTimestamp"] >= event["firstTimestamp"]
    assert [event["count"] for event in by_reason["Submitted"]] == [3]
    combined = [e for e in by_reason["Retrying"] if e["message"].startswith("(combined from")]
    assert len(by_reason["Retrying"]) == 10
    assert [e["count"] for e in combined] == [3]
    assert len(by_reason["Long"][0]["message"]) == 1024


async def test_a_namespace_that_is_being_deleted_is_no_reason_for_noise(
    client: Client, namespace: str
) -> None:
    class Dropped(list[str]):
        def dropped(self, why: str) -> None:
            self.append(why)

    obj = await client.create(CONFIGMAPS, {"metadata": {"name": "a"}}, namespace)
    await client.delete(NAMESPACES, namespace)
    dropped = Dropped()
    recorder = EventRecorder(client, "c", "i", limits=Limits(retry_seconds=0.1), metrics=dropped)
    with capture_logs() as logs:
        recorder.event(obj, "Normal", "Late", "too late")
        assert await recorder.flush(20)
    await recorder.aclose()
    assert dropped == ["refused"]
    assert logs == []
