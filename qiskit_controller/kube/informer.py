"""A cache of one kind of object, kept current, indexed, and telling others of changes.

Three parts, each with one job: the :class:`Reflector` talks to the server,
the :class:`Store` holds the objects, and the :class:`Informer` sits between them and
tells its handlers what has changed.

    API server ──► Reflector ──► Informer ──► Store ◄── reconcilers read
                                    └───────► Handlers ──► work queues

Handlers run synchronously, in the order of the changes, after the store has taken the
change. They only put keys into queues: what they would otherwise do, they would do while
the cache stands still. An exception in one is logged and stops neither the informer nor
the other handlers.

Readers get the cached objects themselves, without a copy. **They are read-only**: take a
`copy.deepcopy` before changing one. With `freeze=True` a change raises TypeError.

The cache lags behind the server, and behind this process's own writes. Whoever reads it
has to be right anyway: child names are deterministic, so that creating one again meets
AlreadyExists, and writes that must not win a race carry a resourceVersion.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, Protocol

import structlog

from qiskit_controller.kube.client import Client
from qiskit_controller.kube.objects import Object, freeze, key_of, resource_version_of, uid_of
from qiskit_controller.kube.reflector import Reflector, ReflectorMetrics, Transform, Tuning
from qiskit_controller.kube.resources import Resource

log = structlog.get_logger(__name__)

IndexFunction = Callable[[Object], Iterable[str]]
"""The values under which an index files an object: none, one, or several."""

Objects = list[Object]
"""By a name of its own, for in a class with a method `list` that word means the method."""


class Handler(Protocol):
    """Told about every change, synchronously; enqueues keys and returns."""

    def on_add(self, obj: Object, is_initial: bool) -> None:
        """An object is new here; `is_initial` if it was there when the informer began."""

    def on_update(self, old: Object, new: Object) -> None:
        """An object changed, or did not (the same object twice) and this is a resync."""

    def on_delete(self, obj: Object) -> None:
        """An object is gone. This is the last state known, not always the last it had."""


class Store:
    """Objects by key, and by the values that index functions give them."""

    def __init__(self) -> None:
        self._objects: dict[str, Object] = {}
        self._functions: dict[str, IndexFunction] = {}
        # Index name -> value -> keys; dicts as ordered sets, so that results are stable.
        self._indexes: dict[str, dict[str, dict[str, None]]] = {}
        self.add_indexer("namespace", _namespace_of)

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: str) -> Object | None:
        """The object with that key. Read-only."""
        return self._objects.get(key)

    def list(self, namespace: str | None = None) -> Objects:
        """All objects, or those in one namespace. Read-only."""
        if namespace is None:
            return [*self._objects.values()]
        return self.by_index("namespace", namespace)

    def by_index(self, name: str, value: str) -> Objects:
        """The objects that index `name` files under `value`. Read-only."""
        return [self._objects[key] for key in self._indexes[name].get(value, ())]

    def add_indexer(self, name: str, function: IndexFunction) -> None:
        """Add an index; what is stored already is filed at once."""
        if name in self._functions:
            raise ValueError(f"there already is an index {name!r}")
        self._functions[name] = function
        self._indexes[name] = {}
        for key, obj in self._objects.items():
            self._file(name, key, obj)

    def put(self, obj: Object) -> Object | None:
        """Store `obj`; the one it replaced, if any."""
        key = key_of(obj)
        old = self.pop(key)
        self._objects[key] = obj
        for name in self._functions:
            self._file(name, key, obj)
        return old

    def pop(self, key: str) -> Object | None:
        """Forget the object with that key; the object, if it was there."""
        old = self._objects.pop(key, None)
        if old is not None:
            for name, index in self._indexes.items():
                for value in self._values(name, old):
                    keys = index.get(value, {})
                    keys.pop(key, None)
                    if not keys:
                        index.pop(value, None)
        return old

    def _file(self, name: str, key: str, obj: Object) -> None:
        index = self._indexes[name]
        for value in self._values(name, obj):
            index.setdefault(value, {})[key] = None

    def _values(self, name: str, obj: Object) -> Iterable[str]:
        try:
            return set(self._functions[name](obj))
        except Exception:
            # Objects come from users, and index functions trust them too readily. One
            # that an index cannot file must not keep the others out of the cache.
            log.exception("index function failed", index=name, key=key_of(obj))
            return ()


def _namespace_of(obj: Object) -> Iterable[str]:
    namespace = obj["metadata"].get("namespace")
    return [namespace] if namespace else []


class Informer:
    """A :class:`Store` that follows the API server; see the module's description."""

    def __init__(
        self,
        client: Client,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        metadata_only: bool = False,
        transform: Transform | None = None,
        resync_period: float | None = None,
        freeze: bool = False,
        tuning: Tuning | None = None,
    ) -> None:
        self.resource = resource
        self._store = Store()
        self._handlers: list[Handler] = []
        self._resync_period = resync_period
        self._freeze = freeze
        self._synced = asyncio.Event()
        self._reflector = Reflector(
            client,
            resource,
            self,
            namespace=namespace,
            label_selector=label_selector,
            field_selector=field_selector,
            metadata_only=metadata_only,
            transform=transform,
            tuning=tuning,
        )

    # -- for readers ----------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._store)

    def get(self, key: str) -> Object | None:
        """The object with that key. Read-only."""
        return self._store.get(key)

    def list(self, namespace: str | None = None) -> Objects:
        """All objects, or those in one namespace. Read-only."""
        return self._store.list(namespace)

    def by_index(self, name: str, value: str) -> Objects:
        """The objects that index `name` files under `value`. Read-only."""
        return self._store.by_index(name, value)

    def add_indexer(self, name: str, function: IndexFunction) -> None:
        """Add an index to read with `by_index`."""
        self._store.add_indexer(name, function)

    def add_handler(self, handler: Handler) -> None:
        """Tell `handler` of all changes from now on, and of what is there already."""
        self._handlers.append(handler)
        for obj in self._store.list():
            self._call(handler.on_add, obj, True)

    @property
    def has_synced(self) -> bool:
        """Whether the first list is in the store and the handlers know of it."""
        return self._synced.is_set()

    async def wait_synced(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until the informer has synced; raises TimeoutError, which names the collection."""
        try:
            async with asyncio.timeout(timeout):
                await self._synced.wait()
        except TimeoutError:
            what = f"{self.resource.plural}.{self.resource.group}".rstrip(".")
            raise TimeoutError(
                f"{what} could not be listed within {timeout:g} s; the log says why. Of a kind of "
                "our own, is its CustomResourceDefinition installed?"
            ) from None

    @property
    def seconds_since_contact(self) -> float:
        """How long ago the server last said anything about this collection."""
        return self._reflector.seconds_since_contact

    @property
    def metrics(self) -> ReflectorMetrics:
        """Told about lists, watches and events; set it before `run`."""
        return self._reflector.metrics

    @metrics.setter
    def metrics(self, metrics: ReflectorMetrics) -> None:
        self._reflector.metrics = metrics

    async def run(self) -> None:
        """Follow the server until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reflector.run())
            if self._resync_period is not None:
                tasks.create_task(self._resync(self._resync_period))

    # -- for the reflector (this is its Sink) ---------------------------------------

    def replace(self, objects: Objects) -> None:
        """Take a complete list; what it lacks was deleted while nobody watched."""
        listed = {key_of(obj) for obj in objects}
        for key in [key_of(obj) for obj in self._store.list()]:
            if key not in listed:
                self._forget(key)
        for obj in objects:
            old = self._store.get(key_of(obj))
            # Unchanged is the normal case after a gap, and no news to anybody.
            if old is None or resource_version_of(old) != resource_version_of(obj):
                self.upsert(obj)
        self._synced.set()

    def upsert(self, obj: Object) -> None:
        """Take a new or changed object."""
        if self._freeze:
            obj = freeze(obj)
        key = key_of(obj)
        old = self._store.get(key)
        if old is not None and uid_of(old) != uid_of(obj):
            # Another object under the same name: what the old one owned is orphaned,
            # which an update from one to the other would not tell.
            self._forget(key)
            old = None
        self._store.put(obj)
        for handler in self._handlers:
            if old is None:
                self._call(handler.on_add, obj, not self.has_synced)
            else:
                self._call(handler.on_update, old, obj)

    def remove(self, obj: Object) -> None:
        """Take the last state of a deleted object."""
        self._forget(key_of(obj), freeze(obj) if self._freeze else obj)

    # -- inside ---------------------------------------------------------------------

    def _forget(self, key: str, last_state: Object | None = None) -> None:
        cached = self._store.pop(key)
        if cached is not None:
            for handler in self._handlers:
                self._call(handler.on_delete, last_state or cached)

    async def _resync(self, period: float) -> NoReturn:
        """Remind the handlers of everything, as a net under missed or lost reactions."""
        while True:
            # Jittered, so that the informers of a process do not do it in one instant.
            await asyncio.sleep(period * random.uniform(0.9, 1.1))  # noqa: S311
            for obj in self._store.list():
                for handler in self._handlers:
                    self._call(handler.on_update, obj, obj)

    def _call(self, method: Callable[..., None], *args: Any) -> None:
        try:
            method(*args)
        except Exception:
            log.exception("event handler failed", resource=self.resource.plural)
