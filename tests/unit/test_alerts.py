"""The webhook of budgets' alerts, against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest
from aiohttp import web

from qiskit_controller import alerts
from qiskit_controller.alerts import Alerts
from qiskit_controller.reconcilers.qiskitbudget.reconciler import Alert

ALERT = Alert(
    namespace="ns",
    budget="team",
    threshold=0.8,
    message="80% of the limit of $10.00 is used: $7.00 spent, $1.00 reserved",
    limit="$10.00",
    spent="$7.00",
    reserved="$1.00",
    period_start="2026-03-01T00:00:00Z",
    time="2026-03-28T12:00:00Z",
)


@attrs.define
class Hook:
    url: str = ""
    answers: list[int] = attrs.field(factory=list)
    got: list[Any] = attrs.field(factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        self.got.append(await request.json())
        status = self.answers.pop(0) if self.answers else 204
        headers = {"Location": "http://127.0.0.1:1/"} if status == 302 else {}
        return web.Response(status=status, headers=headers)


@pytest.fixture
async def hook(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hook]:
    monkeypatch.setattr(alerts, "_WAIT_SECONDS", 0.01)
    made = Hook()
    app = web.Application()
    app.router.add_post("/alert", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    made.url = f"http://127.0.0.1:{port}/alert"
    yield made
    await runner.cleanup()


async def test_an_alert_is_posted_as_json(hook: Hook) -> None:
    await Alerts(hook.url).send(ALERT)
    assert hook.got == [attrs.asdict(ALERT)]


@pytest.mark.parametrize(("answers", "posts"), [([500, 503], 3), ([500] * 9, 3), ([302], 2)])
async def test_it_is_tried_three_times_and_follows_nobody(
    hook: Hook, answers: list[int], posts: int
) -> None:
    hook.answers = answers
    await Alerts(hook.url).send(ALERT)
    assert len(hook.got) == posts


@pytest.mark.parametrize("url", [None, "", "http://127.0.0.1:9/", "not an address"])
async def test_without_anybody_there_it_ends(
    url: str | None, hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    async with asyncio.timeout(20):
        await Alerts(url).send(ALERT)
    assert hook.got == []
