"""The store by itself; what needs a server is in test_reflector.py."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from qiskit_controller.kube.informer import Store
from qiskit_controller.kube.objects import key_of


def obj(name: str, namespace: str | None = "ns", **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace, "labels": labels}}


def test_keys() -> None:
    assert key_of(obj("a")) == "ns/a"
    assert key_of(obj("a", None)) == "a"


def test_indexes_follow_changes() -> None:
    store = Store()
    store.add_indexer("color", lambda o: o["metadata"]["labels"].values())
    store.put(obj("a", a="red", b="blue"))
    store.put(obj("b", a="red"))
    assert [key_of(o) for o in store.by_index("color", "red")] == ["ns/a", "ns/b"]
    store.put(obj("a", a="green"))
    assert [key_of(o) for o in store.by_index("color", "red")] == ["ns/b"]
    assert [key_of(o) for o in store.by_index("color", "green")] == ["ns/a"]
    assert store.by_index("color", "blue") == []
    store.pop("ns/b")
    assert store.by_index("color", "red") == []


def test_an_index_added_late_knows_what_is_there() -> None:
    store = Store()
    store.put(obj("a"))
    store.add_indexer("name", lambda o: [o["metadata"]["name"]])
    assert len(store.by_index("name", "a")) == 1
    with pytest.raises(ValueError, match="already"):
        store.add_indexer("name", lambda o: [])


def test_an_object_that_an_index_cannot_file_is_stored_all_the_same() -> None:
    store = Store()
    store.add_indexer("spec", lambda o: [o["spec"]["ref"]])
    with capture_logs() as logs:
        store.put(obj("a"))
    assert store.get("ns/a") is not None
    assert logs[0]["event"] == "index function failed"


def test_lists_by_namespace() -> None:
    store = Store()
    for name, namespace in [("a", "one"), ("b", "two"), ("c", "one"), ("d", None)]:
        store.put(obj(name, namespace))
    assert [key_of(o) for o in store.list("one")] == ["one/a", "one/c"]
    assert len(store.list()) == len(store) == 4


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.none() | st.dictionaries(st.sampled_from("xy"), st.sampled_from("123"), max_size=2),
        )
    )
)
def test_an_index_is_what_a_scan_would_find(
    changes: list[tuple[str, dict[str, str] | None]],
) -> None:
    store = Store()
    store.add_indexer("value", lambda o: o["metadata"]["labels"].values())
    for name, labels in changes:
        if labels is None:
            store.pop(f"ns/{name}")
        else:
            store.put(obj(name, **labels))
    for value in "123":
        scan = {key_of(o) for o in store.list() if value in o["metadata"]["labels"].values()}
        assert {key_of(o) for o in store.by_index("value", value)} == scan
