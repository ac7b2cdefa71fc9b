from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from qiskit_controller.kube.health import (
    HealthServer,
    informer_hears,
    informer_synced,
    queue_moves,
)


class Informer:
    has_synced = False
    seconds_since_contact = 0.0


class Queue:
    running = 0.0

    def longest_running_seconds(self) -> float:
        return self.running


@pytest.fixture
async def server() -> AsyncIterator[HealthServer]:
    async with HealthServer(host="127.0.0.1", port=0) as server:
        yield server


async def get(server: HealthServer, path: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{server.port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def test_ok(server: HealthServer) -> None:
    assert await get(server, "/healthz") == (200, "ok")
    assert await get(server, "/readyz?verbose") == (200, "[+]ping ok\nreadyz check passed\n")


async def test_a_failed_check(server: HealthServer) -> None:
    server.add_readiness("informers", lambda: "pods not synced")
    code, text = await get(server, "/readyz")
    assert code == 500
    assert text == "[+]ping ok\n[-]informers failed: reason withheld\nreadyz check failed\n"
    assert await get(server, "/healthz") == (200, "ok")
    assert (await get(server, "/readyz/informers"))[0] == 500
    assert (await get(server, "/readyz/ping"))[0] == 200
    assert (await get(server, "/readyz/nonesuch"))[0] == 404
    assert (await get(server, "/readyz?exclude=informers"))[0] == 200


async def test_a_check_that_raises_has_failed(server: HealthServer) -> None:
    def check() -> str | None:
        raise RuntimeError("a defect")

    server.add_liveness("broken", check)
    assert (await get(server, "/healthz"))[0] == 500


async def test_other_paths() -> None:
    async def metrics(request: web.Request) -> web.Response:
        return web.Response(text="up 1\n")

    server = HealthServer(host="127.0.0.1", port=0)
    server.add_get("/metrics", metrics)
    async with server:
        assert await get(server, "/metrics") == (200, "up 1\n")


def test_checks() -> None:
    informer: Any = Informer()
    queue = Queue()
    assert informer_synced(informer)() == "not synced"
    informer.has_synced = True
    assert informer_synced(informer)() is None
    assert informer_hears(informer, 10)() is None
    informer.seconds_since_contact = 11
    assert informer_hears(informer, 10)() == "nothing heard for 11 s"
    assert queue_moves(queue, 10)() is None
    queue.running = 20
    assert queue_moves(queue, 10)() == "a reconcile has been running for 20 s"
