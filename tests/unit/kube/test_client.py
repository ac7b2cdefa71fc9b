"""The client against a server that answers what the test says."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from qiskit_controller.kube.client import (
    CONFIGMAPS,
    JOBS,
    AlreadyExists,
    ApiError,
    Client,
    Conflict,
    ConnectionFailed,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    Resource,
    Unauthorized,
)
from tests.kinds import NAMESPACES


class Requests(list[tuple[str, str, int]]):
    def request(self, verb: str, resource: str, status: int, seconds: float) -> None:
        self.append((verb, resource, status))


@pytest.fixture
def slept(no_sleep: Any) -> list[float]:
    """How long the client's retries would have waited."""
    waits: list[float] = no_sleep("qiskit_controller.kube.client")
    return waits


@pytest.mark.parametrize(
    ("resource", "arguments", "path"),
    [
        (CONFIGMAPS, (), "/api/v1/configmaps"),
        (CONFIGMAPS, ("ns",), "/api/v1/namespaces/ns/configmaps"),
        (CONFIGMAPS, ("ns", "a"), "/api/v1/namespaces/ns/configmaps/a"),
        (JOBS, ("ns", "a", "status"), "/apis/batch/v1/namespaces/ns/jobs/a/status"),
        (NAMESPACES, (None, "ns"), "/api/v1/namespaces/ns"),
        (NAMESPACES, ("ignored", "ns"), "/api/v1/namespaces/ns"),
        (Resource("g.io", "v2", "things", "Thing"), ("n", "a/../b"),
         "/apis/g.io/v2/namespaces/n/things/a%2F..%2Fb"),
    ],
)  # fmt: skip
def test_paths(resource: Resource, arguments: tuple[Any, ...], path: str) -> None:
    assert resource.path(*arguments) == path


def test_a_namespaced_object_needs_a_namespace() -> None:
    with pytest.raises(ValueError, match="needs a namespace"):
        CONFIGMAPS.path(None, "a")


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (404, "NotFound", NotFound),
        (409, "AlreadyExists", AlreadyExists),
        (409, "Conflict", Conflict),
        (422, "Invalid", Invalid),
        (403, "Forbidden", Forbidden),
        (401, "Unauthorized", Unauthorized),
        (410, "Expired", Gone),
        (410, "Gone", Gone),
        (500, "InternalError", ApiError),
        (504, "Timeout", ApiError),
    ],
)
async def test_errors_come_from_the_status_object(
    api: Any, client: Client, code: int, reason: str, kind: type[ApiError]
) -> None:
    api.lists.append(api.error(code, reason, details={"name": "a", "kind": "configmaps"}))
    with pytest.raises(ApiError) as caught:
        await client.get(CONFIGMAPS, "a", "ns")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.reason) == (code, reason)
    assert caught.value.message == reason.lower()
    assert caught.value.details["name"] == "a"


async def test_an_error_without_a_status_object_still_says_what_it_was(
    api: Any, client: Client
) -> None:
    api.lists.append(api.plain(502, "<html>bad gateway</html>"))
    with pytest.raises(ApiError, match="bad gateway") as caught:
        await client.get(CONFIGMAPS, "a", "ns")
    assert (caught.value.status, caught.value.reason) == (502, "BadGateway")


async def test_credentials_are_in_no_error(scripted: Any, connect: Any, slept: list[float]) -> None:
    api, url = scripted
    api.lists.extend([api.error(403, "Forbidden"), *[api.refuse()] * 8])
    async with connect(url, token="hunter2") as client:
        for _ in range(2):
            with pytest.raises(ApiError) as caught:
                await client.get(CONFIGMAPS, "a", "ns")
            told = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
            assert "hunter2" not in told
    assert api.requests[0].headers["Authorization"] == "Bearer hunter2"


async def test_too_many_requests_waits_as_told(
    api: Any, client: Client, slept: list[float]
) -> None:
    refusal = api.error(429, "TooManyRequests", headers={"Retry-After": "2"})
    api.lists.extend([refusal, refusal, api.page(version=7)])
    made = await client.create(CONFIGMAPS, api.configmap("a"))  # also a write
    assert made["metadata"]["resourceVersion"] == "7"
    assert slept == [2, 2]


async def test_retries_are_bounded(api: Any, client: Client, slept: list[float]) -> None:
    api.lists.extend([api.error(429, "TooManyRequests", headers={"Retry-After": "1"})] * 9)
    with pytest.raises(ApiError) as caught:
        await client.get(CONFIGMAPS, "a", "ns")
    assert caught.value.retry_after == 1
    assert len(api.requests) == 4


