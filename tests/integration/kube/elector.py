"""A replica for test_leaderelection.py: prints what becomes of it, until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress

import structlog

from qiskit_controller.kube.client import Client
from qiskit_controller.kube.leaderelection import LeaderElector


async def main(kubeconfig: str, namespace: str, identity: str, *durations: str) -> None:
    async def lead() -> None:
        print("leading", flush=True)
        try:
            await asyncio.sleep(3600)
        finally:
            print("stopped", flush=True)

    async with await Client.connect(kubeconfig) as client:
        elector = LeaderElector(client, namespace, "leader", identity, *map(float, durations))
        task = asyncio.create_task(elector.run(lead))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        print("standing by", flush=True)
        with suppress(asyncio.CancelledError):
            await task


structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
asyncio.run(main(*sys.argv[1:]))
