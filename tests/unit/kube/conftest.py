"""Two API servers made of aiohttp: one that follows a script, one that keeps objects.

`ScriptedApi` is for what a real server does rarely and a client must survive: each list
and each watch is answered by the next step that the test has queued, down to the bytes.
`StatefulApi` is for protocols between several clients: objects with resourceVersions,
conflicts and watches, and a switch that makes it unreachable.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from aiohttp import web
from kubernetes_asyncio.client import ApiClient, Configuration

from qiskit_controller.kube.client import Client

Object = dict[str, Any]
Step = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def configmap(name: str, version: int | str = 1, **data: str) -> Object:
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
        },
        "data": data,
    }


def line(type_: str, obj: Object) -> bytes:
    return json.dumps({"type": type_, "object": obj}).encode() + b"\n"


def bookmark(version: int) -> bytes:
    return line("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})


def status(code: int, reason: str, **more: Any) -> Object:
    return {"kind": "Status", "code": code, "reason": reason, "message": reason.lower(), **more}


class Steps:
    """The answers a script is made of."""

    configmap = staticmethod(configmap)
    line = staticmethod(line)
    bookmark = staticmethod(bookmark)
    status = staticmethod(status)

    @staticmethod
    def page(*objects: Object, version: int | str, token: str | None = None) -> Step:
        """A list, or a page of one."""

        async def step(request: web.BaseRequest) -> web.StreamResponse:
            metadata = {"resourceVersion": str(version), "continue": token}
            return web.json_response({"metadata": metadata, "items": list(objects)})

        return step

    @staticmethod
    def error(code: int, reason: str, headers: dict[str, str] | None = None, **more: Any) -> Step:
        async def step(request: web.BaseRequest) -> web.StreamResponse:
            return web.json_response(status(code, reason, **more), status=code, headers=headers)

        return step

    @staticmethod
    def plain(code: int, text: str = "") -> Step:
        """What a proxy answers instead of the API server."""

        async def step(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(status=code, text=text)

        return step

    @staticmethod
    def refuse() -> Step:
        """A connection reset in place of an answer."""

        async def step(request: web.BaseRequest) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        return step

    @staticmethod
    def stream(*chunks: bytes, then: str = "end") -> Step:
        """A watch: these bytes, and then its end, silence (hang) or a broken line (drop)."""

        async def step(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            for chunk in chunks:
                await response.write(chunk)
            if then == "hang":
                await asyncio.sleep(3600)
            elif then == "drop":
                # The client must have got the bytes before the connection goes.
                await asyncio.sleep(0.02)
                assert request.transport is not None
                request.transport.abort()
            return response

        return step


@attrs.define
class ScriptedApi(Steps):
    lists: deque[Step] = attrs.field(factory=deque)
    watches: deque[Step] = attrs.field(factory=deque)
    requests: list[web.BaseRequest] = attrs.field(factory=list)

    def queries(self, *, watch: bool) -> list[dict[str, str]]:
        """The query parameters of all lists, or all watches, so far."""
        queries = [dict(request.query) for request in self.requests]
        return [query for query in queries if ("watch" in query) == watch]

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        script = self.watches if "watch" in request.query else self.lists
        # A watch that the script does not mention is one where nothing happens.
        step = script.popleft() if script else self.stream(then="hang")
        return await step(request)


@attrs.define
class StatefulApi:
    objects: dict[str, Object] = attrs.field(factory=dict)
    version: int = 0
    stored_at: float = 0.0
    down: bool = False
    hang: bool = False
    refuse: tuple[int, str] | None = None
    requests: list[tuple[str, str]] = attrs.field(factory=list)
    _watchers: list[tuple[str, asyncio.Queue[bytes]]] = attrs.field(factory=list)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.hang:
            await asyncio.sleep(3600)
        if self.down:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        self.requests.append((request.method, request.path))
        if self.refuse and request.method != "GET":
            code, reason = self.refuse
            return web.json_response(status(code, reason), status=code)
        if "watch" in request.query:
            return await self._watch(request)
        code, answer = await self._change(request)
        return web.json_response(answer, status=code)

    async def _change(self, request: web.BaseRequest) -> tuple[int, Object]:
        path = request.path
        body = await request.json() if request.can_read_body else {}
        if request.method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                return 409, status(409, "AlreadyExists")
            return 201, self._store("ADDED", path, body)
        if request.method == "GET" and path.endswith("s"):
            inside = [obj for at, obj in self.objects.items() if at.startswith(path + "/")]
            return 200, {"metadata": {"resourceVersion": str(self.version)}, "items": inside}
        current = self.objects.get(path)
        if current is None:
            return 404, status(404, "NotFound")
        if request.method == "PUT":
            wanted = body["metadata"].get("resourceVersion")
            if wanted and wanted != current["metadata"]["resourceVersion"]:
                return 409, status(409, "Conflict")
            return 200, self._store("MODIFIED", path, body)
        if request.method == "PATCH":
            return 200, self._store("MODIFIED", path, {**current, **body})
        if request.method == "DELETE":
            self._tell("DELETED", path, self.objects.pop(path))
        return 200, current

    def _store(self, type_: str, path: str, obj: Object) -> Object:
        self.version += 1
        self.stored_at = time.monotonic()
        metadata = {**obj["metadata"], "resourceVersion": str(self.version)}
        self.objects[path] = {**obj, "metadata": metadata}
        self._tell(type_, path, self.objects[path])
        return self.objects[path]

    def _tell(self, type_: str, path: str, obj: Object) -> None:
        for collection, queue in self._watchers:
            if path.startswith(collection):
                queue.put_nowait(line(type_, obj))

    async def _watch(self, request: web.BaseRequest) -> web.StreamResponse:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._watchers.append((request.path + "/", queue))
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(await queue.get())


async def _serve(
    answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> tuple[web.ServerRunner, str]:
    runner = web.ServerRunner(web.Server(answer, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[ScriptedApi, str]]:
    api = ScriptedApi()
    runner, url = await _serve(api.answer)
    yield api, url
    await runner.cleanup()


@pytest.fixture
async def stateful() -> AsyncIterator[tuple[StatefulApi, str]]:
    api = StatefulApi()
    runner, url = await _serve(api.answer)
    yield api, url
    await runner.cleanup()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Client]:
    """Makes a client for a URL; to be used as a context manager."""
    # Nothing here speaks TLS, and loading the system's certificates takes 40 ms each time.
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)

    def connect(url: str, token: str | None = None, **options: Any) -> Client:
        configuration = Configuration(host=url)
        if token:
            configuration.api_key["BearerToken"] = f"Bearer {token}"
        return Client(ApiClient(configuration), **options)

    return connect


@pytest.fixture
async def api(scripted: tuple[ScriptedApi, str]) -> ScriptedApi:
    return scripted[0]


@pytest.fixture
async def client(
    scripted: tuple[ScriptedApi, str], connect: Callable[..., Client]
) -> AsyncIterator[Client]:
    async with connect(scripted[1]) as client:
        yield client


class Eventually:
    """Waits for what other tasks bring about."""

    async def __call__(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - the server under test sets no Event
                await asyncio.sleep(0.002)


@pytest.fixture
def eventually() -> Eventually:
    return Eventually()


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[float]]:
    """Takes the time out of the sleeps in one module; returns what they would have taken."""

    def patch(module: str) -> list[float]:
        slept: list[float] = []

        async def sleep(delay: float) -> None:
            slept.append(delay)
            await asyncio.sleep(0)

        everything = {**vars(asyncio), "sleep": sleep}
        monkeypatch.setattr(f"{module}.asyncio", SimpleNamespace(**everything))
        return slept

    return patch
