"""Probes and metrics over HTTP, in the manner of the Kubernetes components.

`/healthz` answers whether the process should be restarted, `/readyz` whether it can do its
work now. Each runs named checks and says 200 "ok", or 500 with the list of them; with
`?verbose` the list always comes, and `/readyz/<check>` is one check by itself. `?exclude=`
leaves one out:

    [+]ping ok
    [-]informers failed: reason withheld
    readyz check failed

Reasons go to the log and not to the client, which nobody has authenticated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, Self

import structlog
from aiohttp import web

log = structlog.get_logger(__name__)

Check = Callable[[], str | None]
"""Says what is wrong, or None. Must not block; one that raises has failed."""


class HealthServer:
    """An HTTP server for probes, and for whatever else is added to it.

    `host` None is every interface, `port` 0 any free one. An asynchronous context manager.
    """

    def __init__(self, *, host: str | None = None, port: int = 8081) -> None:
        self._host = host
        self._wanted_port = port
        self._checks: dict[str, dict[str, Check]] = {
            "healthz": {"ping": _ping},
            "readyz": {"ping": _ping},
        }
        app = web.Application()
        for endpoint in self._checks:
            app.router.add_get(f"/{endpoint}", self._probe)
            app.router.add_get(f"/{endpoint}/{{check}}", self._probe)
        self._router = app.router
        # Probes come every few seconds; in an access log they bury everything else.
        self._runner = web.AppRunner(app, access_log=None)

    def add_liveness(self, name: str, check: Check) -> None:
        """Have the process restarted when `check` fails for long."""
        self._checks["healthz"][name] = check

    def add_readiness(self, name: str, check: Check) -> None:
        """Have the pod taken out of service while `check` fails."""
        self._checks["readyz"][name] = check

    def add_get(
        self, path: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> None:
        """Answer GETs of another path, `/metrics` for instance. Before `start`."""
        self._router.add_get(path, handler)

    @property
    def port(self) -> int:
        """The port it listens on, once it does."""
        port: int = self._runner.addresses[0][1]
        return port

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._wanted_port).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _probe(self, request: web.Request) -> web.Response:
        endpoint = request.path.split("/")[1]
        checks = self._checks[endpoint]
        only = request.match_info.get("check")
        if only is not None:
            if only not in checks:
                raise web.HTTPNotFound
            checks = {only: checks[only]}
        excluded = request.query.getall("exclude", [])
        lines = []
        healthy = True
        for name, check in checks.items():
            if name in excluded:
                lines.append(f"[+]{name} excluded: ok")
            elif (problem := _run(check)) is None:
                lines.append(f"[+]{name} ok")
            else:
                healthy = False
                lines.append(f"[-]{name} failed: reason withheld")
                log.warning("health check failed", endpoint=endpoint, check=name, problem=problem)
        lines.append(f"{endpoint} check {'passed' if healthy else 'failed'}\n")
        if healthy and "verbose" not in request.query:
            return web.Response(text="ok")
        return web.Response(text="\n".join(lines), status=200 if healthy else 500)


class _Busy(Protocol):
    def longest_running_seconds(self) -> float: ...


class _InContact(Protocol):
    @property
    def has_synced(self) -> bool: ...
    @property
    def seconds_since_contact(self) -> float: ...


def queue_moves(queue: _Busy, limit: float) -> Check:
    """A check that no worker of a queue has been at one key for more than `limit` seconds."""

    def check() -> str | None:
        longest = queue.longest_running_seconds()
        return f"a reconcile has been running for {longest:.0f} s" if longest > limit else None

    return check


def informer_hears(informer: _InContact, limit: float = 900.0) -> Check:
    """A check that the server has spoken to an informer within `limit` seconds.

    The limit has to exceed the longest a watch lasts, which is all that is heard of a
    collection where nothing happens.
    """

    def check() -> str | None:
        silence = informer.seconds_since_contact
        return f"nothing heard for {silence:.0f} s" if silence > limit else None

    return check


def informer_synced(informer: _InContact) -> Check:
    """A check that an informer has its first list."""
    return lambda: None if informer.has_synced else "not synced"


def _ping() -> None:
    return None


def _run(check: Check) -> str | None:
    try:
        return check()
    except Exception as error:
        log.exception("health check raised")
        return f"{type(error).__name__}: {error}"