async def test_a_long_wait_is_left_to_the_caller(api: Any, client: Client) -> None:
    api.lists.append(api.error(429, "TooManyRequests", headers={"Retry-After": "600"}))
    with pytest.raises(ApiError) as caught:
        await client.get(CONFIGMAPS, "a", "ns")
    assert caught.value.retry_after == 600
    assert len(api.requests) == 1


async def test_a_read_survives_resets(api: Any, client: Client, slept: list[float]) -> None:
    # aiohttp itself asks once more on a connection that it had kept open.
    api.lists.extend([api.refuse()] * 3 + [api.page(version=1)])
    await client.list(CONFIGMAPS, "ns")
    assert all(delay < 1 for delay in slept)


async def test_a_write_that_may_have_happened_is_not_repeated(api: Any, client: Client) -> None:
    api.lists.append(api.refuse())
    with pytest.raises(ConnectionFailed):
        await client.create(CONFIGMAPS, api.configmap("a"))
    assert len(api.requests) == 1


async def test_no_answer_is_a_timeout(scripted: Any, connect: Any) -> None:
    api, url = scripted
    api.lists.append(api.stream(then="hang"))
    async with connect(url, timeout=0.1) as client:
        with pytest.raises(ConnectionFailed) as caught:
            await client.get(CONFIGMAPS, "a", "ns")
    assert caught.value.reason == "Timeout"
    assert len(api.requests) == 1


async def test_a_server_that_is_not_there(connect: Any, unused_tcp_port: int) -> None:
    async with connect(f"http://127.0.0.1:{unused_tcp_port}") as client:
        with pytest.raises(ConnectionFailed) as caught:
            await client.replace(CONFIGMAPS, {"metadata": {"name": "a", "namespace": "ns"}})
    assert caught.value.status == 0


async def test_an_answer_that_is_no_object(api: Any, client: Client, slept: list[float]) -> None:
    api.lists.extend([api.plain(200, "hello")] * 4)
    with pytest.raises(ConnectionFailed, match="not a JSON object"):
        await client.get(CONFIGMAPS, "a", "ns")


async def test_delete_sends_its_preconditions(api: Any, client: Client) -> None:
    bodies = []

    async def keep(request: Any) -> Any:
        bodies.append(await request.json())
        return await api.page(version=1)(request)

    api.lists.extend([keep, keep])
    await client.delete(CONFIGMAPS, "a", "ns", uid="u", resource_version="5")
    await client.delete(CONFIGMAPS, "a", "ns", propagation="Foreground", grace_period_seconds=0)
    assert bodies[0]["preconditions"] == {"uid": "u", "resourceVersion": "5"}
    assert bodies[0]["propagationPolicy"] == "Background"
    assert "preconditions" not in bodies[1]
    assert bodies[1]["gracePeriodSeconds"] == 0


async def test_patches_name_their_type(api: Any, client: Client) -> None:
    api.lists.extend([api.page(version=1)] * 2)
    await client.patch(CONFIGMAPS, "a", "ns", [{"op": "test"}], patch_type="json")
    await client.patch(
        CONFIGMAPS, "a", "ns", {}, patch_type="apply", field_manager="me", force=True
    )
    assert api.requests[0].headers["Content-Type"] == "application/json-patch+json"
    assert api.requests[1].headers["Content-Type"] == "application/apply-patch+yaml"
    assert dict(api.requests[1].query) == {"fieldManager": "me", "force": "true"}


async def test_metrics_count_every_try(scripted: Any, connect: Any, slept: list[float]) -> None:
    api, url = scripted
    api.lists.extend(
        [api.error(429, "TooManyRequests", headers={"Retry-After": "1"}), api.page(version=1)]
    )
    api.watches.append(api.stream())
    seen = Requests()
    async with connect(url, metrics=seen) as client:
        await client.list(CONFIGMAPS)
        async with client.watch(CONFIGMAPS, resource_version="1", timeout_seconds=1):
            pass
    assert seen == [("list", "configmaps", 429), ("list", "configmaps", 200),
                    ("watch", "configmaps", 200)]  # fmt: skip


async def test_client_side_rate_limit(scripted: Any, connect: Any, slept: list[float]) -> None:
    api, url = scripted
    api.lists.extend([api.page(version=1)] * 4)
    async with connect(url, qps=10, burst=2) as client:
        for _ in range(4):
            await client.list(CONFIGMAPS)
    assert slept[:2] == [0, 0]
    assert all(delay > 0 for delay in slept[2:])


