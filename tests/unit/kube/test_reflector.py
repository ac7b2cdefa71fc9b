"""Reflector and informer against a server that misbehaves in every way the test says."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
from structlog.testing import capture_logs

from qiskit_controller.kube.client import CONFIGMAPS, Client
from qiskit_controller.kube.informer import Informer
from qiskit_controller.kube.reflector import Tuning

FAST = Tuning(watch_seconds=(60, 60), backoff_base=0.001, backoff_cap=0.004)


class Changes(list[tuple[Any, ...]]):
    """A handler that keeps what it is told, by name and resourceVersion."""

    def on_add(self, obj: Any, is_initial: bool) -> None:
        self.append(("initial" if is_initial else "add", *_short(obj)))

    def on_update(self, old: Any, new: Any) -> None:
        self.append(("update", *_short(new)))

    def on_delete(self, obj: Any) -> None:
        self.append(("delete", *_short(obj)))


def _short(obj: Any) -> tuple[str, str]:
    return obj["metadata"]["name"], obj["metadata"]["resourceVersion"]


@pytest.fixture
def changes() -> Changes:
    return Changes()


@pytest.fixture
def informer(client: Client, changes: Changes) -> Informer:
    informer = Informer(client, CONFIGMAPS, tuning=FAST)
    informer.add_handler(changes)
    return informer


async def test_list_then_watch(
    api: Any, informer: Informer, changes: Changes, running: Any, eventually: Any
) -> None:
    api.lists.append(api.page(api.configmap("a", 5), version=10))
    api.watches.append(
        api.stream(
            api.line("ADDED", api.configmap("b", 11)),
            api.line("MODIFIED", api.configmap("a", 12)),
            api.line("DELETED", api.configmap("b", 13)),
            then="hang",
        )
    )
    assert not informer.has_synced
    running(informer.run())
    await informer.wait_synced(5)
    await eventually(lambda: len(changes) == 4)
    assert changes == [
        ("initial", "a", "5"), ("add", "b", "11"), ("update", "a", "12"), ("delete", "b", "13"),
    ]  # fmt: skip
    assert [_short(obj) for obj in informer.list()] == [("a", "12")]
    (query,) = api.queries(watch=True)
    assert query["resourceVersion"] == "10"
    assert query["allowWatchBookmarks"] == "true"
    assert query["timeoutSeconds"] == "60"


async def test_pages(api: Any, informer: Informer, running: Any) -> None:
    api.lists.append(api.page(api.configmap("a"), version=10, token="t1"))
    api.lists.append(api.page(api.configmap("b"), version=10, token="t2"))
    api.lists.append(api.page(api.configmap("c"), version=10))
    running(informer.run())
    await informer.wait_synced(5)
    assert len(informer) == 3
    queries = api.queries(watch=False)
    assert [query.get("continue") for query in queries] == [None, "t1", "t2"]
    assert {query["limit"] for query in queries} == {"500"}


async def test_expired_continue_token_lists_in_one_piece(
    api: Any, informer: Informer, changes: Changes, running: Any
) -> None:
    api.lists.append(api.page(api.configmap("a"), version=10, token="t1"))
    api.lists.append(api.error(410, "Expired"))
    api.lists.append(api.page(api.configmap("b"), version=20))
    running(informer.run())
    await informer.wait_synced(5)
    assert [name for _, name, _ in changes] == ["b"]
    assert "limit" not in api.queries(watch=False)[2]
    assert "continue" not in api.queries(watch=False)[2]


async def test_gone_at_watch_start_lists_again(
    api: Any, informer: Informer, changes: Changes, running: Any, eventually: Any
) -> None:
    api.lists.append(api.page(api.configmap("a"), version=10))
    api.watches.append(api.error(410, "Expired"))
    api.lists.append(api.page(api.configmap("b"), version=20))
    running(informer.run())
    await eventually(lambda: len(changes) == 3)
    assert changes == [("initial", "a", "1"), ("delete", "a", "1"), ("add", "b", "1")]
    await eventually(lambda: len(api.queries(watch=True)) == 2)
    assert api.queries(watch=True)[1]["resourceVersion"] == "20"


async def test_gone_in_a_watch_emits_the_deletions_it_missed(
    api: Any, informer: Informer, changes: Changes, running: Any, eventually: Any
) -> None:
    api.lists.append(api.page(*(api.configmap(n) for n in "abc"), version=10))
    api.watches.append(
        api.stream(
            api.line("MODIFIED", api.configmap("a", 11)),
            api.line("ERROR", api.status(410, "Expired")),
        )
    )
    api.lists.append(api.page(api.configmap("a", 11), api.configmap("d", 25), version=30))
    running(informer.run())
    await eventually(lambda: ("add", "d", "25") in changes)
    # "a" is as it was seen last, and is not told again.
    assert changes[3:] == [
        ("update", "a", "11"), ("delete", "b", "1"), ("delete", "c", "1"), ("add", "d", "25"),
    ]  # fmt: skip


async def test_recreated_while_nobody_watched_is_deleted_and_added(
    api: Any, informer: Informer, changes: Changes, running: Any, eventually: Any
) -> None:
    other = api.configmap("a", 20)
    other["metadata"]["uid"] = "another"
    api.lists.append(api.page(api.configmap("a", 5), version=10))
    api.watches.append(api.error(410, "Expired"))
    api.lists.append(api.page(other, version=30))
    running(informer.run())
    await eventually(lambda: len(changes) == 3)
    assert changes[1:] == [("delete", "a", "5"), ("add", "a", "20")]


async def test_a_connection_dropped_in_a_line_resumes(
    api: Any, informer: Informer, changes: Changes, running: Any, eventually: Any
) -> None:
    whole = api.line("ADDED", api.configmap("b", 12))
    api.lists.append(api.page(version=10))
    api.watches.append(
        api.stream(api.line("ADDED", api.configmap("a", 11)), whole[: len(whole) // 2], then="drop")
    )
    api.watches.append(api.stream(whole, then="hang"))
    running(informer.run())
    await eventually(lambda: len(changes) == 2)
    assert [query["resourceVersion"] for query in api.queries(watch=True)] == ["10", "11"]
    assert len(api.queries(watch=False)) == 1


async def test_a_stream_that_ends_in_a_line_resumes(
    api: Any, informer: Informer, changes: Changes, running: Any, eventually: Any
) -> None:
    whole = api.line("ADDED", api.configmap("a", 11))
    api.lists.append(api.page(version=10))
    api.watches.append(api.stream(whole[:-9]))
    api.watches.append(api.stream(whole[:30], whole[30:], then="hang"))
    running(informer.run())
    await eventually(lambda: len(changes) == 1)
    assert len(api.queries(watch=False)) == 1


async def test_a_silent_server_is_given_up_at_the_deadline(
    api: Any, client: Client, changes: Changes, running: Any, eventually: Any
) -> None:
    tuning = Tuning(
        watch_seconds=(0.05, 0.05), grace_seconds=0.05, backoff_base=0.001, backoff_cap=0.004
    )
    informer = Informer(client, CONFIGMAPS, tuning=tuning)
    api.lists.append(api.page(api.configmap("a"), version=10))
    api.watches.append(api.stream(api.bookmark(17), then="hang"))
    running(informer.run())
    await eventually(lambda: len(api.queries(watch=True)) >= 2)
    assert api.queries(watch=True)[1]["resourceVersion"] == "17"
    assert len(api.queries(watch=False)) == 1


async def test_bookmarks_advance_and_tell_nobody(
    api: Any, informer: Informer, changes: Changes, running: Any, eventually: Any
) -> None:
    api.lists.append(api.page(version=10))
    api.watches.append(api.stream(api.bookmark(40)))
    running(informer.run())
    await eventually(lambda: len(api.queries(watch=True)) == 2)
    assert api.queries(watch=True)[1]["resourceVersion"] == "40"
    assert changes == []


@pytest.mark.parametrize("size", [2 * 2**20, 9 * 2**20])
async def test_large_objects(
    api: Any, informer: Informer, running: Any, eventually: Any, size: int
) -> None:
    api.lists.append(api.page(version=10))
    api.watches.append(
        api.stream(
            api.line("ADDED", api.configmap("big", 11, blob="x" * size)),
            api.line("ADDED", api.configmap("small", 12)),
            then="hang",
        )
    )
    running(informer.run())
    await eventually(lambda: len(informer) == 2)
    big = informer.get("ns/big")
    assert big is not None
    assert len(big["data"]["blob"]) == size


@pytest.mark.parametrize(
    "nonsense",
    [
        b"{not json\n",
        b'"a string"\n',
        b'{"type": "ADDED"}\n',
        b'{"type": "ADDED", "object": {}}\n',
        b'{"type": "SURPRISE", "object": {"metadata": {}}}\n',
        b"\xff\xfe\n",
        pytest.param(b"x" * 5000, id="too-long"),
    ],
)
async def test_nonsense_on_a_watch_lists_again(
    api: Any,
    informer: Informer,
    changes: Changes,
    running: Any,
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
    nonsense: bytes,
) -> None:
    monkeypatch.setattr("qiskit_controller.kube.client.MAX_WATCH_LINE", 4096)
    api.lists.append(api.page(api.configmap("a"), version=10))
    api.watches.append(api.stream(nonsense, then="hang"))
    api.lists.append(api.page(api.configmap("b"), version=20))
    with capture_logs() as logs:
        running(informer.run())
        await eventually(lambda: ("add", "b", "1") in changes)
    assert ("delete", "a", "1") in changes
    assert any(entry["log_level"] == "error" for entry in logs)


@pytest.mark.parametrize("code", [500, 502, 503, 429])
async def test_server_errors_at_watch_start_resume_where_it_was(
    api: Any, informer: Informer, running: Any, eventually: Any, code: int
) -> None:
    api.lists.append(api.page(version=10))
    api.watches.extend([api.plain(code), api.error(code, "Whatever"), api.stream(then="hang")])
    running(informer.run())
    await eventually(lambda: len(api.queries(watch=True)) == 3)
    assert {query["resourceVersion"] for query in api.queries(watch=True)} == {"10"}
    assert len(api.queries(watch=False)) == 1


@pytest.mark.parametrize(("code", "lists"), [(500, 2), (504, 2), (429, 1)])
async def test_an_error_in_a_watch(
    api: Any, informer: Informer, running: Any, eventually: Any, code: int, lists: int
) -> None:
    """Where the server failed on an object it will fail again, unless it was just busy."""
    api.lists.append(api.page(version=10))
    api.watches.append(api.stream(api.line("ERROR", api.status(code, "Whatever"))))
    api.lists.append(api.page(version=20))
    running(informer.run())
    await eventually(lambda: len(api.queries(watch=True)) == 2)
    assert len(api.queries(watch=False)) == lists


@pytest.mark.parametrize("step", [(504, "Timeout"), (400, "BadRequest")])
async def test_a_resource_version_the_server_cannot_make_sense_of(
    api: Any, informer: Informer, running: Any, eventually: Any, step: tuple[int, str]
) -> None:
    """As after etcd was restored from a backup, with 504 "too large resource version"."""
    api.lists.append(api.page(version=1000))
    api.watches.append(api.error(*step))
    api.lists.append(api.page(version=7))
    running(informer.run())
    await eventually(lambda: len(api.queries(watch=True)) == 2)
    assert api.queries(watch=True)[1]["resourceVersion"] == "7"


async def test_a_failed_list_is_retried(api: Any, informer: Informer, running: Any) -> None:
    api.lists.extend([api.error(500, "InternalError"), api.plain(503), api.page(version=1)])
    running(informer.run())
    await informer.wait_synced(5)


async def test_delays_grow_and_start_over_after_progress(
    api: Any, client: Client, running: Any, eventually: Any, no_sleep: Any
) -> None:
    slept = no_sleep("qiskit_controller.kube.reflector")
    informer = Informer(client, CONFIGMAPS, tuning=Tuning(watch_seconds=(60, 60)))
    api.lists.append(api.page(version=10))
    api.watches.extend([api.plain(500)] * 7)
    api.watches.append(api.stream(api.bookmark(11)))
    # Ends as soon as it began, without a word: a failure, not an orderly end.
    api.watches.extend([api.stream(), api.stream(then="hang")])
    running(informer.run())
    await eventually(lambda: len(api.queries(watch=True)) == 10)
    for delay, least in zip(slept, [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 0.8], strict=True):
        assert least <= delay <= 2 * least


async def test_metadata_only_asks_for_metadata_only(
    api: Any, client: Client, running: Any, eventually: Any
) -> None:
    informer = Informer(
        client, CONFIGMAPS, namespace="ns", label_selector="a=b", metadata_only=True, tuning=FAST
    )
    partial = {"kind": "PartialObjectMetadata", "metadata": api.configmap("a")["metadata"]}
    api.lists.append(api.page(partial, version=10))
    running(informer.run())
    await eventually(lambda: len(api.requests) == 2)
    list_, watch = api.requests
    assert "as=PartialObjectMetadataList;" in list_.headers["Accept"]
    assert "as=PartialObjectMetadata;" in watch.headers["Accept"]
    for request in api.requests:
        assert request.path == "/api/v1/namespaces/ns/configmaps"
        assert request.query["labelSelector"] == "a=b"
    obj = informer.get("ns/a")
    assert obj is not None
    assert (obj["apiVersion"], obj["kind"]) == ("v1", "ConfigMap")


async def test_managed_fields_are_dropped_and_transform_is_applied(
    api: Any, client: Client, running: Any
) -> None:
    def drop_data(obj: Any) -> Any:
        obj.pop("data")
        return obj

    informer = Informer(client, CONFIGMAPS, transform=drop_data, tuning=FAST)
    obj = api.configmap("a", k="v")
    obj["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    api.lists.append(api.page(obj, version=10))
    running(informer.run())
    await informer.wait_synced(5)
    cached = informer.get("ns/a")
    assert cached is not None
    assert "data" not in cached
    assert "managedFields" not in cached["metadata"]


async def test_a_handler_that_raises_stops_nothing(
    api: Any, client: Client, changes: Changes, running: Any
) -> None:
    class Broken(Changes):
        def on_add(self, obj: Any, is_initial: bool) -> None:
            raise RuntimeError("a defect")

    informer = Informer(client, CONFIGMAPS, tuning=FAST)
    informer.add_handler(Broken())
    informer.add_handler(changes)
    api.lists.append(api.page(api.configmap("a"), api.configmap("b"), version=10))
    with capture_logs() as logs:
        running(informer.run())
        await informer.wait_synced(5)
    assert len(changes) == 2
    assert sum(entry["event"] == "event handler failed" for entry in logs) == 2


async def test_a_late_handler_is_told_what_is_there(
    api: Any, informer: Informer, running: Any
) -> None:
    api.lists.append(api.page(api.configmap("a"), version=10))
    running(informer.run())
    await informer.wait_synced(5)
    late = Changes()
    informer.add_handler(late)
    assert late == [("initial", "a", "1")]


async def test_resync_reminds(
    api: Any, client: Client, changes: Changes, running: Any, eventually: Any
) -> None:
    informer = Informer(client, CONFIGMAPS, resync_period=0.02, tuning=FAST)
    informer.add_handler(changes)
    api.lists.append(api.page(api.configmap("a"), version=10))
    running(informer.run())
    await eventually(lambda: changes.count(("update", "a", "1")) >= 2)


async def test_wait_synced_gives_up(informer: Informer) -> None:
    with pytest.raises(TimeoutError):
        await informer.wait_synced(0.01)


async def test_a_frozen_cache_tells_who_writes_into_it(
    api: Any, client: Client, running: Any
) -> None:
    informer = Informer(client, CONFIGMAPS, freeze=True, tuning=FAST)
    api.lists.append(api.page(api.configmap("a", k="v"), version=10))
    running(informer.run())
    await informer.wait_synced(5)
    obj = informer.get("ns/a")
    assert obj is not None
    with pytest.raises(TypeError, match="belongs to a cache"):
        obj["data"]["k"] = "w"
    mine = copy.deepcopy(obj)
    mine["data"]["k"] = "w"
    assert obj["data"]["k"] == "v"


async def test_cancelling_ends_it_and_closes_the_watch(
    api: Any, informer: Informer, client: Client, eventually: Any
) -> None:
    api.lists.append(api.page(version=10))
    task = asyncio.create_task(informer.run())
    await eventually(lambda: len(api.queries(watch=True)) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not client._api.rest_client.pool_manager.connector._acquired
