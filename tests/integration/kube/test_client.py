"""The client and a real API server: verbs, preconditions, errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import qiskit_controller.kube.resources as resources_module
from qiskit_controller.kube.client import (
    CONFIGMAPS,
    JOBS,
    AlreadyExists,
    Client,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    Resource,
    Unauthorized,
)
from tests.kinds import SECRETS


def configmap(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": data}


async def test_a_life(client: Client, namespace: str) -> None:
    made = await client.create(CONFIGMAPS, configmap("a", k="v"), namespace)
    assert await client.get(CONFIGMAPS, "a", namespace) == made
    made["data"]["k"] = "w"
    replaced = await client.replace(CONFIGMAPS, made)
    assert replaced["data"] == {"k": "w"}
    patched = await client.patch(CONFIGMAPS, "a", namespace, {"data": {"k": None, "l": "x"}})
    assert patched["data"] == {"l": "x"}
    await client.delete(CONFIGMAPS, "a", namespace)
    with pytest.raises(NotFound) as caught:
        await client.get(CONFIGMAPS, "a", namespace)
    assert caught.value.reason == "NotFound"
    assert caught.value.details["name"] == "a"


async def test_errors(client: Client, namespace: str, apiserver: Any) -> None:
    await client.create(CONFIGMAPS, configmap("a"), namespace)
    with pytest.raises(AlreadyExists):
        await client.create(CONFIGMAPS, configmap("a"), namespace)
    with pytest.raises(Invalid, match=r"metadata\.name") as caught:
        await client.create(CONFIGMAPS, configmap("Not A Name"), namespace)
    assert caught.value.details["causes"][0]["field"] == "metadata.name"
    with pytest.raises(NotFound):
        await client.list(Resource("nonesuch.io", "v1", "things", "Thing"))
    kubeconfig = apiserver.write_kubeconfig("user", token=apiserver.user_token)
    async with await Client.connect(str(kubeconfig)) as user:
        with pytest.raises(Forbidden, match="test-user"):
            await user.get(SECRETS, "a", namespace)
    kubeconfig = apiserver.write_kubeconfig("nobody", token="wrong")
    async with await Client.connect(str(kubeconfig)) as nobody:
        with pytest.raises(Unauthorized):
            await nobody.get(SECRETS, "a", namespace)


async def test_a_write_on_an_old_state_is_a_conflict(client: Client, namespace: str) -> None:
    made = await client.create(CONFIGMAPS, configmap("a", k="v"), namespace)
    await client.replace(CONFIGMAPS, {**made, "data": {"k": "w"}})
    with pytest.raises(Conflict):
        await client.replace(CONFIGMAPS, {**made, "data": {"k": "x"}})
    version = {"resourceVersion": made["metadata"]["resourceVersion"]}
    with pytest.raises(Conflict):
        await client.patch(CONFIGMAPS, "a", namespace, {"metadata": version, "data": {"k": "x"}})


async def test_delete_preconditions(client: Client, namespace: str) -> None:
    old = await client.create(CONFIGMAPS, configmap("a"), namespace)
    await client.delete(CONFIGMAPS, "a", namespace)
    new = await client.create(CONFIGMAPS, configmap("a"), namespace)
    with pytest.raises(Conflict):
        await client.delete(CONFIGMAPS, "a", namespace, uid=old["metadata"]["uid"])
    version = new["metadata"]["resourceVersion"]
    await client.patch(CONFIGMAPS, "a", namespace, {"data": {"k": "v"}})
    with pytest.raises(Conflict):
        await client.delete(CONFIGMAPS, "a", namespace, resource_version=version)
    await client.delete(CONFIGMAPS, "a", namespace, uid=new["metadata"]["uid"])


async def test_patch_types(client: Client, namespace: str) -> None:
    await client.create(CONFIGMAPS, configmap("a", k="v"), namespace)
    json_patch = [{"op": "replace", "path": "/data/k", "value": "w"}]
    patched = await client.patch(CONFIGMAPS, "a", namespace, json_patch, patch_type="json")
    assert patched["data"] == {"k": "w"}
    wrong = [{"op": "test", "path": "/data/k", "value": "v"}]
    with pytest.raises(Invalid):
        await client.patch(CONFIGMAPS, "a", namespace, wrong, patch_type="json")
    body = {"metadata": {"labels": {"a": "b"}}}
    patched = await client.patch(CONFIGMAPS, "a", namespace, body, patch_type="strategic")
    assert patched["metadata"]["labels"] == {"a": "b"}


async def test_server_side_apply(client: Client, namespace: str) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", **configmap("a", k="mine")}
    apply: dict[str, Any] = {"patch_type": "apply"}
    await client.patch(CONFIGMAPS, "a", namespace, body, field_manager="me", **apply)
    theirs = copy.deepcopy(body)
    theirs["data"]["k"] = "theirs"
    with pytest.raises(Conflict):
        await client.patch(CONFIGMAPS, "a", namespace, theirs, field_manager="them", **apply)
    patched = await client.patch(
        CONFIGMAPS, "a", namespace, theirs, field_manager="them", force=True, **apply
    )
    assert patched["data"] == {"k": "theirs"}


async def test_subresources_and_foreground_deletion(client: Client, namespace: str) -> None:
    pod = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    job = {"metadata": {"name": "a"}, "spec": {"template": pod}}
    made = await client.create(JOBS, job, namespace)
    made["status"] = {"active": 3}
    assert (await client.replace(JOBS, made, "status"))["status"]["active"] == 3
    body = {"status": {"active": 2}}
    patched = await client.patch(JOBS, "a", namespace, body, subresource="status")
    assert patched["status"]["active"] == 2
    await client.delete(JOBS, "a", namespace, propagation="Foreground")
    waiting = await client.get(JOBS, "a", namespace)  # for a garbage collector that is not here
    assert waiting["metadata"]["finalizers"] == ["foregroundDeletion"]


async def test_selectors_and_metadata(client: Client, namespace: str) -> None:
    for name in "ab":
        secret = {"metadata": {"name": name, "labels": {"n": name}}, "stringData": {"k": "hunter2"}}
        await client.create(SECRETS, secret, namespace)
    found = await client.list(SECRETS, namespace, label_selector="n=a", metadata_only=True)
    assert [item["metadata"]["name"] for item in found["items"]] == ["a"]
    assert "data" not in found["items"][0]
    found = await client.list(SECRETS, namespace, field_selector="metadata.name=b")
    assert [item["metadata"]["name"] for item in found["items"]] == ["b"]


async def test_an_old_continue_token_is_gone(
    client: Client, namespace: str, apiserver: Any
) -> None:
    for number in range(4):
        await client.create(CONFIGMAPS, configmap(f"c{number}"), namespace)
    page = await client.list(CONFIGMAPS, namespace, limit=2)
    assert len(page["items"]) == 2
    await client.create(CONFIGMAPS, configmap("more"), namespace)
    apiserver.compact()
    with pytest.raises(Gone) as caught:
        await client.list(CONFIGMAPS, namespace, limit=2, continue_=page["metadata"]["continue"])
    assert caught.value.reason == "Expired"


async def test_every_resource_is_where_we_think_it_is(client: Client) -> None:
    resources = [value for value in vars(resources_module).values() if isinstance(value, Resource)]
    assert {each.kind for each in resources} >= {"Pod", "Job", "ConfigMap", "Lease", "Event"}
    for resource in resources:
        found = await client.list(resource, limit=1)
        assert found["kind"] == f"{resource.kind}List"
        assert found["apiVersion"] == resource.api_version
