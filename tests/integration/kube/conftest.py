from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import pytest

from qiskit_controller.kube.client import Client


@attrs.define
class Proxy:
    """A TCP proxy in front of the API server, with scissors."""

    port_behind: int
    port: int = 0
    _server: asyncio.Server | None = None
    _connections: set[asyncio.StreamWriter] = attrs.field(factory=set)

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Break all connections, and refuse new ones until `open`."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self.port_behind)
        except OSError:
            writer.transport.abort()
            return
        self._connections |= {writer, there[1]}
        await asyncio.gather(self._pipe(reader, there[1]), self._pipe(there[0], writer))

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self._connections.discard(writer)
            writer.close()


@pytest.fixture
async def proxy(apiserver: Any) -> AsyncIterator[Proxy]:
    proxy = Proxy(apiserver.port)
    await proxy.open()
    yield proxy
    proxy.cut()


@pytest.fixture
async def proxied(apiserver: Any, proxy: Proxy) -> AsyncIterator[Client]:
    """A client whose connections the test can cut."""
    path = apiserver.write_kubeconfig("proxied", port=proxy.port)
    async with await Client.connect(str(path)) as client:
        yield client


class Eventually:
    """Waits for what other tasks bring about."""

    async def __call__(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - the API server sets no Event
                await asyncio.sleep(0.02)


@pytest.fixture
def eventually() -> Eventually:
    return Eventually()
