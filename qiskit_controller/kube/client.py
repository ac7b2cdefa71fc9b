"""The API client: one connection pool, plain dicts in and out, errors one can act on.

It stands on one kubernetes_asyncio `ApiClient` and uses what that is good at:
configuration, credentials that renew themselves, TLS, the aiohttp session. It passes by
the generated API classes, because every kind is the same handful of verbs on a path
(:class:`Resource`), and because of what the generated layer does on the way: it turns
JSON into model objects, and it logs whole response bodies at debug level, Secrets
included. So requests go through `ApiClient.call_api` with `_preload_content=False`, and
status, headers and body are read here.

**Errors.** Whatever the server answers outside 2xx becomes an :class:`ApiError`, built
from the `Status` object in the body and of a subclass where callers branch on it. No
answer at all (refused, reset, timed out) becomes :class:`ConnectionFailed`. An error
carries nothing of the request but its method and path, hence no credentials.

**Retries.** kubernetes_asyncio ships none (its `retries` setting is read nowhere), so
there is a bounded loop here for what is safe without knowing the caller: a 429 with
Retry-After for every verb, because the server refused before it did anything; 5xx with
Retry-After and broken connections for GET only, because a write may have happened. All
else, and all patience, belongs to the caller: reflectors back off, queues requeue.

**Watching** is done here too, by streaming the lines of a `watch=true` request, and
not with `kubernetes_asyncio.watch.Watch`, for reasons that were tried out on 36.1:

- `Watch` never looks at the HTTP status. A 5xx or 429 with an empty body reads like a
  watch that ended normally, one with a plain-text body is *yielded as an event*, as is
  any line that is not JSON, and Retry-After is lost.
- It reads with `StreamReader.readline`, which gives up on lines over 4 MiB. The limit
  of 1.5 MiB on stored objects does not keep lines below that: Pods are stored as
  protobuf, and JSON escapes `<` and `&` to six bytes. One such object, which anyone who
  may create a Pod can make, would end every watch that comes past it.
- Each `Watch()` opens an `ApiClient` that it does not use: 37 ms of blocked event loop
  and 0.75 MiB resident per watch, for loading the system's CA certificates.
- With `return_type="object"` every event is decoded, encoded and decoded again.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

import aiohttp
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config import (
    ConfigException,
    load_incluster_config,
    load_kube_config,
)
from kubernetes_asyncio.config.incluster_config import SERVICE_TOKEN_FILENAME

from qiskit_controller.kube.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    Unauthorized,
    error_from_response,
)
from qiskit_controller.kube.objects import Object
from qiskit_controller.kube.ratelimit import TokenBucket
from qiskit_controller.kube.resources import (
    CONFIGMAPS,
    EVENTS,
    JOBS,
    LEASES,
    PODS,
    ROLEBINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    Resource,
)

# Whoever has a client needs its resources and errors, and finds them here.
__all__ = [
    "CONFIGMAPS",
    "EVENTS",
    "JOBS",
    "LEASES",
    "PODS",
    "ROLEBINDINGS",
    "ROLES",
    "SERVICE_ACCOUNTS",
    "AlreadyExists",
    "ApiError",
    "Client",
    "ClientMetrics",
    "Conflict",
    "ConnectionFailed",
    "Forbidden",
    "Gone",
    "Invalid",
    "NotFound",
    "Resource",
    "Unauthorized",
    "WatchEvent",
]

Body = Object | list[Object]
"""What is sent: an object, or the operations of a JSON patch."""

PatchType = Literal["merge", "json", "strategic", "apply"]

_PATCH_CONTENT_TYPES: dict[PatchType, str] = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    # YAML by name only: JSON is YAML.
    "apply": "application/apply-patch+yaml",
}
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

MAX_WATCH_LINE = 32 * 1024 * 1024
"""Bytes. No honest event comes near it: 3 MiB of object, every byte escaped to six."""

_CONNECT_TIMEOUT = 10.0
_MAX_RETRIES = 3
_MAX_RETRY_WAIT = 10.0


class WatchEvent(NamedTuple):
    """One line of a watch. For type ERROR the object is a Status."""

    type: str
    object: Object


class ClientMetrics(Protocol):
    """Told about every request once it is over; a watch, once it is open."""

    def request(self, verb: str, resource: str, status: int, seconds: float) -> None:
        """`status` is the HTTP status, 0 when there was no answer."""


class _NoMetrics:
    def request(self, verb: str, resource: str, status: int, seconds: float) -> None: ...


class Client:
    """All verbs of the Kubernetes API, on plain dicts, for every :class:`Resource`.

    Every method raises ApiError, or ConnectionFailed after `timeout` seconds without a
    complete answer. `qps` and `burst` limit this client by itself; without them it
    relies on the API server's priority and fairness.
    """

    def __init__(
        self,
        api_client: ApiClient,
        *,
        timeout: float = 30.0,
        qps: float | None = None,
        burst: int = 100,
        metrics: ClientMetrics | None = None,
    ) -> None:
        self._api: Any = api_client  # Any, for its methods carry no types.
        self._timeout = timeout
        self._bucket = TokenBucket(qps, burst) if qps else None
        self._metrics: ClientMetrics = _NoMetrics() if metrics is None else metrics

    @classmethod
    async def connect(
        cls,
        kubeconfig: str | None = None,
        context: str | None = None,
        user_agent: str = "qiskit-controller",
        *,
        timeout: float = 30.0,  # noqa: ASYNC109 - of every request this client will make
        qps: float | None = None,
        burst: int = 100,
        metrics: ClientMetrics | None = None,
    ) -> Self:
        """A client for the cluster that the surroundings point to.

        In this order, as in controller-runtime: `kubeconfig`, $KUBECONFIG, the service
        account of the pod this runs in, ~/.kube/config.
        """
        configuration = Configuration()
        # Python 3.13 verifies chains by RFC 5280 to the letter, and then refuses CAs that
        # kubeadm and others made without all the extensions. Go's TLS never asked for
        # them. Signatures, names and dates are verified either way.
        configuration.disable_strict_ssl_verification = True
        kubeconfig = kubeconfig or os.environ.get("KUBECONFIG")
        if not kubeconfig and not context and _in_pod():
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await _load_kubeconfig(configuration, kubeconfig or "~/.kube/config", context)
        api_client = ApiClient(configuration)
        api_client.user_agent = user_agent
        return cls(api_client, timeout=timeout, qps=qps, burst=burst, metrics=metrics)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; requests under way fail."""
        await self._api.close()

    # -- reading --------------------------------------------------------------------

    async def get(self, res: Resource, name: str, namespace: str | None = None) -> Object:
        return await self._request("get", res, "GET", res.path(namespace, name))

    async def list(
        self,
        res: Resource,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        limit: int | None = None,
        continue_: str | None = None,
        resource_version: str | None = None,
        metadata_only: bool = False,
    ) -> Object:
        """One page of a collection, as the List object that the server sends.

        With `metadata_only` the server leaves out all but apiVersion, kind and metadata.
        """
        query = {
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "limit": limit,
            "continue": continue_,
            "resourceVersion": resource_version,
        }
        return await self._request(
            "list",
            res,
            "GET",
            res.path(namespace),
            query=query,
            accept=_METADATA_LIST if metadata_only else "application/json",
        )

    @asynccontextmanager
    async def watch(
        self,
        res: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        timeout_seconds: float,
        grace_seconds: float = 30.0,
        label_selector: str | None = None,
        field_selector: str | None = None,
        metadata_only: bool = False,
    ) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        """Open a watch; iterate over what is yielded for its events, bookmarks included.

        The server ends the watch after `timeout_seconds`, and the iteration ends. When
        the watch is not over `grace_seconds` later, the other side is taken for dead and
        the iteration raises ConnectionFailed, as it does when the connection breaks.
        ValueError stands for a line that cannot be an event.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": max(1, round(timeout_seconds)),
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
        }
        # A total is stricter than a limit on the silence between two events: it also
        # catches a server that never ends a watch. (Without any, aiohttp sets 5 minutes.)
        timeout = aiohttp.ClientTimeout(
            total=timeout_seconds + grace_seconds, sock_connect=_CONNECT_TIMEOUT
        )
        accept = _METADATA if metadata_only else "application/json"
        path = res.path(namespace)
        started = time.monotonic()
        status = 0
        try:
            # The headers come at once; only the events take their time.
            async with asyncio.timeout(self._timeout):
                response = await self._send(
                    "GET", path, query=query, accept=accept, timeout=timeout
                )
            status = response.status
        except TimeoutError:
            raise _timed_out("GET", path) from None
        finally:
            self._metrics.request("watch", res.plural, status, time.monotonic() - started)
        try:
            if response.status != HTTPStatus.OK:
                raise error_from_response(response, await _body_of(response))
            _keep_alive(response)
            async with aclosing(_events(response)) as events:
                yield events
        finally:
            response.close()

    # -- writing --------------------------------------------------------------------

    async def create(
        self,
        res: Resource,
        obj: Object,
        namespace: str | None = None,
        *,
        field_manager: str | None = None,
    ) -> Object:
        """Create `obj`, in its own namespace unless another one is given."""
        path = res.path(namespace or obj["metadata"].get("namespace"))
        return await self._request(
            "create", res, "POST", path, query={"fieldManager": field_manager}, body=obj
        )

    async def replace(
        self,
        res: Resource,
        obj: Object,
        subresource: str | None = None,
        *,
        field_manager: str | None = None,
    ) -> Object:
        """Replace the object; raises Conflict if it is not at the resourceVersion of `obj`."""
        metadata = obj["metadata"]
        path = res.path(metadata.get("namespace"), metadata["name"], subresource)
        return await self._request(
            "update", res, "PUT", path, query={"fieldManager": field_manager}, body=obj
        )

    async def patch(
        self,
        res: Resource,
        name: str,
        namespace: str | None,
        body: Body,
        *,
        subresource: str | None = None,
        patch_type: PatchType = "merge",
        field_manager: str | None = None,
        force: bool = False,
    ) -> Object:
        """Change part of an object.

        A `metadata.resourceVersion` in a merge patch is a precondition. Server-side apply
        (`patch_type="apply"`) needs a `field_manager`; `force` takes fields from others.
        """
        return await self._request(
            "patch",
            res,
            "PATCH",
            res.path(namespace, name, subresource),
            query={"fieldManager": field_manager, "force": "true" if force else None},
            body=body,
            content_type=_PATCH_CONTENT_TYPES[patch_type],
        )

    async def delete(
        self,
        res: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
        grace_period_seconds: int | None = None,
    ) -> Object:
        """Delete an object; raises Conflict when it is another one than `uid` or newer
        than `resource_version` by now."""
        options: Object = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
        }
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        if any(preconditions.values()):
            options["preconditions"] = {k: v for k, v in preconditions.items() if v}
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        return await self._request("delete", res, "DELETE", res.path(namespace, name), body=options)

    # -- inside ---------------------------------------------------------------------

    async def _request(
        self,
        verb: str,
        res: Resource,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: Body | None = None,
        accept: str = "application/json",
        content_type: str = "application/json",
    ) -> Object:
        """Send a request and decode the answer, retrying where that is harmless."""
        retries = 0
        while True:
            started = time.monotonic()
            status = 0
            try:
                response = await self._send(
                    method,
                    path,
                    query=query or {},
                    body=body,
                    accept=accept,
                    content_type=content_type,
                    timeout=aiohttp.ClientTimeout(
                        total=self._timeout, sock_connect=_CONNECT_TIMEOUT
                    ),
                )
                async with response:
                    content = await _body_of(response)
                    status = response.status
                if not 200 <= status < 300:
                    raise error_from_response(response, content)
                return _decode(content, method, path)
            except ApiError as error:
                wait = _retry_wait(method, error, retries)
                if wait is None or retries == _MAX_RETRIES:
                    raise
            finally:
                self._metrics.request(verb, res.plural, status, time.monotonic() - started)
            retries += 1
            await asyncio.sleep(wait)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
        accept: str,
        body: Body | None = None,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        """The response with its body unread."""
        if self._bucket is not None:
            await asyncio.sleep(self._bucket.when())
        try:
            response: aiohttp.ClientResponse = await self._api.call_api(
                path,
                method,
                query_params={key: value for key, value in query.items() if value is not None},
                header_params={"Accept": accept, "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=timeout,
            )
        except TimeoutError:
            raise _timed_out(method, path) from None
        except (aiohttp.ClientError, OSError, ConfigException) as error:
            # ConfigException: the credentials could not be renewed.
            raise _failed(method, path, error) from None
        return response


def _in_pod() -> bool:
    return Path(SERVICE_TOKEN_FILENAME).exists()


def _any_exists(paths: str) -> bool:
    return any(Path(path).expanduser().exists() for path in paths.split(os.pathsep))


async def _load_kubeconfig(configuration: Configuration, paths: str, context: str | None) -> None:
    if not _any_exists(paths):
        raise FileNotFoundError(f"not in a pod, and there is no kubeconfig at {paths}")
    loader = await load_kube_config(
        config_file=paths,
        context=context,
        client_configuration=configuration,
        persist_config=False,
    )
    if hasattr(loader, "exec_plugin_expiry"):

        async def renew(configuration: Any) -> None:
            # Runs before every request; calls the plugin only when the token is expiring.
            await loader.load_from_exec_plugin()
            configuration.api_key["BearerToken"] = loader.token

        configuration.refresh_api_key_hook = renew


def _retry_wait(method: str, error: ApiError, retries: int) -> float | None:
    """Seconds after which to try again; None if that is not ours to decide."""
    if isinstance(error, ConnectionFailed):
        # Not after a timeout: the caller has waited long enough.
        if method != "GET" or error.reason == "Timeout":
            return None
        return 0.1 * 2.0**retries * (1 + random.random())  # noqa: S311
    if error.retry_after is None or error.retry_after > _MAX_RETRY_WAIT:
        return None
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        return error.retry_after
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR and method == "GET":
        return error.retry_after
    return None


# An exception of aiohttp may refer to the request and its headers, so it is told in
# words and not chained.


def _failed(method: str, path: str, error: Exception) -> ConnectionFailed:
    return ConnectionFailed(f"{method} {path}: {type(error).__name__}: {error}")


def _timed_out(method: str, path: str) -> ConnectionFailed:
    return ConnectionFailed(f"{method} {path}: no answer in time", "Timeout")


async def _body_of(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.read()
    except TimeoutError:
        raise _timed_out(response.method, response.url.path) from None
    except (aiohttp.ClientError, OSError) as error:
        raise _failed(response.method, response.url.path, error) from None


def _decode(content: bytes, method: str, path: str) -> Object:
    try:
        obj = json.loads(content)
    except ValueError:
        obj = None
    if not isinstance(obj, dict):
        raise ConnectionFailed(f"{method} {path}: the answer is not a JSON object")
    return obj


async def _events(response: aiohttp.ClientResponse) -> AsyncGenerator[WatchEvent]:
    try:
        async with aclosing(_lines(response.content)) as lines:
            async for line in lines:
                yield _decode_event(line)
    except TimeoutError:
        raise _timed_out("WATCH", response.url.path) from None
    except (aiohttp.ClientError, OSError) as error:
        raise _failed("WATCH", response.url.path, error) from None


def _decode_event(line: bytes) -> WatchEvent:
    match json.loads(line):
        case {"type": str(type_), "object": dict(obj)}:
            return WatchEvent(type_, obj)
    # Without its content, which may be a Secret's.
    raise ValueError("a line that is JSON and not a watch event")


async def _lines(content: aiohttp.StreamReader) -> AsyncGenerator[bytes]:
    """Lines up to MAX_WATCH_LINE, in time linear in their length."""
    parts: list[bytes] = []
    size = 0
    async for chunk in content.iter_any():
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = b"".join([*parts, end])
            parts, size = [], 0
            if line:
                yield line
        parts.append(rest)
        size += len(rest)
        if size > MAX_WATCH_LINE:
            raise ValueError(f"a line of more than {MAX_WATCH_LINE} bytes")
    if size:
        raise aiohttp.ClientPayloadError("the stream ended in the middle of a line")


def _keep_alive(response: aiohttp.ClientResponse) -> None:
    """Have the kernel probe an idle watch, so that a vanished peer is noticed in a minute.

    Between events a watch is silent in both directions, and silence is all that is heard
    from a host that lost its power. The probes' defaults would let two hours pass.
    """
    transport = response.connection.transport if response.connection else None
    sock = transport.get_extra_info("socket") if transport else None
    if sock is None or not hasattr(socket, "TCP_KEEPIDLE"):
        return  # Over already, or not Linux; the watch's own deadline remains.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
