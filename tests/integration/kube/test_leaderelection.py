"""Leader election between processes, on a real API server."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from qiskit_controller.kube.client import LEASES, Client

Start = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def start(apiserver: Any, namespace: str) -> AsyncIterator[Start]:
    """Starts a replica; none of them outlives the test."""
    processes: list[asyncio.subprocess.Process] = []

    async def start(identity: str, *durations: float) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("elector.py")),
            str(apiserver.kubeconfig),
            namespace,
            identity,
            *map(str, durations),
            stdout=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        assert await says(process) == "standing by"
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def says(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return (await process.stdout.readline()).decode().strip()


async def test_the_standby_takes_over_from_a_killed_leader(
    client: Client, namespace: str, start: Start
) -> None:
    first = await start("a", 3, 2, 0.5)
    assert await says(first) == "leading"
    second = await start("b", 3, 2, 0.5)
    await asyncio.sleep(0.5)
    before = time.monotonic()
    first.kill()
    assert await says(second) == "leading"
    assert 2 < time.monotonic() - before < 6
    spec = (await client.get(LEASES, "leader", namespace))["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("b", 1)


async def test_a_rollout_hands_over_within_three_seconds(
    client: Client, namespace: str, start: Start
) -> None:
    """With the durations of production."""
    first = await start("a")
    assert await says(first) == "leading"
    second = await start("b")
    third = await start("c")
    await asyncio.sleep(0.5)  # until they watch
    before = time.monotonic()
    first.send_signal(signal.SIGTERM)
    heard = [asyncio.create_task(says(process)) for process in (second, third)]
    done, pending = await asyncio.wait(heard, return_when=asyncio.FIRST_COMPLETED)
    took = time.monotonic() - before
    for task in pending:
        task.cancel()
    assert [task.result() for task in done] == ["leading"]
    assert took < 3
    assert await says(first) == "stopped"
    assert await first.wait() == 0
    spec = (await client.get(LEASES, "leader", namespace))["spec"]
    assert spec["holderIdentity"] in ("b", "c")
    assert spec["leaseDurationSeconds"] == 15
