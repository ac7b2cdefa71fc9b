from __future__ import annotations

from qiskit_controller.kube.client import CONFIGMAPS, Client


async def test_roundtrip(client: Client, namespace: str) -> None:
    made = await client.create(
        CONFIGMAPS, {"metadata": {"name": "a"}, "data": {"k": "v"}}, namespace
    )
    assert (await client.get(CONFIGMAPS, "a", namespace)) == made
