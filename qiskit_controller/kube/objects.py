"""Kubernetes objects as this package handles them: plain dicts, decoded once.

Generated model classes cost several times the memory and the time of the JSON they
were made from, and a cache holds thousands. So an object is what the API server sent,
and this module is the small vocabulary for talking about it: its key in a cache, its
UID, its version.

Objects in a cache are shared by everyone who reads it. They are read-only by
convention, as in client-go; :func:`freeze` turns the convention into an error at the
line that breaks it, for tests and for debugging.
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn

Object = dict[str, Any]


def key_of(obj: Object) -> str:
    """``namespace/name``, or just ``name`` for what lives in no namespace."""
    metadata = obj["metadata"]
    namespace = metadata.get("namespace")
    name: str = metadata["name"]
    return f"{namespace}/{name}" if namespace else name


def uid_of(obj: Object) -> str:
    """The UID, which tells an object from a later one of the same name."""
    uid: str = obj["metadata"].get("uid", "")
    return uid


def resource_version_of(obj: Object) -> str:
    """The opaque version: equal means unchanged, and nothing else may be read into it."""
    version: str = obj["metadata"].get("resourceVersion", "")
    return version


def _refuse(*_args: object, **_kwargs: object) -> NoReturn:
    raise TypeError("this object belongs to a cache: take a copy.deepcopy() to change it")


class _FrozenDict(dict[str, Any]):
    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return {key: copy.deepcopy(value, memo) for key, value in self.items()}


class _FrozenList(list[Any]):
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = _refuse
    remove = reverse = sort = _refuse

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return [copy.deepcopy(value, memo) for value in self]


def freeze(value: Any) -> Any:
    """A deep copy of a decoded JSON value that raises TypeError when it is changed.

    It still is a dict (or a list): it compares, iterates and serialises as before, and
    `copy.deepcopy` of it is an ordinary value again.
    """
    if isinstance(value, dict):
        return _FrozenDict({key: freeze(item) for key, item in value.items()})
    if isinstance(value, list):
        return _FrozenList([freeze(item) for item in value])
    return value
