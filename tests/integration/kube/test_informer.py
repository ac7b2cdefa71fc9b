"""Informers that follow a real API server through its worse hours."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from qiskit_controller.kube.client import CONFIGMAPS, Client, Resource
from qiskit_controller.kube.informer import Informer
from qiskit_controller.kube.objects import key_of
from qiskit_controller.kube.reflector import Tuning
from tests.kinds import CRDS, NAMESPACES, SECRETS

QUICK = Tuning(page_size=100, backoff_base=0.05, backoff_cap=0.5)


class Mirror:
    """What a handler believes there is, from nothing but what it was told."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.deleted: list[str] = []
        self.updates = 0

    def on_add(self, obj: Any, is_initial: bool) -> None:
        assert key_of(obj) not in self.objects
        self.objects[key_of(obj)] = obj

    def on_update(self, old: Any, new: Any) -> None:
        assert self.objects[key_of(old)] is old
        self.objects[key_of(new)] = new
        self.updates += 1

    def on_delete(self, obj: Any) -> None:
        del self.objects[key_of(obj)]
        self.deleted.append(key_of(obj))


def configmap(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": data}


async def at_once(coroutines: Any) -> None:
    """Run requests 20 at a time."""
    slots = asyncio.Semaphore(20)

    async def one(coroutine: Any) -> None:
        async with slots:
            await coroutine

    await asyncio.gather(*[one(coroutine) for coroutine in coroutines])


async def truth(client: Client, namespace: str) -> dict[str, str]:
    found = await client.list(CONFIGMAPS, namespace)
    return {key_of(o): o["metadata"]["resourceVersion"] for o in found["items"]}


def versions(objects: Any) -> dict[str, str]:
    return {key_of(o): o["metadata"]["resourceVersion"] for o in objects}


async def test_500_objects(client: Client, namespace: str, running: Any, eventually: Any) -> None:
    await at_once(client.create(CONFIGMAPS, configmap(f"c{n}"), namespace) for n in range(250))
    mirror = Mirror()
    informer = Informer(client, CONFIGMAPS, namespace=namespace, tuning=QUICK)
    informer.add_handler(mirror)
    running(informer.run())
    await informer.wait_synced(20)
    assert len(informer) == len(mirror.objects) == 250
    await at_once(client.create(CONFIGMAPS, configmap(f"c{n}"), namespace) for n in range(250, 500))
    await at_once(
        client.patch(CONFIGMAPS, f"c{n}", namespace, {"data": {"k": "v"}}) for n in range(0, 500, 2)
    )
    await at_once(client.delete(CONFIGMAPS, f"c{n}", namespace) for n in range(0, 500, 5))
    expected = await truth(client, namespace)
    await eventually(lambda: versions(informer.list()) == expected)
    assert versions(mirror.objects.values()) == expected
    assert len(mirror.deleted) == 100
    assert mirror.updates == 250
    assert "managedFields" not in informer.list()[0]["metadata"]


async def test_a_restart_and_a_gap_beyond_the_history_lose_nothing(
    client: Client,
    proxied: Client,
    namespace: str,
    apiserver: Any,
    proxy: Any,
    running: Any,
    eventually: Any,
) -> None:
    """One is there when the API server goes away and returns; for the other, the history
    between its last event and its return is compacted away."""
    await at_once(client.create(CONFIGMAPS, configmap(f"c{n}"), namespace) for n in range(300))
    witness = Informer(client, CONFIGMAPS, namespace=namespace, tuning=QUICK)
    running(witness.run())
    await witness.wait_synced(20)
    mirror = Mirror()
    informer = Informer(proxied, CONFIGMAPS, namespace=namespace, tuning=QUICK)
    informer.add_handler(mirror)
    with capture_logs() as logs:
        running(informer.run())
        await informer.wait_synced(20)
        proxy.cut()
        await at_once(client.delete(CONFIGMAPS, f"c{n}", namespace) for n in range(100))
        await client.delete(CONFIGMAPS, "c299", namespace)
        await client.create(CONFIGMAPS, configmap("c299", another="one"), namespace)
        await client.create(CONFIGMAPS, configmap("new"), namespace)
        expected = await truth(client, namespace)
        apiserver.compact()
        # The API server keeps history of its own, which goes with it.
        await apiserver.restart()
        await proxy.open()
        await eventually(lambda: versions(informer.list()) == expected)
    assert any("history is gone" in entry["event"] for entry in logs)
    await client.create(CONFIGMAPS, configmap("newer"), namespace)
    await eventually(lambda: len(informer) == len(witness) == len(expected) + 1)
    del mirror.objects[f"{namespace}/newer"]
    assert versions(mirror.objects.values()) == expected
    assert len(mirror.deleted) == 101
    assert mirror.updates == 0


async def test_a_cut_connection_resumes_without_listing(
    client: Client, proxied: Client, namespace: str, proxy: Any, running: Any, eventually: Any
) -> None:
    lists: list[str] = []

    class Count:
        def request(self, verb: str, resource: str, status: int, seconds: float) -> None:
            if verb == "list" and status == 200:
                lists.append(resource)

    proxied._metrics = Count()
    await client.create(CONFIGMAPS, configmap("a"), namespace)
    mirror = Mirror()
    informer = Informer(proxied, CONFIGMAPS, namespace=namespace, tuning=QUICK)
    informer.add_handler(mirror)
    running(informer.run())
    await informer.wait_synced(20)
    for name in "bcd":
        proxy.cut()
        await client.create(CONFIGMAPS, configmap(name), namespace)
        await client.delete(CONFIGMAPS, name, namespace)
        await proxy.open()
    await eventually(lambda: len(mirror.deleted) == 3)
    assert set(mirror.objects) == {f"{namespace}/a"}
    assert lists == ["configmaps"]


async def test_history_that_is_gone_between_two_pages(
    client: Client, namespace: str, apiserver: Any, running: Any, eventually: Any
) -> None:
    await at_once(client.create(CONFIGMAPS, configmap(f"c{n}"), namespace) for n in range(30))

    class Compacting(Client):
        pages = 0

        async def list(self, *args: Any, **kwargs: Any) -> Any:
            page = await super().list(*args, **kwargs)
            self.pages += 1
            if self.pages == 2:
                await client.delete(CONFIGMAPS, "c0", namespace)
                apiserver.compact()
            return page

    slow = Compacting(client._api)
    informer = Informer(slow, CONFIGMAPS, namespace=namespace, tuning=Tuning(page_size=10))
    running(informer.run())
    await informer.wait_synced(20)
    assert versions(informer.list()) == await truth(client, namespace)
    assert slow.pages == 3  # two, and one with all of it


async def test_metadata_only_never_holds_data(
    client: Client, namespace: str, running: Any, eventually: Any
) -> None:
    def secret(name: str) -> dict[str, Any]:
        return {"metadata": {"name": name}, "stringData": {"password": "hunter2"}}

    await client.create(SECRETS, secret("listed"), namespace)
    mirror = Mirror()
    informer = Informer(client, SECRETS, namespace=namespace, metadata_only=True, tuning=QUICK)
    informer.add_handler(mirror)
    running(informer.run())
    await informer.wait_synced(20)
    await client.create(SECRETS, secret("watched"), namespace)
    await eventually(lambda: len(informer) == 2)
    await client.patch(SECRETS, "watched", namespace, {"stringData": {"password": "hunter3"}})
    await client.delete(SECRETS, "listed", namespace)
    await eventually(lambda: mirror.updates == 1 and mirror.deleted)
    for obj in [*informer.list(), *mirror.objects.values()]:
        assert set(obj) == {"apiVersion", "kind", "metadata"}
        assert (obj["apiVersion"], obj["kind"]) == ("v1", "Secret")


async def test_a_watch_ends_and_goes_on(
    client: Client, namespace: str, running: Any, eventually: Any
) -> None:
    tuning = Tuning(watch_seconds=(1, 1), backoff_base=0.05, backoff_cap=0.5)
    informer = Informer(client, CONFIGMAPS, namespace=namespace, tuning=tuning)
    with capture_logs() as logs:
        running(informer.run())
        await informer.wait_synced(20)
        await asyncio.sleep(1.2)
        await client.create(CONFIGMAPS, configmap("a"), namespace)
        await eventually(lambda: informer.get(f"{namespace}/a"))
    assert logs == []


async def test_large_objects(client: Client, namespace: str, running: Any, eventually: Any) -> None:
    informer = Informer(client, CONFIGMAPS, namespace=namespace, tuning=QUICK)
    with capture_logs() as logs:
        running(informer.run())
        await informer.wait_synced(20)
        # One MiB is the limit, which JSON turns into six: "<" is escaped.
        await client.create(CONFIGMAPS, configmap("big", k="<" * (2**20 - 100)), namespace)
        await eventually(lambda: informer.get(f"{namespace}/big"))
    assert logs == []


async def test_custom_resources(
    client: Client, namespace: str, running: Any, eventually: Any
) -> None:
    things = Resource("test.quantum.io", "v1", "things", "Thing")
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    await client.create(
        CRDS,
        {
            "apiVersion": CRDS.api_version,
            "kind": CRDS.kind,
            "metadata": {"name": f"{things.plural}.{things.group}"},
            "spec": {
                "group": things.group,
                "scope": "Namespaced",
                "names": {"plural": things.plural, "kind": things.kind},
                "versions": [
                    {
                        "name": things.version,
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": schema},
                        "subresources": {"status": {}},
                    }
                ],
            },
        },
    )
    mirror = Mirror()
    informer = Informer(client, things, tuning=QUICK)
    informer.add_handler(mirror)
    running(informer.run())  # perhaps too early: until the CRD is served, listing fails
    await informer.wait_synced(20)
    thing = {"apiVersion": things.api_version, "kind": things.kind, **configmap("a")}
    made = await client.create(things, thing, namespace)
    await client.replace(things, {**made, "status": {"phase": "Running"}}, "status")
    await client.delete(things, "a", namespace)
    await eventually(lambda: mirror.deleted == [f"{namespace}/a"])
    assert mirror.updates == 1
    await client.delete(CRDS, f"{things.plural}.{things.group}")


@pytest.mark.parametrize("selector", ["label", "field"])
async def test_selectors(
    client: Client, namespace: str, running: Any, eventually: Any, selector: str
) -> None:
    scope = {"label_selector": "app=a"} if selector == "label" else {
        "field_selector": "metadata.name=a"
    }  # fmt: skip
    mirror = Mirror()
    informer = Informer(client, CONFIGMAPS, namespace=namespace, tuning=QUICK, **scope)
    informer.add_handler(mirror)
    running(informer.run())
    await informer.wait_synced(20)
    for name in "ba":
        labelled = {"metadata": {"name": name, "labels": {"app": name}}}
        await client.create(CONFIGMAPS, labelled, namespace)
    await eventually(lambda: mirror.objects)
    assert list(mirror.objects) == [f"{namespace}/a"]
    if selector == "label":
        # To the watcher, leaving the selection looks like a deletion.
        body = {"metadata": {"labels": {"app": "z"}}}
        await client.patch(CONFIGMAPS, "a", namespace, body)
        await eventually(lambda: mirror.deleted)


async def test_cluster_scoped(client: Client, namespace: str, running: Any) -> None:
    informer = Informer(client, NAMESPACES, tuning=QUICK)
    running(informer.run())
    await informer.wait_synced(20)
    assert informer.get(namespace) is not None
    assert informer.get("default") is not None