async def test_secrets_do_not_reach_the_debug_log(
    api: Any, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    api.lists.append(api.page(api.configmap("a", password="hunter2"), version=1))
    await client.list(CONFIGMAPS, "ns")
    assert "hunter2" not in caplog.text


async def test_a_watch_that_is_not_answered_is_a_timeout(scripted: Any, connect: Any) -> None:
    api, url = scripted

    async def silence(request: Any) -> Any:
        await asyncio.sleep(3600)

    api.watches.append(silence)
    async with connect(url, timeout=0.1) as client:
        with pytest.raises(ConnectionFailed) as caught:
            async with client.watch(CONFIGMAPS, resource_version="1", timeout_seconds=60):
                pass
    assert caught.value.reason == "Timeout"


async def test_a_watch_that_ends_in_a_line_has_failed(api: Any, client: Client) -> None:
    whole = api.line("ADDED", api.configmap("a"))
    api.watches.append(api.stream(whole + whole[:-1]))
    async with client.watch(CONFIGMAPS, resource_version="1", timeout_seconds=9) as events:
        assert (await anext(events)).type == "ADDED"
        with pytest.raises(ConnectionFailed, match="middle of a line"):
            await anext(events)


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="Linux only")
async def test_an_idle_watch_is_probed_by_the_kernel(api: Any, client: Client) -> None:
    api.watches.append(api.stream(then="hang"))
    async with client.watch(CONFIGMAPS, resource_version="1", timeout_seconds=60):
        connector: aiohttp.BaseConnector = client._api.rest_client.pool_manager.connector
        (connection,) = connector._acquired
        assert connection.transport is not None
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


async def test_the_response_is_closed_when_a_watch_is_left_early(api: Any, client: Client) -> None:
    api.watches.append(api.stream(*[api.line("ADDED", api.configmap("a"))] * 3, then="hang"))
    async with client.watch(CONFIGMAPS, resource_version="1", timeout_seconds=60) as events:
        async for event in events:
            assert event.type == "ADDED"
            break
    connector: aiohttp.BaseConnector = client._api.rest_client.pool_manager.connector
    assert not connector._acquired


def kubeconfig(path: Path, url: str, user: dict[str, Any]) -> str:
    config = {
        "current-context": "one",
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u"}},
            {"name": "two", "context": {"cluster": "c", "user": "v"}},
        ],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": user}, {"name": "v", "user": {"token": "other"}}],
    }
    path.write_text(json.dumps(config))
    return str(path)


async def test_connecting_by_kubeconfig(
    scripted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, url = scripted
    api.lists.extend([api.page(version=1)] * 3)
    path = kubeconfig(tmp_path / "config", url, {"token": "secret"})
    async with await Client.connect(path) as client:
        await client.list(CONFIGMAPS)
    async with await Client.connect(path, context="two") as client:
        await client.list(CONFIGMAPS)
    monkeypatch.setenv("KUBECONFIG", path)
    async with await Client.connect(user_agent="tester") as client:
        await client.list(CONFIGMAPS)
    tokens = [request.headers["Authorization"] for request in api.requests]
    assert tokens == ["Bearer secret", "Bearer other", "Bearer secret"]
    assert api.requests[2].headers["User-Agent"] == "tester"


async def test_connecting_to_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no kubeconfig at"):
        await Client.connect()


async def test_a_token_of_a_plugin_is_renewed(scripted: Any, tmp_path: Path) -> None:
    """As EKS and GKE give them out, for some minutes each."""
    api, url = scripted
    api.lists.extend([api.page(version=1)] * 2)
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import json, pathlib\n"
        f"count = pathlib.Path({str(tmp_path / 'count')!r})\n"
        "n = len(count.read_text()) if count.exists() else 0\n"
        "count.write_text('x' * (n + 1))\n"
        "print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1beta1',\n"
        "    'kind': 'ExecCredential', 'status': {'token': f't{n}',\n"
        f"    'expirationTimestamp': '{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}'}}}}))\n"
    )
    exec_ = {
        "apiVersion": "client.authentication.k8s.io/v1beta1",
        "command": sys.executable,
        "args": [str(plugin)],
    }
    path = kubeconfig(tmp_path / "config", url, {"exec": exec_})
    async with await Client.connect(path) as client:
        await client.list(CONFIGMAPS)
        await client.list(CONFIGMAPS)
        plugin.write_text("raise SystemExit('not logged in')")
        with pytest.raises(ConnectionFailed, match="not logged in"):
            await client.create(CONFIGMAPS, api.configmap("a"))
    tokens = [request.headers["Authorization"] for request in api.requests]
    assert tokens == ["Bearer t1", "Bearer t2"]  # t0 came with the configuration
